//! Memory that driver and controller share for queues, lists and answers.

use noiommu::{Contiguity, Device, DmaBuffer, DmaView, Ioas, Mapping};

use crate::error::{Error, Result};

/// The unit of memory that is contiguous wherever it comes from.
pub(crate) const PAGE: usize = 4096;

/// Memory in the controller's IOAS, with its addresses.
#[derive(Debug)]
pub(crate) struct Pages {
    mapping: Mapping,
    view: DmaView,
}

impl Pages {
    /// So many bytes, zero, for a device that is attached to the IOAS; contiguous where that can be had, and in any case in pieces
    /// of the controller's pages, of 2^`page_shift` bytes.
    pub(crate) fn new(device: &Device, ioas: &Ioas, bytes: usize, page_shift: u32) -> Result<Self> {
        let contiguity = match bytes {
            _ if page_shift > PAGE.trailing_zeros() => Contiguity::Huge,
            0..=PAGE => Contiguity::Pages,
            _ => Contiguity::Best,
        };
        let pages = Self::with(device, ioas, bytes, contiguity)?;
        if !pages.address(0)?.is_multiple_of(1 << page_shift) {
            return Err(Error::unsupported(format!(
                "{}: its pages are {} bytes, and memory is not as contiguous",
                device.name(),
                1_u64 << page_shift
            )));
        }
        Ok(pages)
    }

    /// The same, of single pages: where no more than 4 KiB at a time have to be contiguous.
    pub(crate) fn scattered(device: &Device, ioas: &Ioas, bytes: usize) -> Result<Self> {
        Self::with(device, ioas, bytes, Contiguity::Pages)
    }

    fn with(device: &Device, ioas: &Ioas, bytes: usize, contiguity: Contiguity) -> Result<Self> {
        let buffer = DmaBuffer::new(bytes, contiguity)?;
        let mapping = ioas.map(buffer).map_err(noiommu::Error::from)?;
        let view = mapping.for_device(device)?;
        Ok(Self { mapping, view })
    }

    /// The memory, for this program.
    #[inline]
    pub(crate) fn memory(&self) -> Result<&DmaBuffer> {
        self.mapping.buffer().ok_or_else(|| Error::nonsense("a mapping without a buffer"))
    }

    /// The address of a byte, for the device.
    pub(crate) fn address(&self, offset: usize) -> Result<u64> {
        Ok(self.view.at(offset as u64)?.address.bits())
    }

    /// Contiguous bytes from the beginning on.
    pub(crate) fn contiguous(&self) -> Result<usize> {
        Ok(self.view.at(0)?.length as usize)
    }

    /// Puts zeros everywhere.
    pub(crate) fn clear(&self) -> Result<()> {
        let memory = self.memory()?;
        Ok(memory.fill(0, memory.len(), 0)?)
    }
}
