//! A driver for the edu device of QEMU (vendor 1234, device 11e8), on the *noiommu* kit: the same code drives the real
//! emulated device and the simulated one.
//!
//! The device has a buffer of its own and a DMA engine that copies between that buffer and memory, by physical address.
//! See QEMU's documentation, *docs/specs/edu.rst*.

use std::time::{Duration, Instant};

use noiommu::{Bar, Device, DmaView, Error, Ioas, Quiet, Result};

/// Vendor and device id.
pub const ID: (u16, u16) = (0x1234, 0x11e8);

/// Bytes of the device's buffer that this driver uses: half of it, because QEMU 7.2 aborts when a transfer reaches its end.
pub const BUFFER_SIZE: u64 = 2048;

const IDENTIFICATION: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const INTERRUPT_STATUS: u64 = 0x24;
const INTERRUPT_RAISE: u64 = 0x60;
const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;

const STATUS_COMPUTING: u32 = 1;
const COMMAND_START: u64 = 1;
const COMMAND_FROM_DEVICE: u64 = 2;
/// Where the device's buffer lies in its own address space.
const BUFFER: u64 = 0x4_0000;
/// QEMU's device takes 100 ms for a transfer, in the guest's time.
const TIMEOUT: Duration = Duration::from_secs(20);

/// An edu device, ready to copy.
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
        let registers = device.bar(0)?;
        if registers.read_u32(IDENTIFICATION)? & 0xff != 0xed {
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
        let [major, minor, ..] = self.registers.read_u32(IDENTIFICATION)?.to_be_bytes();
        Ok((major, minor))
    }

    /// Whether the device inverts what is written to its liveness register.
    ///
    /// # Errors
    /// What the kit answers.
    pub fn is_alive(&self) -> Result<bool> {
        const PROBE: u32 = 0x1357_9bdf;
        self.registers.write_u32(LIVENESS, PROBE)?;
        Ok(self.registers.read_u32(LIVENESS)? == !PROBE)
    }

    /// n!, modulo 2^32, by the device.
    ///
    /// # Errors
    /// EIO when it does not answer in time; ENODEV when it is gone; what the kit answers.
    pub fn factorial(&self, n: u32) -> Result<u32> {
        self.registers.write_u32(FACTORIAL, n)?;
        self.wait("computing", || Ok(self.registers.read_u32(STATUS)? & STATUS_COMPUTING == 0))?;
        self.registers.read_u32(FACTORIAL)
    }

    /// Copies `length` bytes at `offset` of a mapping into the device's buffer, from its beginning on.
    ///
    /// # Errors
    /// EINVAL past the end of the mapping or for more than [`BUFFER_SIZE`]; EIO when the device does not finish;
    /// ENODEV when it is gone; what the kit answers.
    pub fn load(&self, from: &DmaView, offset: u64, length: u64) -> Result<()> {
        self.transfer(from, offset, length, 0)
    }

    /// Copies `length` bytes from the beginning of the device's buffer to `offset` of a mapping.
    ///
    /// # Errors
    /// As for [`Edu::load`].
    pub fn store(&self, to: &DmaView, offset: u64, length: u64) -> Result<()> {
        self.transfer(to, offset, length, COMMAND_FROM_DEVICE)
    }

    fn transfer(&self, view: &DmaView, offset: u64, length: u64, direction: u64) -> Result<()> {
        if length > BUFFER_SIZE {
            return Err(Error::bad_argument(format!(
                "{length} bytes, but the device's buffer holds {BUFFER_SIZE}"
            )));
        }
        let mut inside = BUFFER;
        for piece in view.range(offset, length)? {
            let place = piece.address.bits();
            let (source, destination) = if direction == 0 { (place, inside) } else { (inside, place) };
            self.registers.write_u64(DMA_SOURCE, source)?;
            self.registers.write_u64(DMA_DESTINATION, destination)?;
            self.registers.write_u64(DMA_COUNT, piece.length)?;
            self.registers.write_u64(DMA_COMMAND, COMMAND_START | direction)?;
            let done =
                self.wait("copying", || Ok(self.registers.read_u64(DMA_COMMAND)? & COMMAND_START == 0));
            if let Err(error) = done {
                // It may still write: not before it is quiet may the caller have its memory back.
                self.device.quiesce()?;
                return Err(error);
            }
            inside += piece.length;
        }
        Ok(())
    }

    /// Has the device raise an interrupt for these reasons, bits of its interrupt status.
    ///
    /// # Errors
    /// What the kit answers.
    pub fn raise(&self, reasons: u32) -> Result<()> {
        self.registers.write_u32(INTERRUPT_RAISE, reasons)
    }

    /// Takes the reasons why the device interrupts, and with them the interrupt: its line falls.
    ///
    /// # Errors
    /// What the kit answers.
    pub fn acknowledge(&self) -> Result<u32> {
        let reasons = self.registers.read_u32(INTERRUPT_STATUS)?;
        self.registers.write_u32(INTERRUPT_ACKNOWLEDGE, reasons)?;
        Ok(reasons)
    }

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

    /// Gives the device up, quiet.
    ///
    /// # Errors
    /// When it cannot be made quiet.
    pub fn close(self) -> Result<Quiet> {
        self.device.quiesce()
    }
}
