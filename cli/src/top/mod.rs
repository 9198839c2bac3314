//! `noiommu top`: every process that uses the engine, as it changes.

mod json;
mod sample;
mod screen;
mod table;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use self::sample::Sample;
use self::screen::{Key, Screen};
use self::table::Sort;
use crate::ui::print_lines;

/// Show every process that uses the engine: what it maps, pins and does, as it changes
///
/// Each process publishes its figures in a page of shared memory, which is read without touching the process. As root all
/// processes are seen, else one's own.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Columns:
  CTX      contexts: opens of the engine, or of /dev/iommu where it is served
  AREAS    areas mapped; MAPPED: their bytes (memory that is mapped twice counts twice)
  PINNED   bytes that the engine's rings or sockets pin, in SLOTS buffers of these
  VMPIN    what the kernel counts as pinned in the process: with what its own iommufd pins, without AF_XDP
  TABLE    memory of page tables
  MAP/s, UNMAP/s, GET_PA/s   areas mapped and unmapped, and addresses told by IOMMU_IOAS_NOIOMMU_GET_PA
  DEV      devices open
  GUARDIAN who makes the devices quiet when the process dies: own (a process, `!`: in the same cgroup), service, DEAD

Not counted: addresses that a driver looks up through the kit, which store nothing; GET_PA of the kernel's own iommufd;
programs that use VFIO or iommufd without the engine.

Keys: q quit   s sort by the next column   r the other way round   p or space pause

Examples:
  noiommu top --once
  noiommu top --once --json | jq '.processes[] | {pid, pinned: .pins.bytes}'
  noiommu top --json --interval 5          one object a line, every five seconds")]
pub(crate) struct Options {
    /// Print it once, as a plain table, and end
    #[arg(long)]
    once: bool,
    /// Print JSON: one object, or with time one a line
    #[arg(long)]
    json: bool,
    /// Seconds between two looks, 0.1 at least
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    interval: Duration,
    /// What to sort by
    #[arg(long, value_name = "COLUMN", default_value = "pinned")]
    sort: Sort,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let wrong = || "write seconds, such as 0.5 or 2; at least 0.1, at most 3600".to_owned();
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    if (0.1..=3600.0).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(wrong()) }
}

/// Shows it, until it is told to end.
pub(crate) fn run(options: &Options) -> ExitCode {
    let shown = if !options.once && !options.json && std::io::stdout().is_terminal() {
        live(options)
    } else {
        print(options)
    };
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::failed(options.json, &error),
    }
}

/// Prints it, once or again and again.
fn print(options: &Options) -> noiommu::Result<()> {
    let mut before: Option<Sample> = None;
    loop {
        let now = Sample::take(before.as_ref())?;
        if options.json {
            print_lines(&[json::object(&now)]);
        } else {
            print_lines(&table::lines(&now, options.sort, false, None));
        }
        if options.once {
            return Ok(());
        }
        before = Some(now);
        std::thread::sleep(options.interval);
        if !options.json {
            print_lines(&[""]);
        }
    }
}

/// Shows it on the terminal.
fn live(options: &Options) -> noiommu::Result<()> {
    let (mut sort, mut reversed, mut paused) = (options.sort, false, false);
    let mut now = Sample::take(None)?;
    let Ok(mut screen) = Screen::open() else {
        // Standard input is no terminal: nobody can press a key.
        return print(options);
    };
    loop {
        let mut lines = table::lines(&now, sort, reversed, Some(screen.width()));
        if paused {
            lines.push("paused: p goes on".to_owned());
        }
        screen.show(&lines);
        match screen.wait(options.interval) {
            Some(Key::Quit) => return Ok(()),
            Some(Key::Sort) => sort = sort.next(),
            Some(Key::Reverse) => reversed = !reversed,
            Some(Key::Pause) => paused = !paused,
            Some(Key::Other) => {}
            None if paused => {}
            None => now = Sample::take(Some(&now))?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        assert_eq!(parse_interval("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "nan", "1e9", "x", ""] {
            assert!(parse_interval(wrong).is_err(), "{wrong}");
        }
    }
}
