//! `noiommu map`: how contiguous memory is in physical space, drawn.

mod blocks;
mod class;
mod figures;
mod grid;
mod json;
mod render;
mod subject;
mod svg;

use std::path::PathBuf;
use std::process::ExitCode;

use noiommu::Contiguity;

use self::subject::Subject;
use crate::ui::{parse_bytes, print_lines};
use crate::{Failure, tell_failure};

/// Draw how contiguous the memory of a process, or of a fresh buffer, is in physical space
///
/// What a device without an IOMMU is given are physical addresses: each run of contiguous memory is one entry in its list.
/// Without PID it is this program's own memory.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A process is looked at while it goes on: what is drawn was so at a moment. The memory of a buffer is pinned while it is
looked at. Where memory lies only root is told (CAP_SYS_ADMIN; for other processes CAP_SYS_PTRACE, too); without that a buffer
is one of simulated memory, scattered on purpose, and it is said so. Registers of devices are left out.

Examples:
  noiommu map --buffer 256M                     what a driver gets: huge pages where there are some
  noiommu map --buffer 256M --contiguity pages --svg pages.svg
  sudo noiommu map 1234                         all of a process
  sudo noiommu map 1234 --range 7f0000000000-7f0010000000
  sudo noiommu map 1234 --json | jq .share_in_runs_of_2_mib")]
pub(crate) struct Options {
    /// The process
    #[arg(value_name = "PID", conflicts_with = "buffer")]
    process: Option<u32>,
    /// Only this range of its addresses, hexadecimal, as in /proc/PID/maps
    #[arg(long, value_name = "START-END", value_parser = parse_range, conflicts_with = "buffer")]
    range: Option<(u64, u64)>,
    /// A fresh buffer of this size, as drivers get it: 64K, 8M, 1G
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    buffer: Option<u64>,
    /// How contiguous the buffer shall be
    #[arg(long, value_name = "HOW", default_value = "best", requires = "buffer")]
    contiguity: Wanted,
    /// Take simulated memory for the buffer, also as root
    #[arg(long, requires = "buffer")]
    simulated: bool,
    /// Draw a picture into this file, too
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print the figures as one JSON object, and nothing else
    #[arg(long)]
    json: bool,
    /// With every run in it
    #[arg(long, requires = "json")]
    runs: bool,
}

/// A [`Contiguity`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Wanted {
    /// Single pages
    Pages,
    /// As contiguous as the machine offers
    Best,
    /// Huge pages, or nothing
    Huge,
}

impl From<Wanted> for Contiguity {
    fn from(wanted: Wanted) -> Self {
        match wanted {
            Wanted::Pages => Self::Pages,
            Wanted::Best => Self::Best,
            Wanted::Huge => Self::Huge,
        }
    }
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok();
    let range = text.split_once('-').and_then(|(start, end)| Some((number(start)?, number(end)?)));
    range
        .filter(|(start, end)| start < end)
        .ok_or_else(|| "write START-END, as in 7f0000000000-7f0000200000".to_owned())
}

/// Looks, and draws.
pub(crate) fn run(options: &Options) -> ExitCode {
    let subject = match subject(options) {
        Ok(subject) => subject,
        Err(error) => return crate::failed(options.json, &error),
    };
    if let Some(path) = &options.svg
        && let Err(error) = std::fs::write(path, svg::picture(&subject))
    {
        let cause = format!("writing {}: {error}", path.display());
        let remedy = Some("name a file in a directory that is there and may be written to");
        tell_failure(options.json, &Failure { kind: "System", errno: None, cause: &cause, remedy });
        return ExitCode::from(crate::FAILED);
    }
    if options.json {
        print_lines(&[json::object(&subject, options.runs)]);
    } else {
        print_lines(&render::lines(&subject));
        if let Some(path) = &options.svg {
            print_lines(&[format!("\nDrawn: {}", path.display())]);
        }
    }
    ExitCode::SUCCESS
}

fn subject(options: &Options) -> noiommu::Result<Subject> {
    match options.buffer {
        Some(size) => Subject::buffer(size, options.contiguity.into(), options.simulated),
        None => Subject::process(options.process, options.range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(parse_range("1000-0x2000"), Ok((0x1000, 0x2000)));
        for wrong in ["", "1000", "2000-1000", "1000-1000", "x-y", "-"] {
            assert!(parse_range(wrong).is_err(), "{wrong}");
        }
    }
}
