//! What a device is given: addresses of a mapping, for that device.

use std::fmt;
use std::sync::Arc;

use noiommu_core::{Errno, PhysAddr};

use super::Device;
use crate::ioas::MappingInner;
use crate::{Error, ErrorKind, Result};

/// Memory is mapped in whole pages, and seen by devices in no smaller pieces.
const PAGE: u64 = 1 << PAGE_SHIFT;
const PAGE_SHIFT: u32 = 12;

/// An address as a device uses it. Without an IOMMU it is the physical address (or where the [bus](super::DmaRange) has that);
/// behind one, an IOVA. It is got from a mapping for a device, and cannot be made of anything else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DmaAddr(u64);

impl DmaAddr {
    /// The number to put into a descriptor or register.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for DmaAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for DmaAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A contiguous piece of a mapping, for a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DmaSegment {
    /// Where it begins in the mapping, in bytes.
    pub offset: u64,
    /// Where the device finds it.
    pub address: DmaAddr,
    /// Bytes.
    pub length: u64,
}

/// The addresses of a mapping for one device. Keeps the mapping alive, so an address in it never goes stale. It takes 8 bytes for each
/// 4 KiB of the mapping, and 24 for each contiguous piece.
///
/// ```
/// # fn main() -> noiommu::Result<()> {
/// use noiommu::{Context, Contiguity, DmaBuffer};
///
/// let context = Context::simulated();
/// let (ioas, device) = (context.ioas()?, context.sim_edu()?);
/// device.attach(&ioas)?;
/// let mapping = ioas.map(DmaBuffer::new(3 * 4096, Contiguity::Pages)?)?;
/// let view = mapping.for_device(&device)?;
///
/// // A part of it, for a device that takes an address and a length: as many commands as there are pieces.
/// for piece in view.range(4000, 200)? {
///     println!("{} bytes at {}", piece.length, piece.address);
/// }
/// // A descriptor that names a page: one load.
/// assert_eq!(view.address(4096), Some(view.at(4096)?.address));
/// assert!(view.at(3 * 4096).is_err(), "past the end");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DmaView {
    segments: Box<[DmaSegment]>,
    /// See [`pages`].
    pages: Box<[u64]>,
    length: u64,
    _mapping: Arc<MappingInner>,
}

/// What is to be added to an offset in each page of these segments, so that an offset finds its address by one load, and by nothing
/// else: every byte of the mapping's pages is in one of them, and no other.
///
/// One size of pages for all mappings: a shift by a number that is not constant, or a second kind of blocks for long mappings, costs
/// each lookup a fifth to a half more (measured; docs/performance.md).
///
/// # Errors
/// ENOMEM.
fn pages(segments: &[DmaSegment], length: u64) -> Result<Box<[u64]>> {
    let no_memory = || Error::from(Errno::ENOMEM);
    let mut pages = Vec::new();
    let count = usize::try_from(length.div_ceil(PAGE)).map_err(|_| no_memory())?;
    pages.try_reserve_exact(count).map_err(|_| no_memory())?;
    for segment in segments {
        // Pages are mapped whole, and end in no window of a bus.
        let count = segment.length.div_ceil(PAGE);
        pages.extend((0..count).map(|_| segment.address.0.wrapping_sub(segment.offset)));
    }
    Ok(pages.into())
}

impl DmaView {
    pub(crate) fn new(mapping: &Arc<MappingInner>, device: &Device) -> Result<Self> {
        let state = device.inner().state();
        if !state.attached.as_ref().is_some_and(|ioas| Arc::ptr_eq(ioas, mapping.ioas())) {
            return Err(Error::new(
                ErrorKind::Rule,
                Errno::EINVAL,
                format!("{} is not attached to the IOAS of this mapping", device.name()),
            )
            .with_remedy("attach() it first"));
        }
        let pieces = mapping.ioas().device_segments(device.inner().backend(), mapping.bytes()?)?;
        let confined = device.provider().is_confined();
        let mut length = 0;
        let mut segments = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let mut done = 0;
            while done < piece.length {
                let (at, rest) = (PhysAddr(piece.address.0 + done), piece.length - done);
                let (address, part) = if confined {
                    // An IOVA, whatever the bus has elsewhere.
                    state.reach.check(device.name(), at.0, rest)?;
                    (at.0, rest)
                } else {
                    state.reach.place(device.name(), at, rest)?
                };
                segments.push(DmaSegment { offset: length, address: DmaAddr(address), length: part });
                done += part;
                length += part;
            }
        }
        let pages = pages(&segments, length)?;
        Ok(Self { segments: segments.into(), pages, length, _mapping: mapping.clone() })
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Never: a mapping has at least one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The contiguous pieces, in order.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = DmaSegment> + '_ {
        self.segments.iter().copied()
    }

    /// The address of the byte at `offset`; `None` past the end of the mapping's last page. One load of an array, whatever the memory is
    /// made of: for descriptors that name a page each. Which bytes follow it is told by [`DmaView::at`].
    #[must_use]
    #[inline]
    pub fn address(&self, offset: u64) -> Option<DmaAddr> {
        let page = self.pages.get((offset >> PAGE_SHIFT) as usize)?;
        Some(DmaAddr(page.wrapping_add(offset)))
    }

    /// The address of the byte at `offset` and the contiguous bytes from there on.
    ///
    /// # Errors
    /// EINVAL past the end.
    pub fn at(&self, offset: u64) -> Result<DmaSegment> {
        let after = self.segments.partition_point(|segment| segment.offset <= offset);
        match after.checked_sub(1).and_then(|index| self.segments.get(index)) {
            Some(segment) if offset - segment.offset < segment.length => {
                let skip = offset - segment.offset;
                let address = DmaAddr(segment.address.0 + skip);
                Ok(DmaSegment { offset, address, length: segment.length - skip })
            }
            _ => Err(Error::argument(format!("offset {offset} in a mapping of {} bytes", self.length))),
        }
    }

    /// The contiguous pieces of `length` bytes from `offset` on.
    ///
    /// # Errors
    /// EINVAL past the end.
    pub fn range(&self, offset: u64, length: u64) -> Result<Vec<DmaSegment>> {
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < length {
            let at = offset.checked_add(done).ok_or_else(|| Error::from(Errno::EOVERFLOW))?;
            let mut piece = self.at(at)?;
            piece.length = piece.length.min(length - done);
            done += piece.length;
            pieces.push(piece);
        }
        Ok(pieces)
    }
}
