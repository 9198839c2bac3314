//! What of each part of config space the caller may change, and which bits it sees that are not the device's.
//!
//! Kernel behaviour measured. Registers: PCI Local Bus Specification 3.0, chapter 6; PCI Express Base Specification,
//! chapter 7; PCI Bus Power Management Interface Specification 1.2, chapter 3.

/// How a part of config space is read and written.
#[derive(Clone, Copy)]
pub(super) enum Access {
    /// As the rows say; where they are silent, the device's bits, read-only.
    Bits(&'static [Row]),
    /// The device's, read-only, but for the links of the capability list, which are ours.
    ReadOnly,
    /// As [`Access::ReadOnly`], except that all writes reach the device.
    WriteThrough,
    /// The device's, both ways.
    Device,
}

/// 4 bytes of a part, by offset in it.
#[derive(Clone, Copy)]
pub(super) struct Row {
    offset: u16,
    /// Bits that are kept here, never read from or written to the device.
    virtual_bits: u32,
    /// Bits that can be written; writes of others are dropped.
    writable: u32,
}

const fn row(offset: u16, virtual_bits: u32, writable: u32) -> Row {
    Row { offset, virtual_bits, writable }
}

const ALL: u32 = u32::MAX;
/// Where all capabilities have the link to the next.
const LINK: u32 = 0xff00;

/// The header of a device that is no bridge.
pub(super) const HEADER: &[Row] = &[
    // Vendor and device.
    row(0x00, ALL, 0),
    // Of the command all can be written, and "interrupts disabled" is virtual, as we mask the line with it; of the status
    // "has capabilities" is virtual, as we hide some.
    row(0x04, 0x0010_0400, 0xffff),
    // Cache line, latency, self test; not the header's type.
    row(0x0c, 0, 0xff00_ffff),
    row(0x10, ALL, ALL),
    row(0x14, ALL, ALL),
    row(0x18, ALL, ALL),
    row(0x1c, ALL, ALL),
    row(0x20, ALL, ALL),
    row(0x24, ALL, ALL),
    row(0x30, ALL, ALL),
    // The first capability.
    row(0x34, 0xff, 0),
    // Interrupt line, a note for software, and pin, which we hide where no interrupt arrives.
    row(0x3c, 0xffff, 0xff),
];

/// Power management: no wake-up events, and the state is changed by us.
const POWER: &[Row] = &[row(0, 0xf800_0000 | LINK, 0), row(4, 0x8100, !0x8103)];

/// Vital product data: both registers are virtual.
const VPD: &[Row] = &[row(0, 0xffff_0000 | LINK, 0xffff_0000), row(4, ALL, ALL)];

const MSI_FIRST: Row = row(0, 0x00ff_0000 | LINK, 0x00ff_0000);

/// MSI by what its flags say: addresses of 64 bits, and a mask for each vector. All but the masks is virtual.
pub(super) const fn msi(wide: bool, masks: bool) -> &'static [Row] {
    const NARROW: &[Row] = &[MSI_FIRST, row(4, ALL, ALL), row(8, 0xffff, 0xffff)];
    const NARROW_MASKS: &[Row] =
        &[MSI_FIRST, row(4, ALL, ALL), row(8, 0xffff, 0xffff), row(0xc, 0, ALL), row(0x10, 0, ALL)];
    const WIDE: &[Row] = &[MSI_FIRST, row(4, ALL, ALL), row(8, ALL, ALL), row(0xc, 0xffff, 0xffff)];
    const WIDE_MASKS: &[Row] = &[
        MSI_FIRST,
        row(4, ALL, ALL),
        row(8, ALL, ALL),
        row(0xc, 0xffff, 0xffff),
        row(0x10, 0, ALL),
        row(0x14, 0, ALL),
    ];
    match (wide, masks) {
        (false, false) => NARROW,
        (false, true) => NARROW_MASKS,
        (true, false) => WIDE,
        (true, true) => WIDE_MASKS,
    }
}

/// PCI-X: command, and ECC control.
const PCI_X: &[Row] = &[row(0, LINK, 0xffff_0000), row(8, 0, ALL)];

/// PCI Express: device control without phantom functions, with reset, payload and read request sizes virtual; device
/// control 2 without ARI.
const EXPRESS: &[Row] = &[row(0, LINK, 0), row(8, 0xf0e0, 0xfdff), row(0x28, 0, 0xffdf)];

/// Advanced features: the reset bit.
const ADVANCED_FEATURES: &[Row] = &[row(0, LINK, 0), row(4, 1, 1)];

/// Advanced error reporting: those errors that are defined for endpoints.
const ERRORS: &[Row] = &[
    row(0x00, ALL, 0),
    row(0x04, 0, UNCORRECTABLE),
    row(0x08, 0, UNCORRECTABLE),
    row(0x0c, 0, UNCORRECTABLE),
    row(0x10, 0, CORRECTABLE),
    row(0x14, 0, CORRECTABLE),
    // Generating and checking ECRC.
    row(0x18, 0, 0x140),
];
const UNCORRECTABLE: u32 = 0x03ff_f031;
const CORRECTABLE: u32 = 0xf1c1;

/// Power budgeting: the data register's first byte.
const POWER_BUDGET: &[Row] = &[row(0, ALL, 0), row(8, 0, 0xff)];

/// Ids of capabilities.
pub(super) mod id {
    pub(in super::super) const POWER: u8 = 0x01;
    pub(in super::super) const AGP: u8 = 0x02;
    pub(in super::super) const VPD: u8 = 0x03;
    pub(in super::super) const MSI: u8 = 0x05;
    pub(in super::super) const PCI_X: u8 = 0x07;
    pub(in super::super) const HYPERTRANSPORT: u8 = 0x08;
    pub(in super::super) const VENDOR: u8 = 0x09;
    pub(in super::super) const EXPRESS: u8 = 0x10;
    pub(in super::super) const MSIX: u8 = 0x11;
    pub(in super::super) const SATA: u8 = 0x12;
    pub(in super::super) const ADVANCED_FEATURES: u8 = 0x13;
}

/// Ids of extended capabilities.
pub(super) mod extended {
    pub(in super::super) const ERRORS: u16 = 0x01;
    pub(in super::super) const VIRTUAL_CHANNEL: u16 = 0x02;
    pub(in super::super) const SERIAL_NUMBER: u16 = 0x03;
    pub(in super::super) const POWER_BUDGET: u16 = 0x04;
    pub(in super::super) const MULTI_FUNCTION_CHANNEL: u16 = 0x08;
    pub(in super::super) const VIRTUAL_CHANNEL_9: u16 = 0x09;
    pub(in super::super) const VENDOR: u16 = 0x0b;
    pub(in super::super) const ACCESS_CONTROL: u16 = 0x0d;
    pub(in super::super) const ROUTING_ID: u16 = 0x0e;
    pub(in super::super) const ADDRESS_TRANSLATION: u16 = 0x0f;
    pub(in super::super) const SR_IOV: u16 = 0x10;
    pub(in super::super) const MULTICAST: u16 = 0x12;
    pub(in super::super) const PAGE_REQUEST: u16 = 0x13;
    pub(in super::super) const RESIZABLE_BAR: u16 = 0x15;
    pub(in super::super) const POWER_ALLOCATION: u16 = 0x16;
    pub(in super::super) const PROCESSING_HINTS: u16 = 0x17;
    pub(in super::super) const LATENCY: u16 = 0x18;
    pub(in super::super) const DESIGNATED_VENDOR: u16 = 0x23;
}

/// How a capability is accessed; MSI aside, which depends on its flags.
pub(super) fn capability(which: u8) -> Access {
    match which {
        id::POWER => Access::Bits(POWER),
        id::VPD => Access::Bits(VPD),
        id::PCI_X => Access::Bits(PCI_X),
        id::VENDOR => Access::WriteThrough,
        id::EXPRESS => Access::Bits(EXPRESS),
        id::ADVANCED_FEATURES => Access::Bits(ADVANCED_FEATURES),
        _ => Access::ReadOnly,
    }
}

/// How an extended capability is accessed.
pub(super) fn extended_capability(which: u8) -> Access {
    match which.into() {
        extended::ERRORS => Access::Bits(ERRORS),
        extended::POWER_BUDGET => Access::Bits(POWER_BUDGET),
        extended::VENDOR | extended::DESIGNATED_VENDOR => Access::WriteThrough,
        _ => Access::ReadOnly,
    }
}

/// The (virtual, writable) bits of the byte at `offset`.
pub(super) fn byte(rows: &[Row], offset: u16) -> (u8, u8) {
    let Some(row) = rows.iter().find(|row| row.offset == offset & !3) else { return (0, 0) };
    let shift = u32::from(offset & 3).wrapping_mul(8);
    (row.virtual_bits.wrapping_shr(shift) as u8, row.writable.wrapping_shr(shift) as u8)
}
