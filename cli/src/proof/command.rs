//! The command line of the proofs.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json as value;

use super::recipes::Recipe;
use super::render::{Human, Silent, json};
use super::rounds::Options;
use super::{EnginePinner, run};

/// Exit code of a proof that could not be run to its end.
const FAILED: u8 = 1;

/// The proofs there are.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show that pinned pages keep their physical address while mlocked ones move
    #[command(after_help = "Exit codes:\n  \
        0  proven: most mlocked pages moved, no pinned one did\n  \
        1  the proof could not be run\n  \
        2  wrong arguments\n  \
        3  too few mlocked pages moved: nothing is proved\n  \
        4  a pinned page moved: pinning does not work here")]
    Pins(Pins),
}

/// Arguments of `noiommu proof pins`.
#[derive(Debug, Args)]
pub(crate) struct Pins {
    /// Print the result as one JSON object, and nothing else
    #[arg(long)]
    json: bool,
    /// How often memory is fragmented and tidied up
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// Pages per class, rounded up to 2 MiB [default: what there is room for, at most 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pages: Option<u64>,
    /// Memory to use, at most half of what is available [default: up to 1024]
    #[arg(long, value_name = "MIB")]
    pool_mib: Option<u64>,
    /// How pages are made to move
    #[arg(long, value_enum, default_value_t = Recipe::Auto)]
    recipe: Recipe,
}

impl Command {
    /// Runs the proof that was asked for.
    pub(crate) fn execute(&self) -> ExitCode {
        match self {
            Self::Pins(pins) => pins.execute(),
        }
    }
}

impl Pins {
    /// Runs the proof and prints what it found.
    fn execute(&self) -> ExitCode {
        let options = Options {
            rounds: self.rounds as usize,
            pages: self.pages.map(|pages| pages as usize),
            pool_mib: self.pool_mib,
            recipe: self.recipe,
        };
        let outcome = if self.json {
            let report = EnginePinner::new().and_then(|pinner| run(&pinner, &options, &mut Silent));
            // A reader that went away is no reason to fail: the exit code still tells.
            let _ = match &report {
                Ok(report) => writeln!(std::io::stdout(), "{}", json(report)),
                Err(error) => writeln!(
                    std::io::stdout(),
                    "{}",
                    value!({ "error": { "cause": error.cause, "remedy": error.remedy } })
                ),
            };
            report
        } else {
            let mut human = Human::new();
            EnginePinner::new()
                .and_then(|pinner| run(&pinner, &options, &mut human))
                .inspect(|report| human.finished(report))
        };
        match outcome {
            Ok(report) => ExitCode::from(report.verdict.exit_code()),
            Err(error) => {
                let _ = writeln!(anstream::stderr(), "noiommu proof pins: {error}");
                ExitCode::from(FAILED)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// A program that has the proofs alone.
    #[derive(Debug, Parser)]
    struct Alone {
        #[command(subcommand)]
        command: Command,
    }

    #[test]
    fn arguments_are_read_and_nonsense_is_refused() {
        let Alone { command: Command::Pins(pins) } =
            Alone::try_parse_from(["proof", "pins", "--json", "--rounds", "7", "--recipe", "collapse"])
                .unwrap();
        assert!(pins.json && pins.rounds == 7 && pins.recipe == Recipe::Collapse && pins.pages.is_none());
        for wrong in [["--rounds", "0"], ["--rounds", "101"], ["--pages", "0"], ["--recipe", "magic"]] {
            assert!(Alone::try_parse_from(["proof", "pins", wrong[0], wrong[1]]).is_err(), "{wrong:?}");
        }
    }
}
