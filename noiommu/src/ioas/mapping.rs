//! Memory in an IOAS, owned.

use std::os::fd::OwnedFd;
use std::panic::Location;
use std::sync::Arc;

use noiommu_core::table::Segment;
use noiommu_core::{Iova, IovaRange};

use super::Inner;
use super::quarantine::Given;
use crate::buffer::DmaBuffer;
use crate::device::{Device, DmaView};
use crate::{Error, Result};

/// A buffer that could not be mapped, and why.
#[derive(Debug)]
pub struct MapError {
    /// Why.
    pub error: Error,
    /// The buffer, as it was.
    pub buffer: DmaBuffer,
}

impl std::fmt::Display for MapError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for MapError {}

impl From<MapError> for Error {
    fn from(failed: MapError) -> Self {
        failed.error
    }
}

/// What a mapping keeps alive.
pub(super) enum Owned {
    Buffer(DmaBuffer),
    File { _file: Arc<OwnedFd> },
    Borrowed,
}

/// Memory in an IOAS: pinned, at an IOVA, owned.
///
/// Dropped while an attached device has bus mastering on, it is kept in quarantine, mapped and pinned, until the device
/// has been made quiet. [`Mapping::reclaim`] gives the memory back at once, when the device is done with it.
///
/// ```
/// # fn main() -> noiommu::Result<()> {
/// use noiommu::{Context, Contiguity, DmaBuffer};
///
/// let context = Context::simulated();
/// let (ioas, device) = (context.ioas()?, context.sim_edu()?);
/// device.attach(&ioas)?;
/// let mapping = ioas.map(DmaBuffer::new(3 * 4096, Contiguity::Pages)?)?;
/// mapping.buffer().expect("its own").fill(0, 4096, 0xaa)?;
///
/// // A list of contiguous pieces, which cover it all.
/// let view = mapping.for_device(&device)?;
/// assert_eq!(view.segments().map(|segment| segment.length).sum::<u64>(), mapping.len());
///
/// // The memory comes back when nobody asks for its addresses any more.
/// let mapping = mapping.reclaim().expect_err("there is a view");
/// drop(view);
/// let buffer = mapping.reclaim().expect("there is none").expect("it was a buffer");
/// assert_eq!(buffer.load_u8(4095)?, 0xaa);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Mapping {
    inner: Arc<MappingInner>,
}

pub(crate) struct MappingInner {
    ioas: Arc<Inner>,
    /// All of it, until it is given up.
    given: Option<Given>,
    range: IovaRange,
    /// Bytes as asked for; the range covers whole pages.
    length: u64,
}

impl MappingInner {
    pub(crate) fn ioas(&self) -> &Arc<Inner> {
        &self.ioas
    }

    /// The IOVAs of the bytes that were asked for.
    pub(crate) fn bytes(&self) -> Result<IovaRange> {
        Ok(IovaRange::with_length(self.range.first(), self.length)?)
    }
}

impl Drop for MappingInner {
    fn drop(&mut self) {
        if let Some(given) = self.given.take() {
            self.ioas.release(given);
        }
    }
}

impl std::fmt::Debug for MappingInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MappingInner").field("range", &self.range).finish_non_exhaustive()
    }
}

impl Mapping {
    pub(super) fn new(ioas: &Arc<Inner>, given: Given) -> Self {
        let (range, length) = (given.range, given.length);
        Self { inner: Arc::new(MappingInner { ioas: ioas.clone(), range, length, given: Some(given) }) }
    }

    /// Where it begins in the IOAS.
    #[must_use]
    pub fn iova(&self) -> Iova {
        self.inner.range.first()
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.inner.length
    }

    /// Never: a mapping has at least one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.length == 0
    }

    /// The buffer, to copy bytes in and out; `None` for files and borrowed memory.
    #[must_use]
    pub fn buffer(&self) -> Option<&DmaBuffer> {
        match &self.inner.given.as_ref()?.memory {
            Owned::Buffer(buffer) => Some(buffer),
            _ => None,
        }
    }

    /// The contiguous pieces of physical memory, in order. Memory that was not pinned so far is pinned by this.
    ///
    /// # Errors
    /// Those of pinning; where neither the engine nor the kernel can tell physical addresses, what keeps the engine from it.
    pub fn segments(&self) -> Result<Vec<Segment>> {
        self.inner.ioas.segments(self.inner.bytes()?)
    }

    /// Asks the kernel anew where the buffer's pages are, and counts those that are not where the engine says. 0 as long as
    /// pins hold: a check for demonstrations and tests. `None` where it cannot be asked: memory that is no [`DmaBuffer`],
    /// or simulated, or of which nobody has asked for physical addresses.
    ///
    /// # Errors
    /// What reading /proc/self/pagemap answers.
    pub fn moved_pages(&self) -> Result<Option<u64>> {
        let (Some(buffer), Some(pagemap)) = (self.buffer(), self.inner.ioas.context.pagemap()) else {
            return Ok(None);
        };
        if self.inner.ioas.physical.get().is_none() {
            return Ok(None);
        }
        let page_size = pagemap.page_size();
        let entries = pagemap.entries(buffer.address(), buffer.mapped_length() / page_size)?;
        let moved = entries.iter().zip((self.iova().0..).step_by(page_size)).filter(|(entry, iova)| {
            self.inner.ioas.lookup(Iova(*iova), 1).map(|found| found.address) != entry.frame(page_size)
        });
        Ok(Some(moved.count() as u64))
    }

    /// The addresses to give to a device.
    ///
    /// # Errors
    /// [`ErrorKind::Rule`](crate::ErrorKind::Rule) when the device is not attached to this mapping's IOAS;
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) when it cannot reach all of the memory (its DMA mask).
    pub fn for_device(&self, device: &Device) -> Result<DmaView> {
        self.inner.ioas.context.raise_reports();
        DmaView::new(&self.inner, device)
    }

    /// Unmaps at once and gives the buffer back; `None` for memory that the mapping does not own. The caller says thereby
    /// that no device uses the memory any more: this is part of what
    /// [`Device::enable_bus_master`](crate::Device::enable_bus_master) promises. (Where [freed memory is
    /// watched](crate::Ioas::watch_freed), what comes back is a copy.)
    ///
    /// # Errors
    /// The mapping comes back while views of it ([`Mapping::for_device`]) exist.
    #[track_caller]
    pub fn reclaim(self) -> std::result::Result<Option<DmaBuffer>, Self> {
        let mut inner = Arc::try_unwrap(self.inner).map_err(|inner| Self { inner })?;
        let Some(given) = inner.given.take() else { return Ok(None) };
        Ok(match inner.ioas.reclaim(given, Location::caller()) {
            Owned::Buffer(buffer) => Some(buffer),
            Owned::File { .. } | Owned::Borrowed => None,
        })
    }

    /// Leaves the memory mapped and pinned until the process ends.
    pub fn forget(self) {
        std::mem::forget(self);
    }
}
