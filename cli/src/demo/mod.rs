//! `noiommu demo`: the main job, from memory of this process to bytes that a device has moved.

mod picture;
mod render;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use noiommu::{
    Context, Contiguity, DmaBuffer, DmaSegment, Error, ErrorKind, Ioas, Iova, Mapping, PageKind, PinChoice,
    PinKind, Provider,
};
use noiommu_edu::{BUFFER_SIZE, Edu};

use crate::ui::{PatientBar, parse_bytes};

/// Exit code when bytes arrived wrong.
const WRONG: u8 = 3;

/// Arguments of `noiommu demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes:\n  \
    0  every byte arrived, both ways\n  \
    1  it could not be run\n  \
    2  wrong arguments\n  \
    3  bytes arrived wrong\n\n\
    Without root it runs on simulated physical memory, and says what is missing.")]
pub(crate) struct Options {
    /// Print the result as one JSON object, and nothing else
    #[arg(long)]
    json: bool,
    /// Bytes to move: 64K, 8M, ... [default: 8M; 16K with a real device, which takes its time]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    size: Option<u64>,
    /// A real edu device (QEMU's) by its PCI address, in place of the simulated one; needs `noiommu enable`
    #[arg(long, value_name = "ADDRESS")]
    device: Option<String>,
    /// Use single pages, not huge ones
    #[arg(long)]
    pages: bool,
    /// Use simulated physical memory, also as root
    #[arg(long, conflicts_with = "device")]
    simulated: bool,
}

/// What a run was and found.
struct Report {
    kernel: String,
    /// Why memory is simulated, where it was not asked for.
    missing: Option<Error>,
    pin: PinKind,
    provider: Provider,
    device: String,
    pages: PageKind,
    iova: Iova,
    table_frames: u64,
    segments: Vec<DmaSegment>,
    size: u64,
    /// Whether the kernel was made to move pages between map and DMA.
    compacted: bool,
    /// Bytes that are not what they were, after the way to the device and back.
    wrong: u64,
    /// Pages whose address, asked anew after the DMA, is another one.
    moved: u64,
    took: Duration,
}

/// Runs the demo and prints what it found.
pub(crate) fn run(options: &Options) -> ExitCode {
    let bar = PatientBar::new();
    match demo(options, &bar) {
        Ok(report) => {
            bar.finish();
            if options.json {
                bar.print(&[render::json(&report)]);
            } else {
                bar.print(&render::lines(&report));
            }
            ExitCode::from(if report.is_verified() { 0 } else { WRONG })
        }
        Err(error) => {
            bar.finish();
            crate::failed(options.json, &error)
        }
    }
}

impl Report {
    fn is_verified(&self) -> bool {
        self.wrong == 0 && self.moved == 0
    }
}

fn demo(options: &Options, bar: &PatientBar) -> Result<Report, Error> {
    let begin = Instant::now();
    let (context, missing) = open_context(options)?;
    let ioas = context.ioas()?;
    let device = match &options.device {
        Some(address) => context.open(address)?,
        None => context.sim_edu()?,
    };
    let (provider, name) = (device.provider(), device.name().to_owned());
    let default = if provider == Provider::Sim { 8 << 20 } else { 16 << 10 };
    let size = options.size.unwrap_or(default);
    let contiguity = if options.pages { Contiguity::Pages } else { Contiguity::Best };
    let source = map(&ioas, size, contiguity)?;
    let target = map(&ioas, size, contiguity)?;
    let edu = Edu::new(device, &ioas)?;

    let mut pattern = Pattern::new();
    write(&source, &mut pattern)?;
    bar.step(0, size, "making the kernel move pages");
    // The moment of truth for memory that is not pinned. Only root can; without, the demo goes on.
    let compacted = !context.is_simulated() && std::fs::write("/proc/sys/vm/compact_memory", "1").is_ok();
    copy(&edu, &source, &target, bar)?;
    let wrong = count_wrong(&target, Pattern::new())?;
    let moved = source.moved_pages()?.unwrap_or(0) + target.moved_pages()?.unwrap_or(0);
    let report = Report {
        kernel: noiommu::kernel_release(),
        missing,
        pin: ioas.pin_kind()?,
        provider,
        device: name,
        pages: source.buffer().map_or(PageKind::Base, DmaBuffer::pages),
        iova: source.iova(),
        table_frames: ioas.usage().table_frames,
        segments: source.for_device(edu.device())?.segments().collect(),
        size,
        compacted,
        wrong,
        moved,
        took: begin.elapsed(),
    };
    edu.close()?;
    Ok(report)
}

/// The engine on real memory; on simulated memory where that was asked for, or where privileges are missing.
fn open_context(options: &Options) -> Result<(Context, Option<Error>), Error> {
    if options.simulated {
        return Ok((Context::simulated(), None));
    }
    if options.device.is_some() {
        // A real device is no matter of show; who pins for it depends on who serves it.
        return Ok((Context::new()?, None));
    }
    match Context::with_pins(PinChoice::Best) {
        Ok(context) => Ok((context, None)),
        Err(error) if matches!(error.kind(), ErrorKind::NoPhysicalAddresses | ErrorKind::NoPinSource) => {
            Ok((Context::simulated(), Some(error)))
        }
        Err(error) => Err(error),
    }
}

fn map(ioas: &Ioas, size: u64, contiguity: Contiguity) -> Result<Mapping, Error> {
    let size =
        usize::try_from(size).map_err(|_| Error::bad_argument("more than this machine can address"))?;
    Ok(ioas.map(DmaBuffer::new(size, contiguity)?)?)
}

/// Bytes that no other place has: from a small generator, begun anew for each reading.
struct Pattern(u64);

impl Pattern {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            // xorshift64, Marsaglia 2003.
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Runs `part` over the buffer of a mapping, a piece at a time.
fn pieces(
    mapping: &Mapping,
    mut part: impl FnMut(&DmaBuffer, usize, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let Some(buffer) = mapping.buffer() else { return Ok(()) };
    let step = BUFFER_SIZE as usize;
    (0..buffer.len())
        .step_by(step)
        .try_for_each(|offset| part(buffer, offset, step.min(buffer.len() - offset)))
}

fn write(mapping: &Mapping, pattern: &mut Pattern) -> Result<(), Error> {
    let mut bytes = [0; BUFFER_SIZE as usize];
    pieces(mapping, |buffer, offset, length| {
        pattern.fill(&mut bytes[..length]);
        buffer.write(offset, &bytes[..length])
    })
}

fn count_wrong(mapping: &Mapping, mut pattern: Pattern) -> Result<u64, Error> {
    let (mut found, mut expected) = ([0; BUFFER_SIZE as usize], [0; BUFFER_SIZE as usize]);
    let mut wrong = 0;
    pieces(mapping, |buffer, offset, length| {
        buffer.read(offset, &mut found[..length])?;
        pattern.fill(&mut expected[..length]);
        wrong += found[..length].iter().zip(&expected[..length]).filter(|(a, b)| a != b).count() as u64;
        Ok(())
    })?;
    Ok(wrong)
}

/// From memory into the device, from the device into other memory.
fn copy(edu: &Edu, source: &Mapping, target: &Mapping, bar: &PatientBar) -> Result<(), Error> {
    let (from, to) = (source.for_device(edu.device())?, target.for_device(edu.device())?);
    let size = from.len();
    let mut done = 0;
    while done < size {
        let length = BUFFER_SIZE.min(size - done);
        edu.load(&from, done, length)?;
        edu.store(&to, done, length)?;
        done += length;
        bar.step(done, size, "the device moves bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(simulated: bool, pages: bool) -> Options {
        Options { json: false, size: Some(100_000), device: None, pages, simulated }
    }

    #[test]
    fn every_byte_arrives() {
        for (simulated, pages) in [(true, true), (true, false), (false, true), (false, false)] {
            let report = demo(&options(simulated, pages), &PatientBar::new()).unwrap();
            assert!(report.is_verified());
            assert_eq!(report.segments.iter().map(|segment| segment.length).sum::<u64>(), 100_000);
            assert_eq!(report.missing.is_some(), !simulated && report.pin == PinKind::Simulated);
        }
    }

    #[test]
    fn wrong_bytes_are_counted() {
        let context = Context::simulated();
        let ioas = context.ioas().unwrap();
        let mapping = map(&ioas, 10_000, Contiguity::Pages).unwrap();
        write(&mapping, &mut Pattern::new()).unwrap();
        assert_eq!(count_wrong(&mapping, Pattern::new()).unwrap(), 0);
        let buffer = mapping.buffer().unwrap();
        for offset in [0, 2047, 2048, 9_999] {
            buffer.store_u8(offset, !buffer.load_u8(offset).unwrap()).unwrap();
        }
        assert_eq!(count_wrong(&mapping, Pattern::new()).unwrap(), 4);
    }
}
