//! What runs inside the guests of `cargo xtask vm`: one subcommand for each scenario.

mod mixed;
mod stock_edu;
mod stock_iommu;
mod witness;

use std::process::ExitCode;

fn main() -> ExitCode {
    let scenario = std::env::args().nth(1).unwrap_or_default();
    let run = match scenario.as_str() {
        "mixed" => mixed::run,
        "stock-edu" => stock_edu::run,
        "stock-iommu" => stock_iommu::run,
        _ => {
            eprintln!("usage: noiommu-guest mixed|stock-edu|stock-iommu");
            return ExitCode::from(2);
        }
    };
    // A scenario that fails leaves its session without `done`, which by itself fails the run.
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("noiommu-guest {scenario}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
