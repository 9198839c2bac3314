//! What one open of /dev/iommu is: objects in one id namespace, and the operations on them.

use crate::ids::Ids;
use crate::ioas::{Ioas, MapRequest};
use crate::platform::{Caller, Platform};
use crate::{Errno, Iova, IovaRange, PhysAddr};

/// The number of an object in its context, from 1; the lowest free number is used next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct ObjectId(pub u32);

#[expect(clippy::large_enum_variant, reason = "a box could not fail; a context has few objects")]
enum Object<P: Platform> {
    Ioas {
        ioas: Ioas<P>,
        /// The HWPT that attaching to the IOAS itself uses, while a device does.
        automatic: Option<ObjectId>,
    },
    /// A page table on an IOAS that devices attach to.
    Hwpt { ioas: ObjectId, automatic: bool, devices: u32 },
    /// A bound device. It has no IOMMU, hence no IOMMU group: nothing to share, nothing to check against.
    Device { attached: Option<ObjectId> },
}

/// An iommufd context: IOASes, HWPTs and bound no-IOMMU devices.
///
/// Every method that fails leaves the context as it was, except that [`Context::unmap`] may have unmapped the leading
/// whole areas of its range, as the kernel does. Not `Sync` by itself: the owner locks; readers of a table
/// ([`Context::table`]) need no lock.
pub struct Context<P: Platform> {
    platform: P,
    objects: Ids<Object<P>>,
}

impl<P: Platform> Context<P> {
    /// An empty context on `platform`.
    #[must_use]
    pub const fn new(platform: P) -> Self {
        Self { platform, objects: Ids::new() }
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
        let ioas = Ioas::new(&self.platform)?;
        Ok(self.add(Object::Ioas { ioas, automatic: None })?)
    }

    /// IOMMU_IOAS_ALLOW_IOVAS: automatic placement keeps to `ranges` from now on; none: anywhere.
    ///
    /// # Errors
    /// ENOENT: no such IOAS; EINVAL: ranges that overlap; ENOMEM.
    pub fn allow_iovas(
        &mut self,
        ioas: ObjectId,
        ranges: impl Iterator<Item = IovaRange> + Clone,
    ) -> Result<(), Errno> {
        self.ioas_mut(ioas)?.allow_iovas(ranges)
    }

    /// IOMMU_IOAS_MAP, IOMMU_IOAS_MAP_FILE: maps memory and answers where. While the IOAS has a domain the memory is
    /// pinned before this returns; else nothing of it is looked at until a device attaches.
    ///
    /// # Errors
    /// ENOENT: no such IOAS; EINVAL: no access asked for, length 0, or something misaligned while a domain exists;
    /// EOVERFLOW: past the end of the IOVA space; EEXIST: overlaps an area; ENOSPC: no room; ENOMEM; and those of pinning.
    pub fn map(
        &mut self,
        ioas: ObjectId,
        caller: Caller,
        request: MapRequest<P::Backing>,
    ) -> Result<Iova, P::Error> {
        let Self { platform, objects } = self;
        match objects.get_mut(ioas.0.wrapping_sub(1)) {
            Some(Object::Ioas { ioas, .. }) => ioas.map(platform, caller, request),
            _ => Err(Errno::ENOENT.into()),
        }
    }

    /// IOMMU_IOAS_UNMAP: unmaps the whole areas in `range`, lowest first, and answers their bytes.
    ///
    /// # Errors
    /// ENOENT: no such IOAS, no area in the range (the whole space may be empty), or an area that lies only partly in the
    /// range; the areas below that one are unmapped by then.
    pub fn unmap(&mut self, ioas: ObjectId, range: IovaRange) -> Result<u64, Errno> {
        self.ioas_mut(ioas)?.unmap(range)
    }

    /// VFIO_DEVICE_BIND_IOMMUFD's part here: a device without an IOMMU becomes an object of this context.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn bind(&mut self) -> Result<ObjectId, Errno> {
        self.add(Object::Device { attached: None })
    }

    /// The end of a binding: the device is detached and its object gone.
    ///
    /// # Errors
    /// ENOENT: no such device.
    pub fn unbind(&mut self, device: ObjectId) -> Result<(), Errno> {
        self.detach(device)?;
        self.objects.remove(device.0.wrapping_sub(1));
        Ok(())
    }

    /// IOMMU_HWPT_ALLOC with flags 0: a page table of its own on an IOAS, which keeps its memory pinned with no device
    /// attached.
    ///
    /// # Errors
    /// ENOENT: no such device; EINVAL: `ioas` is no IOAS; ENOMEM; and those of pinning.
    pub fn hwpt_alloc(&mut self, device: ObjectId, ioas: ObjectId) -> Result<ObjectId, P::Error> {
        self.attached(device)?;
        if !matches!(self.object(ioas), Some(Object::Ioas { .. })) {
            return Err(Errno::EINVAL.into());
        }
        self.new_hwpt(ioas, false)
    }

    /// VFIO_DEVICE_ATTACH_IOMMUFD_PT: attaches a bound device to an IOAS (through its automatic HWPT, made when the first
    /// device attaches) or to an HWPT, in place of what it was attached to. Answers the HWPT.
    ///
    /// # Errors
    /// ENOENT: no such device or no such object to attach to; EINVAL: that is a device; EADDRINUSE: an area is not
    /// aligned to 4 KiB; ENOMEM; and those of pinning.
    pub fn attach(&mut self, device: ObjectId, to: ObjectId) -> Result<ObjectId, P::Error> {
        let before = self.attached(device)?;
        let hwpt = match self.object(to) {
            None => return Err(Errno::ENOENT.into()),
            Some(Object::Device { .. }) => return Err(Errno::EINVAL.into()),
            Some(Object::Hwpt { .. }) => to,
            Some(Object::Ioas { automatic: Some(hwpt), .. }) => *hwpt,
            Some(Object::Ioas { automatic: None, .. }) => self.new_hwpt(to, true)?,
        };
        if before == Some(hwpt) {
            return Ok(hwpt);
        }
        if let Some(Object::Hwpt { devices, .. }) = self.object_mut(hwpt) {
            *devices = devices.saturating_add(1);
        }
        if let Some(Object::Device { attached }) = self.object_mut(device) {
            *attached = Some(hwpt);
        }
        if let Some(before) = before {
            self.leave(before);
        }
        Ok(hwpt)
    }

    /// VFIO_DEVICE_DETACH_IOMMUFD_PT: detaches a bound device; one that is not attached may be detached too.
    ///
    /// # Errors
    /// ENOENT: no such device.
    pub fn detach(&mut self, device: ObjectId) -> Result<(), Errno> {
        if let Some(hwpt) = self.attached(device)? {
            if let Some(Object::Device { attached }) = self.object_mut(device) {
                *attached = None;
            }
            self.leave(hwpt);
        }
        Ok(())
    }

    /// IOMMU_DESTROY: an IOAS with all its areas, or an HWPT.
    ///
    /// # Errors
    /// ENOENT: no such object; EBUSY: a bound device, an IOAS with an HWPT, an HWPT with a device.
    pub fn destroy(&mut self, id: ObjectId) -> Result<(), Errno> {
        match self.object_mut(id).ok_or(Errno::ENOENT)? {
            Object::Device { .. } => Err(Errno::EBUSY),
            Object::Ioas { ioas, .. } if ioas.domains() > 0 => Err(Errno::EBUSY),
            Object::Ioas { ioas, .. } => {
                let _ = ioas.unmap(IovaRange::ALL);
                self.objects.remove(id.0.wrapping_sub(1));
                Ok(())
            }
            Object::Hwpt { devices: 1.., .. } => Err(Errno::EBUSY),
            Object::Hwpt { .. } => {
                self.drop_hwpt(id);
                Ok(())
            }
        }
    }

    #[doc(alias = "IOMMU_IOAS_GET_PA")]
    /// IOMMU_IOAS_NOIOMMU_GET_PA: the physical address of `iova` and the contiguous bytes from there on in its area, at
    /// most `length`.
    ///
    /// # Errors
    /// In this order: EPERM: the caller lacks CAP_SYS_RAWIO; EINVAL: length 0; EOVERFLOW: `iova` is the very last one;
    /// ENOENT: no such IOAS, nothing mapped; EOPNOTSUPP: mapped, but with no domain, so not pinned.
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
        if !ioas.maps(iova) {
            return Err(Errno::ENOENT);
        }
        let run = ioas.table().run(iova, length).ok_or(Errno::EOPNOTSUPP)?;
        Ok((run.address, run.length))
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

    fn new_hwpt(&mut self, ioas: ObjectId, automatic: bool) -> Result<ObjectId, P::Error> {
        // Before anything is pinned, so that nothing can fail after.
        self.objects.reserve()?;
        let Self { platform, objects } = self;
        let Some(Object::Ioas { ioas: space, .. }) = objects.get_mut(ioas.0.wrapping_sub(1)) else {
            return Err(Errno::ENOENT.into());
        };
        space.add_domain(platform)?;
        let hwpt = self.add(Object::Hwpt { ioas, automatic, devices: 0 })?;
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
        let Some(Object::Hwpt { ioas, automatic, .. }) = self.objects.remove(hwpt.0.wrapping_sub(1)) else {
            return;
        };
        if let Some(Object::Ioas { ioas, automatic: current }) = self.object_mut(ioas) {
            if automatic {
                *current = None;
            }
            ioas.remove_domain();
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

    fn ioas(&self, id: ObjectId) -> Result<&Ioas<P>, Errno> {
        match self.object(id) {
            Some(Object::Ioas { ioas, .. }) => Ok(ioas),
            _ => Err(Errno::ENOENT),
        }
    }

    fn ioas_mut(&mut self, id: ObjectId) -> Result<&mut Ioas<P>, Errno> {
        match self.object_mut(id) {
            Some(Object::Ioas { ioas, .. }) => Ok(ioas),
            _ => Err(Errno::ENOENT),
        }
    }

    fn attached(&self, device: ObjectId) -> Result<Option<ObjectId>, Errno> {
        match self.object(device) {
            Some(Object::Device { attached }) => Ok(*attached),
            _ => Err(Errno::ENOENT),
        }
    }
}

/// What an IOAS uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Areas.
    pub areas: usize,
    /// Frames of its page table, 4 KiB each.
    pub table_frames: u64,
}
