//! `noiommu nvme bench`: how many operations a second, and how long each takes.

mod render;
mod work;

use std::process::ExitCode;
use std::time::Duration;

use hdrhistogram::Histogram;
use noiommu_nvme::{Namespace, Settings};

use super::Trouble;
use super::open::{Opened, Place};
use crate::ui::{self, PatientBar, parse_bytes};

/// How it is called.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each queue is one thread's, which keeps so many commands outstanding and polls for their completions. Latency is from the
submission of a command to the moment that its completion has been seen.

What to look at: depth 1 shows how long an operation takes, depth 32 and more how many the drive does at once.

Examples:
  noiommu nvme bench 0000:00:05.0                          # random reads of 4 KiB, depth 32
  noiommu nvme bench 0000:00:05.0 --depth 1 --seconds 10
  noiommu nvme bench 0000:00:05.0 --size 128K --sequential --queues 4
  noiommu nvme bench 0000:00:05.0 --write --yes-overwrite  # the drive's contents are gone then
  noiommu nvme bench sim --json

Exit status: 0 done, 1 it could not be done, or was not confirmed, 2 wrong usage.")]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,

    /// Commands outstanding in each queue
    #[arg(short, long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1023))]
    depth: u16,

    /// Bytes of an operation: 4K, 128K, ...
    #[arg(short, long, default_value = "4K", value_parser = parse_bytes)]
    size: u64,

    /// Queues, each with a thread
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    queues: u16,

    /// How long
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,

    /// One after the other, in place of anywhere
    #[arg(long)]
    sequential: bool,

    /// Write, in place of reading
    #[arg(long)]
    write: bool,

    /// Yes, what is there is to be overwritten
    #[arg(long, requires = "write")]
    yes_overwrite: bool,

    /// Sleep until an interrupt comes, in place of polling all the time
    #[arg(long)]
    interrupts: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was measured.
struct Report {
    device: String,
    provider: &'static str,
    namespace: u32,
    interrupts: Option<&'static str>,
    took: Duration,
    /// Nanoseconds of each operation.
    latency: Histogram<u64>,
}

impl Report {
    fn operations(&self) -> u64 {
        self.latency.len()
    }

    fn per_second(&self) -> f64 {
        self.operations() as f64 / self.took.as_secs_f64()
    }
}

/// Runs the subcommand.
pub(crate) fn run(options: &Options) -> ExitCode {
    let bar = PatientBar::new();
    let measured = measure(options, &bar);
    bar.finish();
    match measured {
        Ok(report) if options.json => {
            ui::print_lines(&[render::json(options, &report)]);
            ExitCode::SUCCESS
        }
        Ok(report) => {
            ui::print_lines(&render::lines(options, &report));
            ExitCode::SUCCESS
        }
        Err(trouble) => trouble.tell(options.json),
    }
}

fn measure(options: &Options, bar: &PatientBar) -> Result<Report, Trouble> {
    let mut settings = Settings::default();
    settings.queues = options.queues;
    settings.entries = (options.depth + 1).next_power_of_two().max(settings.entries);
    settings.interrupts = options.interrupts;
    settings.max_transfer = 2 << 20;
    let opened = options.place.open(&settings)?;
    let namespace = options.place.namespace(&opened)?;
    let blocks = check(options, &opened, &namespace)?;
    let (latency, took) = work::run(options, &opened.controller, &namespace, blocks, bar)?;
    let device = opened.controller.device();
    let report = Report {
        device: device.name().to_owned(),
        provider: device.provider().name(),
        namespace: namespace.id(),
        interrupts: opened.controller.interrupts().map(noiommu::InterruptKind::name),
        took,
        latency,
    };
    opened.controller.close()?;
    Ok(report)
}

/// Whether that can be done, and is meant; how many blocks an operation has.
fn check(options: &Options, opened: &Opened, namespace: &Namespace) -> Result<u32, Trouble> {
    let asked = |cause: String, remedy| Err(Trouble::Asked { cause, remedy });
    let block = u64::from(namespace.block_size());
    if !options.size.is_multiple_of(block) || options.size > 2 << 20 || options.size > namespace.bytes() {
        return asked(
            format!("operations of {} bytes, on blocks of {block}", options.size),
            "whole blocks, up to 2M, and no more than the namespace has",
        );
    }
    if options.write && !options.yes_overwrite {
        return asked(
            format!(
                "namespace {} of {} would be overwritten",
                namespace.id(),
                opened.controller.device().name()
            ),
            "--yes-overwrite, if that is meant",
        );
    }
    Ok((options.size / block) as u32)
}
