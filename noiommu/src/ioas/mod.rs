//! IOASes: memory at IOVAs, pinned, for devices of every kind.

mod domains;
mod kernel;
mod mapping;
mod quarantine;
mod watch;

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::panic::Location;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use noiommu_core::table::format::Access;
use noiommu_core::table::{Segment, Table, Translation};
use noiommu_core::{Errno, Iova, IovaRange, MapRequest, ObjectId, PhysAddr, Place, Usage};

use self::domains::Domains;
use self::kernel::KernelAddresses;
pub(crate) use self::mapping::MappingInner;
use self::mapping::Owned;
pub use self::mapping::{MapError, Mapping};
use self::quarantine::{Given, Quarantine};
pub use self::watch::{LateWrite, Occasion};
use crate::buffer::DmaBuffer;
use crate::context;
use crate::device::{Addressing, Backend};
use crate::memory::{Arena, Backing, HUGE, PinKind};
use crate::sim::{Creator, Freeing, Mapped};
use crate::{Error, ErrorKind, Result};

/// An I/O address space: memory mapped at IOVAs, and looked up as physical addresses.
///
/// Cheap to clone; all clones are one IOAS. Memory is pinned from the moment it is mapped once a device has been attached or a
/// physical address was asked for; what was mapped before is pinned then, and stays so for the IOAS's life. (On a machine where
/// nothing but the engine can serve it always is.) Attaching or detaching devices never changes an address.
///
/// Devices of different kinds may be attached at once: those that the engine serves, those that the kernel's own no-IOMMU mode
/// serves, and those behind an IOMMU. A mapping is then pinned by each of these, at one IOVA.
///
/// ```
/// # fn main() -> noiommu::Result<()> {
/// use noiommu::{Context, Contiguity, DmaBuffer, Iova};
///
/// let ioas = Context::simulated().ioas()?;
/// let anywhere = ioas.map(DmaBuffer::new(8192, Contiguity::Pages)?)?;
/// let there = ioas.map_at(Iova(0x10_0000), DmaBuffer::new(4096, Contiguity::Pages)?)?;
/// assert_eq!(there.iova(), Iova(0x10_0000));
///
/// let found = ioas.lookup(Iova(0x10_0010), 4096).expect("it is mapped");
/// assert_eq!(found.length, 4096 - 0x10, "as far as the mapping goes");
/// drop(there);
/// assert_eq!(ioas.lookup(Iova(0x10_0010), 1), None);
/// # drop(anywhere);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Ioas {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    context: Arc<context::Inner>,
    id: ObjectId,
    table: Arc<Table<Arena>>,
    domains: Mutex<Domains>,
    /// Who tells physical addresses: whoever came first.
    physical: OnceLock<Physical>,
    quarantine: Mutex<Quarantine>,
}

/// Where physical addresses come from.
enum Physical {
    /// The engine's table.
    Engine,
    /// The kernel's IOAS.
    Kernel(KernelAddresses),
}

impl Inner {
    pub(crate) fn context(&self) -> &Arc<context::Inner> {
        &self.context
    }

    fn domains(&self) -> MutexGuard<'_, Domains> {
        self.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn quarantine(&self) -> MutexGuard<'_, Quarantine> {
        self.quarantine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device more that may do DMA here.
    pub(crate) fn add_master(&self) {
        self.quarantine().add_master();
    }

    /// A device less: with the last one, what was waiting for it is let go.
    pub(crate) fn remove_master(&self) {
        let mut quarantine = self.quarantine();
        let free = quarantine.remove_master();
        self.let_go(free);
    }

    /// The end of a mapping: at once if no device can reach it, else when the last such device is quiet; later where freed
    /// memory is watched.
    fn release(&self, given: Given) {
        if self.context.is_forked() {
            return;
        }
        self.tell_freed(given.range, Freeing::Dropped);
        let mut quarantine = self.quarantine();
        if quarantine.keeps_nothing() {
            // Unmapped under the lock, as below: no device begins to master the bus meanwhile.
            self.unmap(given.range);
            return;
        }
        let free = quarantine.give(given);
        self.let_go(free);
    }

    /// The end of a mapping whose owner says that no device uses it: its memory, or a copy where freed memory is watched.
    fn reclaim(&self, given: Given, by: Creator) -> Owned {
        self.tell_freed(given.range, Freeing::Reclaimed(by));
        let mut quarantine = self.quarantine();
        let copied = match &given.memory {
            Owned::Buffer(buffer) if quarantine.would_watch(&given) => match buffer.copy() {
                Ok(copy) => Some(copy),
                Err(error) => {
                    tracing::warn!(%error, "a reclaimed buffer is not watched");
                    None
                }
            },
            _ => None,
        };
        match copied {
            Some(copy) => {
                let free = quarantine.give_reclaimed(given);
                self.let_go(free);
                Owned::Buffer(copy)
            }
            None => {
                drop(quarantine);
                self.unmap(given.range);
                given.memory
            }
        }
    }

    fn tell_freed(&self, range: IovaRange, how: Freeing) {
        if let Some(sanitizer) = self.context.sanitizer() {
            sanitizer.freed(self.id.0, range, how);
        }
    }

    /// Unmaps, then gives memory back.
    fn let_go(&self, all: Vec<Given>) {
        for Given { range, memory, .. } in all {
            self.unmap(range);
            drop(memory);
        }
    }

    fn unmap(&self, range: IovaRange) {
        if let Some(sanitizer) = self.context.sanitizer() {
            sanitizer.unmapped(self.id.0, range);
        }
        self.domains().unmap(self, range);
    }

    fn unmap_engine(&self, range: IovaRange) {
        if let Err(error) = self.context.engine().unmap(self.id, range) {
            tracing::error!(?range, %error, "a mapping of the kit was gone from the engine");
        }
    }

    /// Lets a device have what is mapped. `id`: of the device in the engine.
    pub(crate) fn attach(&self, device: &dyn Backend, id: ObjectId) -> Result<()> {
        let mut domains = self.domains();
        domains.attach(self, device, id)?;
        self.quarantine().attach(device.name());
        if domains.engine.is_some() {
            let _ = self.physical.set(Physical::Engine);
        }
        Ok(())
    }

    /// The contrary.
    pub(crate) fn detach(&self, device: &dyn Backend, id: ObjectId) {
        self.domains().detach(self, device, id);
        self.quarantine().detach(device.name());
    }

    /// The kernel tells physical addresses from now on, if nobody did before.
    fn tell_physical(&self, addresses: &KernelAddresses) {
        let _ = self.physical.set(Physical::Kernel(addresses.clone()));
    }

    /// Who tells physical addresses; the engine begins to where nobody did.
    fn physical(&self) -> Result<&Physical> {
        if self.physical.get().is_none() {
            self.domains().engine(self)?;
        }
        Ok(self.physical.get_or_init(|| Physical::Engine))
    }

    fn lookup(&self, iova: Iova, length: u64) -> Option<Translation> {
        match self.physical.get()? {
            Physical::Engine => self.table.run(iova, length),
            Physical::Kernel(addresses) => {
                let found = addresses.segment(iova, length).ok()?;
                // The kernel does not tell, but it was mapped there by the engine's area.
                let access = self.context.engine().access_at(self.id, iova)?;
                Some(Translation { address: found.address, length: found.length, access })
            }
        }
    }

    /// The number after an address that the index does not have. What the engine has pinned is where it is, whoever tells addresses:
    /// they are the same pages.
    ///
    /// One register holds what this answers. An `Option<PhysAddr>` is two, which compilers carry through the lookup that does not come
    /// here (measured: it takes 1.2 times as long).
    #[cold]
    fn address_after(&self, iova: Iova) -> Option<NonZeroU64> {
        let address = self.table.address(iova).or_else(|| match self.physical.get()? {
            Physical::Engine => None,
            Physical::Kernel(addresses) => addresses.segment(iova, 1).ok().map(|found| found.address),
        });
        // Physical addresses have 52 bits.
        NonZeroU64::new(address?.0.wrapping_add(1))
    }

    /// The contiguous pieces of physical memory in a range.
    fn segments(&self, range: IovaRange) -> Result<Vec<Segment>> {
        match self.physical()? {
            Physical::Engine => self.engine_segments(range),
            Physical::Kernel(addresses) => addresses.segments(range),
        }
    }

    fn engine_segments(&self, range: IovaRange) -> Result<Vec<Segment>> {
        Ok(self.table.segments(range).collect::<std::result::Result<_, _>>()?)
    }

    /// What a device finds where the range is mapped: its bus addresses, as if they were physical ones.
    pub(crate) fn device_segments(&self, device: &dyn Backend, range: IovaRange) -> Result<Vec<Segment>> {
        if device.provider().is_confined() {
            let (iova, address) = (range.first(), PhysAddr(range.first().0));
            let length = range.length().ok_or_else(|| Error::from(Errno::EOVERFLOW))?;
            return Ok(vec![Segment { iova, address, length }]);
        }
        match device.addressing() {
            Addressing::Engine => self.engine_segments(range),
            // Of the kernel's own pins, whoever else tells physical addresses.
            Addressing::Iommufd { .. } => match self.domains().kernel_addresses() {
                Some(addresses) => addresses.segments(range),
                None => Err(Errno::ENOENT.into()),
            },
            Addressing::Container(_) => Err(Errno::EOPNOTSUPP.into()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.is_forked() {
            return;
        }
        // No mapping and no attached device is left, as each holds a share of this.
        let watched = self.quarantine().end();
        self.let_go(watched);
        let domains = self.domains.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut engine = self.context.engine();
        if let Some(domain) = domains.engine {
            let _ = engine.destroy(domain.hwpt);
            let _ = engine.unbind(domain.keeper);
        }
        let _ = engine.destroy(self.id);
    }
}

impl Ioas {
    pub(crate) fn new(context: &Arc<context::Inner>) -> Result<Self> {
        // The lock may have been another thread's of the parent.
        if context.is_forked() {
            return Err(forked());
        }
        let mut engine = context.engine();
        let id = engine.ioas_alloc()?;
        let table = engine.table(id)?.clone();
        drop(engine);
        let inner = Inner {
            context: context.clone(),
            id,
            table,
            domains: Mutex::default(),
            physical: OnceLock::new(),
            quarantine: Mutex::default(),
        };
        if context.is_engine_alone() {
            inner.physical()?;
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Maps a buffer wherever there is room. The mapping owns the buffer from now on.
    ///
    /// # Errors
    /// Those of pinning ([`ErrorKind::MemlockLimit`] above all), ENOSPC, ENOMEM; nothing
    /// is mapped then, and the buffer comes back with the error.
    #[track_caller]
    pub fn map(&self, buffer: DmaBuffer) -> std::result::Result<Mapping, MapError> {
        self.map_buffer(buffer, Place::Automatic, Access::READ_WRITE, Location::caller())
    }

    /// Maps a buffer for devices to read alone. An IOMMU keeps them from writing, and on simulated memory the
    /// [sanitizer](crate::sim::Sanitizer) does; without an IOMMU nothing can, and it only says what is meant.
    ///
    /// # Errors
    /// As for [`Ioas::map`].
    #[track_caller]
    pub fn map_read_only(&self, buffer: DmaBuffer) -> std::result::Result<Mapping, MapError> {
        self.map_buffer(buffer, Place::Automatic, Access::READ_ONLY, Location::caller())
    }

    /// Maps a buffer at an IOVA of choice, a multiple of 4 KiB.
    ///
    /// # Errors
    /// As for [`Ioas::map`], and EEXIST when the range overlaps a mapping, EINVAL when misaligned, EOVERFLOW past the end
    /// of the IOVA space.
    #[track_caller]
    pub fn map_at(&self, iova: Iova, buffer: DmaBuffer) -> std::result::Result<Mapping, MapError> {
        self.map_buffer(buffer, Place::Fixed(iova), Access::READ_WRITE, Location::caller())
    }

    fn map_buffer(
        &self,
        buffer: DmaBuffer,
        place: Place,
        access: Access,
        by: Creator,
    ) -> std::result::Result<Mapping, MapError> {
        let (address, length) = (buffer.address(), buffer.mapped_length());
        match self.map_backing(Backing::User(address), address as u64, length as u64, place, access) {
            Ok(range) => {
                let length = buffer.len() as u64;
                Ok(self.mapping(range, length, access, Some(address as u64), Owned::Buffer(buffer), by))
            }
            Err(error) => Err(MapError { error, buffer }),
        }
    }

    /// Maps `length` bytes of a memfd (hugetlb included) or tmpfs file from `offset` on, both multiples of 4 KiB.
    ///
    /// # Errors
    /// As for [`Ioas::map`]; EINVAL also when the range passes the end of the file or the file is no shared memory.
    #[track_caller]
    pub fn map_file(&self, file: OwnedFd, offset: u64, length: u64) -> Result<Mapping> {
        let (file, access) = (Arc::new(file), Access::READ_WRITE);
        let backing = Backing::File(file.clone(), offset);
        let range = self.map_backing(backing, offset, length, Place::Automatic, access)?;
        Ok(self.mapping(range, length, access, None, Owned::File { _file: file }, Location::caller()))
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
    #[track_caller]
    pub unsafe fn map_borrowed(&self, memory: NonNull<u8>, length: usize) -> Result<Mapping> {
        let (address, length) = (memory.as_ptr() as usize, length as u64);
        let (here, access) = (address as u64, Access::READ_WRITE);
        let range = self.map_backing(Backing::User(address), here, length, Place::Automatic, access)?;
        Ok(self.mapping(range, length, access, Some(here), Owned::Borrowed, Location::caller()))
    }

    fn map_backing(
        &self,
        backing: Backing,
        address: u64,
        length: u64,
        place: Place,
        access: Access,
    ) -> Result<IovaRange> {
        if self.inner.context.is_forked() {
            return Err(forked());
        }
        self.inner.context.raise_reports();
        let mut domains = self.inner.domains();
        let request = |address| MapRequest { backing: backing.clone(), address, length, access, place };
        // Placement keeps to the alignment of the address, which matters to what is smaller than a huge page: IOVAs stay as close
        // together as addresses are. What is larger goes to a multiple of its own size, so that it needs the fewest tables; where
        // there is no such room, anywhere.
        if place == Place::Automatic && length >= HUGE as u64 {
            match domains.map(&self.inner, request(address % 4096)) {
                Err(error) if error.errno() == Errno::ENOSPC => {}
                done => return done,
            }
        }
        domains.map(&self.inner, request(address))
    }

    /// What has been mapped: `range`, of which `length` bytes were asked for. `address`: of the memory in this process.
    fn mapping(
        &self,
        range: IovaRange,
        length: u64,
        access: Access,
        address: Option<u64>,
        memory: Owned,
        by: Creator,
    ) -> Mapping {
        if let Some(sanitizer) = self.inner.context.sanitizer() {
            let mapped = Mapped::new(self.inner.id.0, range.first(), length, !access.write, by);
            // On simulated memory everything is pinned, so it has its addresses.
            let runs = self.inner.engine_segments(range).unwrap_or_default();
            sanitizer.mapped(mapped, range, address, &runs);
        }
        Mapping::new(&self.inner, Given { range, length, by, memory })
    }

    #[doc(alias = "IOMMU_IOAS_GET_PA")]
    #[doc(alias = "IOMMU_IOAS_NOIOMMU_GET_PA")]
    /// The physical address of an IOVA and the contiguous bytes from there on in its mapping, at most `length`; `None`
    /// where nothing is mapped, and before memory is pinned (see [`Ioas`]). Takes no lock; where the kernel's own no-IOMMU mode
    /// serves, it is a system call, and takes the engine's.
    ///
    /// The address is good as long as the mapping there is: drivers ask their [`Mapping`] instead, which cannot go stale.
    #[must_use]
    pub fn lookup(&self, iova: Iova, length: u64) -> Option<Translation> {
        self.inner.lookup(iova, length)
    }

    /// The physical address of an IOVA, as [`Ioas::lookup`] tells it, and nothing else: where the engine tells addresses this is one
    /// load of an array for memory mapped in pieces of 2 MiB and more, and two for smaller ones.
    #[must_use]
    #[inline]
    pub fn address(&self, iova: Iova) -> Option<PhysAddr> {
        match self.inner.table.indexed_address(iova) {
            Some(address) => Some(address),
            None => self.inner.address_after(iova).map(|after| PhysAddr(after.get() - 1)),
        }
    }

    /// The contiguous pieces of an IOVA range, across mappings. Memory that was not pinned so far is pinned by this.
    ///
    /// # Errors
    /// ENOENT when there is a hole in the range; those of pinning.
    pub fn segments(&self, range: IovaRange) -> Result<Vec<Segment>> {
        self.inner.segments(range)
    }

    /// Who keeps memory where it is: for those who ask for physical addresses; where nobody did, for the devices attached, or
    /// else for those that the engine would serve.
    ///
    /// # Errors
    /// Where nobody can: what keeps the engine from it.
    pub fn pin_kind(&self) -> Result<PinKind> {
        match self.inner.physical.get() {
            Some(Physical::Kernel(_)) => Ok(PinKind::Kernel),
            None if self.inner.domains().has_kernel() => Ok(PinKind::Kernel),
            _ => self.inner.context.pin_kind(),
        }
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
        self.inner.quarantine().held()
    }

    /// Watches freed buffers from now on: a buffer whose mapping is dropped or reclaimed is kept, pinned, in a queue of so many
    /// bytes, filled with a pattern. A device that still writes to it does no harm then, and is found out: when the buffer makes
    /// room for others, when no attached device can do DMA any more ([`Device::quiesce`](crate::Device::quiesce)), at the end of
    /// the IOAS, and when [asked for](Ioas::check_freed). What is found is an error in the log, and a [`LateWrite`] to be read. On real
    /// memory as on simulated.
    ///
    /// * [`Mapping::reclaim`] answers a *copy* of the buffer, and the buffer itself is watched. (It is the buffer itself where there
    ///   is no memory for a copy, which is logged.)
    /// * Memory costs: so many bytes more stay pinned (they count for RLIMIT_MEMLOCK), and their IOVAs are not free for
    ///   [`Ioas::map_at`]. A buffer that is larger by itself is not watched. Without a watch a reclaimed buffer costs nothing; with
    ///   one it is copied, filled and compared.
    /// * It cannot see reads; a write of what is there already; a write to a buffer that has left the queue; nor to memory of
    ///   files and borrowed memory, which others may write to.
    ///
    /// 0 bytes end it.
    pub fn watch_freed(&self, bytes: u64) {
        let mut quarantine = self.inner.quarantine();
        let free = quarantine.watch(bytes);
        self.inner.let_go(free);
    }

    /// Looks at all freed buffers that are [watched](Ioas::watch_freed), and answers all that was found since it was asked last:
    /// the first 1000, further ones are in the log alone.
    #[must_use = "a late write that nobody reads is a fault that nobody sees"]
    pub fn check_freed(&self) -> Vec<LateWrite> {
        self.inner.quarantine().check()
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
