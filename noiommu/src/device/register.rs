//! Registers as constants that know their width and what may be done with them.
//!
//! A driver names its registers once, with [`Register`], and reads and writes them with [`Bar::get`] and [`Bar::set`]: the
//! width cannot be mistaken at a call, and a register that the device forbids to read or to write is one that the compiler
//! forbids.
//!
//! These are not views of memory, as crates for registers of one fixed machine have them: behind a [`Bar`] there need not be a
//! pointer. Simulated devices have none, nor has a BAR (or a part of one, such as the page with the MSI-X table) that the
//! kernel does not let a process map and that is reached by calls.

use std::fmt;
use std::marker::PhantomData;

use super::Bar;
use crate::Result;

mod sealed {
    use super::{Bar, Result};

    /// A word that a register can have. Sealed: these are the widths that a bus has accesses of.
    pub trait Word: Copy + 'static {
        fn read(bar: &Bar, offset: u64) -> Result<Self>;

        fn write(self, bar: &Bar, offset: u64) -> Result<()>;
    }

    /// What may be done with a register. Sealed: there is no more to do.
    pub trait Access: 'static {
        /// As `Debug` shows it.
        const NAME: &'static str;
    }
}

use self::sealed::{Access, Word};

macro_rules! words {
    ($($word:ty, $read:ident, $write:ident;)*) => {
        $(
            impl Word for $word {
                fn read(bar: &Bar, offset: u64) -> Result<Self> {
                    bar.$read(offset)
                }

                fn write(self, bar: &Bar, offset: u64) -> Result<()> {
                    bar.$write(offset, self)
                }
            }
        )*
    };
}

words! {
    u8, read_u8, write_u8;
    u16, read_u16, write_u16;
    u32, read_u32, write_u32;
    u64, read_u64, write_u64;
}

/// A register that is only read.
#[derive(Debug)]
pub enum ReadOnly {}

/// A register that is only written, such as a doorbell.
#[derive(Debug)]
pub enum WriteOnly {}

/// A register that is read and written.
#[derive(Debug)]
pub enum ReadWrite {}

/// Registers that may be read.
#[diagnostic::on_unimplemented(message = "a register that is `{Self}` cannot be read")]
pub trait Readable: Access {}

/// Registers that may be written.
#[diagnostic::on_unimplemented(message = "a register that is `{Self}` cannot be written")]
pub trait Writable: Access {}

impl Access for ReadOnly {
    const NAME: &'static str = "read-only";
}

impl Access for WriteOnly {
    const NAME: &'static str = "write-only";
}

impl Access for ReadWrite {
    const NAME: &'static str = "read-write";
}

impl Readable for ReadOnly {}
impl Readable for ReadWrite {}
impl Writable for WriteOnly {}
impl Writable for ReadWrite {}

/// A register: a place in a BAR, the width of the access (`u8` to `u64`), and what may be done with it.
///
/// ```
/// use noiommu::{Context, ReadOnly, ReadWrite, Register};
///
/// /// The device's kind and version.
/// const IDENTIFICATION: Register<u32, ReadOnly> = Register::at(0x00);
/// /// Answers the inverse of what is written to it.
/// const LIVENESS: Register<u32, ReadWrite> = Register::at(0x04);
///
/// # fn main() -> noiommu::Result<()> {
/// let bar = Context::simulated().sim_edu()?.bar(0)?;
/// assert_eq!(bar.get(IDENTIFICATION)?, 0x0100_00ed);
/// bar.set(LIVENESS, 0x1234_5678)?;
/// assert_eq!(bar.get(LIVENESS)?, !0x1234_5678);
/// # Ok(())
/// # }
/// ```
///
/// What the device forbids does not compile. A register that is only read cannot be written,
///
/// ```compile_fail,E0277
/// # use noiommu::{Bar, ReadOnly, Register};
/// # fn never(bar: &Bar) -> noiommu::Result<()> {
/// const IDENTIFICATION: Register<u32, ReadOnly> = Register::at(0x00);
/// bar.set(IDENTIFICATION, 1)
/// # }
/// ```
///
/// one that is only written cannot be read,
///
/// ```compile_fail,E0277
/// # use noiommu::{Bar, Register, WriteOnly};
/// # fn never(bar: &Bar) -> noiommu::Result<u32> {
/// const ACKNOWLEDGE: Register<u32, WriteOnly> = Register::at(0x64);
/// bar.get(ACKNOWLEDGE)
/// # }
/// ```
///
/// and none lies where its width does not divide its offset:
///
/// ```compile_fail,E0080
/// # use noiommu::{ReadOnly, Register};
/// const MISALIGNED: Register<u64, ReadOnly> = Register::at(0x84);
/// # let _ = MISALIGNED;
/// ```
pub struct Register<W, A> {
    offset: u64,
    kind: PhantomData<fn() -> (W, A)>,
}

impl<W: Word, A: Access> Register<W, A> {
    /// The register `offset` bytes into a BAR. Meant for constants, where a wrong offset is an error of the compiler's.
    ///
    /// # Panics
    /// When the offset is not a multiple of the register's width: no bus has such an access.
    #[must_use]
    pub const fn at(offset: u64) -> Self {
        assert!(offset.is_multiple_of(size_of::<W>() as u64), "a register is aligned to its width");
        Self { offset, kind: PhantomData }
    }

    /// Register `index` of an array of them that begins with this one, each `stride` bytes behind the one before; `None`: past
    /// what an offset can say, or not aligned to its width.
    #[must_use]
    pub const fn nth(self, index: u64, stride: u64) -> Option<Self> {
        let Some(distance) = index.checked_mul(stride) else { return None };
        match self.offset.checked_add(distance) {
            Some(offset) if offset.is_multiple_of(size_of::<W>() as u64) => {
                Some(Self { offset, kind: PhantomData })
            }
            _ => None,
        }
    }

    /// Bytes from the beginning of the BAR.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.offset
    }
}

impl<W, A> Clone for Register<W, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W, A> Copy for Register<W, A> {}

impl<W: Word, A: Access> fmt::Debug for Register<W, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} register of {} bytes at {:#x}", A::NAME, size_of::<W>(), self.offset)
    }
}

impl Bar {
    /// Reads a register in one access.
    ///
    /// # Errors
    /// EINVAL past the end of the BAR; what the provider answers.
    pub fn get<W: Word, A: Readable>(&self, register: Register<W, A>) -> Result<W> {
        W::read(self, register.offset)
    }

    /// Writes a register in one access, after everything written to memory before it: a device told to look at memory sees it.
    ///
    /// # Errors
    /// EINVAL past the end of the BAR; what the provider answers.
    pub fn set<W: Word, A: Writable>(&self, register: Register<W, A>, value: W) -> Result<()> {
        value.write(self, register.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Context, ErrorKind};

    #[test]
    fn registers_of_each_width() {
        const SOURCE: Register<u64, ReadWrite> = Register::at(0x80);
        let device = Context::simulated().sim_edu().unwrap();
        let bar = device.bar(0).unwrap();
        bar.set(SOURCE, 0x1122_3344_5566_7788).unwrap();
        assert_eq!(bar.get(SOURCE).unwrap(), 0x1122_3344_5566_7788);
        assert_eq!(bar.read_u64(0x80).unwrap(), 0x1122_3344_5566_7788, "the same register");
        let past = Register::<u16, ReadOnly>::at(bar.size());
        assert_eq!(bar.get(past).unwrap_err().kind(), ErrorKind::Argument);
        assert_eq!(format!("{SOURCE:?}"), "read-write register of 8 bytes at 0x80");
    }

    #[test]
    fn arrays_of_registers() {
        const DOORBELL: Register<u32, WriteOnly> = Register::at(0x1000);
        assert_eq!(DOORBELL.nth(3, 8).map(Register::offset), Some(0x1018));
        assert!(DOORBELL.nth(1, 2).is_none(), "misaligned");
        assert!(DOORBELL.nth(u64::MAX, 8).is_none() && DOORBELL.nth(1, u64::MAX - 3).is_none());
    }
}
