//! IOASes and the mappings in them.

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use noiommu_core::table::format::Access;
use noiommu_core::table::{Segment, Table, Translation};
use noiommu_core::{Errno, Iova, IovaRange, MapRequest, ObjectId, Place, Usage};

use crate::buffer::DmaBuffer;
use crate::context;
use crate::device::{Device, DmaView};
use crate::memory::{Arena, Backing, caller};
use crate::{Error, ErrorKind, Result};

/// An I/O address space: memory mapped at IOVAs, pinned, and looked up as physical addresses.
///
/// Cheap to clone; all clones are one IOAS. It has a domain for all its life, so memory is pinned from the moment it is
/// mapped, and attaching or detaching devices never changes an address.
#[derive(Clone)]
pub struct Ioas {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    context: Arc<context::Inner>,
    id: ObjectId,
    /// A manual HWPT: the domain that is always there; devices attach to it.
    hwpt: ObjectId,
    /// The binding that HWPT_ALLOC asks for: the kit's own.
    keeper: ObjectId,
    table: Arc<Table<Arena>>,
    quarantine: Mutex<Quarantine>,
}

/// Memory that was given up while a device could still reach it.
#[derive(Default)]
struct Quarantine {
    /// Attached devices that may be doing DMA.
    masters: usize,
    held: Vec<(IovaRange, Owned)>,
}

impl Inner {
    pub(crate) fn context(&self) -> &Arc<context::Inner> {
        &self.context
    }

    pub(crate) fn hwpt(&self) -> ObjectId {
        self.hwpt
    }

    fn quarantine(&self) -> MutexGuard<'_, Quarantine> {
        self.quarantine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device more that may do DMA here.
    pub(crate) fn add_master(&self) {
        self.quarantine().masters += 1;
    }

    /// A device less: with the last one, what was waiting for it is let go.
    pub(crate) fn remove_master(&self) {
        let mut quarantine = self.quarantine();
        quarantine.masters = quarantine.masters.saturating_sub(1);
        if quarantine.masters == 0 {
            for (range, memory) in quarantine.held.drain(..) {
                self.unmap(range);
                drop(memory);
            }
        }
    }

    /// The end of a mapping: at once if no device can reach it, else when the last such device is quiet.
    fn release(&self, range: IovaRange, memory: Owned) {
        if self.context.is_forked() {
            return;
        }
        let mut quarantine = self.quarantine();
        if quarantine.masters == 0 {
            self.unmap(range);
        } else {
            quarantine.held.push((range, memory));
        }
    }

    fn unmap(&self, range: IovaRange) {
        if let Err(error) = self.context.engine().unmap(self.id, range) {
            tracing::error!(?range, %error, "a mapping of the kit was gone from the engine");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.is_forked() {
            return;
        }
        // No mapping and no attached device is left, as each holds a share of this.
        let mut engine = self.context.engine();
        let _ = engine.destroy(self.hwpt);
        let _ = engine.unbind(self.keeper);
        let _ = engine.destroy(self.id);
    }
}

impl Ioas {
    pub(crate) fn new(context: &Arc<context::Inner>) -> Result<Self> {
        let mut engine = context.engine();
        let id = engine.ioas_alloc()?;
        let made = engine.bind().map_err(Error::from).and_then(|keeper| {
            let hwpt = engine.hwpt_alloc(keeper, id, None).inspect_err(|_| {
                let _ = engine.unbind(keeper);
            })?;
            Ok((keeper, hwpt))
        });
        let (keeper, hwpt) = made.inspect_err(|_| {
            let _ = engine.destroy(id);
        })?;
        let table = engine.table(id)?.clone();
        drop(engine);
        let quarantine = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { context: context.clone(), id, hwpt, keeper, table, quarantine }) })
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Maps a buffer wherever there is room. The mapping owns the buffer from now on.
    ///
    /// # Errors
    /// Those of pinning ([`ErrorKind::MemlockLimit`] above all), ENOSPC, ENOMEM; nothing
    /// is mapped then, and the buffer comes back with the error.
    pub fn map(&self, buffer: DmaBuffer) -> std::result::Result<Mapping, MapError> {
        self.map_buffer(buffer, Place::Automatic)
    }

    /// Maps a buffer at an IOVA of choice, a multiple of 4 KiB.
    ///
    /// # Errors
    /// As for [`Ioas::map`], and EEXIST when the range overlaps a mapping, EINVAL when misaligned, EOVERFLOW past the end
    /// of the IOVA space.
    pub fn map_at(&self, iova: Iova, buffer: DmaBuffer) -> std::result::Result<Mapping, MapError> {
        self.map_buffer(buffer, Place::Fixed(iova))
    }

    fn map_buffer(&self, buffer: DmaBuffer, place: Place) -> std::result::Result<Mapping, MapError> {
        let (address, length) = (buffer.address(), buffer.mapped_length());
        match self.map_backing(Backing::User(address), address as u64, length as u64, place) {
            Ok(range) => Ok(self.mapping(range, buffer.len() as u64, Owned::Buffer(buffer))),
            Err(error) => Err(MapError { error, buffer }),
        }
    }

    /// Maps `length` bytes of a memfd (hugetlb included) or tmpfs file from `offset` on, both multiples of 4 KiB.
    ///
    /// # Errors
    /// As for [`Ioas::map`]; EINVAL also when the range passes the end of the file or the file is no shared memory.
    pub fn map_file(&self, file: OwnedFd, offset: u64, length: u64) -> Result<Mapping> {
        let file = Arc::new(file);
        let range =
            self.map_backing(Backing::File(file.clone(), offset), offset, length, Place::Automatic)?;
        Ok(self.mapping(range, length, Owned::File { _file: file }))
    }

    /// Maps memory that belongs to someone else. `memory` and `length` are multiples of 4 KiB.
    ///
    /// # Errors
    /// As for [`Ioas::map`]; [`ErrorKind::BadMemory`] and
    /// [`ErrorKind::ReadOnlyMemory`] for memory that cannot be pinned.
    ///
    /// # Safety
    /// Until this returns, nobody unmaps, replaces or remaps the range: a page replaced between the pin and the lookup
    /// cannot be told, and its address would be one that nothing pins. Until the mapping is gone and every device is
    /// quiet, a device may read and write the memory: nothing may rely on what it holds, so no `&` or `&mut` to it exists.
    pub unsafe fn map_borrowed(&self, memory: NonNull<u8>, length: usize) -> Result<Mapping> {
        let address = memory.as_ptr() as usize;
        let range =
            self.map_backing(Backing::User(address), address as u64, length as u64, Place::Automatic)?;
        Ok(self.mapping(range, length as u64, Owned::Borrowed))
    }

    fn map_backing(&self, backing: Backing, address: u64, length: u64, place: Place) -> Result<IovaRange> {
        if self.inner.context.is_forked() {
            return Err(forked());
        }
        let request = MapRequest { backing, address, length, access: Access::READ_WRITE, place };
        let iova = self.inner.context.engine().map(self.inner.id, caller(), request)?;
        Ok(IovaRange::with_length(iova, length)?)
    }

    fn mapping(&self, range: IovaRange, length: u64, memory: Owned) -> Mapping {
        let ioas = self.inner.clone();
        Mapping { inner: Arc::new(MappingInner { ioas, range, length, memory: Some(memory) }) }
    }

    #[doc(alias = "IOMMU_IOAS_GET_PA")]
    #[doc(alias = "IOMMU_IOAS_NOIOMMU_GET_PA")]
    /// The physical address of an IOVA and the contiguous bytes from there on in its mapping, at most `length`; `None`
    /// where nothing is mapped. Takes no lock.
    ///
    /// The address is good as long as the mapping there is: drivers ask their [`Mapping`] instead, which cannot go stale.
    #[must_use]
    pub fn lookup(&self, iova: Iova, length: u64) -> Option<Translation> {
        self.inner.table.run(iova, length)
    }

    /// The contiguous pieces of an IOVA range, across mappings. Takes no lock.
    ///
    /// # Errors
    /// ENOENT when there is a hole in the range.
    pub fn segments(&self, range: IovaRange) -> Result<Vec<Segment>> {
        Ok(self.inner.table.segments(range).collect::<std::result::Result<_, _>>()?)
    }

    /// Areas and table frames in use.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let none = Usage { areas: 0, table_frames: 0 };
        self.inner.context.engine().usage(self.inner.id).unwrap_or(none)
    }

    /// Mappings that were dropped while a device could still reach their memory, and wait for it to be quiet.
    #[must_use]
    pub fn quarantined(&self) -> usize {
        self.inner.quarantine().held.len()
    }
}

impl std::fmt::Debug for Ioas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ioas").field("id", &self.inner.id.0).finish_non_exhaustive()
    }
}

/// The error of a forked child.
pub(crate) fn forked() -> Error {
    Error::new(
        ErrorKind::Rule,
        Errno::EPERM,
        "the engine belongs to the process that opened it, not to a forked child",
    )
    .with_remedy("open a Context of its own after the fork")
}

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
enum Owned {
    Buffer(DmaBuffer),
    File { _file: Arc<OwnedFd> },
    Borrowed,
}

/// Memory in an IOAS: pinned, at an IOVA, owned.
///
/// Dropped while an attached device has bus mastering on, it is kept in quarantine, mapped and pinned, until the device
/// has been made quiet. [`Mapping::reclaim`] gives the memory back at once, when the device is done with it.
#[derive(Debug)]
pub struct Mapping {
    inner: Arc<MappingInner>,
}

pub(crate) struct MappingInner {
    ioas: Arc<Inner>,
    range: IovaRange,
    /// Bytes as asked for; the range covers whole pages.
    length: u64,
    memory: Option<Owned>,
}

impl MappingInner {
    pub(crate) fn ioas(&self) -> &Arc<Inner> {
        &self.ioas
    }
}

impl Drop for MappingInner {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.ioas.release(self.range, memory);
        }
    }
}

impl std::fmt::Debug for MappingInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MappingInner").field("range", &self.range).finish_non_exhaustive()
    }
}

impl Mapping {
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
        match &self.inner.memory {
            Some(Owned::Buffer(buffer)) => Some(buffer),
            _ => None,
        }
    }

    /// The contiguous pieces of physical memory, in order.
    ///
    /// # Errors
    /// None that a caller could cause: the mapping is there as long as this value.
    pub fn segments(&self) -> Result<Vec<Segment>> {
        let range = IovaRange::with_length(self.inner.range.first(), self.inner.length)?;
        let segments = self.inner.ioas.table.segments(range);
        Ok(segments.collect::<std::result::Result<_, _>>()?)
    }

    /// Asks the kernel anew where the buffer's pages are, and counts those that are not where the engine says. 0 as long as
    /// pins hold: a check for demonstrations and tests. `None` where it cannot be asked: memory that is no [`DmaBuffer`],
    /// or simulated.
    ///
    /// # Errors
    /// What reading /proc/self/pagemap answers.
    pub fn moved_pages(&self) -> Result<Option<u64>> {
        let (Some(buffer), Some(pagemap)) = (self.buffer(), self.inner.ioas.context.pagemap()) else {
            return Ok(None);
        };
        let page_size = pagemap.page_size();
        let entries = pagemap.entries(buffer.address(), buffer.mapped_length() / page_size)?;
        let moved = entries.iter().zip((self.iova().0..).step_by(page_size)).filter(|(entry, iova)| {
            self.inner.ioas.table.lookup(Iova(*iova)).map(|found| found.address) != entry.frame(page_size)
        });
        Ok(Some(moved.count() as u64))
    }

    /// The addresses to give to a device.
    ///
    /// # Errors
    /// [`ErrorKind::Rule`] when the device is not attached to this mapping's IOAS;
    /// [`ErrorKind::Unsupported`] when it cannot reach all of the memory (its DMA mask).
    pub fn for_device(&self, device: &Device) -> Result<DmaView> {
        DmaView::new(&self.inner, device, &self.segments()?)
    }

    /// Unmaps at once and gives the buffer back; `None` for memory that the mapping does not own. The caller says thereby
    /// that no device uses the memory any more: this is part of what
    /// [`Device::enable_bus_master`](crate::Device::enable_bus_master) promises.
    ///
    /// # Errors
    /// The mapping comes back while views of it ([`Mapping::for_device`]) exist.
    pub fn reclaim(self) -> std::result::Result<Option<DmaBuffer>, Self> {
        let mut inner = Arc::try_unwrap(self.inner).map_err(|inner| Self { inner })?;
        let memory = inner.memory.take();
        inner.ioas.unmap(inner.range);
        Ok(match memory {
            Some(Owned::Buffer(buffer)) => Some(buffer),
            _ => None,
        })
    }

    /// Leaves the memory mapped and pinned until the process ends.
    pub fn forget(self) {
        std::mem::forget(self);
    }
}
