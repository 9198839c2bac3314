//! `noiommu nvme`: an NVMe controller, driven from user space by the project's own driver.

mod bench;
mod identify;
mod open;
mod transfer;

use std::process::ExitCode;

use crate::Failure;

/// What is done with a controller.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show what the controller and its namespaces say of themselves
    Identify(identify::Options),
    /// Read blocks to a file or to standard output
    Read(transfer::ReadOptions),
    /// Overwrite blocks from a file or from standard input
    Write(transfer::WriteOptions),
    /// Measure reads or writes: operations per second, latency by percentiles
    Bench(bench::Options),
}

/// Runs it.
pub(crate) fn run(command: &Command) -> ExitCode {
    match command {
        Command::Identify(options) => identify::run(options),
        Command::Read(options) => transfer::read(options),
        Command::Write(options) => transfer::write(options),
        Command::Bench(options) => bench::run(options),
    }
}

/// Why it could not be done.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The driver or the kit says so.
    Driver(noiommu_nvme::Error),
    /// A file.
    File(String, std::io::Error),
    /// What was asked for cannot be.
    Asked { cause: String, remedy: &'static str },
}

impl From<noiommu_nvme::Error> for Trouble {
    fn from(error: noiommu_nvme::Error) -> Self {
        Self::Driver(error)
    }
}

impl From<noiommu::Error> for Trouble {
    fn from(error: noiommu::Error) -> Self {
        Self::Driver(error.into())
    }
}

impl Trouble {
    /// Says so, in the form asked for.
    fn tell(&self, json: bool) -> ExitCode {
        let failure = match self {
            Self::Driver(error) => {
                let kind = match error.kind() {
                    noiommu_nvme::ErrorKind::Kit(kind) => format!("{kind:?}"),
                    noiommu_nvme::ErrorKind::Command(_) => "Command".to_owned(),
                    kind => format!("{kind:?}"),
                };
                (kind, error.errno().name(), error.cause().to_owned(), error.remedy())
            }
            Self::File(name, error) => ("File".to_owned(), None, format!("{name}: {error}"), None),
            Self::Asked { cause, remedy } => ("Argument".to_owned(), None, cause.clone(), Some(*remedy)),
        };
        let (kind, errno, cause, remedy) = &failure;
        crate::tell_failure(json, &Failure { kind, errno: *errno, cause, remedy: *remedy })
    }
}
