//! What one open of /dev/iommu is: objects in one id namespace, and the operations on them.

use crate::ids::Ids;
use crate::ioas::{GRANULE, Ioas, Place};
use crate::pages::{Slice, Store};
use crate::platform::{Caller, Platform};
use crate::table::format::Access;
use crate::{Errno, Iova, IovaRange, PhysAddr, TryVec};

/// The number of an object in its context, from 1; the lowest free number is used next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct ObjectId(pub u32);

/// What IOMMU_IOAS_MAP and IOMMU_IOAS_MAP_FILE ask for.
#[derive(Debug)]
pub struct MapRequest<B> {
    /// The memory, from the page on that holds `address`.
    pub backing: B,
    /// Its user address or file offset: automatic placement keeps its alignment.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// What devices may do with it; at least one of the two.
    pub access: Access,
    /// Where.
    pub place: Place,
}

/// What IOMMU_IOAS_COPY asks for.
#[derive(Clone, Copy, Debug)]
pub struct CopyRequest {
    /// The IOAS to copy from.
    pub source: ObjectId,
    /// The first byte there.
    pub source_iova: Iova,
    /// Bytes; all of them are mapped there.
    pub length: u64,
    /// What devices may do with the copy; at least one of the two.
    pub access: Access,
    /// Where the copy shall stand.
    pub place: Place,
}

#[expect(clippy::large_enum_variant, reason = "a box could not fail; a context has few objects")]
enum Object<P: Platform> {
    Ioas {
        ioas: Ioas<P>,
        /// The HWPT that attaching to the IOAS itself uses, while a device does.
        automatic: Option<ObjectId>,
    },
    /// A page table on an IOAS that devices attach to.
    Hwpt { ioas: ObjectId, automatic: bool, devices: u32, faults: Option<ObjectId> },
    /// A bound device. It has no IOMMU, hence no IOMMU group: nothing to share, nothing to check against.
    Device { attached: Option<ObjectId>, through: Through },
    /// A queue of page faults, which never come without an IOMMU.
    FaultQueue { open: bool, hwpts: u32 },
}

/// Which call attached a device; the other kind cannot replace or detach it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Through {
    /// Without a PASID.
    Device,
    /// With VFIO_DEVICE_ATTACH_PASID and PASID 0, which is the device itself.
    PasidZero,
}

/// An iommufd context: IOASes, HWPTs, fault queues and bound no-IOMMU devices.
///
/// Every method that fails leaves the context as it was, except that [`Context::unmap`] may have unmapped the leading
/// whole areas of its range, as the kernel does. Not `Sync` by itself: the owner locks; readers of a table
/// ([`Context::table`]) need no lock.
pub struct Context<P: Platform> {
    platform: P,
    objects: Ids<Object<P>>,
    store: Store<P>,
    /// The IOAS of the VFIO container calls (IOMMU_VFIO_IOAS).
    compat: Option<ObjectId>,
    /// A no-IOMMU group uses this as its container.
    no_iommu_container: bool,
    /// IOMMU_OPTION_RLIMIT_MODE: pinned memory is charged to the process rather than to the user.
    charges_process: bool,
}

impl<P: Platform> Context<P> {
    /// An empty context on `platform`.
    #[must_use]
    pub const fn new(platform: P) -> Self {
        Self {
            platform,
            objects: Ids::new(),
            store: Store::new(),
            compat: None,
            no_iommu_container: false,
            charges_process: false,
        }
    }

    /// What it runs on.
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// IOMMU_IOAS_ALLOC: a new, empty IOAS.
    ///
    /// # Errors
    /// Want of memory.
    pub fn ioas_alloc(&mut self) -> Result<ObjectId, P::Error> {
        self.objects.reserve()?;
        let ioas = Ioas::new(&self.platform, &mut self.store)?;
        Ok(self.add(Object::Ioas { ioas, automatic: None })?)
    }

    /// IOMMU_IOAS_ALLOW_IOVAS: automatic placement keeps to `ranges` from now on; none: anywhere.
    ///
    /// # Errors
    /// ENOENT: no such IOAS; EINVAL: ranges that overlap; ENOMEM; the first error among `ranges`.
    pub fn allow_iovas(
        &mut self,
        ioas: ObjectId,
        ranges: impl Iterator<Item = Result<IovaRange, Errno>>,
    ) -> Result<(), Errno> {
        self.ioas_mut(ioas)?.allow_iovas(ranges)
    }

    /// IOMMU_IOAS_IOVA_RANGES: the alignment that IOVAs and lengths must have at present. Without an IOMMU the ranges are one:
    /// everything.
    ///
    /// # Errors
    /// ENOENT: no such IOAS.
    pub fn iova_alignment(&self, ioas: ObjectId) -> Result<u64, Errno> {
        self.ioas(ioas).map(Ioas::alignment)
    }

    /// IOMMU_IOAS_MAP, IOMMU_IOAS_MAP_FILE: maps memory and answers where. While the IOAS has a domain the memory is
    /// pinned before this returns; else nothing of it is looked at until a device attaches.
    ///
    /// # Errors
    /// EINVAL: no access asked for; ENOENT: no such IOAS; EOVERFLOW: user memory passes or reaches the end of the address space;
    /// EINVAL: length 0, something misaligned while a domain exists, or the end of the IOVA space while memory is not contiguous; EOVERFLOW: past the end of the IOVA space; EEXIST: overlaps
    /// an area; ENOSPC: no room; ENOMEM; and those of pinning.
    pub fn map(
        &mut self,
        ioas: ObjectId,
        caller: Caller,
        request: MapRequest<P::Backing>,
    ) -> Result<Iova, P::Error> {
        if !request.access.read && !request.access.write {
            return Err(Errno::EINVAL.into());
        }
        self.map_with(ioas, caller, request)
    }

    /// The same, with any access.
    pub(crate) fn map_with(
        &mut self,
        ioas: ObjectId,
        caller: Caller,
        request: MapRequest<P::Backing>,
    ) -> Result<Iova, P::Error> {
        let MapRequest { backing, address, length, access, place } = request;
        self.ioas(ioas)?;
        // The byte behind user memory must have an address; a file may end with the last offset there is.
        if !self.platform.is_file(&backing) {
            address.checked_add(length).ok_or(Errno::EOVERFLOW)?;
        }
        if length == 0 || length > u64::MAX.wrapping_sub(GRANULE) {
            return Err(Errno::EINVAL.into());
        }
        let offset = address & (GRANULE - 1);
        let pages = self.store.add_pages(backing, address.wrapping_sub(offset), access.write, caller)?;
        let mapped = self.map_slices(ioas, &[Slice { pages, start: offset, length }], length, place, access);
        self.store.release(pages);
        mapped
    }

    /// IOMMU_IOAS_COPY: maps what another range maps, in this IOAS or another one, and answers where. The memory, its pins
    /// and what they are charged are shared.
    ///
    /// # Errors
    /// EINVAL: no access asked for, or length 0; ENOENT: no such IOAS, or a hole in the range; EPERM: writing is asked for and
    /// the memory was mapped without; and as for [`Context::map`].
    pub fn copy(&mut self, ioas: ObjectId, request: CopyRequest) -> Result<Iova, P::Error> {
        let CopyRequest { source, source_iova, length, access, place } = request;
        if !access.read && !access.write {
            return Err(Errno::EINVAL.into());
        }
        let from = self.ioas(source)?;
        let range = IovaRange::with_length(source_iova, length)?;
        let mut slices = TryVec::new();
        from.slices(&self.store, range, &mut |slice| slices.try_push(slice))?;
        self.ioas(ioas)?;
        self.map_slices(ioas, &slices, length, place, access)
    }

    fn map_slices(
        &mut self,
        ioas: ObjectId,
        slices: &[Slice],
        length: u64,
        place: Place,
        access: Access,
    ) -> Result<Iova, P::Error> {
        let Self { platform, objects, store, .. } = self;
        match objects.get_mut(ioas.0.wrapping_sub(1)) {
            Some(Object::Ioas { ioas, .. }) => ioas.map(platform, store, slices, length, place, access),
            _ => Err(Errno::ENOENT.into()),
        }
    }

    /// IOMMU_IOAS_UNMAP: unmaps the whole areas in `range`, lowest first, and answers their bytes.
    ///
    /// # Errors
    /// ENOENT: no such IOAS, no area in the range (the whole space may be empty), or an area that lies only partly in the
    /// range; the areas below that one are unmapped by then.
    pub fn unmap(&mut self, ioas: ObjectId, range: IovaRange) -> Result<u64, Errno> {
        let (bytes, outcome) = self.unmap_counting(ioas, range)?;
        outcome?;
        if bytes > 0 || range == IovaRange::ALL { Ok(bytes) } else { Err(Errno::ENOENT) }
    }

    /// The same, which tells the bytes in any case; a range without areas is fine.
    pub(crate) fn unmap_counting(
        &mut self,
        ioas: ObjectId,
        range: IovaRange,
    ) -> Result<(u64, Result<(), Errno>), Errno> {
        let (ioas, store) = self.ioas_and_store(ioas)?;
        Ok(ioas.unmap(store, range))
    }

    /// Makes `last` the end of an area, if one goes on behind it: what unmapping in the middle begins with
    /// (VFIO_TYPE1_IOMMU, the first version).
    ///
    /// # Errors
    /// ENOENT: no such IOAS; EINVAL: inside a page, or inside what may be one large leaf; ENOMEM.
    pub fn cut(&mut self, ioas: ObjectId, last: Iova) -> Result<(), Errno> {
        let (ioas, store) = self.ioas_and_store(ioas)?;
        ioas.cut(store, last)
    }

    /// IOMMU_OPTION_HUGE_PAGES, the value: whether leaves larger than a page may be used.
    ///
    /// # Errors
    /// ENOENT: no such IOAS.
    pub fn large_pages(&self, ioas: ObjectId) -> Result<bool, Errno> {
        self.ioas(ioas).map(|ioas| !ioas.small_pages())
    }

    /// IOMMU_OPTION_HUGE_PAGES: allows leaves larger than a page (as at first), or not.
    ///
    /// # Errors
    /// ENOENT: no such IOAS; to disallow: EINVAL while something is mapped and a domain exists; EADDRINUSE: an area does not
    /// consist of whole pages.
    pub fn set_large_pages(&mut self, ioas: ObjectId, large: bool) -> Result<(), Errno> {
        let (ioas, store) = self.ioas_and_store(ioas)?;
        ioas.set_small_pages(store, !large)
    }

    /// IOMMU_OPTION_RLIMIT_MODE, the value: whether pinned memory is charged to the process rather than to the user.
    #[must_use]
    pub fn charges_process(&self) -> bool {
        self.charges_process
    }

    /// IOMMU_OPTION_RLIMIT_MODE. The engine keeps the choice; who is charged is up to the platform.
    ///
    /// # Errors
    /// EPERM: the caller lacks CAP_SYS_RESOURCE; EBUSY: the context has objects.
    pub fn set_charges_process(&mut self, caller: Caller, process: bool) -> Result<(), Errno> {
        if !caller.resource {
            return Err(Errno::EPERM);
        }
        if !self.objects.is_empty() {
            return Err(Errno::EBUSY);
        }
        self.charges_process = process;
        Ok(())
    }

    /// IOMMU_IOAS_CHANGE_PROCESS: whether all memory mapped is that of files, which any process can go on with.
    ///
    /// # Errors
    /// EINVAL: some is memory of a process.
    pub fn change_process(&self) -> Result<(), Errno> {
        let areas = self.objects.iter().filter_map(|object| match object {
            Object::Ioas { ioas, .. } => Some(ioas.iter()),
            _ => None,
        });
        let mut backings = areas.flatten().filter_map(|(_, number)| {
            let area = self.store.area(number)?;
            self.store.backing(area.slice.pages)
        });
        if backings.all(|backing| self.platform.is_file(backing)) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// VFIO_DEVICE_BIND_IOMMUFD's part here: a device without an IOMMU becomes an object of this context.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn bind(&mut self) -> Result<ObjectId, Errno> {
        self.add(Object::Device { attached: None, through: Through::Device })
    }

    /// The end of a binding: the device is detached and its object gone.
    ///
    /// # Errors
    /// ENOENT: no such device.
    pub fn unbind(&mut self, device: ObjectId) -> Result<(), Errno> {
        let (_, through) = self.attached(device)?;
        self.detach_through(device, through)?;
        self.objects.remove(device.0.wrapping_sub(1));
        Ok(())
    }

    /// IOMMU_HWPT_ALLOC with flags 0, or with a fault queue: a page table of its own on an IOAS, which keeps its memory pinned
    /// with no device attached.
    ///
    /// # Errors
    /// ENOENT: no such device; EINVAL: `ioas` is no IOAS; ENOMEM; those of pinning; ENOENT: no such fault queue.
    pub fn hwpt_alloc(
        &mut self,
        device: ObjectId,
        ioas: ObjectId,
        faults: Option<ObjectId>,
    ) -> Result<ObjectId, P::Error> {
        self.attached(device)?;
        if !self.is_ioas(ioas) {
            return Err(Errno::EINVAL.into());
        }
        let hwpt = self.new_hwpt(ioas, false)?;
        let Some(queue) = faults else { return Ok(hwpt) };
        let Some(Object::FaultQueue { hwpts, .. }) = self.object_mut(queue) else {
            self.drop_hwpt(hwpt);
            return Err(Errno::ENOENT.into());
        };
        *hwpts = hwpts.saturating_add(1);
        if let Some(Object::Hwpt { faults, .. }) = self.object_mut(hwpt) {
            *faults = Some(queue);
        }
        Ok(hwpt)
    }

    /// VFIO_DEVICE_ATTACH_IOMMUFD_PT: attaches a bound device to an IOAS (through its automatic HWPT, made when the first
    /// device attaches) or to an HWPT, in place of what it was attached to. Answers the HWPT.
    ///
    /// # Errors
    /// ENOENT: no such device or no such object to attach to; EINVAL: that is something else; EBUSY: attached by PASID;
    /// EADDRINUSE: an area does not consist of whole pages; ENOMEM; and those of pinning.
    pub fn attach(&mut self, device: ObjectId, to: ObjectId) -> Result<ObjectId, P::Error> {
        self.attach_through(device, to, Through::Device)
    }

    /// The same with VFIO_DEVICE_ATTACH_PASID. Only PASID 0, which stands for the device itself, can be had without an IOMMU.
    ///
    /// # Errors
    /// As for [`Context::attach`]; ENOSPC: a PASID above 2^31 - 1; EINVAL: another one than 0; EBUSY: attached without PASID.
    pub fn attach_pasid(&mut self, device: ObjectId, to: ObjectId, pasid: u32) -> Result<ObjectId, P::Error> {
        self.attached(device)?;
        if i32::try_from(pasid).is_err() {
            return Err(Errno::ENOSPC.into());
        }
        if pasid != 0 {
            self.can_attach_to(to)?;
            return Err(Errno::EINVAL.into());
        }
        self.attach_through(device, to, Through::PasidZero)
    }

    fn attach_through(
        &mut self,
        device: ObjectId,
        to: ObjectId,
        through: Through,
    ) -> Result<ObjectId, P::Error> {
        let (before, owner) = self.attached(device)?;
        self.can_attach_to(to)?;
        if before.is_some() && owner != through {
            return Err(Errno::EBUSY.into());
        }
        let hwpt = match self.object(to) {
            Some(Object::Ioas { automatic: Some(hwpt), .. }) => *hwpt,
            Some(Object::Ioas { automatic: None, .. }) => self.new_hwpt(to, true)?,
            _ => to,
        };
        if before == Some(hwpt) {
            return Ok(hwpt);
        }
        if let Some(Object::Hwpt { devices, .. }) = self.object_mut(hwpt) {
            *devices = devices.saturating_add(1);
        }
        if let Some(device) = self.object_mut(device) {
            *device = Object::Device { attached: Some(hwpt), through };
        }
        if let Some(before) = before {
            self.leave(before);
        }
        Ok(hwpt)
    }

    /// ENOENT: no such object; EINVAL: neither IOAS nor HWPT.
    fn can_attach_to(&self, to: ObjectId) -> Result<(), Errno> {
        match self.object(to).ok_or(Errno::ENOENT)? {
            Object::Ioas { .. } | Object::Hwpt { .. } => Ok(()),
            Object::Device { .. } | Object::FaultQueue { .. } => Err(Errno::EINVAL),
        }
    }

    /// VFIO_DEVICE_DETACH_IOMMUFD_PT: detaches a bound device; one that is not attached, or attached by PASID, may be detached
    /// too, which does nothing.
    ///
    /// # Errors
    /// ENOENT: no such device.
    pub fn detach(&mut self, device: ObjectId) -> Result<(), Errno> {
        self.detach_through(device, Through::Device)
    }

    /// The same with VFIO_DEVICE_DETACH_PASID: undoes [`Context::attach_pasid`] alone.
    ///
    /// # Errors
    /// ENOENT: no such device.
    pub fn detach_pasid(&mut self, device: ObjectId, pasid: u32) -> Result<(), Errno> {
        self.attached(device)?;
        if pasid == 0 { self.detach_through(device, Through::PasidZero) } else { Ok(()) }
    }

    fn detach_through(&mut self, device: ObjectId, through: Through) -> Result<(), Errno> {
        if let (Some(hwpt), owner) = self.attached(device)?
            && owner == through
        {
            if let Some(device) = self.object_mut(device) {
                *device = Object::Device { attached: None, through };
            }
            self.leave(hwpt);
        }
        Ok(())
    }

    /// IOMMU_FAULT_QUEUE_ALLOC: a queue of page faults. None ever comes: a device without an IOMMU has no page faults.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn fault_queue_alloc(&mut self) -> Result<ObjectId, Errno> {
        self.add(Object::FaultQueue { open: true, hwpts: 0 })
    }

    /// The file of a fault queue is closed; the queue can be destroyed from now on.
    pub fn fault_queue_closed(&mut self, queue: ObjectId) {
        if let Some(Object::FaultQueue { open, .. }) = self.object_mut(queue) {
            *open = false;
        }
    }

    /// IOMMU_DESTROY: an IOAS with all its areas, an HWPT, or a fault queue.
    ///
    /// # Errors
    /// ENOENT: no such object; EBUSY: a bound device, an IOAS with an HWPT, an HWPT with a device, a fault queue that is open
    /// or that an HWPT uses.
    pub fn destroy(&mut self, id: ObjectId) -> Result<(), Errno> {
        let Self { objects, store, .. } = self;
        match objects.get_mut(id.0.wrapping_sub(1)).ok_or(Errno::ENOENT)? {
            Object::Device { .. }
            | Object::Hwpt { devices: 1.., .. }
            | Object::FaultQueue { open: true, .. }
            | Object::FaultQueue { hwpts: 1.., .. } => return Err(Errno::EBUSY),
            Object::Ioas { ioas, .. } if ioas.domains() > 0 => return Err(Errno::EBUSY),
            Object::Ioas { ioas, .. } => ioas.close(store),
            Object::Hwpt { .. } => {
                self.drop_hwpt(id);
                return Ok(());
            }
            Object::FaultQueue { .. } => {}
        }
        self.objects.remove(id.0.wrapping_sub(1));
        if self.compat == Some(id) {
            self.compat = None;
        }
        Ok(())
    }

    #[doc(alias = "IOMMU_IOAS_GET_PA")]
    /// IOMMU_IOAS_NOIOMMU_GET_PA: the physical address of `iova` and the contiguous bytes from there on in its area, at
    /// most `length`.
    ///
    /// # Errors
    /// In this order: EPERM: the caller lacks CAP_SYS_RAWIO; EINVAL: length 0; EOVERFLOW: `iova` is the very last one;
    /// ENOENT: no such IOAS, nothing mapped; EINVAL: memory of a device that has been taken back; EOPNOTSUPP: mapped, but with
    /// no domain, so not pinned.
    pub fn get_pa(
        &self,
        caller: Caller,
        ioas: ObjectId,
        iova: Iova,
        length: u64,
    ) -> Result<(PhysAddr, u64), Errno> {
        if !caller.raw_io {
            return Err(Errno::EPERM);
        }
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        if iova.0 == u64::MAX {
            return Err(Errno::EOVERFLOW);
        }
        let ioas = self.ioas(ioas)?;
        let area = ioas.find(iova).ok_or(Errno::ENOENT)?;
        if self.store.is_revoked(&self.platform, area) {
            return Err(Errno::EINVAL);
        }
        let run = ioas.table().run(iova, length).ok_or(Errno::EOPNOTSUPP)?;
        Ok((run.address, run.length))
    }

    /// The same for a caller who may ask, where no memory of devices has been mapped, which alone can be taken back: `None` where
    /// [`Context::get_pa`] has an error to tell. What lies in one page costs no walk.
    #[must_use]
    #[inline]
    pub fn get_pa_of_memory(&self, ioas: ObjectId, iova: Iova, length: u64) -> Option<(PhysAddr, u64)> {
        if length == 0 || iova.0 == u64::MAX {
            return None;
        }
        // What the table has is mapped with a domain. Its leaves are of a page at least, and so are areas then.
        let table = self.ioas(ioas).ok()?.table();
        let rest_of_page = GRANULE.wrapping_sub(iova.0 % GRANULE);
        if length <= rest_of_page {
            return Some((table.address(iova)?, length));
        }
        let run = table.run(iova, length)?;
        Some((run.address, run.length))
    }

    /// The IOAS that the VFIO container calls work on, if there is one (IOMMU_VFIO_IOAS).
    #[must_use]
    pub fn compat_ioas(&self) -> Option<ObjectId> {
        self.compat
    }

    /// Makes an IOAS the one of the VFIO container calls, or none.
    ///
    /// # Errors
    /// ENOENT: no such IOAS.
    pub fn set_compat_ioas(&mut self, ioas: Option<ObjectId>) -> Result<(), Errno> {
        if let Some(id) = ioas {
            self.ioas(id)?;
        }
        self.compat = ioas;
        Ok(())
    }

    /// Whether a no-IOMMU group uses, or has used, this context as its container.
    #[must_use]
    pub fn is_no_iommu_container(&self) -> bool {
        self.no_iommu_container
    }

    /// VFIO_GROUP_SET_CONTAINER with this context and a no-IOMMU group.
    ///
    /// # Errors
    /// EINVAL: there is an IOAS for the VFIO container calls, so the user expects translation.
    pub fn set_no_iommu_container(&mut self) -> Result<(), Errno> {
        if self.compat.is_some() {
            return Err(Errno::EINVAL);
        }
        self.no_iommu_container = true;
        Ok(())
    }

    /// Whether an IOAS has an HWPT.
    ///
    /// # Errors
    /// ENOENT: no such IOAS.
    pub fn has_domain(&self, ioas: ObjectId) -> Result<bool, Errno> {
        self.ioas(ioas).map(|ioas| ioas.domains() > 0)
    }

    /// The table of an IOAS, to be read by anyone at any time without a lock. It is empty while the IOAS has no domain.
    ///
    /// # Errors
    /// ENOENT: no such IOAS.
    pub fn table(&self, ioas: ObjectId) -> Result<&P::Table, Errno> {
        self.ioas(ioas).map(Ioas::table)
    }

    /// Areas in an IOAS, and table frames (4 KiB each) that it uses.
    ///
    /// # Errors
    /// ENOENT: no such IOAS.
    pub fn usage(&self, ioas: ObjectId) -> Result<Usage, Errno> {
        let ioas = self.ioas(ioas)?;
        Ok(Usage { areas: ioas.areas(), table_frames: ioas.table_frames() })
    }

    /// What all IOASes have together, and how often they were changed. Nothing is counted for it now.
    #[must_use]
    #[inline]
    pub fn totals(&self) -> Totals {
        self.store.totals
    }

    /// Hands every area of an IOAS to `sink`, lowest first: its range, its memory, the bytes in that before the area begins,
    /// and what devices may do there.
    ///
    /// # Errors
    /// ENOENT: no such IOAS; the first error of `sink`, which ends it.
    pub fn areas(
        &self,
        ioas: ObjectId,
        mut sink: impl FnMut(IovaRange, &P::Backing, u64, Access) -> Result<(), P::Error>,
    ) -> Result<(), P::Error> {
        for (range, number) in self.ioas(ioas)?.iter() {
            let area = self.store.area(number).ok_or(Errno::EIO)?;
            let backing = self.store.backing(area.slice.pages).ok_or(Errno::EIO)?;
            sink(range, backing, area.slice.start, area.access)?;
        }
        Ok(())
    }

    /// What devices may do at an IOVA; `None`: nothing is mapped there.
    #[must_use]
    pub fn access_at(&self, ioas: ObjectId, iova: Iova) -> Option<Access> {
        let number = self.ioas(ioas).ok()?.find(iova)?;
        self.store.area(number).map(|area| area.access)
    }

    /// What an object is, or nothing.
    #[must_use]
    pub fn kind(&self, id: ObjectId) -> Option<ObjectKind> {
        self.object(id).map(|object| match object {
            Object::Ioas { .. } => ObjectKind::Ioas,
            Object::Hwpt { .. } => ObjectKind::Hwpt,
            Object::Device { .. } => ObjectKind::Device,
            Object::FaultQueue { .. } => ObjectKind::FaultQueue,
        })
    }

    fn new_hwpt(&mut self, ioas: ObjectId, automatic: bool) -> Result<ObjectId, P::Error> {
        // Before anything is pinned, so that nothing can fail after.
        self.objects.reserve()?;
        let Self { platform, objects, store, .. } = self;
        let Some(Object::Ioas { ioas: space, .. }) = objects.get_mut(ioas.0.wrapping_sub(1)) else {
            return Err(Errno::ENOENT.into());
        };
        space.add_domain(platform, store)?;
        let hwpt = self.add(Object::Hwpt { ioas, automatic, devices: 0, faults: None })?;
        if automatic && let Some(Object::Ioas { automatic, .. }) = self.object_mut(ioas) {
            *automatic = Some(hwpt);
        }
        Ok(hwpt)
    }

    /// A device less on `hwpt`; an automatic one goes with its last device.
    fn leave(&mut self, hwpt: ObjectId) {
        if let Some(Object::Hwpt { automatic, devices, .. }) = self.object_mut(hwpt) {
            *devices = devices.saturating_sub(1);
            if *automatic && *devices == 0 {
                self.drop_hwpt(hwpt);
            }
        }
    }

    fn drop_hwpt(&mut self, hwpt: ObjectId) {
        let Some(Object::Hwpt { ioas, automatic, faults, .. }) = self.objects.remove(hwpt.0.wrapping_sub(1))
        else {
            return;
        };
        let Self { objects, store, .. } = self;
        if let Some(Object::Ioas { ioas, automatic: current }) = objects.get_mut(ioas.0.wrapping_sub(1)) {
            if automatic {
                *current = None;
            }
            ioas.remove_domain(store);
        }
        if let Some(Object::FaultQueue { hwpts, .. }) = faults.and_then(|queue| self.object_mut(queue)) {
            *hwpts = hwpts.saturating_sub(1);
        }
    }

    fn add(&mut self, object: Object<P>) -> Result<ObjectId, Errno> {
        self.objects.insert(object).map(|index| ObjectId(index.wrapping_add(1)))
    }

    fn object(&self, id: ObjectId) -> Option<&Object<P>> {
        self.objects.get(id.0.wrapping_sub(1))
    }

    fn object_mut(&mut self, id: ObjectId) -> Option<&mut Object<P>> {
        self.objects.get_mut(id.0.wrapping_sub(1))
    }

    fn is_ioas(&self, id: ObjectId) -> bool {
        self.ioas(id).is_ok()
    }

    fn ioas(&self, id: ObjectId) -> Result<&Ioas<P>, Errno> {
        match self.object(id) {
            Some(Object::Ioas { ioas, .. }) => Ok(ioas),
            _ => Err(Errno::ENOENT),
        }
    }

    fn ioas_mut(&mut self, id: ObjectId) -> Result<&mut Ioas<P>, Errno> {
        self.ioas_and_store(id).map(|(ioas, _)| ioas)
    }

    fn ioas_and_store(&mut self, id: ObjectId) -> Result<(&mut Ioas<P>, &mut Store<P>), Errno> {
        let Self { objects, store, .. } = self;
        match objects.get_mut(id.0.wrapping_sub(1)) {
            Some(Object::Ioas { ioas, .. }) => Ok((ioas, store)),
            _ => Err(Errno::ENOENT),
        }
    }

    /// What a device is attached to, and through which call.
    fn attached(&self, device: ObjectId) -> Result<(Option<ObjectId>, Through), Errno> {
        match self.object(device) {
            Some(Object::Device { attached, through }) => Ok((*attached, *through)),
            _ => Err(Errno::ENOENT),
        }
    }
}

/// What an object is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectKind {
    /// An I/O address space.
    Ioas,
    /// A page table.
    Hwpt,
    /// A bound device.
    Device,
    /// A queue of page faults.
    FaultQueue,
}

/// What an IOAS uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Areas.
    pub areas: usize,
    /// Frames of its page table, 4 KiB each.
    pub table_frames: u64,
}

/// What the IOASes of a context have together, and how often they were changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// IOASes.
    pub ioases: u64,
    /// Areas in them.
    pub areas: u64,
    /// Bytes of these; memory that is mapped twice counts twice.
    pub bytes: u64,
    /// Frames of their page tables, 4 KiB each.
    pub table_frames: u64,
    /// Maps that were done so far.
    pub maps: u64,
    /// Areas that were unmapped so far.
    pub unmaps: u64,
}

impl Totals {
    /// Those of a context without IOASes.
    pub const NONE: Self = Self { ioases: 0, areas: 0, bytes: 0, table_frames: 0, maps: 0, unmaps: 0 };
}
