//! The structures of a virtio device (4.1.4): where in its BARs they are, and accesses that stay within them.

use noiommu::{Bar, Device};

use crate::error::{Error, Result};

/// The capability that leads to a structure.
const VENDOR: u8 = 0x09;
/// Bytes of it; the one for notifications has a word more.
const CAPABILITY: u8 = 16;
const NOTIFY_CAPABILITY: u8 = 20;

const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const SPECIFIC: u8 = 4;

/// Bytes of the common configuration that this driver uses (4.1.4.3).
const COMMON_LENGTH: u64 = 0x38;

/// A part of a BAR. An access that would leave it is an error, whatever the device has told.
#[derive(Clone, Debug)]
pub(crate) struct Structure {
    bar: Bar,
    /// Which BAR, and where in it.
    pub(crate) index: u8,
    pub(crate) at: u64,
    length: u64,
}

macro_rules! accesses {
    ($($read:ident, $write:ident, $word:ty;)*) => {
        impl Structure {
            $(
                pub(crate) fn $read(&self, offset: u64) -> Result<$word> {
                    Ok(self.bar.$read(self.place(offset, size_of::<$word>() as u64)?)?)
                }

                pub(crate) fn $write(&self, offset: u64, value: $word) -> Result<()> {
                    Ok(self.bar.$write(self.place(offset, size_of::<$word>() as u64)?, value)?)
                }
            )*
        }
    };
}

accesses! {
    read_u8, write_u8, u8;
    read_u16, write_u16, u16;
    read_u32, write_u32, u32;
}

impl Structure {
    /// Bytes.
    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    fn place(&self, offset: u64, width: u64) -> Result<u64> {
        if offset.checked_add(width).is_none_or(|end| end > self.length) {
            return Err(Error::argument(format!(
                "{width} bytes at {offset:#x} pass the end of a structure of {:#x} bytes in {:?}",
                self.length, self.bar
            )));
        }
        // Both are of 32 bits.
        Ok(self.at + offset)
    }

    /// Writes 64 bits in halves, as 4.1.3.1 wants it.
    pub(crate) fn write_u64(&self, offset: u64, value: u64) -> Result<()> {
        self.write_u32(offset, value as u32)?;
        self.write_u32(offset + 4, (value >> 32) as u32)
    }
}

/// All structures of a device.
#[derive(Debug)]
pub(crate) struct Structures {
    pub(crate) common: Structure,
    pub(crate) notify: Structure,
    /// Bytes from one queue's notification to the next one's.
    pub(crate) multiplier: u32,
    pub(crate) isr: Structure,
    /// What belongs to the kind of device; some have none.
    pub(crate) specific: Option<Structure>,
}

impl Structures {
    /// Finds them. Of each kind the first that this driver can reach is taken, which is the device's preference.
    ///
    /// # Errors
    /// A device of before version 1, or whose structures pass the ends of their BARs.
    pub(crate) fn find(device: &Device) -> Result<Self> {
        let mut found: [Option<Structure>; 5] = Default::default();
        let mut multiplier = 0;
        for capability in device.find_capabilities(VENDOR)? {
            let head = config::<16>(device, capability)?;
            let [_, _, length, kind, bar, ..] = head;
            // There are kinds of BARs and of structures that are not for this driver (4.1.4).
            let least = if kind == NOTIFY { NOTIFY_CAPABILITY } else { CAPABILITY };
            let Some(place) = found.get_mut(usize::from(kind)) else { continue };
            if kind == 0 || length < least || bar > 5 || place.is_some() {
                continue;
            }
            let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let (at, length) = (u64::from(word(8)), u64::from(word(12)));
            let registers = match device.bar(bar) {
                Ok(registers) => registers,
                // One in a BAR of ports: there is another.
                Err(error) if error.kind() == noiommu::ErrorKind::Unsupported => continue,
                Err(error) => return Err(error.into()),
            };
            if at + length > registers.size() {
                return Err(Error::violation(
                    device.name(),
                    format_args!(
                        "its structure of kind {kind} has {length:#x} bytes at {at:#x} of {registers:?}"
                    ),
                ));
            }
            if kind == NOTIFY {
                multiplier = u32::from_le_bytes(config(device, capability + 16)?);
            }
            *place = Some(Structure { bar: registers, index: bar, at, length });
        }
        let mut take = |kind: u8| found.get_mut(usize::from(kind)).and_then(Option::take);
        let missing = |what: &str| {
            Error::unsupported(format!(
                "{} has no structure for {what} in a memory BAR: it is no virtio device of version 1",
                device.name()
            ))
        };
        let common = take(COMMON).ok_or_else(|| missing("configuration"))?;
        if common.len() < COMMON_LENGTH {
            return Err(Error::violation(
                device.name(),
                format_args!("its configuration has {:#x} bytes", common.len()),
            ));
        }
        Ok(Self {
            common,
            notify: take(NOTIFY).ok_or_else(|| missing("notifications"))?,
            multiplier,
            isr: take(ISR).ok_or_else(|| missing("interrupts"))?,
            specific: take(SPECIFIC),
        })
    }
}

/// Bytes of config space.
fn config<const N: usize>(device: &Device, offset: u16) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    device.config_read(offset, &mut bytes)?;
    Ok(bytes)
}
