//! The runner as a program of its own, which needs no file beside it in a guest.

use std::process::ExitCode;

use clap::Parser;

/// Asks the provider of /dev/iommu and VFIO what Linux 7.3 was asked, and compares the answers
#[derive(Debug, Parser)]
#[command(name = "noiommu-conformance", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: noiommu_conformance::Command,
}

fn main() -> ExitCode {
    Cli::parse().command.execute()
}
