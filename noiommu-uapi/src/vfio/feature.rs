//! Features of a device: one call for many things that are got, set or asked for; migration among them.

use crate::ioctl::vfio;
use crate::layout::structures;

/// Gets, sets or probes a feature: [`VfioDeviceFeature`] and the feature's own structure behind it.
pub const VFIO_DEVICE_FEATURE: u32 = vfio(17);
/// Tells how much is left to copy, on the descriptor of a migration's data: [`VfioPrecopyInfo`].
pub const VFIO_MIG_GET_PRECOPY_INFO: u32 = vfio(21);

/// The bits that say which feature.
pub const VFIO_DEVICE_FEATURE_MASK: u32 = 0xffff;
/// Get it.
pub const VFIO_DEVICE_FEATURE_GET: u32 = 1 << 16;
/// Set it.
pub const VFIO_DEVICE_FEATURE_SET: u32 = 1 << 17;
/// Only ask whether it is there, and what of get and set works.
pub const VFIO_DEVICE_FEATURE_PROBE: u32 = 1 << 18;

/// Feature: the token that opens virtual functions; set, 16 bytes.
pub const VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: u32 = 0;
/// Feature: whether the device can migrate; get, [`VfioDeviceFeatureMigration`].
pub const VFIO_DEVICE_FEATURE_MIGRATION: u32 = 1;
/// Feature: the state of a migration; get and set, [`VfioDeviceFeatureMigState`].
pub const VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: u32 = 2;
/// Feature: the device may sleep; set, no data.
pub const VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: u32 = 3;
/// Feature: the device may sleep until something wakes it; set, [`VfioDeviceLowPowerEntryWithWakeup`].
pub const VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: u32 = 4;
/// Feature: the device may not sleep; set, no data.
pub const VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: u32 = 5;
/// Feature: note what the device writes; set, [`VfioDeviceFeatureDmaLoggingControl`].
pub const VFIO_DEVICE_FEATURE_DMA_LOGGING_START: u32 = 6;
/// Feature: note it no longer; set, no data.
pub const VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP: u32 = 7;
/// Feature: what the device wrote; get, [`VfioDeviceFeatureDmaLoggingReport`].
pub const VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: u32 = 8;
/// Feature: how much a migration copies; get, [`VfioDeviceFeatureMigDataSize`].
pub const VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: u32 = 9;
/// Feature: DMA of devices that are not PCI; set, [`VfioDeviceFeatureBusMaster`].
pub const VFIO_DEVICE_FEATURE_BUS_MASTER: u32 = 10;
/// Feature: a region as a dma-buf; get, [`VfioDeviceFeatureDmaBuf`]. Answers a descriptor.
pub const VFIO_DEVICE_FEATURE_DMA_BUF: u32 = 11;
/// Feature: the flags of [`VfioPrecopyInfo`] count; set, no data.
#[allow(non_upper_case_globals)]
pub const VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: u32 = 12;
/// Feature: errors of an s390 PCI device; get, [`VfioDeviceFeatureZpciErr`].
pub const VFIO_DEVICE_FEATURE_ZPCI_ERROR: u32 = 13;

/// A stopped device can be copied.
pub const VFIO_MIGRATION_STOP_COPY: u64 = 1 << 0;
/// DMA between devices can be stopped alone.
pub const VFIO_MIGRATION_P2P: u64 = 1 << 1;
/// A running device can be copied in part.
pub const VFIO_MIGRATION_PRE_COPY: u64 = 1 << 2;

/// State: failed, needs a reset.
pub const VFIO_DEVICE_STATE_ERROR: u32 = 0;
/// State: stopped.
pub const VFIO_DEVICE_STATE_STOP: u32 = 1;
/// State: running.
pub const VFIO_DEVICE_STATE_RUNNING: u32 = 2;
/// State: stopped, and being copied.
pub const VFIO_DEVICE_STATE_STOP_COPY: u32 = 3;
/// State: stopped, and taking a copy.
pub const VFIO_DEVICE_STATE_RESUMING: u32 = 4;
/// State: running without DMA to other devices.
pub const VFIO_DEVICE_STATE_RUNNING_P2P: u32 = 5;
/// State: running, and being copied.
pub const VFIO_DEVICE_STATE_PRE_COPY: u32 = 6;
/// State: running without DMA to other devices, and being copied.
pub const VFIO_DEVICE_STATE_PRE_COPY_P2P: u32 = 7;
/// How many states there are.
pub const VFIO_DEVICE_STATE_NR: u32 = 8;

/// There is new initial data.
pub const VFIO_PRECOPY_INFO_REINIT: u32 = 1 << 0;

/// DMA off.
pub const VFIO_DEVICE_FEATURE_CLEAR_MASTER: u32 = 0;
/// DMA on.
pub const VFIO_DEVICE_FEATURE_SET_MASTER: u32 = 1;

structures! {
    /// Argument of [`VFIO_DEVICE_FEATURE`].
    struct VfioDeviceFeature = vfio_device_feature, 8 {
        /// Bytes of this structure and what follows.
        0 => argsz: u32,
        /// The feature, and `VFIO_DEVICE_FEATURE_GET`, `_SET`, `_PROBE`.
        4 => flags: u32,
    } + data: [u8]

    /// What of migration the device can do.
    struct VfioDeviceFeatureMigration = vfio_device_feature_migration, 8 {
        /// `VFIO_MIGRATION_*`.
        0 => flags: u64,
    }

    /// The state of a migration.
    struct VfioDeviceFeatureMigState = vfio_device_feature_mig_state, 8 {
        /// One of `VFIO_DEVICE_STATE_*`.
        0 => device_state: u32,
        /// Out: the descriptor that the data goes through, where the change began a copy; else -1.
        4 => data_fd: i32,
    }

    /// Argument of [`VFIO_MIG_GET_PRECOPY_INFO`].
    struct VfioPrecopyInfo = vfio_precopy_info, 24 {
        /// Bytes of this structure.
        0 => argsz: u32,
        /// Out: `VFIO_PRECOPY_INFO_REINIT`, where the feature for it was set.
        4 => flags: u32,
        /// Out: bytes of the first copy that are left.
        8 => initial_bytes: u64,
        /// Out: bytes changed since they were copied.
        16 => dirty_bytes: u64,
    }

    /// What tells that the device woke up.
    struct VfioDeviceLowPowerEntryWithWakeup = vfio_device_low_power_entry_with_wakeup, 8 {
        /// An eventfd.
        0 => wakeup_eventfd: i32,
        /// 0.
        4 => reserved: u32,
    }

    /// Where writes are to be noted.
    struct VfioDeviceFeatureDmaLoggingControl = vfio_device_feature_dma_logging_control, 24 {
        /// In: bytes that a note should stand for. Out: bytes that it does.
        0 => page_size: u64,
        /// Ranges.
        8 => num_ranges: u32,
        /// 0.
        12 => __reserved: u32,
        /// Pointer to so many [`VfioDeviceFeatureDmaLoggingRange`]s.
        16 => ranges: u64,
    }

    /// A range to note writes in.
    struct VfioDeviceFeatureDmaLoggingRange = vfio_device_feature_dma_logging_range, 16 {
        /// The first IOVA.
        0 => iova: u64,
        /// Bytes.
        8 => length: u64,
    }

    /// Which writes to tell of, and where.
    struct VfioDeviceFeatureDmaLoggingReport = vfio_device_feature_dma_logging_report, 32 {
        /// The first IOVA.
        0 => iova: u64,
        /// Bytes of IOVA.
        8 => length: u64,
        /// Bytes that a bit stands for.
        16 => page_size: u64,
        /// Pointer to the bits, which are only ever set.
        24 => bitmap: u64,
    }

    /// How much a migration copies of the stopped device.
    struct VfioDeviceFeatureMigDataSize = vfio_device_feature_mig_data_size, 8 {
        /// About so many bytes.
        0 => stop_copy_length: u64,
    }

    /// DMA on or off.
    struct VfioDeviceFeatureBusMaster = vfio_device_feature_bus_master, 4 {
        /// One of `VFIO_DEVICE_FEATURE_CLEAR_MASTER`, `VFIO_DEVICE_FEATURE_SET_MASTER`.
        0 => op: u32,
    }

    /// A part of a region.
    struct VfioRegionDmaRange = vfio_region_dma_range, 16 {
        /// Where it begins in the region.
        0 => offset: u64,
        /// Bytes.
        8 => length: u64,
    }

    /// Which parts of which region the dma-buf has.
    struct VfioDeviceFeatureDmaBuf = vfio_device_feature_dma_buf, 16 {
        /// The region.
        0 => region_index: u32,
        /// Flags of `open` for the new descriptor.
        4 => open_flags: u32,
        /// 0.
        8 => flags: u32,
        /// Parts that follow.
        12 => nr_ranges: u32,
    } + dma_ranges: [VfioRegionDmaRange]

    /// Where an s390 PCI device's error goes.
    struct VfioDeviceFeatureZpciErr = vfio_device_feature_zpci_err, 8 {
        /// Pointer to room for the platform's error data.
        0 => data: u64,
    }
}
