//! An IOAS of the kernel's iommufd.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use noiommu_core::table::Segment;
use noiommu_core::table::format::Access;
use noiommu_core::{Errno, Iova, IovaRange, PhysAddr};
use noiommu_uapi::iommufd::*;
use zerocopy::FromZeros;

use super::{KernelDomain, Views, length, not_mapped};
use crate::device::Backend;
use crate::ioctl::call_with;
use crate::memory::Backing;
use crate::{Error, ErrorKind, Result};

/// An IOAS of the kernel's, with the page tables that devices of one kind share.
///
/// Devices attach to HWPTs made by hand, which stay as long as this does: memory stays pinned at its place while no device is
/// attached, and no address that a driver holds goes stale.
pub(in crate::ioas) struct KernelIoas {
    addresses: KernelAddresses,
    hwpts: Vec<u32>,
    views: Views,
    /// IOMMU_IOAS_MAP_FILE is there, as far as is known (since Linux 6.14).
    takes_files: bool,
}

/// The physical addresses of a kernel's IOAS.
#[derive(Clone)]
pub(crate) struct KernelAddresses {
    iommufd: Arc<OwnedFd>,
    id: u32,
}

impl KernelAddresses {
    /// IOMMU_IOAS_NOIOMMU_GET_PA: the physical address of an IOVA, and the contiguous bytes from there on, at most `length`.
    ///
    /// # Errors
    /// ENOENT: nothing is mapped; EPERM: the process lacks CAP_SYS_RAWIO; EOPNOTSUPP: a device behind an IOMMU.
    pub(crate) fn segment(&self, iova: Iova, length: u64) -> Result<Segment> {
        let mut call = IommuIoasNoiommuGetPa {
            size: size_of::<IommuIoasNoiommuGetPa>() as u32,
            ioas_id: self.id,
            iova: iova.0,
            length,
            ..FromZeros::new_zeroed()
        };
        call_with(&self.iommufd, IOMMU_IOAS_NOIOMMU_GET_PA, &mut call).map_err(|errno| {
            let system = std::io::Error::from_raw_os_error(errno.raw());
            let error = Error::system("asking the kernel for a physical address", system);
            match errno {
                Errno::EPERM => error.with_remedy("run it with CAP_SYS_RAWIO, as root for one"),
                _ => error,
            }
        })?;
        // A run of no bytes would never end.
        if call.length == 0 || call.length > length {
            return Err(Error::new(
                ErrorKind::System,
                Errno::EIO,
                format!("the kernel answered {} of {length} bytes at {iova}", call.length),
            ));
        }
        Ok(Segment { iova, address: PhysAddr(call.out_phys), length: call.length })
    }

    /// The contiguous pieces of a range.
    ///
    /// # Errors
    /// As for [`KernelAddresses::segment`].
    pub(crate) fn segments(&self, range: IovaRange) -> Result<Vec<Segment>> {
        let mut segments: Vec<Segment> = Vec::new();
        let (mut at, mut rest) = (range.first(), length(range));
        while rest > 0 {
            let segment = self.segment(at, rest)?;
            rest -= segment.length;
            at = Iova(at.0.wrapping_add(segment.length));
            segments.push(segment);
        }
        Ok(segments)
    }
}

impl KernelIoas {
    /// A new, empty one.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(in crate::ioas) fn new(iommufd: Arc<OwnedFd>) -> Result<Self> {
        let mut call = IommuIoasAlloc { size: size_of::<IommuIoasAlloc>() as u32, ..FromZeros::new_zeroed() };
        call_with(&iommufd, IOMMU_IOAS_ALLOC, &mut call)
            .map_err(|errno| failed("IOMMU_IOAS_ALLOC", errno))?;
        let addresses = KernelAddresses { iommufd, id: call.out_ioas_id };
        Ok(Self { addresses, hwpts: Vec::new(), views: Views::default(), takes_files: true })
    }

    /// Its physical addresses; of use where its devices have no IOMMU.
    pub(in crate::ioas) fn addresses(&self) -> &KernelAddresses {
        &self.addresses
    }

    /// Attaches a device that is bound to the same iommufd as `id` there: to a page table that suits it, or to a new one.
    ///
    /// # Errors
    /// What the kernel answers, such as those of pinning what is mapped.
    pub(in crate::ioas) fn attach(&mut self, device: &dyn Backend, id: u32) -> Result<()> {
        if self.hwpts.iter().any(|hwpt| device.attach_pt(*hwpt).is_ok()) {
            return Ok(());
        }
        let mut call = IommuHwptAlloc {
            size: size_of::<IommuHwptAlloc>() as u32,
            dev_id: id,
            pt_id: self.addresses.id,
            ..FromZeros::new_zeroed()
        };
        call_with(&self.addresses.iommufd, IOMMU_HWPT_ALLOC, &mut call)
            .map_err(|errno| failed("IOMMU_HWPT_ALLOC", errno))?;
        let hwpt = call.out_hwpt_id;
        device.attach_pt(hwpt).inspect_err(|_| self.destroy(hwpt))?;
        self.hwpts.push(hwpt);
        Ok(())
    }

    fn destroy(&self, id: u32) {
        let mut call = IommuDestroy { size: size_of::<IommuDestroy>() as u32, id };
        if let Err(errno) = call_with(&self.addresses.iommufd, IOMMU_DESTROY, &mut call) {
            tracing::warn!(id, %errno, "an object of iommufd stays until the process ends");
        }
    }

    /// IOMMU_IOAS_MAP_FILE; tells whether the kernel has it.
    fn map_file(&self, range: IovaRange, file: &OwnedFd, start: u64, access: Access) -> Result<bool> {
        let mut call = IommuIoasMapFile {
            size: size_of::<IommuIoasMapFile>() as u32,
            flags: flags(access),
            ioas_id: self.addresses.id,
            fd: file.as_raw_fd(),
            start,
            length: length(range),
            iova: range.first().0,
        };
        match call_with(&self.addresses.iommufd, IOMMU_IOAS_MAP_FILE, &mut call) {
            Ok(_) => Ok(true),
            Err(Errno::ENOTTY) => Ok(false),
            Err(errno) => Err(not_mapped("iommufd", range, None, errno)),
        }
    }
}

/// Where the kit says, for devices to access so.
fn flags(access: Access) -> u32 {
    let read = if access.read { IOMMU_IOAS_MAP_READABLE } else { 0 };
    let write = if access.write { IOMMU_IOAS_MAP_WRITEABLE } else { 0 };
    IOMMU_IOAS_MAP_FIXED_IOVA | read | write
}

impl KernelDomain for KernelIoas {
    fn map(&mut self, range: IovaRange, backing: &Backing, offset: u64, access: Access) -> Result<()> {
        if let Backing::File(file, start) = backing
            && self.takes_files
        {
            let start = start.checked_add(offset).ok_or_else(|| Error::from(Errno::EOVERFLOW))?;
            self.takes_files = self.map_file(range, file, start, access)?;
            if self.takes_files {
                return Ok(());
            }
        }
        let user_va = self.views.address(range, backing, offset, length(range))?;
        let mut call = IommuIoasMap {
            size: size_of::<IommuIoasMap>() as u32,
            flags: flags(access),
            ioas_id: self.addresses.id,
            user_va,
            length: length(range),
            iova: range.first().0,
            ..FromZeros::new_zeroed()
        };
        call_with(&self.addresses.iommufd, IOMMU_IOAS_MAP, &mut call).map_err(|errno| {
            self.views.forget(range);
            not_mapped("iommufd", range, Some(user_va), errno)
        })?;
        Ok(())
    }

    fn unmap(&mut self, range: IovaRange) {
        let mut call = IommuIoasUnmap {
            size: size_of::<IommuIoasUnmap>() as u32,
            ioas_id: self.addresses.id,
            iova: range.first().0,
            length: length(range),
        };
        if let Err(errno) = call_with(&self.addresses.iommufd, IOMMU_IOAS_UNMAP, &mut call) {
            tracing::error!(?range, %errno, "a mapping of the kit was gone from the kernel's IOAS");
        }
        self.views.forget(range);
    }

    fn usable(&self) -> Result<Vec<IovaRange>> {
        let mut ranges: Vec<IommuIovaRange> = Vec::new();
        loop {
            let mut call = IommuIoasIovaRanges {
                size: size_of::<IommuIoasIovaRanges>() as u32,
                ioas_id: self.addresses.id,
                num_iovas: ranges.len() as u32,
                allowed_iovas: ranges.as_mut_ptr() as u64,
                ..FromZeros::new_zeroed()
            };
            match call_with(&self.addresses.iommufd, IOMMU_IOAS_IOVA_RANGES, &mut call) {
                Ok(_) => {
                    ranges.truncate(call.num_iovas as usize);
                    break;
                }
                // Too few: it tells how many there are.
                Err(Errno::EMSGSIZE) if call.num_iovas as usize > ranges.len() => {
                    ranges = vec![FromZeros::new_zeroed(); call.num_iovas as usize];
                }
                Err(errno) => return Err(failed("IOMMU_IOAS_IOVA_RANGES", errno)),
            }
        }
        let range = |range: &IommuIovaRange| IovaRange::new(Iova(range.start), Iova(range.last));
        Ok(ranges.iter().filter_map(range).collect())
    }
}

impl Drop for KernelIoas {
    fn drop(&mut self) {
        // No device is attached any more: each holds a share of the IOAS that this is a part of.
        for hwpt in std::mem::take(&mut self.hwpts) {
            self.destroy(hwpt);
        }
        self.destroy(self.addresses.id);
    }
}

fn failed(what: &str, errno: Errno) -> Error {
    Error::system(what, std::io::Error::from_raw_os_error(errno.raw()))
}
