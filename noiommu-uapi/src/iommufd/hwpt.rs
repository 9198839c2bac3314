//! Page tables of the hardware: made by hand, nested, watched for writes, invalidated, and the faults in them.

use crate::ioctl::iommufd;
use crate::layout::structures;

/// Makes a page table for a device: [`IommuHwptAlloc`].
pub const IOMMU_HWPT_ALLOC: u32 = iommufd(0x89);
/// Turns dirty tracking on or off: [`IommuHwptSetDirtyTracking`].
pub const IOMMU_HWPT_SET_DIRTY_TRACKING: u32 = iommufd(0x8b);
/// Tells which pages devices wrote: [`IommuHwptGetDirtyBitmap`].
pub const IOMMU_HWPT_GET_DIRTY_BITMAP: u32 = iommufd(0x8c);
/// Drops what the hardware has cached of a nested page table: [`IommuHwptInvalidate`].
pub const IOMMU_HWPT_INVALIDATE: u32 = iommufd(0x8d);
/// Makes a queue of page faults, read from a descriptor: [`IommuFaultAlloc`].
pub const IOMMU_FAULT_QUEUE_ALLOC: u32 = iommufd(0x8e);

/// Others can be nested in this page table.
pub const IOMMU_HWPT_ALLOC_NEST_PARENT: u32 = 1 << 0;
/// Only devices that can track writes may be attached.
pub const IOMMU_HWPT_ALLOC_DIRTY_TRACKING: u32 = 1 << 1;
/// `fault_id` says where faults go.
pub const IOMMU_HWPT_FAULT_ID_VALID: u32 = 1 << 2;
/// Can be attached to a PASID of a device.
pub const IOMMU_HWPT_ALLOC_PASID: u32 = 1 << 3;

/// No data: the kernel fills the page table from an IOAS.
pub const IOMMU_HWPT_DATA_NONE: u32 = 0;
/// [`IommuHwptVtdS1`].
pub const IOMMU_HWPT_DATA_VTD_S1: u32 = 1;
/// [`IommuHwptArmSmmuv3`].
pub const IOMMU_HWPT_DATA_ARM_SMMUV3: u32 = 2;
/// [`IommuHwptAmdGuest`].
pub const IOMMU_HWPT_DATA_AMD_GUEST: u32 = 3;

/// VT-d: supervisor requests are allowed.
pub const IOMMU_VTD_S1_SRE: u64 = 1 << 0;
/// VT-d: extended accessed flags.
pub const IOMMU_VTD_S1_EAFE: u64 = 1 << 1;
/// VT-d: supervisors heed write protection.
pub const IOMMU_VTD_S1_WPE: u64 = 1 << 2;

/// Track writes.
pub const IOMMU_HWPT_DIRTY_TRACKING_ENABLE: u32 = 1;
/// Leave the pages marked as written.
pub const IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR: u32 = 1;

/// Entries are [`IommuHwptVtdS1Invalidate`].
pub const IOMMU_HWPT_INVALIDATE_DATA_VTD_S1: u32 = 0;
/// Entries are [`IommuViommuArmSmmuv3Invalidate`].
pub const IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3: u32 = 1;
/// VT-d: only cached leaf entries.
pub const IOMMU_VTD_INV_FLAGS_LEAF: u32 = 1 << 0;

/// A fault has a PASID.
pub const IOMMU_PGFAULT_FLAGS_PASID_VALID: u32 = 1 << 0;
/// The last fault of its group.
pub const IOMMU_PGFAULT_FLAGS_LAST_PAGE: u32 = 1 << 1;
/// The device wanted to read.
pub const IOMMU_PGFAULT_PERM_READ: u32 = 1 << 0;
/// The device wanted to write.
pub const IOMMU_PGFAULT_PERM_WRITE: u32 = 1 << 1;
/// The device wanted to execute.
pub const IOMMU_PGFAULT_PERM_EXEC: u32 = 1 << 2;
/// The device asked in privileged mode.
pub const IOMMU_PGFAULT_PERM_PRIV: u32 = 1 << 3;

/// The page is there now.
pub const IOMMUFD_PAGE_RESP_SUCCESS: u32 = 0;
/// There is no such page.
pub const IOMMUFD_PAGE_RESP_INVALID: u32 = 1;

structures! {
    /// A stage-1 page table of Intel VT-d.
    struct IommuHwptVtdS1 = iommu_hwpt_vtd_s1, 24 {
        /// `IOMMU_VTD_S1_*`.
        0 => flags: u64,
        /// Where the table is, in the parent's IOVAs.
        8 => pgtbl_addr: u64,
        /// Bits of an input address.
        16 => addr_width: u32,
        /// 0.
        20 => __reserved: u32,
    }

    /// A nested stream of an ARM SMMUv3.
    struct IommuHwptArmSmmuv3 = iommu_hwpt_arm_smmuv3, 16 {
        /// The first two words of its Stream Table Entry, little-endian.
        0 => ste: [u64; 2],
    }

    /// A guest's page table of an AMD IOMMU.
    struct IommuHwptAmdGuest = iommu_hwpt_amd_guest, 32 {
        /// The guest's Device Table Entry.
        0 => dte: [u64; 4],
    }

    /// Argument of [`IOMMU_HWPT_ALLOC`].
    struct IommuHwptAlloc = iommu_hwpt_alloc, 48 {
        /// Bytes of this structure.
        0 => size: u32,
        /// `IOMMU_HWPT_*`.
        4 => flags: u32,
        /// The device it is for.
        8 => dev_id: u32,
        /// The IOAS whose mappings it has; the page table or vIOMMU that it is nested in.
        12 => pt_id: u32,
        /// Out: the new page table.
        16 => out_hwpt_id: u32,
        /// 0.
        20 => __reserved: u32,
        /// One of `IOMMU_HWPT_DATA_*`.
        24 => data_type: u32,
        /// Bytes of the data.
        28 => data_len: u32,
        /// Pointer to the data; 0 for none.
        32 => data_uptr: u64,
        /// The fault queue, with `IOMMU_HWPT_FAULT_ID_VALID`.
        40 => fault_id: u32,
        /// 0.
        44 => __reserved2: u32,
    }

    /// Argument of [`IOMMU_HWPT_SET_DIRTY_TRACKING`].
    struct IommuHwptSetDirtyTracking = iommu_hwpt_set_dirty_tracking, 16 {
        /// Bytes of this structure.
        0 => size: u32,
        /// `IOMMU_HWPT_DIRTY_TRACKING_ENABLE` or 0.
        4 => flags: u32,
        /// The page table.
        8 => hwpt_id: u32,
        /// 0.
        12 => __reserved: u32,
    }

    /// Argument of [`IOMMU_HWPT_GET_DIRTY_BITMAP`].
    struct IommuHwptGetDirtyBitmap = iommu_hwpt_get_dirty_bitmap, 48 {
        /// Bytes of this structure.
        0 => size: u32,
        /// The page table.
        4 => hwpt_id: u32,
        /// `IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR` or 0.
        8 => flags: u32,
        /// 0.
        12 => __reserved: u32,
        /// The IOVA of the first bit.
        16 => iova: u64,
        /// Bytes of IOVA.
        24 => length: u64,
        /// Bytes that a bit stands for.
        32 => page_size: u64,
        /// Pointer to the bits, 64 a word.
        40 => data: u64,
    }

    /// What of a VT-d stage-1 page table to invalidate.
    struct IommuHwptVtdS1Invalidate = iommu_hwpt_vtd_s1_invalidate, 24 {
        /// The first address, a multiple of 4096; 0 with `npages` of `u64::MAX` for all.
        0 => addr: u64,
        /// Pages of 4096 bytes.
        8 => npages: u64,
        /// `IOMMU_VTD_INV_FLAGS_LEAF` or 0.
        16 => flags: u32,
        /// 0.
        20 => __reserved: u32,
    }

    /// What an ARM SMMUv3 shall invalidate.
    struct IommuViommuArmSmmuv3Invalidate = iommu_viommu_arm_smmuv3_invalidate, 16 {
        /// A command as its queue takes it, little-endian.
        0 => cmd: [u64; 2],
    }

    /// Argument of [`IOMMU_HWPT_INVALIDATE`].
    struct IommuHwptInvalidate = iommu_hwpt_invalidate, 32 {
        /// Bytes of this structure.
        0 => size: u32,
        /// A nested page table, or a vIOMMU.
        4 => hwpt_id: u32,
        /// Pointer to the entries.
        8 => data_uptr: u64,
        /// What an entry is: `IOMMU_HWPT_INVALIDATE_DATA_*`, `IOMMU_VIOMMU_INVALIDATE_DATA_*`.
        16 => data_type: u32,
        /// Bytes of an entry.
        20 => entry_len: u32,
        /// In: entries. Out: entries done.
        24 => entry_num: u32,
        /// 0.
        28 => __reserved: u32,
    }

    /// A page fault, as read from a fault queue.
    struct IommuHwptPgfault = iommu_hwpt_pgfault, 40 {
        /// `IOMMU_PGFAULT_FLAGS_*`.
        0 => flags: u32,
        /// The device.
        4 => dev_id: u32,
        /// Its PASID.
        8 => pasid: u32,
        /// The group of page requests it belongs to.
        12 => grpid: u32,
        /// `IOMMU_PGFAULT_PERM_*`.
        16 => perm: u32,
        /// 0.
        20 => __reserved: u32,
        /// The address.
        24 => addr: u64,
        /// Bytes that the device is about to access, 0 where it did not say.
        32 => length: u32,
        /// What the answer to this group carries.
        36 => cookie: u32,
    }

    /// The answer to a group of faults, written to the fault queue.
    struct IommuHwptPageResponse = iommu_hwpt_page_response, 8 {
        /// The last fault's cookie.
        0 => cookie: u32,
        /// One of `IOMMUFD_PAGE_RESP_*`.
        4 => code: u32,
    }

    /// Argument of [`IOMMU_FAULT_QUEUE_ALLOC`].
    struct IommuFaultAlloc = iommu_fault_alloc, 16 {
        /// Bytes of this structure.
        0 => size: u32,
        /// 0.
        4 => flags: u32,
        /// Out: the new queue.
        8 => out_fault_id: u32,
        /// Out: the descriptor to read faults from.
        12 => out_fault_fd: u32,
    }
}
