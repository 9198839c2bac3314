//! What every process on this machine that uses the engine has mapped and pinned, told by the processes themselves.
//!
//! Each keeps the numbers in a page of shared memory, which costs it a few stores for each map and unmap, and which whoever may look
//! at the process (as root: every process) can read at any time. `noiommu top` shows them.
//!
//! ```
//! use noiommu::{Context, Contiguity, DmaBuffer};
//!
//! # fn main() -> noiommu::Result<()> {
//! let context = Context::simulated();
//! let ioas = context.ioas()?;
//! let mapping = ioas.map(DmaBuffer::new(64 * 1024, Contiguity::Pages)?)?;
//! let own = noiommu::stats::own();
//! assert!(own.areas() >= 1 && own.bytes() >= 64 * 1024);
//! # Ok(())
//! # }
//! ```
//!
//! # What is not counted
//! [`Ioas::address`](crate::Ioas::address), [`Ioas::lookup`](crate::Ioas::lookup) and a mapping's view for a device store nothing,
//! and so nobody can count them. What is counted as a lookup is the call IOMMU_IOAS_NOIOMMU_GET_PA of programs that are
//! [served](crate::serve): up to 63 of a thread's last ones are told late. What the kernel's own iommufd or a VFIO container pins for
//! the kit's devices is in [`ProcessStats::charged`] alone, and programs that use these without the kit are not seen.
//!
//! # The environment
//! `NOIOMMU_STATS=off`: this process tells nothing.

mod file;
mod page;
mod process;
mod publish;
mod read;
mod rescues;

pub(crate) use self::file::shared;
pub(crate) use self::process::copy;
#[doc(hidden)]
pub use self::publish::count_lookups;
pub(crate) use self::publish::{Counted, Told, tell_guard};
pub use self::read::{Guardian, Seen, own, processes};
pub(crate) use self::rescues::{DIRECTORY as RESCUES_DIRECTORY, FILE as RESCUES, LONG as RESCUES_LONG};
pub use self::rescues::{Rescue, RescueOutcome, rescues};
use crate::guardian::Status;

/// What a context is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
#[repr(u32)]
pub enum ContextKind {
    /// [`Context`](crate::Context) on real memory.
    Kit = 1,
    /// The same on memory that is made up.
    Simulated = 2,
    /// An open /dev/iommu of a program that is served.
    Served = 3,
}

impl ContextKind {
    /// Its name in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kit => "kit",
            Self::Simulated => "simulated",
            Self::Served => "served",
        }
    }

    fn of(number: u32) -> Option<Self> {
        [Self::Kit, Self::Simulated, Self::Served].into_iter().find(|kind| *kind as u32 == number)
    }
}

/// Who guards a process, as its page has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Guard {
    /// A process of its own.
    Own = 1,
    /// The service.
    Service = 2,
}

/// A context of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ContextStats {
    /// What it is for.
    pub kind: ContextKind,
    /// IOASes.
    pub ioases: u64,
    /// Areas in them.
    pub areas: u64,
    /// Bytes mapped; memory that is mapped twice counts twice.
    pub bytes: u64,
    /// Frames of page tables, 4 KiB each.
    pub table_frames: u64,
}

/// A process that uses the engine.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ProcessStats {
    /// Its id.
    pub process: u32,
    /// The name of its first thread.
    pub name: String,
    /// Its contexts.
    pub contexts: Vec<ContextStats>,
    /// Contexts that there was no room to tell of: their areas and bytes are in no other number here.
    pub contexts_untold: u64,
    /// Maps so far, also of contexts that have ended.
    pub maps: u64,
    /// Areas unmapped so far.
    pub unmaps: u64,
    /// Addresses told so far by IOMMU_IOAS_NOIOMMU_GET_PA.
    pub lookups: u64,
    /// Buffers of io_uring rings, or AF_XDP sockets, by which the engine pins.
    pub pin_slots: u64,
    /// Bytes that these pin.
    pub pin_bytes: u64,
    /// Bytes that the kernel counts as pinned in this process (`VmPin`): by io_uring and by its own iommufd, whoever asked
    /// for it. It counts huge pages whole, and what AF_XDP pins not at all. `None`: it does not tell.
    pub charged: Option<u64>,
    /// Devices that are open.
    pub devices: u64,
    /// Who guards it.
    pub guardian: Status,
}

impl ProcessStats {
    /// Areas of all its contexts.
    #[must_use]
    pub fn areas(&self) -> u64 {
        self.sum(|context| context.areas)
    }

    /// Bytes that these map.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.sum(|context| context.bytes)
    }

    /// Frames of their page tables.
    #[must_use]
    pub fn table_frames(&self) -> u64 {
        self.sum(|context| context.table_frames)
    }

    /// What a process tells need not be true, nor small.
    fn sum(&self, what: impl Fn(&ContextStats) -> u64) -> u64 {
        self.contexts.iter().map(what).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests;
