//! The registers of the edu device, in BAR 0 (QEMU's documentation, *docs/specs/edu.rst*).

use noiommu::{ReadOnly, ReadWrite, Register, WriteOnly};

/// Which BAR they are in.
pub(crate) const BAR: u8 = 0;

/// What the device is, and its version: 0xRRrr00ed.
pub(crate) const IDENTIFICATION: Register<u32, ReadOnly> = Register::at(0x00);
/// Reads back the inverse of what was written.
pub(crate) const LIVENESS: Register<u32, ReadWrite> = Register::at(0x04);
/// Write n, read n! when the device has computed it.
pub(crate) const FACTORIAL: Register<u32, ReadWrite> = Register::at(0x08);
/// What the device is doing.
pub(crate) const STATUS: Register<u32, ReadWrite> = Register::at(0x20);
/// STATUS: it is computing.
pub(crate) const STATUS_COMPUTING: u32 = 1;

/// Why the device interrupts; 0: it does not.
pub(crate) const INTERRUPT_STATUS: Register<u32, ReadOnly> = Register::at(0x24);
/// Gives it reasons to interrupt.
pub(crate) const INTERRUPT_RAISE: Register<u32, WriteOnly> = Register::at(0x60);
/// Takes reasons away.
pub(crate) const INTERRUPT_ACKNOWLEDGE: Register<u32, WriteOnly> = Register::at(0x64);

/// From where bytes are copied: an address of memory or of the device's own buffer.
pub(crate) const DMA_SOURCE: Register<u64, ReadWrite> = Register::at(0x80);
/// To where.
pub(crate) const DMA_DESTINATION: Register<u64, ReadWrite> = Register::at(0x88);
/// How many bytes.
pub(crate) const DMA_COUNT: Register<u64, ReadWrite> = Register::at(0x90);
/// Starts a transfer, and says whether it runs.
pub(crate) const DMA_COMMAND: Register<u64, ReadWrite> = Register::at(0x98);
/// DMA_COMMAND: start; it runs while this reads as set.
pub(crate) const DMA_RUN: u64 = 1;
/// DMA_COMMAND: from the device to memory.
pub(crate) const DMA_FROM_DEVICE: u64 = 2;
/// Where the device's own buffer lies in its address space.
pub(crate) const DMA_BUFFER: u64 = 0x4_0000;
