//! USB host controllers of the OHCI kind, which write memory every millisecond without being told more than once. See *Open Host
//! Controller Interface Specification for USB, release 1.0a*; sections are named where they are used.

use std::time::Duration;

use noiommu::{QuietStep, ReadWrite, Register};

/// Vendor and device id of QEMU's.
pub(super) const ID: (u16, u16) = (0x106b, 0x003f);

// 7, the operational registers.
pub(super) const CONTROL: Register<u32, ReadWrite> = Register::at(0x04);
pub(super) const COMMAND_STATUS: Register<u32, ReadWrite> = Register::at(0x08);
pub(super) const INTERRUPT_DISABLE: Register<u32, ReadWrite> = Register::at(0x14);
pub(super) const HCCA: Register<u32, ReadWrite> = Register::at(0x18);

/// 7.1.2, HostControllerFunctionalState.
const FUNCTIONAL_STATE: u32 = 3 << 6;
pub(super) const OPERATIONAL: u32 = 2 << 6;
/// 7.1.3, HostControllerReset: the controller clears it when it is done, within 10 µs.
pub(super) const RESET: u32 = 1;

/// 4.4, where the number of the frame is in the communications area.
pub(super) const FRAME_NUMBER: usize = 0x80;

/// What stops a controller: its functional state becomes UsbReset, in which no frames are made; then it is reset.
pub(super) const QUIET: [QuietStep; 3] = [
    QuietStep::Update { bar: 0, offset: CONTROL.offset(), width: 4, clear: FUNCTIONAL_STATE as u64, set: 0 },
    QuietStep::Write { bar: 0, offset: COMMAND_STATUS.offset(), width: 4, value: RESET as u64 },
    QuietStep::Wait {
        bar: 0,
        offset: COMMAND_STATUS.offset(),
        width: 4,
        mask: RESET as u64,
        value: 0,
        timeout: Duration::from_secs(1),
    },
];
