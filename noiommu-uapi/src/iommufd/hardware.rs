//! What the IOMMU is, and virtual ones made of it: vIOMMUs, their devices, events and queues.

use crate::ioctl::iommufd;
use crate::layout::structures;

/// Tells what the IOMMU of a device is: [`IommuHwInfo`].
pub const IOMMU_GET_HW_INFO: u32 = iommufd(0x8a);
/// Makes a virtual IOMMU: [`IommuViommuAlloc`].
pub const IOMMU_VIOMMU_ALLOC: u32 = iommufd(0x90);
/// Makes a device of a virtual IOMMU: [`IommuVdeviceAlloc`].
pub const IOMMU_VDEVICE_ALLOC: u32 = iommufd(0x91);
/// Makes a queue of a virtual IOMMU's events: [`IommuVeventqAlloc`].
pub const IOMMU_VEVENTQ_ALLOC: u32 = iommufd(0x93);
/// Lets the hardware serve a queue in a guest's memory: [`IommuHwQueueAlloc`].
pub const IOMMU_HW_QUEUE_ALLOC: u32 = iommufd(0x94);

/// Out: no data; the IOMMU tells nothing.
pub const IOMMU_HW_INFO_TYPE_NONE: u32 = 0;
/// In: whatever data the IOMMU has by default.
pub const IOMMU_HW_INFO_TYPE_DEFAULT: u32 = 0;
/// [`IommuHwInfoVtd`].
pub const IOMMU_HW_INFO_TYPE_INTEL_VTD: u32 = 1;
/// [`IommuHwInfoArmSmmuv3`].
pub const IOMMU_HW_INFO_TYPE_ARM_SMMUV3: u32 = 2;
/// [`IommuHwInfoTegra241Cmdqv`].
pub const IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV: u32 = 3;
/// [`IommuHwInfoAmd`].
pub const IOMMU_HW_INFO_TYPE_AMD: u32 = 4;

/// VT-d: read-only mappings are not for parents of nested tables, an erratum.
pub const IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17: u32 = 1 << 0;
/// SMMUv3: some commands are to be given twice, an erratum.
pub const IOMMU_HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI: u32 = 1 << 0;

/// Writes can be tracked.
pub const IOMMU_HW_CAP_DIRTY_TRACKING: u64 = 1 << 0;
/// PASIDs can have execute permission.
pub const IOMMU_HW_CAP_PCI_PASID_EXEC: u64 = 1 << 1;
/// PASIDs can have a privileged mode.
pub const IOMMU_HW_CAP_PCI_PASID_PRIV: u64 = 1 << 2;
/// The device cannot use ATS.
pub const IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED: u64 = 1 << 3;

/// The caller says which type of data it wants.
pub const IOMMU_HW_INFO_FLAG_INPUT_TYPE: u32 = 1 << 0;

/// No type of vIOMMU.
pub const IOMMU_VIOMMU_TYPE_DEFAULT: u32 = 0;
/// ARM SMMUv3.
pub const IOMMU_VIOMMU_TYPE_ARM_SMMUV3: u32 = 1;
/// ARM SMMUv3 with NVIDIA's command queues; data is [`IommuViommuTegra241Cmdqv`].
pub const IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV: u32 = 2;

/// Events before this header were lost, and no event follows it.
pub const IOMMU_VEVENTQ_FLAG_LOST_EVENTS: u32 = 1 << 0;

/// No type of events.
pub const IOMMU_VEVENTQ_TYPE_DEFAULT: u32 = 0;
/// Events are [`IommuVeventArmSmmuv3`].
pub const IOMMU_VEVENTQ_TYPE_ARM_SMMUV3: u32 = 1;
/// Events are [`IommuVeventTegra241Cmdqv`].
pub const IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV: u32 = 2;

/// No type of queue.
pub const IOMMU_HW_QUEUE_TYPE_DEFAULT: u32 = 0;
/// A command queue of NVIDIA's extension.
pub const IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV: u32 = 1;

structures! {
    /// An Intel VT-d IOMMU.
    struct IommuHwInfoVtd = iommu_hw_info_vtd, 24 {
        /// `IOMMU_HW_INFO_VTD_*`.
        0 => flags: u32,
        /// 0.
        4 => __reserved: u32,
        /// Its capability register.
        8 => cap_reg: u64,
        /// Its extended capability register.
        16 => ecap_reg: u64,
    }

    /// An ARM SMMUv3.
    struct IommuHwInfoArmSmmuv3 = iommu_hw_info_arm_smmuv3, 40 {
        /// `IOMMU_HW_INFO_ARM_SMMUV3_*`.
        0 => flags: u32,
        /// 0.
        4 => __reserved: u32,
        /// Its identification registers 0 to 5.
        8 => idr: [u32; 6],
        /// Who made it.
        32 => iidr: u32,
        /// The version of its architecture.
        36 => aidr: u32,
    }

    /// NVIDIA's command queues beside an ARM SMMUv3.
    struct IommuHwInfoTegra241Cmdqv = iommu_hw_info_tegra241_cmdqv, 8 {
        /// 0.
        0 => flags: u32,
        /// Version.
        4 => version: u8,
        /// Base-2 logarithm of the number of queues.
        5 => log2vcmdqs: u8,
        /// Base-2 logarithm of the number of stream ids that can be replaced.
        6 => log2vsids: u8,
        /// 0.
        7 => __reserved: u8,
    }

    /// An AMD IOMMU.
    struct IommuHwInfoAmd = iommu_hw_info_amd, 16 {
        /// Its extended feature register.
        0 => efr: u64,
        /// Its second extended feature register.
        8 => efr2: u64,
    }

    /// Argument of [`IOMMU_GET_HW_INFO`].
    struct IommuHwInfo = iommu_hw_info, 40 {
        /// Bytes of this structure.
        0 => size: u32,
        /// `IOMMU_HW_INFO_FLAG_INPUT_TYPE` or 0.
        4 => flags: u32,
        /// The device whose IOMMU is meant.
        8 => dev_id: u32,
        /// In: bytes that `data_uptr` has room for. Out: bytes of data that there are.
        12 => data_len: u32,
        /// Pointer to the data, which is filled in and zeroed behind.
        16 => data_uptr: u64,
        /// One of `IOMMU_HW_INFO_TYPE_*`; out, and in with `IOMMU_HW_INFO_FLAG_INPUT_TYPE`.
        24 => out_data_type | in_data_type: u32,
        /// Out: bits of a PASID, 0 for no PASIDs.
        28 => out_max_pasid_log2: u8,
        /// 0.
        29 => __reserved: [u8; 3],
        /// Out: `IOMMU_HW_CAP_*`.
        32 => out_capabilities: u64,
    }

    /// Where registers of NVIDIA's command queues can be mapped from the iommufd.
    struct IommuViommuTegra241Cmdqv = iommu_viommu_tegra241_cmdqv, 16 {
        /// Out: the offset for `mmap`.
        0 => out_vintf_mmap_offset: u64,
        /// Out: the length for `mmap`.
        8 => out_vintf_mmap_length: u64,
    }

    /// Argument of [`IOMMU_VIOMMU_ALLOC`].
    struct IommuViommuAlloc = iommu_viommu_alloc, 40 {
        /// Bytes of this structure.
        0 => size: u32,
        /// 0.
        4 => flags: u32,
        /// One of `IOMMU_VIOMMU_TYPE_*`.
        8 => r#type: u32,
        /// The device whose IOMMU it is a part of.
        12 => dev_id: u32,
        /// The page table that others will be nested in.
        16 => hwpt_id: u32,
        /// Out: the new vIOMMU.
        20 => out_viommu_id: u32,
        /// Bytes of the data.
        24 => data_len: u32,
        /// 0.
        28 => __reserved: u32,
        /// Pointer to the type's data.
        32 => data_uptr: u64,
    }

    /// Argument of [`IOMMU_VDEVICE_ALLOC`].
    struct IommuVdeviceAlloc = iommu_vdevice_alloc, 24 {
        /// Bytes of this structure.
        0 => size: u32,
        /// The vIOMMU it belongs to.
        4 => viommu_id: u32,
        /// The device it stands for.
        8 => dev_id: u32,
        /// Out: the new vDevice.
        12 => out_vdevice_id: u32,
        /// What the virtual IOMMU calls it: a stream id, a device id.
        16 => virt_id: u64,
    }

    /// What goes before each event read from a queue.
    struct IommufdVeventHeader = iommufd_vevent_header, 8 {
        /// `IOMMU_VEVENTQ_FLAG_*`.
        0 => flags: u32,
        /// The event's number, from 0 to 2^31-1 and again from 0; a gap is a loss.
        4 => sequence: u32,
    }

    /// An event of an ARM SMMUv3.
    struct IommuVeventArmSmmuv3 = iommu_vevent_arm_smmuv3, 32 {
        /// The record as its event queue has it, little-endian, with the virtual stream id.
        0 => evt: [u64; 4],
    }

    /// Errors of NVIDIA's command queues.
    struct IommuVeventTegra241Cmdqv = iommu_vevent_tegra241_cmdqv, 16 {
        /// A bit for each queue with an error, little-endian.
        0 => lvcmdq_err_map: [u64; 2],
    }

    /// Argument of [`IOMMU_VEVENTQ_ALLOC`].
    struct IommuVeventqAlloc = iommu_veventq_alloc, 32 {
        /// Bytes of this structure.
        0 => size: u32,
        /// 0.
        4 => flags: u32,
        /// The vIOMMU.
        8 => viommu_id: u32,
        /// One of `IOMMU_VEVENTQ_TYPE_*`.
        12 => r#type: u32,
        /// Events that it holds before it loses some.
        16 => veventq_depth: u32,
        /// Out: the new queue.
        20 => out_veventq_id: u32,
        /// Out: the descriptor to read events from.
        24 => out_veventq_fd: u32,
        /// 0.
        28 => __reserved: u32,
    }

    /// Argument of [`IOMMU_HW_QUEUE_ALLOC`].
    struct IommuHwQueueAlloc = iommu_hw_queue_alloc, 40 {
        /// Bytes of this structure.
        0 => size: u32,
        /// 0.
        4 => flags: u32,
        /// The vIOMMU.
        8 => viommu_id: u32,
        /// One of `IOMMU_HW_QUEUE_TYPE_*`.
        12 => r#type: u32,
        /// Which of the vIOMMU's queues.
        16 => index: u32,
        /// Out: the new queue.
        20 => out_hw_queue_id: u32,
        /// Where the queue's memory is, in the parent's IOVAs.
        24 => nesting_parent_iova: u64,
        /// Its bytes.
        32 => length: u64,
    }
}
