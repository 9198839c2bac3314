//! A BAR: registers behind checked accesses.

use std::sync::Arc;

use super::Inner;
use crate::{Error, Result, barrier};

/// Registers of a memory BAR, as a provider reaches them. `offset` and width have been checked.
pub(crate) trait Registers: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;

    /// Reads 1, 2, 4 or 8 bytes in one access.
    fn read(&self, offset: u64, width: u8) -> Result<u64>;

    /// Writes 1, 2, 4 or 8 bytes in one access.
    fn write(&self, offset: u64, width: u8, value: u64) -> Result<()>;
}

/// A memory BAR of a device. Values are little-endian in the device and native here; cheap to clone.
///
/// ```
/// # fn main() -> noiommu::Result<()> {
/// use noiommu::{Context, ErrorKind};
///
/// let registers = Context::simulated().sim_edu()?.bar(0)?;
/// registers.write_u32(0x04, 0x1234_5678)?; // edu: reads back inverted
/// assert_eq!(registers.read_u32(0x04)?, !0x1234_5678);
/// let past = registers.read_u32(registers.size()).unwrap_err();
/// assert_eq!(past.kind(), ErrorKind::Argument);
/// # Ok(())
/// # }
/// ```
///
/// Registers that know their width and what may be done with them: [`Register`](crate::Register).
#[derive(Clone)]
pub struct Bar {
    registers: Arc<dyn Registers>,
    index: u8,
    /// Keeps the claim: nobody else is to have the device while its registers can be written here.
    device: Arc<Inner>,
}

impl Bar {
    pub(super) fn new(device: &Arc<Inner>, index: u8, registers: Arc<dyn Registers>) -> Self {
        Self { registers, index, device: device.clone() }
    }

    fn name(&self) -> String {
        format!("BAR {} of {}", self.index, self.device.name())
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.registers.size()
    }

    fn check(&self, offset: u64, width: u8) -> Result<()> {
        let width = u64::from(width);
        if !offset.is_multiple_of(width) {
            return Err(Error::argument(format!(
                "{}: offset {offset:#x} is not a multiple of {width}",
                self.name()
            )));
        }
        if offset.checked_add(width).is_none_or(|end| end > self.size()) {
            return Err(Error::argument(format!(
                "{}: {width} bytes at {offset:#x} pass its end ({:#x} bytes)",
                self.name(),
                self.size()
            )));
        }
        Ok(())
    }
}

macro_rules! accesses {
    ($($read:ident, $write:ident, $word:ty;)*) => {
        impl Bar {
            $(
                #[doc = concat!("Reads a register of ", stringify!($word), " in one access.")]
                ///
                /// # Errors
                /// EINVAL past the end or misaligned; what the provider answers.
                pub fn $read(&self, offset: u64) -> Result<$word> {
                    self.check(offset, size_of::<$word>() as u8)?;
                    let value = self.registers.read(offset, size_of::<$word>() as u8)? as $word;
                    barrier::dma_read();
                    Ok(value)
                }

                #[doc = concat!("Writes a register of ", stringify!($word), " in one access, after everything written to")]
                /// memory before it: a device told to look at memory sees it.
                ///
                /// # Errors
                /// EINVAL past the end or misaligned; what the provider answers.
                pub fn $write(&self, offset: u64, value: $word) -> Result<()> {
                    self.check(offset, size_of::<$word>() as u8)?;
                    barrier::doorbell();
                    self.registers.write(offset, size_of::<$word>() as u8, value.into())
                }
            )*
        }
    };
}

accesses! {
    read_u8, write_u8, u8;
    read_u16, write_u16, u16;
    read_u32, write_u32, u32;
    read_u64, write_u64, u64;
}

impl std::fmt::Debug for Bar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({:#x} bytes)", self.name(), self.size())
    }
}
