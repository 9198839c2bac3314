//! What is drawn: the memory of a process, a part of it, or a buffer, with the frames behind it.

use noiommu::frames::{self, Frames, Run, Target, VirtualArea};
use noiommu::{Context, Contiguity, DmaBuffer, Error, ErrorKind, PinChoice};

use crate::ui::bytes;

/// A part of the memory.
pub(super) struct Part {
    pub(super) start: u64,
    pub(super) end: u64,
    /// What it is of; empty: anonymous memory.
    pub(super) name: String,
    pub(super) frames: Frames,
}

/// What is drawn.
pub(super) struct Subject {
    /// What it is, in a few words.
    pub(super) title: String,
    /// More about it.
    pub(super) detail: String,
    /// Why memory is simulated, where it was not asked for.
    pub(super) missing: Option<Error>,
    pub(super) simulated: bool,
    pub(super) parts: Vec<Part>,
}

impl Subject {
    /// A process, or a range of its addresses.
    ///
    /// # Errors
    /// What keeps this process from looking.
    pub(super) fn process(process: Option<u32>, range: Option<(u64, u64)>) -> noiommu::Result<Self> {
        let target = process.map_or(Target::Own, Target::Process);
        let number = process.unwrap_or_else(std::process::id);
        let mappings = frames::mappings(target)?;
        let (start, end) = range.unwrap_or((0, 1 << 63));
        let wanted =
            |area: &VirtualArea| area.start < end && start < area.end && (range.is_some() || is_memory(area));
        let mut parts = Vec::new();
        for area in mappings.iter().filter(|area| wanted(area)) {
            let (start, end) = (area.start.max(start), area.end.min(end));
            let frames = frames::walk(target, start..end)?;
            parts.push(Part { start, end, name: area.name.clone(), frames });
        }
        if parts.is_empty() {
            let what = match range {
                Some((start, end)) => format!("process {number} has nothing mapped in {start:#x}-{end:#x}"),
                None => format!(
                    "process {number} has no memory: it is one of the kernel's threads, or has just ended"
                ),
            };
            return Err(Error::bad_argument(what));
        }
        let name = std::fs::read_to_string(format!("/proc/{number}/comm")).unwrap_or_default();
        let title = format!("the memory of process {number} ({})", name.trim_end());
        let detail = match range {
            Some((start, end)) => format!("addresses {start:#x} to {end:#x}"),
            None => format!("{} mappings", parts.len()),
        };
        Ok(Self { title, detail, missing: None, simulated: false, parts })
    }

    /// A buffer made for this.
    ///
    /// # Errors
    /// Those of making and pinning it.
    pub(super) fn buffer(size: u64, contiguity: Contiguity, simulated: bool) -> noiommu::Result<Self> {
        let (context, missing) = match simulated {
            true => (Context::simulated(), None),
            false => match Context::with_pins(PinChoice::Best) {
                Ok(context) => (context, None),
                // Nothing that this program lacks shall keep anybody from looking at what there is to see.
                Err(error)
                    if matches!(error.kind(), ErrorKind::NoPhysicalAddresses | ErrorKind::NoPinSource) =>
                {
                    (Context::simulated(), Some(error))
                }
                Err(error) => return Err(error),
            },
        };
        let length = usize::try_from(size)
            .map_err(|_| Error::bad_argument("a buffer larger than the address space"))?;
        let ioas = context.ioas()?;
        let mapping = ioas.map(DmaBuffer::new(length, contiguity)?).map_err(Error::from)?;
        let buffer = mapping.buffer();
        let start = buffer.map_or(0, |buffer| buffer.address() as u64);
        let simulated = context.is_simulated();
        let frames = if simulated {
            let segments = mapping.segments()?;
            let run = |it: &noiommu::Segment| Run {
                start: start + (it.iova.0 - mapping.iova().0),
                address: it.address,
                length: it.length,
                huge: 0,
                shared: false,
            };
            let mut frames = Frames::default();
            frames.runs = segments.iter().map(run).collect();
            frames
        } else {
            frames::walk(Target::Own, start..start + size)?
        };
        let kind = buffer.map_or("memory", |buffer| buffer.pages().name());
        let title = format!("a buffer of {}", bytes(size));
        let detail = if simulated {
            "simulated memory, scattered on purpose".to_owned()
        } else {
            format!("{kind}, pinned")
        };
        let part = Part { start, end: start + size, name: "buffer".to_owned(), frames };
        Ok(Self { title, detail, missing, simulated, parts: vec![part] })
    }

    /// All runs, in order of their place in the process.
    pub(super) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.parts.iter().flat_map(|part| &part.frames.runs)
    }
}

/// Whether a mapping is memory: not registers of a device, not what the kernel shares with every process, and not addresses that are
/// only kept free (which may be so many that looking takes long).
fn is_memory(area: &VirtualArea) -> bool {
    let name = area.name.as_str();
    let registers = name.starts_with("/sys/") || name.starts_with("/dev/mem") || name.contains("vfio-device");
    (area.readable || area.writable) && !registers && !name.starts_with("[v")
}
