//! DMA: bytes between memory and the device's own buffer.

use noiommu::{DmaView, Error, Result};

use crate::Edu;
use crate::registers::{
    DMA_BUFFER, DMA_COMMAND, DMA_COUNT, DMA_DESTINATION, DMA_FROM_DEVICE, DMA_RUN, DMA_SOURCE,
};

/// Bytes of the device's buffer that this driver uses: half of it, because QEMU 7.2 aborts when a transfer reaches its end.
pub const BUFFER_SIZE: u64 = 2048;

impl Edu {
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
        self.transfer(to, offset, length, DMA_FROM_DEVICE)
    }

    fn transfer(&self, view: &DmaView, offset: u64, length: u64, direction: u64) -> Result<()> {
        if length > BUFFER_SIZE {
            return Err(Error::bad_argument(format!(
                "{length} bytes, but the device's buffer holds {BUFFER_SIZE}"
            )));
        }
        let mut inside = DMA_BUFFER;
        for piece in view.range(offset, length)? {
            let place = piece.address.bits();
            let (source, destination) = if direction == 0 { (place, inside) } else { (inside, place) };
            self.registers.set(DMA_SOURCE, source)?;
            self.registers.set(DMA_DESTINATION, destination)?;
            self.registers.set(DMA_COUNT, piece.length)?;
            self.registers.set(DMA_COMMAND, DMA_RUN | direction)?;
            let done = self.wait("copying", || Ok(self.registers.get(DMA_COMMAND)? & DMA_RUN == 0));
            if let Err(error) = done {
                // It may still write: not before it is quiet may the caller have its memory back.
                self.device.quiesce()?;
                return Err(error);
            }
            inside += piece.length;
        }
        Ok(())
    }
}
