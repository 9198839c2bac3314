//! A part of a BAR behind a descriptor: what the kernel makes a dma-buf of.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use noiommu_core::Errno;
use noiommu_core::vfio::pci::{Export, PhysicalRange};
use zerocopy::FromBytes as _;

use super::super::file::{Caller, FileOperations, MmapRequest};

/// Whether a device's memory is there.
#[derive(Default)]
pub(super) struct Presence {
    /// Twice the number of times that it has gone away, and 1 while it is away.
    state: AtomicU64,
}

impl Presence {
    pub(super) fn set(&self, there: bool, revocations: u64) {
        self.state.store(revocations << 1 | u64::from(!there), Ordering::Release);
    }
}

/// An exported part of a BAR, as [`File`](super::super::File).
pub struct BarBuffer {
    ranges: Vec<PhysicalRange>,
    presence: Arc<Presence>,
}

impl BarBuffer {
    /// Its memory, in order.
    #[must_use]
    pub fn ranges(&self) -> &[PhysicalRange] {
        &self.ranges
    }

    /// Something that changes whenever the device's memory goes away, even for a moment: what was mapped is gone then.
    /// `None`: it is away now (turned off, the device asleep, being reset, or closed).
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        let state = self.presence.state.load(Ordering::Acquire);
        (state & 1 == 0).then_some(state)
    }
}

/// Announces accesses of the processor, which need nothing here.
const DMA_BUF_IOCTL_SYNC: u32 = 0x4008_6200;
/// Reading, writing, or both; and whether they end.
const SYNC_READ_WRITE: u64 = 3;
const SYNC_END: u64 = 4;

impl FileOperations for BarBuffer {
    fn ioctl(&self, caller: Caller<'_>, request: u32, argument: u64) -> Result<i64, Errno> {
        if request != DMA_BUF_IOCTL_SYNC {
            return Err(Errno::ENOTTY);
        }
        let mut bytes = [0; 8];
        caller.user.read(argument, &mut bytes)?;
        let flags = u64::read_from_bytes(&bytes).unwrap_or_default();
        if flags & !(SYNC_READ_WRITE | SYNC_END) != 0 || flags & SYNC_READ_WRITE == 0 {
            return Err(Errno::EINVAL);
        }
        Ok(0)
    }

    unsafe fn mmap(&self, _: MmapRequest) -> Result<u64, Errno> {
        Err(Errno::EINVAL)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Makes them for a caller.
pub(super) struct Exporter<'a> {
    pub(super) caller: Caller<'a>,
    pub(super) presence: &'a Arc<Presence>,
}

impl Export for Exporter<'_> {
    fn export(&self, ranges: &[PhysicalRange], _: u32) -> Result<i32, Errno> {
        let buffer = BarBuffer { ranges: ranges.to_vec(), presence: self.presence.clone() };
        self.caller.descriptors.install(Arc::new(buffer))
    }
}
