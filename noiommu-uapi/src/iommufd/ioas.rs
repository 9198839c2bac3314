//! IO address spaces: IOVAs, mappings, and physical addresses for devices without an IOMMU.

use crate::ioctl::iommufd;
use crate::layout::structures;

/// Makes an empty IOAS: [`IommuIoasAlloc`].
pub const IOMMU_IOAS_ALLOC: u32 = iommufd(0x81);
/// Says where automatic IOVAs may be: [`IommuIoasAllowIovas`].
pub const IOMMU_IOAS_ALLOW_IOVAS: u32 = iommufd(0x82);
/// Maps again what another IOAS (or the same) maps: [`IommuIoasCopy`].
pub const IOMMU_IOAS_COPY: u32 = iommufd(0x83);
/// Tells which IOVAs can be mapped: [`IommuIoasIovaRanges`].
pub const IOMMU_IOAS_IOVA_RANGES: u32 = iommufd(0x84);
/// Maps memory of the caller: [`IommuIoasMap`].
pub const IOMMU_IOAS_MAP: u32 = iommufd(0x85);
/// Unmaps whole mappings: [`IommuIoasUnmap`].
pub const IOMMU_IOAS_UNMAP: u32 = iommufd(0x86);
/// Maps a part of a memfd or of a dma-buf: [`IommuIoasMapFile`].
pub const IOMMU_IOAS_MAP_FILE: u32 = iommufd(0x8f);
/// Charges all locked memory of the file to the calling process: [`IommuIoasChangeProcess`].
pub const IOMMU_IOAS_CHANGE_PROCESS: u32 = iommufd(0x92);
/// Tells the physical address behind an IOVA, for devices without an IOMMU: [`IommuIoasNoiommuGetPa`].
pub const IOMMU_IOAS_NOIOMMU_GET_PA: u32 = iommufd(0x95);
/// The name that the call had before it was merged.
pub const IOMMU_IOAS_GET_PA: u32 = IOMMU_IOAS_NOIOMMU_GET_PA;

/// The caller chose the IOVA; else the kernel does.
pub const IOMMU_IOAS_MAP_FIXED_IOVA: u32 = 1 << 0;
/// Devices may write.
pub const IOMMU_IOAS_MAP_WRITEABLE: u32 = 1 << 1;
/// Devices may read.
pub const IOMMU_IOAS_MAP_READABLE: u32 = 1 << 2;

structures! {
    /// Argument of [`IOMMU_IOAS_ALLOC`].
    struct IommuIoasAlloc = iommu_ioas_alloc, 12 {
        /// Bytes of this structure.
        0 => size: u32,
        /// 0.
        4 => flags: u32,
        /// Out: the new IOAS.
        8 => out_ioas_id: u32,
    }

    /// IOVAs from `start` up to and including `last`.
    struct IommuIovaRange = iommu_iova_range, 16 {
        /// The first.
        0 => start: u64,
        /// The last.
        8 => last: u64,
    }

    /// Argument of [`IOMMU_IOAS_IOVA_RANGES`]. Room for too few ranges is EMSGSIZE, and `num_iovas` tells how many there are.
    struct IommuIoasIovaRanges = iommu_ioas_iova_ranges, 32 {
        /// Bytes of this structure.
        0 => size: u32,
        /// The IOAS asked about.
        4 => ioas_id: u32,
        /// In: ranges that `allowed_iovas` has room for. Out: ranges that there are.
        8 => num_iovas: u32,
        /// 0.
        12 => __reserved: u32,
        /// Pointer to [`IommuIovaRange`]s that are filled in.
        16 => allowed_iovas: u64,
        /// Out: what IOVAs and lengths of mappings are multiples of; 1 to the page size.
        24 => out_iova_alignment: u64,
    }

    /// Argument of [`IOMMU_IOAS_ALLOW_IOVAS`]; the ranges replace those of the call before.
    struct IommuIoasAllowIovas = iommu_ioas_allow_iovas, 24 {
        /// Bytes of this structure.
        0 => size: u32,
        /// The IOAS.
        4 => ioas_id: u32,
        /// How many ranges.
        8 => num_iovas: u32,
        /// 0.
        12 => __reserved: u32,
        /// Pointer to so many [`IommuIovaRange`]s.
        16 => allowed_iovas: u64,
    }

    /// Argument of [`IOMMU_IOAS_MAP`].
    struct IommuIoasMap = iommu_ioas_map, 40 {
        /// Bytes of this structure.
        0 => size: u32,
        /// `IOMMU_IOAS_MAP_*`.
        4 => flags: u32,
        /// The IOAS to map in.
        8 => ioas_id: u32,
        /// 0.
        12 => __reserved: u32,
        /// The caller's address of the memory.
        16 => user_va: u64,
        /// Bytes.
        24 => length: u64,
        /// The IOVA, in where it is fixed, out otherwise.
        32 => iova: u64,
    }

    /// Argument of [`IOMMU_IOAS_NOIOMMU_GET_PA`].
    struct IommuIoasNoiommuGetPa = iommu_ioas_noiommu_get_pa, 40 {
        /// Bytes of this structure.
        0 => size: u32,
        /// 0.
        4 => flags: u32,
        /// The IOAS asked about.
        8 => ioas_id: u32,
        /// 0.
        12 => __reserved: u32,
        /// The IOVA asked about; it is mapped.
        16 => iova: u64,
        /// In: bytes of interest, above 0. Out: how many of them are contiguous in physical memory.
        24 => length: u64,
        /// Out: the physical address of the byte at `iova`.
        32 => out_phys: u64,
    }

    /// Argument of [`IOMMU_IOAS_MAP_FILE`].
    struct IommuIoasMapFile = iommu_ioas_map_file, 40 {
        /// Bytes of this structure.
        0 => size: u32,
        /// `IOMMU_IOAS_MAP_*`.
        4 => flags: u32,
        /// The IOAS to map in.
        8 => ioas_id: u32,
        /// The memfd or dma-buf.
        12 => fd: i32,
        /// Bytes into the file.
        16 => start: u64,
        /// Bytes.
        24 => length: u64,
        /// The IOVA, in where it is fixed, out otherwise.
        32 => iova: u64,
    }

    /// Argument of [`IOMMU_IOAS_COPY`].
    struct IommuIoasCopy = iommu_ioas_copy, 40 {
        /// Bytes of this structure.
        0 => size: u32,
        /// `IOMMU_IOAS_MAP_*`.
        4 => flags: u32,
        /// The IOAS to map in.
        8 => dst_ioas_id: u32,
        /// The IOAS that has the mapping.
        12 => src_ioas_id: u32,
        /// Bytes.
        16 => length: u64,
        /// The new IOVA, in where it is fixed, out otherwise.
        24 => dst_iova: u64,
        /// Where the mapping is in the source.
        32 => src_iova: u64,
    }

    /// Argument of [`IOMMU_IOAS_UNMAP`]; 0 and `u64::MAX` mean all mappings.
    struct IommuIoasUnmap = iommu_ioas_unmap, 24 {
        /// Bytes of this structure.
        0 => size: u32,
        /// The IOAS.
        4 => ioas_id: u32,
        /// The first IOVA.
        8 => iova: u64,
        /// In: bytes. Out: bytes unmapped.
        16 => length: u64,
    }

    /// Argument of [`IOMMU_IOAS_CHANGE_PROCESS`].
    struct IommuIoasChangeProcess = iommu_ioas_change_process, 8 {
        /// Bytes of this structure.
        0 => size: u32,
        /// 0.
        4 => __reserved: u32,
    }
}
