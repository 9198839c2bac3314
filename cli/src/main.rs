//! The `noiommu` program: every subcommand lives in its own module, this file only tells them apart.

mod demo;
mod optin;
mod proof;
mod ui;

use std::io::Write;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::{Parser, Subcommand};
use serde_json::json;

/// User-space DMA without an IOMMU, done right
///
/// Memory of a process is pinned for real, mapped into an IOAS, looked up as physical addresses, and given to a device.
/// Begin with `noiommu demo`.
#[derive(Debug, Parser)]
#[command(name = "noiommu", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    room: Room,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
enum Room {
    /// Show the main job: pin memory, map it, look it up, let a device move bytes through it
    Demo(demo::Options),
    /// Prove on this machine what the library relies on
    Proof {
        #[command(subcommand)]
        proof: proof::Command,
    },
    /// Allow drivers of real devices without an IOMMU on this machine (unsafe; root; until restart)
    Enable(optin::Options),
    /// Take that back
    Disable(optin::Options),
}

/// Exit code of work that could not be done.
const FAILED: u8 = 1;

/// Says what went wrong and what helps, in the form asked for.
fn failed(json: bool, error: &noiommu::Error) -> ExitCode {
    let remedy = error.remedy();
    if json {
        let error = json!({
            "kind": format!("{:?}", error.kind()),
            "errno": error.errno().name(),
            "cause": error.cause(),
            "remedy": remedy,
        });
        let _ = writeln!(std::io::stdout(), "{}", json!({ "error": error }));
    } else {
        let heading = ui::styled(AnsiColor::Red.on_default().bold(), "noiommu:");
        let mut out = anstream::stderr();
        let _ = writeln!(out, "{heading} {}", error.cause());
        if let Some(remedy) = remedy {
            let _ = writeln!(out, "  {} {remedy}", ui::styled(Style::new().bold(), "try:"));
        }
    }
    ExitCode::from(FAILED)
}

fn main() -> ExitCode {
    // What the kit has to say while it works (warnings, errors) goes to standard error.
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .init();
    match Cli::parse().room {
        Room::Demo(options) => demo::run(&options),
        Room::Proof { proof } => proof.execute(),
        Room::Enable(options) => optin::enable(&options),
        Room::Disable(options) => optin::disable(&options),
    }
}
