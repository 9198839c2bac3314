//! `noiommu doctor`: whether this machine and this process can drive devices without an IOMMU, and what mends what is missing.
//!
//! [`facts`] looks, [`checks`] judges, [`render`] tells.

mod checks;
mod facts;
mod render;

use std::path::Path;
use std::process::ExitCode;

use crate::ui::{print_lines, width};
use checks::Check;
use facts::{Facts, OwnProcess, Process as _, Rights};

/// How it is called.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Nothing is changed. One page is pinned for a moment, to see that it works. Run it as the program that will drive devices
is run - the same user, container, unit - since capabilities and limits are those of a process.

Each check is ok, a note (it works, but could be better), a problem, or `-` (no concern of this machine). For notes and
problems a line is told that mends it, for a root shell. One that begins with `#` cannot be typed there: it is a
boot parameter, a setting of the firmware, or one outside of the container.

Exit codes:
  0  no problem; there may be notes
  1  problems
  2  wrong arguments

Examples:
  noiommu doctor
  noiommu doctor --device 0000:00:04.0             what would serve this device, and what is in the way
  noiommu doctor --json | jq -r '.checks[] | select(.status == \"problem\") | .remedy'")]
pub(crate) struct Options {
    /// Print the result as one JSON object, and nothing else
    #[arg(long)]
    json: bool,
    /// Look at this PCI device too; can be given more than once
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    device: Vec<String>,
}

/// An address as sysfs writes it; the domain may be left out.
fn parse_address(text: &str) -> Result<String, String> {
    let full = if text.matches(':').count() == 1 { format!("0000:{text}") } else { text.to_owned() };
    let shape = full.bytes().map(|byte| if byte.is_ascii_hexdigit() { b'x' } else { byte });
    if shape.eq(*b"xxxx:xx:xx.x") {
        Ok(full.to_ascii_lowercase())
    } else {
        Err("write it as lspci does: 0000:00:04.0".to_owned())
    }
}

/// Looks, and tells.
pub(crate) fn run(options: &Options) -> ExitCode {
    let facts = Facts::read(Path::new("/"), &OwnProcess);
    let mut all = checks::of_machine(&facts);
    for address in &options.device {
        all.extend(checks::of_device(&facts, address));
    }
    if options.json {
        print_lines(&[render::json(&all)]);
    } else {
        print_lines(&render::lines(&all, width()));
    }
    if render::problems(&all) == 0 { ExitCode::SUCCESS } else { ExitCode::from(crate::FAILED) }
}

/// What keeps this process from opening devices, whichever they are.
pub(crate) fn in_the_way() -> Option<Check> {
    let rights = Rights::read(Path::new("/"), OwnProcess.program());
    Some(checks::may_drive(&rights)).filter(Check::is_problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(parse_address("00:04.0").as_deref(), Ok("0000:00:04.0"));
        assert_eq!(parse_address("0001:0A:1f.7").as_deref(), Ok("0001:0a:1f.7"));
        for wrong in ["", "4", "00:04", "0000:00:04.0/..", "../../../../x"] {
            assert!(parse_address(wrong).is_err(), "{wrong}");
        }
    }
}
