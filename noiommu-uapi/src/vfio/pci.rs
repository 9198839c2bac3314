//! What is fixed for PCI devices: region and interrupt indexes, and resets of a whole bus or slot.

use crate::ioctl::vfio;
use crate::layout::structures;

/// Tells which devices a hot reset of this one resets: [`VfioPciHotResetInfo`].
pub const VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: u32 = vfio(12);
/// Resets the bus or slot: [`VfioPciHotReset`].
pub const VFIO_DEVICE_PCI_HOT_RESET: u32 = vfio(13);

/// Region: BAR 0.
pub const VFIO_PCI_BAR0_REGION_INDEX: u32 = 0;
/// Region: BAR 1.
pub const VFIO_PCI_BAR1_REGION_INDEX: u32 = 1;
/// Region: BAR 2.
pub const VFIO_PCI_BAR2_REGION_INDEX: u32 = 2;
/// Region: BAR 3.
pub const VFIO_PCI_BAR3_REGION_INDEX: u32 = 3;
/// Region: BAR 4.
pub const VFIO_PCI_BAR4_REGION_INDEX: u32 = 4;
/// Region: BAR 5.
pub const VFIO_PCI_BAR5_REGION_INDEX: u32 = 5;
/// Region: the expansion ROM.
pub const VFIO_PCI_ROM_REGION_INDEX: u32 = 6;
/// Region: config space.
pub const VFIO_PCI_CONFIG_REGION_INDEX: u32 = 7;
/// Region: the legacy addresses of a VGA device, at their own addresses in it.
pub const VFIO_PCI_VGA_REGION_INDEX: u32 = 8;
/// Regions with a fixed index.
pub const VFIO_PCI_NUM_REGIONS: u32 = 9;

/// Interrupt: the line.
pub const VFIO_PCI_INTX_IRQ_INDEX: u32 = 0;
/// Interrupt: MSI.
pub const VFIO_PCI_MSI_IRQ_INDEX: u32 = 1;
/// Interrupt: MSI-X.
pub const VFIO_PCI_MSIX_IRQ_INDEX: u32 = 2;
/// Interrupt: an uncorrected error of the device.
pub const VFIO_PCI_ERR_IRQ_INDEX: u32 = 3;
/// Interrupt: the kernel wants the device back.
pub const VFIO_PCI_REQ_IRQ_INDEX: u32 = 4;
/// Interrupts with a fixed index.
pub const VFIO_PCI_NUM_IRQS: u32 = 5;

/// The devices' ids are told, not their groups: the caller opened its device as a character device.
pub const VFIO_PCI_HOT_RESET_FLAG_DEV_ID: u32 = 1 << 0;
/// All of the devices are the caller's.
pub const VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED: u32 = 1 << 1;
/// In place of an id: the caller's though it has no id in the caller's iommufd.
pub const VFIO_PCI_DEVID_OWNED: i32 = 0;
/// In place of an id: not the caller's.
pub const VFIO_PCI_DEVID_NOT_OWNED: i32 = -1;

structures! {
    /// A device that a hot reset resets too.
    struct VfioPciDependentDevice = vfio_pci_dependent_device, 8 {
        /// Its group; with `VFIO_PCI_HOT_RESET_FLAG_DEV_ID` its id, or `VFIO_PCI_DEVID_*`.
        0 => group_id | devid: u32,
        /// PCI segment.
        4 => segment: u16,
        /// PCI bus.
        6 => bus: u8,
        /// PCI device in the upper five bits, function in the lower three.
        7 => devfn: u8,
    }

    /// Argument of [`VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`]; ENOSPC where the devices do not fit.
    struct VfioPciHotResetInfo = vfio_pci_hot_reset_info, 12 {
        /// Bytes of this structure and what follows.
        0 => argsz: u32,
        /// Out: `VFIO_PCI_HOT_RESET_FLAG_*`.
        4 => flags: u32,
        /// Out: devices that there are.
        8 => count: u32,
    } + devices: [VfioPciDependentDevice]

    /// Argument of [`VFIO_DEVICE_PCI_HOT_RESET`]; the descriptors prove that the groups are the caller's.
    struct VfioPciHotReset = vfio_pci_hot_reset, 12 {
        /// Bytes of this structure and what follows.
        0 => argsz: u32,
        /// 0.
        4 => flags: u32,
        /// Descriptors that follow; 0 where the device was opened as a character device.
        8 => count: u32,
    } + group_fds: [i32]
}
