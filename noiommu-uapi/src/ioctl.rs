//! How the request number of an ioctl is put together, and read.
//!
//! Bits 0-7 are the command, 8-15 the type (a letter that a driver chose), 16-29 the size of the argument, 30-31 its
//! direction. This is the coding of x86, ARM and RISC-V. The calls of iommufd and VFIO leave size and direction 0: their
//! structures tell their own size, in the first field.

/// The type of all iommufd calls.
pub const IOMMUFD_TYPE: u8 = b';';
/// The type of all VFIO calls: the same as iommufd's, whose commands begin above VFIO's.
pub const VFIO_TYPE: u8 = b';';
/// VFIO's first command.
pub const VFIO_BASE: u8 = 100;
/// iommufd's first command.
pub const IOMMUFD_CMD_BASE: u8 = 0x80;

/// Which way an argument goes, seen from the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The number does not say.
    None,
    /// The kernel reads it.
    Write,
    /// The kernel writes it.
    Read,
    /// Both.
    ReadWrite,
}

/// The parts of a request number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parts {
    /// Which way the argument goes.
    pub direction: Direction,
    /// The argument's bytes, below 16384.
    pub size: u16,
    /// The type.
    pub kind: u8,
    /// The command.
    pub command: u8,
}

/// A request number without size and direction, the kernel's `_IO`.
#[must_use]
pub const fn io(kind: u8, command: u8) -> u32 {
    (kind as u32) << 8 | command as u32
}

/// The parts of any request number.
#[must_use]
pub const fn decode(number: u32) -> Parts {
    Parts {
        direction: match number >> 30 {
            0 => Direction::None,
            1 => Direction::Write,
            2 => Direction::Read,
            _ => Direction::ReadWrite,
        },
        size: (number >> 16 & 0x3fff) as u16,
        kind: (number >> 8) as u8,
        command: number as u8,
    }
}

/// The request number with these parts; a size of 16384 or more loses its upper bits.
#[must_use]
pub const fn encode(parts: Parts) -> u32 {
    let direction = match parts.direction {
        Direction::None => 0,
        Direction::Write => 1,
        Direction::Read => 2,
        Direction::ReadWrite => 3u32,
    };
    direction << 30 | (parts.size as u32 & 0x3fff) << 16 | io(parts.kind, parts.command)
}

/// The number of an iommufd call.
pub(crate) const fn iommufd(command: u8) -> u32 {
    io(IOMMUFD_TYPE, command)
}

/// The number of the VFIO call that is so many commands above the first.
pub(crate) const fn vfio(command: u8) -> u32 {
    io(VFIO_TYPE, VFIO_BASE + command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_goes_through_its_parts() {
        assert_eq!(iommufd(0x85), 0x3b85);
        assert_eq!(vfio(7), 0x3b6b);
        // _IOWR('U', 42, 24 bytes), from a table of another driver: all parts occupied.
        let parts = Parts { direction: Direction::ReadWrite, size: 24, kind: b'U', command: 42 };
        assert_eq!(encode(parts), 0xc018_552a);
        for number in (0..=u32::MAX).step_by(65_521) {
            assert_eq!(encode(decode(number)), number);
        }
    }
}
