//! The calls of a container: `/dev/vfio/vfio`, or an iommufd in its place.
//!
//! `VFIO_IOMMU_*` are those of a container whose IOMMU is of type 1; a no-IOMMU container answers ENOTTY to them.

use super::VfioInfoCapHeader;
use crate::ioctl::vfio;
use crate::layout::structures;

/// What [`VFIO_GET_API_VERSION`] answers.
pub const VFIO_API_VERSION: u32 = 0;

/// Tells the version of the API; no argument.
pub const VFIO_GET_API_VERSION: u32 = vfio(0);
/// Whether an extension is there (above 0) or not (0); the argument is its number.
pub const VFIO_CHECK_EXTENSION: u32 = vfio(1);
/// Chooses the type of IOMMU; the argument is its extension's number.
pub const VFIO_SET_IOMMU: u32 = vfio(2);
/// Tells what the IOMMU can do: [`VfioIommuType1Info`].
pub const VFIO_IOMMU_GET_INFO: u32 = vfio(12);
/// Maps memory of the caller: [`VfioIommuType1DmaMap`].
pub const VFIO_IOMMU_MAP_DMA: u32 = vfio(13);
/// Unmaps: [`VfioIommuType1DmaUnmap`].
pub const VFIO_IOMMU_UNMAP_DMA: u32 = vfio(14);
/// Lets a container of SPAPR be used; no argument.
pub const VFIO_IOMMU_ENABLE: u32 = vfio(15);
/// The contrary of [`VFIO_IOMMU_ENABLE`].
pub const VFIO_IOMMU_DISABLE: u32 = vfio(16);
/// Starts, stops and reads dirty tracking: [`VfioIommuType1DirtyBitmap`].
pub const VFIO_IOMMU_DIRTY_PAGES: u32 = vfio(17);

/// Extension: an IOMMU of type 1.
pub const VFIO_TYPE1_IOMMU: u32 = 1;
/// Extension: an IOMMU of POWER servers.
pub const VFIO_SPAPR_TCE_IOMMU: u32 = 2;
/// Extension: an IOMMU of type 1, version 2, which unmaps only whole mappings.
#[allow(non_upper_case_globals)]
pub const VFIO_TYPE1v2_IOMMU: u32 = 3;
/// Extension: DMA is coherent with the caches, whatever the device asks for.
pub const VFIO_DMA_CC_IOMMU: u32 = 4;
/// Extension: error handling of POWER servers.
pub const VFIO_EEH: u32 = 5;
/// Extension: once nested translation; kept free.
pub const __VFIO_RESERVED_TYPE1_NESTING_IOMMU: u32 = 6;
/// Extension: an IOMMU of POWER servers, version 2.
#[allow(non_upper_case_globals)]
pub const VFIO_SPAPR_TCE_v2_IOMMU: u32 = 7;
/// Extension: no IOMMU.
pub const VFIO_NOIOMMU_IOMMU: u32 = 8;
/// Extension: `VFIO_DMA_UNMAP_FLAG_ALL` is known.
pub const VFIO_UNMAP_ALL: u32 = 9;
/// Extension: the caller's address of a mapping can be changed.
pub const VFIO_UPDATE_VADDR: u32 = 10;

/// `iova_pgsizes` is filled in.
pub const VFIO_IOMMU_INFO_PGSIZES: u32 = 1 << 0;
/// `cap_offset` is there.
pub const VFIO_IOMMU_INFO_CAPS: u32 = 1 << 1;

/// Id of [`VfioIommuType1InfoCapIovaRange`].
pub const VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: u16 = 1;
/// Id of [`VfioIommuType1InfoCapMigration`].
pub const VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION: u16 = 2;
/// Id of [`VfioIommuType1InfoDmaAvail`].
pub const VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL: u16 = 3;

/// Devices may read.
pub const VFIO_DMA_MAP_FLAG_READ: u32 = 1 << 0;
/// Devices may write.
pub const VFIO_DMA_MAP_FLAG_WRITE: u32 = 1 << 1;
/// Only gives an existing mapping its new address in the caller.
pub const VFIO_DMA_MAP_FLAG_VADDR: u32 = 1 << 2;

/// Tell the pages written before they are unmapped; a [`VfioBitmap`] follows.
pub const VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP: u32 = 1 << 0;
/// Unmap all.
pub const VFIO_DMA_UNMAP_FLAG_ALL: u32 = 1 << 1;
/// Unmap nothing; the addresses in the caller are about to change.
pub const VFIO_DMA_UNMAP_FLAG_VADDR: u32 = 1 << 2;

/// Start tracking.
pub const VFIO_IOMMU_DIRTY_PAGES_FLAG_START: u32 = 1 << 0;
/// Stop tracking.
pub const VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP: u32 = 1 << 1;
/// Tell the pages written; a [`VfioIommuType1DirtyBitmapGet`] follows.
pub const VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP: u32 = 1 << 2;

structures! {
    /// Argument of [`VFIO_IOMMU_GET_INFO`], with capabilities behind it.
    struct VfioIommuType1Info = vfio_iommu_type1_info, 24 {
        /// Bytes that the caller has; out: bytes that there are to tell.
        0 => argsz: u32,
        /// Out: `VFIO_IOMMU_INFO_*`.
        4 => flags: u32,
        /// Out: a bit for every page size, the bit's value.
        8 => iova_pgsizes: u64,
        /// Out: where the first capability is; 0 for none, or no room.
        16 => cap_offset: u32,
        /// Unused.
        20 => pad: u32,
    }

    /// IOVAs from `start` up to and including `end`.
    struct VfioIovaRange = vfio_iova_range, 16 {
        /// The first.
        0 => start: u64,
        /// The last.
        8 => end: u64,
    }

    /// The capability that tells the IOVAs that can be mapped.
    struct VfioIommuType1InfoCapIovaRange = vfio_iommu_type1_info_cap_iova_range, 16 {
        /// Header.
        0 => header: VfioInfoCapHeader,
        /// Ranges that follow.
        8 => nr_iovas: u32,
        /// Unused.
        12 => reserved: u32,
    } + iova_ranges: [VfioIovaRange]

    /// The capability that tells of dirty tracking.
    struct VfioIommuType1InfoCapMigration = vfio_iommu_type1_info_cap_migration, 32 {
        /// Header.
        0 => header: VfioInfoCapHeader,
        /// None are known.
        8 => flags: u32,
        /// Padding, which the kernel leaves to the compiler.
        12 => __padding: u32,
        /// A bit for every page size that writes can be tracked by.
        16 => pgsize_bitmap: u64,
        /// Bytes of the largest bitmap.
        24 => max_dirty_bitmap_size: u64,
    }

    /// The capability that tells how many mappings more there can be.
    struct VfioIommuType1InfoDmaAvail = vfio_iommu_type1_info_dma_avail, 12 {
        /// Header.
        0 => header: VfioInfoCapHeader,
        /// Mappings.
        8 => avail: u32,
    }

    /// Argument of [`VFIO_IOMMU_MAP_DMA`].
    struct VfioIommuType1DmaMap = vfio_iommu_type1_dma_map, 32 {
        /// Bytes of this structure.
        0 => argsz: u32,
        /// `VFIO_DMA_MAP_FLAG_*`.
        4 => flags: u32,
        /// The caller's address of the memory.
        8 => vaddr: u64,
        /// The IOVA.
        16 => iova: u64,
        /// Bytes.
        24 => size: u64,
    }

    /// Where a bitmap of pages goes.
    struct VfioBitmap = vfio_bitmap, 24 {
        /// Bytes of the page that a bit stands for.
        0 => pgsize: u64,
        /// Bytes of the bitmap.
        8 => size: u64,
        /// Pointer to it.
        16 => data: u64,
    }

    /// Argument of [`VFIO_IOMMU_UNMAP_DMA`].
    struct VfioIommuType1DmaUnmap = vfio_iommu_type1_dma_unmap, 24 {
        /// Bytes of this structure and what follows.
        0 => argsz: u32,
        /// `VFIO_DMA_UNMAP_FLAG_*`.
        4 => flags: u32,
        /// The first IOVA.
        8 => iova: u64,
        /// In: bytes. Out: bytes unmapped.
        16 => size: u64,
    } + data: [u8]

    /// Argument of [`VFIO_IOMMU_DIRTY_PAGES`].
    struct VfioIommuType1DirtyBitmap = vfio_iommu_type1_dirty_bitmap, 8 {
        /// Bytes of this structure and what follows.
        0 => argsz: u32,
        /// One of `VFIO_IOMMU_DIRTY_PAGES_FLAG_*`.
        4 => flags: u32,
    } + data: [u8]

    /// Which pages to tell of, and where.
    struct VfioIommuType1DirtyBitmapGet = vfio_iommu_type1_dirty_bitmap_get, 40 {
        /// The first IOVA.
        0 => iova: u64,
        /// Bytes of IOVA.
        8 => size: u64,
        /// Where the bits go.
        16 => bitmap: VfioBitmap,
    }
}
