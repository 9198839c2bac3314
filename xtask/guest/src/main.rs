//! What runs inside the guests of `cargo xtask vm`: one subcommand for each scenario, and two that scripts use.

mod bench;
mod deprived;
mod disk;
mod matrix;
mod mixed;
mod nvme;
mod soak;
mod stock_edu;
mod stock_iommu;
mod virtio;
mod witness;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (scenario, rest) =
        arguments.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let outcome = match scenario {
        "bench" => bench::run(rest),
        "matrix" => matrix::run(rest),
        "mixed" => mixed::run(),
        "nvme" => nvme::run(rest),
        "soak" => soak::run(rest),
        "stock-edu" => stock_edu::run(),
        "stock-iommu" => stock_iommu::run(),
        "virtio" => virtio::run(rest),
        "without" => deprived::without(rest),
        "as" => deprived::as_user(rest),
        _ => {
            eprintln!(
                "usage: noiommu-guest bench|matrix|mixed|nvme|soak|stock-edu|stock-iommu|virtio|without CAPABILITIES PROGRAM|as USER PROGRAM"
            );
            return ExitCode::from(2);
        }
    };
    // A scenario that fails leaves its session without `done`, which by itself fails the run.
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("noiommu-guest {scenario}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
