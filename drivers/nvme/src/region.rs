//! Memory for data, as commands are given it.

use std::sync::Arc;

use noiommu::{Contiguity, Device, DmaBuffer, DmaView, Ioas, Mapping};

use crate::error::{Error, Result};

/// Memory that one controller may read and write: a buffer, mapped for it, with the address of each of its pages.
///
/// Cheap to clone; all clones are one memory. A command that is outstanding has a clone of its own, so the memory cannot go, nor
/// be had back by [`Region::into_buffer`], before the controller is done with it, or has been reset.
#[derive(Clone, Debug)]
pub struct Region {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    view: DmaView,
    mapping: Mapping,
    /// The address of each page, of 2^`page_shift` bytes.
    pages: Box<[u64]>,
    page_shift: u32,
    length: usize,
    /// The controller that it is for.
    owner: u64,
}

/// A part of a region, checked: what PRPs are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    /// The pages from the first that has a byte of the part on.
    pub(crate) pages: &'a [u64],
    /// Where the part begins in its first page.
    pub(crate) offset: u64,
    /// How many pages have a byte of it, at least 1.
    pub(crate) count: usize,
}

impl Region {
    /// Maps a buffer for a device. Single pages will do: a command takes a list of them.
    pub(crate) fn new(
        device: &Device,
        ioas: &Ioas,
        buffer: DmaBuffer,
        page_shift: u32,
        owner: u64,
    ) -> Result<Self> {
        let length = buffer.len();
        let mapping = ioas.map(buffer).map_err(noiommu::Error::from)?;
        let view = mapping.for_device(device)?;
        let size = 1_u64 << page_shift;
        let mut pages = Vec::with_capacity(length.div_ceil(1 << page_shift));
        for offset in (0..length as u64).step_by(1 << page_shift) {
            let piece = view.at(offset)?;
            let address = piece.address.bits();
            // 4.3: an entry of a list is a whole page's.
            if !address.is_multiple_of(size) || piece.length < size.min(length as u64 - offset) {
                return Err(Error::unsupported(format!(
                    "{}: its pages are {size} bytes, and the buffer is not as contiguous",
                    device.name()
                ))
                .with_remedy("use a buffer of huge pages (Contiguity::Huge)"));
            }
            pages.push(address);
        }
        let inner = Inner { view, mapping, pages: pages.into(), page_shift, length, owner };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// New memory of so many bytes, of single pages where there are no better ones.
    pub(crate) fn allocate(
        device: &Device,
        ioas: &Ioas,
        bytes: usize,
        page_shift: u32,
        owner: u64,
    ) -> Result<Self> {
        let contiguity = if page_shift > 12 { Contiguity::Huge } else { Contiguity::Best };
        let contiguity = if bytes <= crate::pages::PAGE { Contiguity::Pages } else { contiguity };
        Self::new(device, ioas, DmaBuffer::new(bytes, contiguity)?, page_shift, owner)
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.length
    }

    /// Never: a region has at least one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.length == 0
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// EINVAL when they pass the end; nothing is copied.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        Ok(self.buffer()?.read(offset, into)?)
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// EINVAL when they pass the end; nothing is copied.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        Ok(self.buffer()?.write(offset, from)?)
    }

    /// The memory itself.
    ///
    /// # Errors
    /// Never: a region is a buffer's.
    pub fn buffer(&self) -> Result<&DmaBuffer> {
        self.inner.mapping.buffer().ok_or_else(|| Error::nonsense("a region without a buffer"))
    }

    /// How many contiguous pieces it is made of, for the device.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.inner.view.segments().len()
    }

    /// Unmaps the memory and gives it back.
    ///
    /// # Errors
    /// The region comes back while there are clones of it: a command that is outstanding has one.
    pub fn into_buffer(self) -> std::result::Result<Option<DmaBuffer>, Self> {
        let Inner { view, mapping, .. } = Arc::try_unwrap(self.inner).map_err(|inner| Self { inner })?;
        // Its share of the mapping, which was the only other one.
        drop(view);
        Ok(mapping.reclaim().ok().flatten())
    }

    /// The pages of `length` bytes at `offset`, for this controller.
    #[inline]
    pub(crate) fn part(&self, owner: u64, offset: usize, length: usize) -> Result<Part<'_>> {
        let inner = &*self.inner;
        if inner.owner != owner {
            return Err(Error::argument("the region is another controller's"));
        }
        // 4.3: the lowest two bits of an offset are 0.
        if length == 0 || offset & 3 != 0 || offset.checked_add(length).is_none_or(|end| end > inner.length) {
            return Err(out_of_range(offset, length, inner.length));
        }
        let page = 1 << inner.page_shift;
        let (first, within) = (offset >> inner.page_shift, offset & (page - 1));
        let pages = inner.pages.get(first..).unwrap_or_default();
        Ok(Part { pages, offset: within as u64, count: (within + length).div_ceil(page) })
    }
}

#[cold]
fn out_of_range(offset: usize, length: usize, all: usize) -> Error {
    Error::argument(format!(
        "{length} bytes at {offset} of a region of {all}: past its end, nothing, or not at a multiple of 4"
    ))
}
