//! `noiommu nvme read` and `noiommu nvme write`: blocks to a file and from one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use noiommu_nvme::{Namespace, Queue, Region, Settings};
use serde_json::json;

use super::Trouble;
use super::open::{Opened, Place};
use crate::ui::{self, PatientBar};

/// Bytes of memory: what is on its way at once.
const MEMORY: usize = 4 << 20;

/// How `read` is called.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  noiommu nvme read 0000:00:05.0 --count 8 | hexdump -C | head
  noiommu nvme read 0000:00:05.0 --output drive.img            # all of it

Exit status: 0 done, 1 it could not be done, 2 wrong usage.")]
pub(crate) struct ReadOptions {
    #[command(flatten)]
    place: Place,

    /// The first block
    #[arg(short, long, value_name = "NUMBER", default_value_t = 0)]
    block: u64,

    /// How many blocks; without it: to the end of the namespace
    #[arg(short, long, value_name = "NUMBER")]
    count: Option<u64>,

    /// Where to; without it: to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Print what was done as JSON; wants --output
    #[arg(long, requires = "output")]
    json: bool,
}

/// How `write` is called.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What is on the drive is gone then, so it wants --yes-overwrite. Without --yes-overwrite it says what it would overwrite,
and touches nothing. The last block is filled up with zeros. Written blocks are flushed at the end.

Examples:
  noiommu nvme write 0000:00:05.0 --input drive.img                    # says what it would do
  noiommu nvme write 0000:00:05.0 --input drive.img --yes-overwrite
  head -c 4096 /dev/urandom | noiommu nvme write sim --yes-overwrite

Exit status: 0 done, 1 it could not be done, or was not confirmed, 2 wrong usage.")]
pub(crate) struct WriteOptions {
    #[command(flatten)]
    place: Place,

    /// The first block
    #[arg(short, long, value_name = "NUMBER", default_value_t = 0)]
    block: u64,

    /// Where from; without it: from standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,

    /// Yes, what is there is to be overwritten
    #[arg(long)]
    yes_overwrite: bool,

    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `read`.
pub(crate) fn read(options: &ReadOptions) -> ExitCode {
    match read_blocks(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => trouble.tell(options.json),
    }
}

/// Runs `write`.
pub(crate) fn write(options: &WriteOptions) -> ExitCode {
    match write_blocks(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => trouble.tell(options.json),
    }
}

/// What both need.
struct Lane {
    // In this order: the queue goes before the controller, which is shut down then.
    queue: Queue,
    region: Region,
    namespace: Namespace,
    opened: Opened,
}

impl Lane {
    fn open(place: &Place) -> Result<Self, Trouble> {
        let opened = place.open(&Settings::default())?;
        let namespace = place.namespace(&opened)?;
        let region = opened.controller.region(MEMORY)?;
        Ok(Self { queue: opened.controller.queue()?, region, namespace, opened })
    }

    /// The blocks from `first` on that are there, of `count` that are wanted.
    fn range(&self, first: u64, count: Option<u64>) -> Result<u64, Trouble> {
        let blocks = self.namespace.blocks();
        let count = count.unwrap_or_else(|| blocks.saturating_sub(first));
        match first.checked_add(count) {
            Some(end) if end <= blocks && count > 0 => Ok(count),
            _ => Err(Trouble::Asked {
                cause: format!("{count} blocks from {first} on, of a namespace of {blocks}"),
                remedy: "see `noiommu nvme identify`",
            }),
        }
    }

    /// Blocks that memory has room for.
    fn step(&self) -> u64 {
        MEMORY as u64 / u64::from(self.namespace.block_size())
    }

    fn bytes(&self, blocks: u64) -> usize {
        (blocks * u64::from(self.namespace.block_size())) as usize
    }

    fn close(self) -> Result<(), Trouble> {
        drop(self.queue);
        self.opened.controller.close()?;
        Ok(())
    }
}

fn file(path: &Path, error: io::Error) -> Trouble {
    Trouble::File(path.display().to_string(), error)
}

fn read_blocks(options: &ReadOptions) -> Result<(), Trouble> {
    let mut lane = Lane::open(&options.place)?;
    let count = lane.range(options.block, options.count)?;
    let name = options.output.clone().unwrap_or_else(|| PathBuf::from("standard output"));
    let mut output: Box<dyn Write> = match &options.output {
        Some(path) => Box::new(File::create(path).map_err(|error| file(path, error))?),
        None => Box::new(io::stdout().lock()),
    };
    let bar = PatientBar::new();
    let mut bytes = vec![0; MEMORY];
    let mut done = 0;
    while done < count {
        let part = lane.step().min(count - done);
        lane.queue.read(&lane.namespace, options.block + done, part, &lane.region, 0)?;
        let piece = &mut bytes[..lane.bytes(part)];
        lane.region.read(0, piece)?;
        match output.write_all(piece) {
            // A reader that has seen enough, such as head.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            written => written.map_err(|error| file(&name, error))?,
        }
        done += part;
        bar.step(done, count, "reading");
    }
    match output.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(file(&name, error)),
        _ => {}
    }
    bar.finish();
    let size = lane.bytes(done);
    lane.close()?;
    if options.json {
        ui::print_lines(&[json!({"read": size, "blocks": done, "first": options.block})]);
    }
    Ok(())
}

fn write_blocks(options: &WriteOptions) -> Result<(), Trouble> {
    let name = options.input.clone().unwrap_or_else(|| PathBuf::from("standard input"));
    let length = match &options.input {
        Some(path) => {
            let metadata = std::fs::metadata(path).map_err(|error| file(path, error))?;
            metadata.is_file().then_some(metadata.len())
        }
        None => None,
    };
    let mut lane = Lane::open(&options.place)?;
    let size = u64::from(lane.namespace.block_size());
    // Nothing is written of what does not fit, where that can be known.
    let room = lane.range(options.block, length.map(|length| length.div_ceil(size)))?;
    if !options.yes_overwrite {
        return Err(Trouble::Asked {
            cause: format!(
                "up to {room} blocks of namespace {} of {} would be overwritten, from block {} on",
                lane.namespace.id(),
                lane.opened.controller.device().name(),
                options.block
            ),
            remedy: "--yes-overwrite, if that is meant",
        });
    }
    let mut input: Box<dyn Read> = match &options.input {
        Some(path) => Box::new(File::open(path).map_err(|error| file(path, error))?),
        None => Box::new(io::stdin().lock()),
    };
    let bar = PatientBar::new();
    let mut bytes = vec![0; MEMORY];
    let (mut done, mut written) = (0, 0);
    loop {
        let got = fill(&mut input, &mut bytes).map_err(|error| file(&name, error))?;
        if got == 0 {
            break;
        }
        let part = (got as u64).div_ceil(size);
        if part > room - done {
            return Err(Trouble::Asked {
                cause: format!("{} has more than fits: {done} blocks have been written", name.display()),
                remedy: "see `noiommu nvme identify` for the size of the namespace",
            });
        }
        bytes[got..lane.bytes(part)].fill(0);
        lane.region.write(0, &bytes[..lane.bytes(part)])?;
        lane.queue.write(&lane.namespace, options.block + done, part, &lane.region, 0)?;
        (done, written) = (done + part, written + got as u64);
        bar.step(done, if length.is_some() { room } else { done }, "writing");
    }
    lane.queue.flush(&lane.namespace)?;
    bar.finish();
    lane.close()?;
    if options.json {
        ui::print_lines(&[json!({"written": written, "blocks": done, "first": options.block})]);
    } else {
        ui::print_lines(&[format!(
            "{} written, {done} blocks from {} on, and flushed",
            ui::bytes(written),
            options.block
        )]);
    }
    Ok(())
}

/// Reads until the memory is full or there is no more.
fn fill(input: &mut dyn Read, bytes: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < bytes.len() {
        match input.read(&mut bytes[got..]) {
            Ok(0) => break,
            Ok(read) => got += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
