//! The calls of a container on POWER servers, whose numbers are other calls' elsewhere.

use crate::ioctl::vfio;
use crate::layout::structures;

/// Tells the windows for DMA: [`VfioIommuSpaprTceInfo`].
pub const VFIO_IOMMU_SPAPR_TCE_GET_INFO: u32 = vfio(12);
/// Handles errors of a partitionable endpoint: [`VfioEehPeOp`].
pub const VFIO_EEH_PE_OP: u32 = vfio(21);
/// Pins memory for later maps: [`VfioIommuSpaprRegisterMemory`].
pub const VFIO_IOMMU_SPAPR_REGISTER_MEMORY: u32 = vfio(17);
/// The contrary of it: [`VfioIommuSpaprRegisterMemory`].
pub const VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY: u32 = vfio(18);
/// Makes a window for DMA: [`VfioIommuSpaprTceCreate`].
pub const VFIO_IOMMU_SPAPR_TCE_CREATE: u32 = vfio(19);
/// Removes a window: [`VfioIommuSpaprTceRemove`].
pub const VFIO_IOMMU_SPAPR_TCE_REMOVE: u32 = vfio(20);

/// `ddw` is filled in.
pub const VFIO_IOMMU_SPAPR_INFO_DDW: u32 = 1 << 0;

/// Error handling off.
pub const VFIO_EEH_PE_DISABLE: u32 = 0;
/// Error handling on.
pub const VFIO_EEH_PE_ENABLE: u32 = 1;
/// Let I/O go on.
pub const VFIO_EEH_PE_UNFREEZE_IO: u32 = 2;
/// Let DMA go on.
pub const VFIO_EEH_PE_UNFREEZE_DMA: u32 = 3;
/// Tell the state: one of `VFIO_EEH_PE_STATE_*`.
pub const VFIO_EEH_PE_GET_STATE: u32 = 4;
/// End a reset.
pub const VFIO_EEH_PE_RESET_DEACTIVATE: u32 = 5;
/// Begin a hot reset.
pub const VFIO_EEH_PE_RESET_HOT: u32 = 6;
/// Begin a fundamental reset.
pub const VFIO_EEH_PE_RESET_FUNDAMENTAL: u32 = 7;
/// Configure.
pub const VFIO_EEH_PE_CONFIGURE: u32 = 8;
/// Make an error, told by `err`.
pub const VFIO_EEH_PE_INJECT_ERR: u32 = 9;

/// Works.
pub const VFIO_EEH_PE_STATE_NORMAL: u32 = 0;
/// In reset.
pub const VFIO_EEH_PE_STATE_RESET: u32 = 1;
/// DMA and I/O stopped.
pub const VFIO_EEH_PE_STATE_STOPPED: u32 = 2;
/// DMA stopped.
pub const VFIO_EEH_PE_STATE_STOPPED_DMA: u32 = 4;
/// Unknown.
pub const VFIO_EEH_PE_STATE_UNAVAIL: u32 = 5;

structures! {
    /// Dynamic windows.
    struct VfioIommuSpaprTceDdwInfo = vfio_iommu_spapr_tce_ddw_info, 16 {
        /// A bit for every page size.
        0 => pgsizes: u64,
        /// Windows that can be made.
        8 => max_dynamic_windows_supported: u32,
        /// Levels that a table can have.
        12 => levels: u32,
    }

    /// Argument of [`VFIO_IOMMU_SPAPR_TCE_GET_INFO`].
    struct VfioIommuSpaprTceInfo = vfio_iommu_spapr_tce_info, 32 {
        /// Bytes of this structure.
        0 => argsz: u32,
        /// Out: `VFIO_IOMMU_SPAPR_INFO_DDW`.
        4 => flags: u32,
        /// Out: the first bus address of the 32-bit window.
        8 => dma32_window_start: u32,
        /// Out: its bytes.
        12 => dma32_window_size: u32,
        /// Out: dynamic windows.
        16 => ddw: VfioIommuSpaprTceDdwInfo,
    }

    /// An error to make.
    struct VfioEehPeErr = vfio_eeh_pe_err, 24 {
        /// Which kind.
        0 => r#type: u32,
        /// Which function.
        4 => func: u32,
        /// Address.
        8 => addr: u64,
        /// Bits of the address that count.
        16 => mask: u64,
    }

    /// Argument of [`VFIO_EEH_PE_OP`].
    struct VfioEehPeOp = vfio_eeh_pe_op, 40 {
        /// Bytes of this structure.
        0 => argsz: u32,
        /// 0.
        4 => flags: u32,
        /// One of `VFIO_EEH_PE_*`.
        8 => op: u32,
        /// Padding, which the kernel leaves to the compiler.
        12 => __padding: u32,
        /// For `VFIO_EEH_PE_INJECT_ERR`.
        16 => err: VfioEehPeErr,
    }

    /// Argument of [`VFIO_IOMMU_SPAPR_REGISTER_MEMORY`] and [`VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY`].
    struct VfioIommuSpaprRegisterMemory = vfio_iommu_spapr_register_memory, 24 {
        /// Bytes of this structure.
        0 => argsz: u32,
        /// 0.
        4 => flags: u32,
        /// The caller's address.
        8 => vaddr: u64,
        /// Bytes.
        16 => size: u64,
    }

    /// Argument of [`VFIO_IOMMU_SPAPR_TCE_CREATE`].
    struct VfioIommuSpaprTceCreate = vfio_iommu_spapr_tce_create, 40 {
        /// Bytes of this structure.
        0 => argsz: u32,
        /// 0.
        4 => flags: u32,
        /// Base-2 logarithm of the page size.
        8 => page_shift: u32,
        /// 0.
        12 => __resv1: u32,
        /// Bytes of the window.
        16 => window_size: u64,
        /// Levels of its table.
        24 => levels: u32,
        /// 0.
        28 => __resv2: u32,
        /// Out: its first bus address.
        32 => start_addr: u64,
    }

    /// Argument of [`VFIO_IOMMU_SPAPR_TCE_REMOVE`].
    struct VfioIommuSpaprTceRemove = vfio_iommu_spapr_tce_remove, 16 {
        /// Bytes of this structure.
        0 => argsz: u32,
        /// 0.
        4 => flags: u32,
        /// The window's first bus address.
        8 => start_addr: u64,
    }
}
