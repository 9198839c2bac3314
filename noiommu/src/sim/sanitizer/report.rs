//! What the sanitizer tells.

use std::fmt;
use std::panic::Location;
use std::time::Duration;

use noiommu_core::{Iova, PhysAddr};

use super::Direction;

/// A mapping, as a report names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Mapped {
    /// Which IOAS it is in: its number in the context.
    pub ioas: u32,
    /// Where it begins there.
    pub iova: Iova,
    /// Bytes, as asked for.
    pub length: u64,
    /// Devices may only read it.
    pub read_only: bool,
    /// The call that mapped it.
    pub by: &'static Location<'static>,
}

impl Mapped {
    pub(crate) fn new(
        ioas: u32,
        iova: Iova,
        length: u64,
        read_only: bool,
        by: &'static Location<'static>,
    ) -> Self {
        Self { ioas, iova, length, read_only, by }
    }
}

impl fmt::Display for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at IOVA {}, mapped at {}", self.length, self.iova, self.by)
    }
}

/// How a mapping was given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Freeing {
    /// Its owner dropped it.
    Dropped,
    /// By this call of [`Mapping::reclaim`](crate::Mapping::reclaim).
    Reclaimed(&'static Location<'static>),
}

/// When and how a mapping was given up.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Freed {
    /// How.
    pub how: Freeing,
    /// How long before the access.
    pub ago: Duration,
    /// The thread that did it.
    pub thread: String,
    /// Which one it was, counting all mappings of the context that were given up, from 1.
    pub number: u64,
}

impl fmt::Display for Freed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.how {
            Freeing::Dropped => write!(f, "dropped")?,
            Freeing::Reclaimed(by) => write!(f, "reclaimed at {by}")?,
        }
        write!(
            f,
            " {:.1?} before, by thread `{}` (the context's unmap {})",
            self.ago, self.thread, self.number
        )
    }
}

/// What is wrong with an access.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// No mapping has had this address, as far back as is remembered (the last 4096 mappings).
    NeverMapped,
    /// A mapping had it once.
    Unmapped {
        /// Which.
        mapping: Mapped,
        /// Where in it the access begins, in bytes.
        offset: u64,
        /// When it ended.
        freed: Freed,
    },
    /// Its owner has dropped the mapping, and the kit keeps the memory until the device is quiet. Told only if
    /// [asked for](super::Sanitizer::tell_dropped).
    Dropped {
        /// Which.
        mapping: Mapped,
        /// Where in it the access begins, in bytes.
        offset: u64,
        /// When it was dropped.
        freed: Freed,
    },
    /// The access begins in a contiguous run of a mapping and passes its end: the next address is not the next byte of the
    /// mapping.
    PastRun {
        /// Which.
        mapping: Mapped,
        /// Where in it the access begins, in bytes.
        offset: u64,
        /// The address of the run's first byte.
        begins: PhysAddr,
        /// Where the next byte of the mapping is; `None`: the run is the mapping's last.
        next: Option<PhysAddr>,
    },
    /// A write to memory that devices may only read.
    ReadOnly {
        /// Which.
        mapping: Mapped,
        /// Where in it the access begins, in bytes.
        offset: u64,
    },
    /// Memory of an IOAS that the device is not attached to: an IOMMU would refuse it.
    OtherIoas {
        /// Which.
        mapping: Mapped,
        /// Where in it the access begins, in bytes.
        offset: u64,
    },
    /// The driver has not turned on bus mastering since it opened the device. (Once it has been on, a device that is made quiet
    /// may still have had something to do, and that is no fault.)
    NotMastering,
}

impl Fault {
    /// The mapping that it is about.
    #[must_use]
    pub fn mapping(&self) -> Option<&Mapped> {
        match self {
            Self::NeverMapped | Self::NotMastering => None,
            Self::Unmapped { mapping, .. }
            | Self::Dropped { mapping, .. }
            | Self::PastRun { mapping, .. }
            | Self::ReadOnly { mapping, .. }
            | Self::OtherIoas { mapping, .. } => Some(mapping),
        }
    }

    fn offset(&self) -> Option<u64> {
        match self {
            Self::NeverMapped | Self::NotMastering => None,
            Self::Unmapped { offset, .. }
            | Self::Dropped { offset, .. }
            | Self::PastRun { offset, .. }
            | Self::ReadOnly { offset, .. }
            | Self::OtherIoas { offset, .. } => Some(*offset),
        }
    }

    fn headline(&self) -> &'static str {
        match self {
            Self::NeverMapped => "memory that was never mapped",
            Self::Unmapped { .. } => "memory that is not mapped any more",
            Self::Dropped { .. } => "memory that its owner has dropped",
            Self::PastRun { next: Some(_), .. } => "past the end of a contiguous run",
            Self::PastRun { next: None, .. } => "past the end of a mapping",
            Self::ReadOnly { .. } => "memory that it may only read",
            Self::OtherIoas { .. } => "memory of an IOAS that it is not attached to",
            Self::NotMastering => "memory with bus mastering off",
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            Self::NeverMapped => {
                "give the device addresses that Mapping::for_device gave, and look at what is added"
            }
            Self::Unmapped { .. } => {
                "keep the mapping, or a view of it, until the device has finished with it"
            }
            Self::Dropped { .. } => "quiesce or drop the device before its buffers",
            Self::PastRun { next: Some(_), .. } => {
                "give the device one descriptor for each segment of Mapping::for_device"
            }
            Self::PastRun { next: None, .. } => "give the device the length that the segment has",
            Self::ReadOnly { .. } => "map it with Ioas::map, or have the device write elsewhere",
            Self::OtherIoas { .. } => "map it in the IOAS that the device is attached to",
            Self::NotMastering => "Device::enable_bus_master before the device is told to begin",
        }
    }
}

/// The mapping whose memory is nearest to an address that is nobody's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Neighbour {
    /// Which.
    pub mapping: Mapped,
    /// Bytes from the address to the mapping's nearest byte.
    pub distance: u64,
    /// It lies above the address.
    pub is_above: bool,
}

/// What an address that is nobody's looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Hint {
    /// The address in this process of a byte of a mapping.
    VirtualAddress {
        /// Which.
        mapping: Mapped,
        /// Where in it, in bytes.
        offset: u64,
    },
    /// The IOVA of a byte of a mapping.
    Iova {
        /// Which.
        mapping: Mapped,
        /// Where in it, in bytes.
        offset: u64,
    },
    /// The address of a byte of a mapping without its upper 32 bits.
    CutTo32Bits {
        /// Which.
        mapping: Mapped,
        /// Where in it, in bytes.
        offset: u64,
    },
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mapping, offset, what) = match self {
            Self::VirtualAddress { mapping, offset } => (mapping, offset, "the address in this process"),
            Self::Iova { mapping, offset } => (mapping, offset, "the IOVA"),
            Self::CutTo32Bits { mapping, offset } => (mapping, offset, "the lower 32 bits of the address"),
        };
        write!(f, "it is {what} of byte {offset:#x} of {mapping}")
    }
}

/// A device has reached memory that is not its own.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The device.
    pub device: String,
    /// Which way the access went.
    pub direction: Direction,
    /// Where it began.
    pub address: PhysAddr,
    /// Its bytes.
    pub length: u64,
    /// Its first byte that is wrong.
    pub at: u64,
    /// What is wrong with it.
    pub fault: Fault,
    /// The mapping that is nearest, where the address is nobody's.
    pub nearest: Option<Neighbour>,
    /// What the address looks like, where it is nobody's.
    pub hint: Option<Hint>,
}

/// Marks of a picture.
const WIDTH: u64 = 48;

impl Report {
    /// The run that the access began in, what of it is the access's, and what it passes its end by, each in marks.
    fn picture(&self, begins: PhysAddr) -> String {
        let before = self.address.0 - begins.0;
        let whole = before + self.length;
        let (right, wrong) = (self.at, self.length - self.at);
        let marks = |bytes: u64| {
            let share = (u128::from(bytes) * u128::from(WIDTH) / u128::from(whole.max(1))) as usize;
            if bytes > 0 { share.max(1) } else { 0 }
        };
        format!(
            "[{}{}|{}]  . the run, # the access in it, ! past it",
            ".".repeat(marks(before)),
            "#".repeat(marks(right)),
            "!".repeat(marks(wrong))
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = self.direction.name();
        writeln!(f, "DMA sanitizer: {} {direction}s {}", self.device, self.fault.headline())?;
        write!(f, "  access   {direction} of {} bytes at {}", self.length, self.address)?;
        if self.at > 0 {
            let first = PhysAddr(self.address.0.saturating_add(self.at));
            write!(f, "; byte {:#x} of it, at {first}, is the first that is wrong", self.at)?;
        }
        if let (Some(mapping), Some(offset)) = (self.fault.mapping(), self.fault.offset()) {
            write!(f, "\n  mapping  {mapping}\n  place    begins at byte {offset:#x} of it")?;
            match &self.fault {
                Fault::PastRun { begins, next, .. } => {
                    write!(f, "\n  memory   {}", self.picture(*begins))?;
                    if let Some(next) = next {
                        write!(f, "\n  next     byte {:#x} of the mapping is at {next}", offset + self.at)?;
                    }
                }
                Fault::Unmapped { freed, .. } | Fault::Dropped { freed, .. } => {
                    write!(f, "\n  freed    {freed}")?;
                }
                Fault::ReadOnly { .. } => write!(f, "; it was mapped for reading")?,
                _ => {}
            }
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint     {hint}")?;
        }
        if let (None, Some(Neighbour { mapping, distance, is_above })) = (&self.hint, &self.nearest) {
            let side = if *is_above { "above" } else { "below" };
            write!(f, "\n  nearest  {distance:#x} bytes {side}: {mapping}")?;
        }
        write!(f, "\n  remedy   {}", self.fault.remedy())
    }
}
