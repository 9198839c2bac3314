//! The kernel's own iommufd by its bare calls: what a program without the kit would do, and nothing besides.

use std::ffi::c_void;
use std::fs::{self, File, OpenOptions};
use std::mem::size_of;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use noiommu_uapi::iommufd::{
    IOMMU_IOAS_ALLOC, IOMMU_IOAS_MAP, IOMMU_IOAS_MAP_READABLE, IOMMU_IOAS_MAP_WRITEABLE,
    IOMMU_IOAS_NOIOMMU_GET_PA, IOMMU_IOAS_UNMAP, IommuIoasAlloc, IommuIoasMap, IommuIoasNoiommuGetPa,
    IommuIoasUnmap,
};
use noiommu_uapi::vfio::device::{
    VFIO_DEVICE_ATTACH_IOMMUFD_PT, VFIO_DEVICE_BIND_IOMMUFD, VfioDeviceAttachIommufdPt, VfioDeviceBindIommufd,
};

/// A piece of physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    /// Where it begins.
    pub(super) address: u64,
    /// Bytes.
    pub(super) length: u64,
}

/// An IOAS of the kernel's, with a device attached that has no IOMMU: what is mapped is pinned.
pub(super) struct KernelIoas {
    iommufd: File,
    ioas: u32,
    _device: File,
}

impl KernelIoas {
    /// Attaches the PCI device at `address`, which vfio-pci has.
    pub(super) fn new(address: &str) -> Result<Self> {
        let iommufd = open("/dev/iommu")?;
        let directory = format!("/sys/bus/pci/devices/{address}/vfio-dev");
        let names =
            fs::read_dir(&directory).with_context(|| format!("{directory}: has vfio-pci the device?"))?;
        let name = names.flatten().next().with_context(|| format!("{directory} names no cdev"))?.file_name();
        let device = open(&format!("/dev/vfio/devices/{}", name.to_string_lossy()))?;

        let mut bind = VfioDeviceBindIommufd {
            argsz: size_of::<VfioDeviceBindIommufd>() as u32,
            flags: 0,
            iommufd: iommufd.as_raw_fd(),
            out_devid: 0,
            token_uuid_ptr: 0,
        };
        call(&device, VFIO_DEVICE_BIND_IOMMUFD, &mut bind)?;
        let mut alloc = IommuIoasAlloc { size: size_of::<IommuIoasAlloc>() as u32, flags: 0, out_ioas_id: 0 };
        call(&iommufd, IOMMU_IOAS_ALLOC, &mut alloc)?;
        let mut attach = VfioDeviceAttachIommufdPt {
            argsz: size_of::<VfioDeviceAttachIommufdPt>() as u32,
            flags: 0,
            pt_id: alloc.out_ioas_id,
            pasid: 0,
        };
        call(&device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &mut attach)?;
        Ok(Self { iommufd, ioas: alloc.out_ioas_id, _device: device })
    }

    /// IOMMU_IOAS_MAP of `length` bytes at `memory`; answers the IOVA.
    ///
    /// The memory is the caller's, whom a device with bus mastering off does not reach.
    pub(super) fn map(&self, memory: usize, length: usize) -> Result<u64> {
        let mut map = IommuIoasMap {
            size: size_of::<IommuIoasMap>() as u32,
            flags: IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
            ioas_id: self.ioas,
            __reserved: 0,
            user_va: memory as u64,
            length: length as u64,
            iova: 0,
        };
        call(&self.iommufd, IOMMU_IOAS_MAP, &mut map)?;
        Ok(map.iova)
    }

    /// IOMMU_IOAS_UNMAP of what [`KernelIoas::map`] mapped.
    pub(super) fn unmap(&self, iova: u64, length: usize) -> Result<()> {
        let mut unmap = IommuIoasUnmap {
            size: size_of::<IommuIoasUnmap>() as u32,
            ioas_id: self.ioas,
            iova,
            length: length as u64,
        };
        call(&self.iommufd, IOMMU_IOAS_UNMAP, &mut unmap)?;
        ensure!(unmap.length == length as u64, "UNMAP took {} of {length} bytes away", unmap.length);
        Ok(())
    }

    /// Asks IOMMU_IOAS_NOIOMMU_GET_PA for all of `length` bytes from `iova` on, at most `most` of them at a time. Each answer tells
    /// how far it reaches, so a contiguous piece of at most so many bytes takes one call.
    pub(super) fn runs(&self, iova: u64, length: usize, most: u64, into: &mut Vec<Run>) -> Result<()> {
        let (mut at, end) = (iova, iova + length as u64);
        let mut get = IommuIoasNoiommuGetPa {
            size: size_of::<IommuIoasNoiommuGetPa>() as u32,
            flags: 0,
            ioas_id: self.ioas,
            __reserved: 0,
            iova,
            length: 0,
            out_phys: 0,
        };
        while at < end {
            (get.iova, get.length) = (at, most.min(end - at));
            call(&self.iommufd, IOMMU_IOAS_NOIOMMU_GET_PA, &mut get)?;
            into.push(Run { address: get.out_phys, length: get.length });
            at += get.length;
        }
        Ok(())
    }
}

fn open(path: &str) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(path).with_context(|| path.to_owned())
}

/// The bare call. `argument` is the structure that `request` takes.
fn call<T>(file: &File, request: u32, argument: &mut T) -> Result<()> {
    let argument = std::ptr::from_mut(argument).cast::<c_void>();
    // SAFETY: every caller above passes the structure of its request, which holds no pointer but to memory of this process that
    // stays mapped as long as it is in the IOAS.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, argument) };
    ensure!(answer >= 0, "ioctl {request:#x}: {}", std::io::Error::last_os_error());
    Ok(())
}
