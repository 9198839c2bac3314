//! What runs inside the guests of `cargo xtask vm`: one subcommand for each scenario.

mod matrix;
mod mixed;
mod stock_edu;
mod stock_iommu;
mod witness;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let scenario = words.next().unwrap_or_default();
    let words: Vec<String> = words.collect();
    // A scenario that fails leaves its session without `done`, which by itself fails the run.
    let ran = match scenario.as_str() {
        "matrix" => matrix::run(&words),
        "mixed" => mixed::run(),
        "stock-edu" => stock_edu::run(),
        "stock-iommu" => stock_iommu::run(),
        _ => {
            eprintln!("usage: noiommu-guest matrix|mixed|stock-edu|stock-iommu");
            return ExitCode::from(2);
        }
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("noiommu-guest {scenario}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
