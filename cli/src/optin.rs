//! `noiommu enable` and `noiommu disable`: the administrator's opt-in to the unsafe mode.

use std::io::Write;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use noiommu::{Error, optin};
use serde_json::json;

use crate::ui::styled;

/// How the two are called.
#[derive(Debug, clap::Args)]
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
    let mut out = anstream::stdout();
    let _ = if options.json {
        writeln!(out, "{}", json!({ "enabled": optin::is_enabled(), "tainted": optin::is_tainted() }))
    } else {
        let note = styled(Style::new().dimmed(), note);
        writeln!(out, "The unsafe no-IOMMU mode is {done}\n  {note}")
    };
    ExitCode::SUCCESS
}
