//! The calls of a device: what it is, its regions and interrupts, resets, and the iommufd it is bound to.
//!
//! The same for a device opened through its group and for one opened as `/dev/vfio/devices/...`; the calls that bind and
//! attach are the latter's only.

use super::VfioInfoCapHeader;
use crate::ioctl::vfio;
use crate::layout::structures;

/// Tells what the device is: [`VfioDeviceInfo`].
pub const VFIO_DEVICE_GET_INFO: u32 = vfio(7);
/// Tells of a region: [`VfioRegionInfo`].
pub const VFIO_DEVICE_GET_REGION_INFO: u32 = vfio(8);
/// Tells of an interrupt: [`VfioIrqInfo`].
pub const VFIO_DEVICE_GET_IRQ_INFO: u32 = vfio(9);
/// Sets interrupts up, masks and triggers them: [`VfioIrqSet`].
pub const VFIO_DEVICE_SET_IRQS: u32 = vfio(10);
/// Resets the device; no argument.
pub const VFIO_DEVICE_RESET: u32 = vfio(11);
/// Has a register written whenever an eventfd is signalled: [`VfioDeviceIoeventfd`].
pub const VFIO_DEVICE_IOEVENTFD: u32 = vfio(16);
/// Gives the device to an iommufd: [`VfioDeviceBindIommufd`].
pub const VFIO_DEVICE_BIND_IOMMUFD: u32 = vfio(18);
/// Gives the device, or a PASID of it, an address space: [`VfioDeviceAttachIommufdPt`].
pub const VFIO_DEVICE_ATTACH_IOMMUFD_PT: u32 = vfio(19);
/// The contrary of it: [`VfioDeviceDetachIommufdPt`].
pub const VFIO_DEVICE_DETACH_IOMMUFD_PT: u32 = vfio(20);

/// The device can be reset.
pub const VFIO_DEVICE_FLAGS_RESET: u32 = 1 << 0;
/// A PCI device.
pub const VFIO_DEVICE_FLAGS_PCI: u32 = 1 << 1;
/// A platform device.
pub const VFIO_DEVICE_FLAGS_PLATFORM: u32 = 1 << 2;
/// An AMBA device.
pub const VFIO_DEVICE_FLAGS_AMBA: u32 = 1 << 3;
/// A channel device of s390.
pub const VFIO_DEVICE_FLAGS_CCW: u32 = 1 << 4;
/// A crypto adapter of s390.
pub const VFIO_DEVICE_FLAGS_AP: u32 = 1 << 5;
/// A device of Freescale's management complex.
pub const VFIO_DEVICE_FLAGS_FSL_MC: u32 = 1 << 6;
/// `cap_offset` is there.
pub const VFIO_DEVICE_FLAGS_CAPS: u32 = 1 << 7;
/// A CDX device.
pub const VFIO_DEVICE_FLAGS_CDX: u32 = 1 << 8;

/// What mediated devices call the interface of a PCI device in sysfs.
pub const VFIO_DEVICE_API_PCI_STRING: &str = "vfio-pci";
/// The same for a platform device.
pub const VFIO_DEVICE_API_PLATFORM_STRING: &str = "vfio-platform";
/// The same for an AMBA device.
pub const VFIO_DEVICE_API_AMBA_STRING: &str = "vfio-amba";
/// The same for a channel device of s390.
pub const VFIO_DEVICE_API_CCW_STRING: &str = "vfio-ccw";
/// The same for a crypto adapter of s390.
pub const VFIO_DEVICE_API_AP_STRING: &str = "vfio-ap";

/// Id of the capability with the basics of an s390 PCI device.
pub const VFIO_DEVICE_INFO_CAP_ZPCI_BASE: u16 = 1;
/// Id of the capability with the group of an s390 PCI device.
pub const VFIO_DEVICE_INFO_CAP_ZPCI_GROUP: u16 = 2;
/// Id of the capability with the utility string of an s390 PCI device.
pub const VFIO_DEVICE_INFO_CAP_ZPCI_UTIL: u16 = 3;
/// Id of the capability with the path of an s390 PCI device.
pub const VFIO_DEVICE_INFO_CAP_ZPCI_PFIP: u16 = 4;
/// Id of [`VfioDeviceInfoCapPciAtomicComp`].
pub const VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP: u16 = 5;

/// Atomic operations of 32 bits.
pub const VFIO_PCI_ATOMIC_COMP32: u32 = 1 << 0;
/// Atomic operations of 64 bits.
pub const VFIO_PCI_ATOMIC_COMP64: u32 = 1 << 1;
/// Atomic operations of 128 bits.
pub const VFIO_PCI_ATOMIC_COMP128: u32 = 1 << 2;

/// The region can be read.
pub const VFIO_REGION_INFO_FLAG_READ: u32 = 1 << 0;
/// The region can be written.
pub const VFIO_REGION_INFO_FLAG_WRITE: u32 = 1 << 1;
/// The region can be mapped.
pub const VFIO_REGION_INFO_FLAG_MMAP: u32 = 1 << 2;
/// `cap_offset` is there.
pub const VFIO_REGION_INFO_FLAG_CAPS: u32 = 1 << 3;

/// Id of [`VfioRegionInfoCapSparseMmap`].
pub const VFIO_REGION_INFO_CAP_SPARSE_MMAP: u16 = 1;
/// Id of [`VfioRegionInfoCapType`].
pub const VFIO_REGION_INFO_CAP_TYPE: u16 = 2;
/// Id of the capability, a header alone, of a region whose MSI-X table can be mapped too.
pub const VFIO_REGION_INFO_CAP_MSIX_MAPPABLE: u16 = 3;
/// Id of [`VfioRegionInfoCapNvlink2Ssatgt`].
pub const VFIO_REGION_INFO_CAP_NVLINK2_SSATGT: u16 = 4;
/// Id of [`VfioRegionInfoCapNvlink2Lnkspd`].
pub const VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD: u16 = 5;

/// Region type: of a PCI vendor, whose id is in the lower bits.
pub const VFIO_REGION_TYPE_PCI_VENDOR_TYPE: u32 = 1 << 31;
/// The vendor's id.
pub const VFIO_REGION_TYPE_PCI_VENDOR_MASK: u32 = 0xffff;
/// Region type: graphics.
pub const VFIO_REGION_TYPE_GFX: u32 = 1;
/// Region type: channel devices of s390.
pub const VFIO_REGION_TYPE_CCW: u32 = 2;
/// Region type: migration as it was first; no device has it any more.
pub const VFIO_REGION_TYPE_MIGRATION_DEPRECATED: u32 = 3;
/// Intel (8086): the OpRegion of a graphics device.
pub const VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION: u32 = 1;
/// Intel: the host bridge's config space.
pub const VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG: u32 = 2;
/// Intel: the LPC bridge's config space.
pub const VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG: u32 = 3;
/// NVIDIA (10de): memory behind NVLink 2; no device has it any more.
pub const VFIO_REGION_SUBTYPE_NVIDIA_NVLINK2_RAM: u32 = 1;
/// IBM (1014): a register behind NVLink 2; no device has it any more.
pub const VFIO_REGION_SUBTYPE_IBM_NVLINK2_ATSD: u32 = 1;
/// Channel devices: asynchronous commands.
pub const VFIO_REGION_SUBTYPE_CCW_ASYNC_CMD: u32 = 1;
/// Channel devices: the subchannel's information block.
pub const VFIO_REGION_SUBTYPE_CCW_SCHIB: u32 = 2;
/// Channel devices: channel report words.
pub const VFIO_REGION_SUBTYPE_CCW_CRW: u32 = 3;
/// Migration as it was first.
pub const VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED: u32 = 1;

/// Migration as it was first: stopped.
pub const VFIO_DEVICE_STATE_V1_STOP: u32 = 0;
/// Migration as it was first: running.
pub const VFIO_DEVICE_STATE_V1_RUNNING: u32 = 1 << 0;
/// Migration as it was first: saving.
pub const VFIO_DEVICE_STATE_V1_SAVING: u32 = 1 << 1;
/// Migration as it was first: resuming.
pub const VFIO_DEVICE_STATE_V1_RESUMING: u32 = 1 << 2;
/// Migration as it was first: the bits of the state.
pub const VFIO_DEVICE_STATE_MASK: u32 = 7;

/// An eventfd can be signalled.
pub const VFIO_IRQ_INFO_EVENTFD: u32 = 1 << 0;
/// The interrupt can be masked.
pub const VFIO_IRQ_INFO_MASKABLE: u32 = 1 << 1;
/// It is masked whenever it comes.
pub const VFIO_IRQ_INFO_AUTOMASKED: u32 = 1 << 2;
/// More vectors need all to be torn down before.
pub const VFIO_IRQ_INFO_NORESIZE: u32 = 1 << 3;

/// No data follows: the action goes for all of the range.
pub const VFIO_IRQ_SET_DATA_NONE: u32 = 1 << 0;
/// A byte for each follows: the action goes for those not 0.
pub const VFIO_IRQ_SET_DATA_BOOL: u32 = 1 << 1;
/// A descriptor (`i32`) for each follows; -1 for none.
pub const VFIO_IRQ_SET_DATA_EVENTFD: u32 = 1 << 2;
/// Mask.
pub const VFIO_IRQ_SET_ACTION_MASK: u32 = 1 << 3;
/// Unmask.
pub const VFIO_IRQ_SET_ACTION_UNMASK: u32 = 1 << 4;
/// Trigger, or with descriptors: what is signalled.
pub const VFIO_IRQ_SET_ACTION_TRIGGER: u32 = 1 << 5;
/// The bits of which one says what data follows.
pub const VFIO_IRQ_SET_DATA_TYPE_MASK: u32 =
    VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_DATA_EVENTFD;
/// The bits of which one says what to do.
pub const VFIO_IRQ_SET_ACTION_TYPE_MASK: u32 =
    VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_ACTION_TRIGGER;

/// Channel devices: the region with the configuration.
pub const VFIO_CCW_CONFIG_REGION_INDEX: u32 = 0;
/// Channel devices: regions with a fixed index.
pub const VFIO_CCW_NUM_REGIONS: u32 = 1;
/// Channel devices: I/O interrupts.
pub const VFIO_CCW_IO_IRQ_INDEX: u32 = 0;
/// Channel devices: channel report words.
pub const VFIO_CCW_CRW_IRQ_INDEX: u32 = 1;
/// Channel devices: the kernel wants the device back.
pub const VFIO_CCW_REQ_IRQ_INDEX: u32 = 2;
/// Channel devices: interrupt indexes.
pub const VFIO_CCW_NUM_IRQS: u32 = 3;
/// Crypto adapters: the kernel wants the device back.
pub const VFIO_AP_REQ_IRQ_INDEX: u32 = 0;
/// Crypto adapters: the configuration changed.
pub const VFIO_AP_CFG_CHG_IRQ_INDEX: u32 = 1;
/// Crypto adapters: interrupt indexes.
pub const VFIO_AP_NUM_IRQS: u32 = 2;

/// Write 1 byte.
pub const VFIO_DEVICE_IOEVENTFD_8: u32 = 1 << 0;
/// Write 2 bytes.
pub const VFIO_DEVICE_IOEVENTFD_16: u32 = 1 << 1;
/// Write 4 bytes.
pub const VFIO_DEVICE_IOEVENTFD_32: u32 = 1 << 2;
/// Write 8 bytes.
pub const VFIO_DEVICE_IOEVENTFD_64: u32 = 1 << 3;
/// The bits of which one says how many.
pub const VFIO_DEVICE_IOEVENTFD_SIZE_MASK: u32 = 0xf;

/// `token_uuid_ptr` is given.
pub const VFIO_DEVICE_BIND_FLAG_TOKEN: u32 = 1 << 0;
/// Attach the PASID, not the device.
pub const VFIO_DEVICE_ATTACH_PASID: u32 = 1 << 0;
/// Detach the PASID, not the device.
pub const VFIO_DEVICE_DETACH_PASID: u32 = 1 << 0;

structures! {
    /// Argument of [`VFIO_DEVICE_GET_INFO`], with capabilities behind it.
    struct VfioDeviceInfo = vfio_device_info, 24 {
        /// Bytes that the caller has; out: bytes that there are to tell.
        0 => argsz: u32,
        /// Out: `VFIO_DEVICE_FLAGS_*`.
        4 => flags: u32,
        /// Out: the highest index of a region, plus 1.
        8 => num_regions: u32,
        /// Out: the highest index of an interrupt, plus 1.
        12 => num_irqs: u32,
        /// Out: where the first capability is; 0 for none, or no room.
        16 => cap_offset: u32,
        /// Unused.
        20 => pad: u32,
    }

    /// The capability that tells which atomic operations reach memory.
    struct VfioDeviceInfoCapPciAtomicComp = vfio_device_info_cap_pci_atomic_comp, 16 {
        /// Header.
        0 => header: VfioInfoCapHeader,
        /// `VFIO_PCI_ATOMIC_COMP*`.
        8 => flags: u32,
        /// Unused.
        12 => reserved: u32,
    }

    /// Argument of [`VFIO_DEVICE_GET_REGION_INFO`], with capabilities behind it.
    struct VfioRegionInfo = vfio_region_info, 32 {
        /// Bytes that the caller has; out: bytes that there are to tell.
        0 => argsz: u32,
        /// Out: `VFIO_REGION_INFO_FLAG_*`.
        4 => flags: u32,
        /// In: which region.
        8 => index: u32,
        /// Out: where the first capability is; 0 for none, or no room.
        12 => cap_offset: u32,
        /// Out: bytes; 0 for a region that is not there.
        16 => size: u64,
        /// Out: where in the file it begins, for `pread`, `pwrite` and `mmap`.
        24 => offset: u64,
    }

    /// A part of a region that can be mapped.
    struct VfioRegionSparseMmapArea = vfio_region_sparse_mmap_area, 16 {
        /// Where it begins in the region.
        0 => offset: u64,
        /// Bytes.
        8 => size: u64,
    }

    /// The capability that tells which parts of a region can be mapped.
    struct VfioRegionInfoCapSparseMmap = vfio_region_info_cap_sparse_mmap, 16 {
        /// Header.
        0 => header: VfioInfoCapHeader,
        /// Parts that follow.
        8 => nr_areas: u32,
        /// Unused.
        12 => reserved: u32,
    } + areas: [VfioRegionSparseMmapArea]

    /// The capability that tells what a region without a fixed index is.
    struct VfioRegionInfoCapType = vfio_region_info_cap_type, 16 {
        /// Header.
        0 => header: VfioInfoCapHeader,
        /// `VFIO_REGION_TYPE_*`.
        8 => r#type: u32,
        /// `VFIO_REGION_SUBTYPE_*` of that type.
        12 => subtype: u32,
    }

    /// The capability that told the compressed address of a GPU's memory.
    struct VfioRegionInfoCapNvlink2Ssatgt = vfio_region_info_cap_nvlink2_ssatgt, 16 {
        /// Header.
        0 => header: VfioInfoCapHeader,
        /// The address.
        8 => tgt: u64,
    }

    /// The capability that told the speed of a link.
    struct VfioRegionInfoCapNvlink2Lnkspd = vfio_region_info_cap_nvlink2_lnkspd, 16 {
        /// Header.
        0 => header: VfioInfoCapHeader,
        /// The speed.
        8 => link_speed: u32,
        /// Unused.
        12 => __pad: u32,
    }

    /// What the region for migration began with, as it was first.
    struct VfioDeviceMigrationInfo = vfio_device_migration_info, 32 {
        /// `VFIO_DEVICE_STATE_V1_*`.
        0 => device_state: u32,
        /// Unused.
        4 => reserved: u32,
        /// Bytes not yet saved.
        8 => pending_bytes: u64,
        /// Where in the region the data is.
        16 => data_offset: u64,
        /// Its bytes.
        24 => data_size: u64,
    }

    /// Argument of [`VFIO_DEVICE_GET_IRQ_INFO`].
    struct VfioIrqInfo = vfio_irq_info, 16 {
        /// Bytes of this structure.
        0 => argsz: u32,
        /// Out: `VFIO_IRQ_INFO_*`.
        4 => flags: u32,
        /// In: which interrupt.
        8 => index: u32,
        /// Out: how many vectors it has.
        12 => count: u32,
    }

    /// Argument of [`VFIO_DEVICE_SET_IRQS`].
    struct VfioIrqSet = vfio_irq_set, 20 {
        /// Bytes of this structure and what follows.
        0 => argsz: u32,
        /// One of `VFIO_IRQ_SET_DATA_*` and one of `VFIO_IRQ_SET_ACTION_*`.
        4 => flags: u32,
        /// Which interrupt.
        8 => index: u32,
        /// The first vector.
        12 => start: u32,
        /// How many; 0 with no data and `VFIO_IRQ_SET_ACTION_TRIGGER` turns the interrupt off.
        16 => count: u32,
    } + data: [u8]

    /// Argument of [`VFIO_DEVICE_IOEVENTFD`].
    struct VfioDeviceIoeventfd = vfio_device_ioeventfd, 32 {
        /// Bytes of this structure.
        0 => argsz: u32,
        /// One of `VFIO_DEVICE_IOEVENTFD_*`.
        4 => flags: u32,
        /// Where in the file to write.
        8 => offset: u64,
        /// What to write.
        16 => data: u64,
        /// The eventfd; -1 ends it.
        24 => fd: i32,
        /// 0.
        28 => reserved: u32,
    }

    /// Argument of [`VFIO_DEVICE_BIND_IOMMUFD`].
    struct VfioDeviceBindIommufd = vfio_device_bind_iommufd, 24 {
        /// Bytes of this structure.
        0 => argsz: u32,
        /// `VFIO_DEVICE_BIND_FLAG_TOKEN` or 0.
        4 => flags: u32,
        /// The iommufd's descriptor.
        8 => iommufd: i32,
        /// Out: the device's id in that iommufd.
        12 => out_devid: u32,
        /// Pointer to the 16 bytes of the token that a virtual function needs where the physical one set it.
        16 => token_uuid_ptr: u64,
    }

    /// Argument of [`VFIO_DEVICE_ATTACH_IOMMUFD_PT`].
    struct VfioDeviceAttachIommufdPt = vfio_device_attach_iommufd_pt, 16 {
        /// Bytes of this structure.
        0 => argsz: u32,
        /// `VFIO_DEVICE_ATTACH_PASID` or 0.
        4 => flags: u32,
        /// In: an IOAS or a page table. Out: the page table that is attached now.
        8 => pt_id: u32,
        /// With `VFIO_DEVICE_ATTACH_PASID`: which.
        12 => pasid: u32,
    }

    /// Argument of [`VFIO_DEVICE_DETACH_IOMMUFD_PT`].
    struct VfioDeviceDetachIommufdPt = vfio_device_detach_iommufd_pt, 12 {
        /// Bytes of this structure.
        0 => argsz: u32,
        /// `VFIO_DEVICE_DETACH_PASID` or 0.
        4 => flags: u32,
        /// With `VFIO_DEVICE_DETACH_PASID`: which.
        8 => pasid: u32,
    }
}
