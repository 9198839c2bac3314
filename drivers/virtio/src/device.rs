//! A virtio device that has been taken, and is not at work yet.

use std::sync::Arc;
use std::time::Duration;

use noiommu::{Device, Ioas};

use crate::block::Block;
use crate::error::{Error, Result};
use crate::net::Net;
use crate::registers::Registers;

/// The vendor of all of them.
const VENDOR: u16 = 0x1af4;
/// 4.1.2: a device of version 1 is its kind after this.
const MODERN: u16 = 0x1040;
/// One that drivers of before version 1 can drive, too, is of the kind that its subsystem says.
const TRANSITIONAL: std::ops::Range<u16> = 0x1000..MODERN;
const SUBSYSTEM: u16 = 0x2e;

/// How long a device may take for a request, if nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What kind of device it is (5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A network card.
    Net,
    /// A block device.
    Block,
    /// One that is not driven here, by its number.
    Other(u16),
}

/// A virtio device, taken from nobody and reset: what kind it is, and what drives it.
#[derive(Debug)]
pub struct VirtioDevice {
    pub(crate) device: Device,
    pub(crate) ioas: Ioas,
    pub(crate) registers: Arc<Registers>,
    pub(crate) timeout: Duration,
    kind: Kind,
}

impl VirtioDevice {
    /// Takes the device, attaches it to `ioas`, resets it and tells the kit how it is made quiet.
    ///
    /// # Errors
    /// No virtio device, or one of before version 1; one that does not finish its reset; what the kit answers.
    pub fn open(device: Device, ioas: &Ioas) -> Result<Self> {
        let (vendor, id) = device.id()?;
        let kind = match id {
            _ if vendor != VENDOR => None,
            _ if TRANSITIONAL.contains(&id) => {
                let mut kind = [0; 2];
                device.config_read(SUBSYSTEM, &mut kind)?;
                Some(u16::from_le_bytes(kind))
            }
            _ => id.checked_sub(MODERN),
        };
        let kind = match kind {
            None => return Err(noiommu::Error::wrong_device(device.name(), "virtio").into()),
            Some(1) => Kind::Net,
            Some(2) => Kind::Block,
            Some(other) => Kind::Other(other),
        };
        let registers = Registers::new(&device)?;
        device.attach(ioas)?;
        registers.stop()?;
        device.set_quiet_recipe(&registers.quiet_recipe())?;
        Ok(Self { device, ioas: ioas.clone(), registers: Arc::new(registers), timeout: TIMEOUT, kind })
    }

    /// What kind of device it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How long the device may take for a request; 30 s at the start. One that takes longer is reset, and used no more.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Starts a block device.
    ///
    /// # Errors
    /// Another kind of device; what it does not have or agree to; those of pinning and mapping.
    pub fn block(self) -> Result<Block> {
        self.expect(Kind::Block, "block device")?;
        Block::start(self)
    }

    /// Starts a network card.
    ///
    /// # Errors
    /// Another kind of device; what it does not have or agree to; those of pinning and mapping.
    pub fn net(self) -> Result<Net> {
        self.expect(Kind::Net, "network card")?;
        Net::start(self)
    }

    fn expect(&self, kind: Kind, what: &str) -> Result<()> {
        if self.kind == kind {
            return Ok(());
        }
        Err(Error::unsupported(format!("{} is no {what}, but {:?}", self.device.name(), self.kind)))
    }
}
