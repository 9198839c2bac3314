//! The two address types. They are never mixed: what the map is asked with is an [`Iova`], what it answers is a
//! [`PhysAddr`].

use core::fmt;

use crate::Errno;

/// An I/O virtual address: a key of the IOVA space, 64 bits, no reserved values (0 and the last page are usable).
///
/// Without an IOMMU an IOVA means nothing to a device; it names memory in an IOAS.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Iova(pub u64);

/// A physical address as the CPU counts them, in bytes; 52 bits are usable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    /// The highest physical address that the AMDv1 format can hold (52 bits).
    pub const MAX: Self = Self((1 << 52) - 1);
}

macro_rules! hex_address {
    ($ty:ident) => {
        impl $ty {
            /// The address `bytes` further on, or `None` past the end of 64 bits.
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }

        impl fmt::Debug for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }

        impl From<$ty> for u64 {
            fn from(address: $ty) -> u64 {
                address.0
            }
        }
    };
}

hex_address!(Iova);
hex_address!(PhysAddr);

/// A range of IOVAs with both ends in it, so that the last byte of the 64-bit space can be named. Never empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IovaRange {
    first: u64,
    last: u64,
}

impl IovaRange {
    /// Every IOVA.
    pub const ALL: Self = Self { first: 0, last: u64::MAX };

    /// `first..=last`; `None` when `last` lies before `first`.
    #[must_use]
    pub const fn new(first: Iova, last: Iova) -> Option<Self> {
        if first.0 <= last.0 { Some(Self { first: first.0, last: last.0 }) } else { None }
    }

    /// The `length` bytes from `first` on.
    ///
    /// # Errors
    /// EINVAL for length 0, EOVERFLOW when the range would pass the end of the 64-bit space.
    pub const fn with_length(first: Iova, length: u64) -> Result<Self, Errno> {
        let Some(more) = length.checked_sub(1) else { return Err(Errno::EINVAL) };
        match first.0.checked_add(more) {
            Some(last) => Ok(Self { first: first.0, last }),
            None => Err(Errno::EOVERFLOW),
        }
    }

    /// The lowest IOVA in the range.
    #[must_use]
    pub const fn first(self) -> Iova {
        Iova(self.first)
    }

    /// The highest IOVA in the range.
    #[must_use]
    pub const fn last(self) -> Iova {
        Iova(self.last)
    }

    /// Bytes in the range; `None` for the whole 64-bit space, whose 2^64 bytes no `u64` holds.
    #[must_use]
    pub const fn length(self) -> Option<u64> {
        self.last.wrapping_sub(self.first).checked_add(1)
    }

    /// Whether `iova` lies in the range.
    #[must_use]
    pub const fn contains(self, iova: Iova) -> bool {
        self.first <= iova.0 && iova.0 <= self.last
    }

    /// Whether the whole of `other` lies in this range.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Whether the two ranges share an IOVA.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Debug for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.first, self.last)
    }
}
