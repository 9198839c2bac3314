//! `noiommu enable` and `noiommu disable`: the administrator's opt-in to the unsafe mode.

use std::io::Write;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use noiommu::{Error, optin};
use serde_json::json;

use crate::ui::styled;

/// How the two are called.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
There are two gates, and both are opened or closed: that of the engine (a file in /run/noiommu, root's alone), which counts
for devices that are reached through sysfs and uio_pci_generic, and the kernel's own
(/sys/module/vfio/parameters/enable_unsafe_noiommu_mode), where it has one; VFIO is loaded for it if it can be.

The kernel is marked as tainted (flag U) when a device is opened, by VFIO already when one is bound. The mark stays
until a restart.

Exit status: 0 done, 1 it could not be done, 2 wrong usage.")]
pub(crate) struct Options {
    /// Print the result as one JSON object, and nothing else
    #[arg(long)]
    json: bool,
}

/// Gives the opt-in.
pub(crate) fn enable(options: &Options) -> ExitCode {
    if !options.json {
        let warning = styled(AnsiColor::Yellow.on_default().bold(), optin::WARNING);
        let _ = writeln!(anstream::stderr(), "{warning}\n");
    }
    tell(options, optin::enable(), "enabled", "until the next restart; take it back with `noiommu disable`")
}

/// Takes the opt-in back.
pub(crate) fn disable(options: &Options) -> ExitCode {
    tell(
        options,
        optin::disable(),
        "disabled",
        "devices that are open stay open; the taint stays until a restart",
    )
}

fn tell(options: &Options, outcome: Result<(), Error>, done: &str, note: &str) -> ExitCode {
    if let Err(error) = outcome {
        return crate::failed(options.json, &error);
    }
    let kernel = optin::kernel_mode();
    let mut out = anstream::stdout();
    let _ = if options.json {
        let (enabled, tainted) = (optin::is_enabled(), optin::is_tainted());
        writeln!(out, "{}", json!({ "enabled": enabled, "kernel": kernel, "tainted": tainted }))
    } else {
        let kernel = match kernel {
            Some(true) => "the kernel's own mode is on: VFIO takes devices without an IOMMU",
            Some(false) => "the kernel's own mode is off; devices that vfio-pci has stay with it",
            None => {
                "the kernel has no such mode itself (no VFIO, or one that wants an IOMMU): the engine does without"
            }
        };
        let tainted = if optin::is_tainted() {
            "the kernel is tainted (U)"
        } else {
            "the kernel is not tainted (U) yet"
        };
        let notes = [note, kernel, tainted].map(|text| styled(Style::new().dimmed(), text));
        writeln!(out, "The unsafe no-IOMMU mode is {done}\n  {}", notes.join("\n  "))
    };
    ExitCode::SUCCESS
}
