//! A driver for the edu device of QEMU (vendor 1234, device 11e8), on the *noiommu* kit: the same code drives the real
//! emulated device and the simulated one. It is what the tutorial of the guide ends with (docs/guide).
//!
//! The device has a buffer of its own and a DMA engine that copies between that buffer and memory.

mod interrupts;
mod registers;
mod transfer;

use std::time::{Duration, Instant};

use noiommu::{Bar, Device, Error, Ioas, Quiet, Result};

use registers::{BAR, FACTORIAL, IDENTIFICATION, LIVENESS, STATUS, STATUS_COMPUTING};
pub use transfer::BUFFER_SIZE;

/// Vendor and device id.
pub const ID: (u16, u16) = (0x1234, 0x11e8);

/// QEMU's device takes 100 ms for a transfer, in the guest's time.
const TIMEOUT: Duration = Duration::from_secs(20);

/// An edu device, ready to work.
#[derive(Debug)]
pub struct Edu {
    registers: Bar,
    device: Device,
    timeout: Duration,
}

impl Edu {
    /// Takes the device, attaches it to `ioas` and lets it reach memory.
    ///
    /// # Errors
    /// ENODEV when it is no edu device; what the kit answers.
    pub fn new(device: Device, ioas: &Ioas) -> Result<Self> {
        if device.id()? != ID {
            return Err(Error::wrong_device(device.name(), "edu"));
        }
        let registers = device.bar(BAR)?;
        if registers.get(IDENTIFICATION)? & 0xff != 0xed {
            return Err(Error::wrong_device(device.name(), "edu"));
        }
        device.attach(ioas)?;
        // SAFETY: the promise of this driver. The only register that makes the device reach memory is DMA_COMMAND, which
        // `transfer` alone writes, with an address and a length out of a `DmaView`; it returns after the transfer, or,
        // when it gives up on the device, after the device has been made quiet. So no transfer outlives the borrow of
        // its view, and the view keeps its mapping alive.
        unsafe { device.enable_bus_master()? };
        Ok(Self { registers, device, timeout: TIMEOUT })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How long the device may take for anything; 20 s at the start.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Major and minor version.
    ///
    /// # Errors
    /// What the kit answers.
    pub fn version(&self) -> Result<(u8, u8)> {
        let [_, _, minor, major] = self.registers.get(IDENTIFICATION)?.to_le_bytes();
        Ok((major, minor))
    }

    /// Whether the device answers as it should: it gives back the inverse of what it is told.
    ///
    /// # Errors
    /// What the kit answers.
    pub fn is_alive(&self) -> Result<bool> {
        self.registers.set(LIVENESS, 0x1234_5678)?;
        Ok(self.registers.get(LIVENESS)? == !0x1234_5678)
    }

    /// n!, modulo 2^32, computed by the device.
    ///
    /// # Errors
    /// EIO when the device does not finish; ENODEV when it is gone; what the kit answers.
    pub fn factorial(&self, n: u32) -> Result<u32> {
        self.registers.set(FACTORIAL, n)?;
        self.wait("computing", || Ok(self.registers.get(STATUS)? & STATUS_COMPUTING == 0))?;
        self.registers.get(FACTORIAL)
    }

    /// Polls until something is done: ever more seldom, and not for ever.
    fn wait(&self, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        let mut pause = Duration::from_micros(1);
        while !done()? {
            if Instant::now() > deadline {
                return Err(Error::timeout(self.device.name(), what));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
            if pause > Duration::from_millis(1) {
                // One that is gone is busy for ever, by its registers.
                self.device.id()?;
            }
        }
        Ok(())
    }

    /// Gives the device up, quiet. Dropping it does the same, but cannot tell how it went.
    ///
    /// # Errors
    /// When it cannot be made quiet.
    pub fn close(self) -> Result<Quiet> {
        self.device.quiesce()
    }
}
