//! The `noiommu` program: every subcommand lives in its own module, this file only tells them apart.

mod proof;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// User-space DMA without an IOMMU, done right.
#[derive(Debug, Parser)]
#[command(name = "noiommu", version)]
struct Cli {
    /// What to do.
    #[command(subcommand)]
    room: Room,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
enum Room {
    /// Prove on this machine what the library relies on
    Proof {
        /// Which proof.
        #[command(subcommand)]
        proof: proof::Command,
    },
}

fn main() -> ExitCode {
    match Cli::parse().room {
        Room::Proof { proof } => proof.execute(&proof::RingPinner),
    }
}
