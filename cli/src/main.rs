//! The `noiommu` program: every subcommand lives in its own module, this file only tells them apart.

mod bench;
mod bind;
mod completions;
mod config;
mod conformance;
mod demo;
mod doctor;
mod guardian;
mod list;
mod man;
mod map;
mod nvme;
mod optin;
mod proof;
mod serve;
mod top;
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
    Bench(bench::Options),
    /// What `noiommu bench` starts to see how long a process takes to its first address
    #[command(name = noiommu_bench::kernel_calls::first::ARGUMENT, hide = true)]
    FirstAddress,
    /// Run a program written for /dev/iommu and VFIO, on a kernel without them
    Serve(serve::Options),
    /// List the PCI devices of this machine, and how each could be had
    List(list::Arguments),
    /// Take PCI devices from the kernel's drivers, for programs of one's own
    Bind(bind::BindArguments),
    /// Give them back as they were
    Unbind(bind::UnbindArguments),
    /// Drive an NVMe controller from user space: who it is, its blocks, how fast it is
    Nvme {
        #[command(subcommand)]
        command: nvme::Command,
    },
    /// Say what this machine and process lack for devices without an IOMMU, and what mends it
    Doctor(doctor::Options),
    Map(map::Options),
    Top(top::Options),
    Guardian(guardian::Options),
    /// Show which VFIO interfaces this kernel, or another, has for devices without an IOMMU
    Config(config::Arguments),
    /// Ask whoever answers for /dev/iommu and VFIO here what Linux 7.3 was asked, and compare
    Conformance(conformance::Options),
    /// Allow drivers of real devices without an IOMMU on this machine (unsafe; root; until restart)
    Enable(optin::Options),
    /// Take that back
    Disable(optin::Options),
    /// Print what a shell needs to complete the words of this program
    Completions(completions::Options),
    /// Write the manual pages
    #[command(hide = true)]
    Man(man::Options),
}

/// Exit code of work that could not be done.
const FAILED: u8 = 1;

/// Work that could not be done, as it is told.
struct Failure<'a> {
    /// What kind of trouble it is, a word for programs.
    kind: &'a str,
    /// The name of the error number, where there is one.
    errno: Option<&'a str>,
    /// What failed and why, a sentence.
    cause: &'a str,
    /// What helps.
    remedy: Option<&'a str>,
}

/// What went wrong in the library, for programs.
fn error_json(error: &noiommu::Error) -> serde_json::Value {
    json!({
        "kind": format!("{:?}", error.kind()),
        "errno": error.errno().name(),
        "cause": error.cause(),
        "remedy": error.remedy(),
    })
}

/// Says what went wrong in the library and what helps, in the form asked for.
fn failed(json: bool, error: &noiommu::Error) -> ExitCode {
    tell_failure(
        json,
        &Failure {
            kind: &format!("{:?}", error.kind()),
            errno: error.errno().name(),
            cause: error.cause(),
            remedy: error.remedy(),
        },
    )
}

/// Says what went wrong and what helps, in the form asked for.
fn tell_failure(json: bool, failure: &Failure<'_>) -> ExitCode {
    let Failure { kind, errno, cause, remedy } = failure;
    if json {
        let error = json!({ "kind": kind, "errno": errno, "cause": cause, "remedy": remedy });
        let _ = writeln!(std::io::stdout(), "{}", json!({ "error": error }));
    } else {
        let heading = ui::styled(AnsiColor::Red.on_default().bold(), "noiommu:");
        let mut out = anstream::stderr();
        let _ = writeln!(out, "{heading} {cause}");
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
        Room::Bench(options) => bench::run(&options),
        Room::FirstAddress => bench::first_address(),
        Room::Serve(options) => serve::run(&options),
        Room::List(arguments) => list::run(&arguments),
        Room::Bind(arguments) => bind::bind(&arguments),
        Room::Unbind(arguments) => bind::unbind(&arguments),
        Room::Nvme { command } => nvme::run(&command),
        Room::Doctor(options) => doctor::run(&options),
        Room::Map(options) => map::run(&options),
        Room::Top(options) => top::run(&options),
        Room::Guardian(options) => guardian::run(&options),
        Room::Config(arguments) => config::run(&arguments),
        Room::Conformance(options) => conformance::run(&options),
        Room::Enable(options) => optin::enable(&options),
        Room::Disable(options) => optin::disable(&options),
        Room::Completions(options) => completions::run(&options),
        Room::Man(options) => man::run(&options),
    }
}
