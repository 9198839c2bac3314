//! Memory for DMA, made by the kit and touched only by copies.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use noiommu_core::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::memory::HUGE;
use crate::{Error, Result};

const GIB: usize = 1 << 30;

/// How contiguous a buffer shall be in physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Contiguity {
    /// Single pages will do.
    Pages,
    /// As contiguous as the machine offers: reserved huge pages, else transparent ones, else single pages.
    #[default]
    Best,
    /// Huge pages of at least 2 MiB throughout, or an error.
    Huge,
}

/// What a buffer is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum PageKind {
    /// Reserved huge pages of 1 GiB.
    Hugetlb1G,
    /// Reserved huge pages of 2 MiB.
    Hugetlb2M,
    /// Transparent huge pages, throughout.
    TransparentHuge,
    /// Base pages, perhaps with some huge ones among them.
    Base,
}

impl PageKind {
    /// Its name in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hugetlb1G => "hugetlb 1G",
            Self::Hugetlb2M => "hugetlb 2M",
            Self::TransparentHuge => "transparent huge pages",
            Self::Base => "base pages",
        }
    }
}

/// Memory that a device can be given: page-aligned, zeroed, private to this value.
///
/// A device may change it at any time once it is mapped, so it is never behind a reference: bytes are copied in and out
/// with atomic accesses.
///
/// ```
/// # fn main() -> noiommu::Result<()> {
/// use noiommu::{Contiguity, DmaBuffer};
///
/// let buffer = DmaBuffer::new(10_000, Contiguity::Best)?;
/// buffer.write(5000, b"to the device")?;
/// let mut bytes = [0; 13];
/// buffer.read(5000, &mut bytes)?;
/// assert_eq!(&bytes, b"to the device");
/// // Words that a device looks at are stored in one access.
/// buffer.store_u32(64, 7u32.to_le())?;
/// assert_eq!(u32::from_le(buffer.load_u32(64)?), 7);
/// assert!(buffer.load_u32(9_999).is_err(), "past the end");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DmaBuffer {
    memory: NonNull<u8>,
    /// What was asked for, in bytes.
    length: usize,
    /// What is mapped: whole pages of the kind.
    mapped: usize,
    pages: PageKind,
}

// SAFETY: the memory belongs to this value alone; every access is atomic.
unsafe impl Send for DmaBuffer {}
// SAFETY: shared access goes through atomic bytes and words, so accesses of two threads do not race.
unsafe impl Sync for DmaBuffer {}

impl DmaBuffer {
    /// Memory of at least `length` bytes, touched and zero, as contiguous as asked for; [`DmaBuffer::pages`] tells what it
    /// became.
    ///
    /// # Errors
    /// EINVAL for length 0; ENOMEM when there is not enough memory, or, with [`Contiguity::Huge`], not enough huge pages.
    pub fn new(length: usize, contiguity: Contiguity) -> Result<Self> {
        if length == 0 {
            return Err(Error::argument("a buffer of 0 bytes"));
        }
        if contiguity == Contiguity::Pages {
            return Self::base(length);
        }
        for (page, pages, flag) in
            [(GIB, PageKind::Hugetlb1G, libc::MAP_HUGE_1GB), (HUGE, PageKind::Hugetlb2M, libc::MAP_HUGE_2MB)]
        {
            // A page that would stay empty for more than half is not worth reserving.
            if (length >= page / 2 || contiguity == Contiguity::Huge && page == HUGE)
                && let Some(buffer) = Self::hugetlb(length, page, pages, flag)
            {
                return Ok(buffer);
            }
        }
        if length >= HUGE || contiguity == Contiguity::Huge {
            let buffer = Self::transparent(length)?;
            if buffer.pages == PageKind::TransparentHuge || contiguity == Contiguity::Best {
                return Ok(buffer);
            }
            return Err(Error::new(
                crate::ErrorKind::Unsupported,
                Errno::ENOMEM,
                format!("no huge pages for {length} bytes"),
            )
            .with_remedy(format!(
                "reserve some (sysctl vm.nr_hugepages={}), or set /sys/kernel/mm/transparent_hugepage/enabled to madvise",
                length.div_ceil(HUGE)
            )));
        }
        Self::base(length)
    }

    fn hugetlb(length: usize, page: usize, pages: PageKind, size_flag: i32) -> Option<Self> {
        let mapped = length.checked_next_multiple_of(page)?;
        let flags = MapFlags::PRIVATE
            | MapFlags::HUGETLB
            | MapFlags::POPULATE
            | MapFlags::from_bits_retain(size_flag as u32);
        // SAFETY: a new mapping at a place of the kernel's choice.
        let memory = unsafe {
            mm::mmap_anonymous(std::ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, flags)
        };
        let buffer = Self { memory: NonNull::new(memory.ok()?.cast())?, length, mapped, pages };
        // Populating stops silently when pages run out (a cgroup's limit); touching them then would be fatal.
        buffer.populate().ok()?;
        Some(buffer)
    }

    /// Memory aligned to huge pages, for which the kernel is asked to use them, now.
    fn transparent(length: usize) -> Result<Self> {
        let mapped = length.checked_next_multiple_of(HUGE).ok_or_else(|| Error::from(Errno::ENOMEM))?;
        let mut buffer = Self::aligned(length, mapped, HUGE)?;
        let memory = buffer.memory.as_ptr();
        // SAFETY: advice about the buffer's own memory; a kernel without huge pages refuses it, which is told below.
        let _ = unsafe { mm::madvise(memory.cast(), mapped, Advice::LinuxHugepage) };
        buffer.touch()?;
        // Each huge page by itself: asked for a range, the kernel stops at the first that it cannot make.
        for offset in (0..mapped).step_by(HUGE) {
            const MADV_COLLAPSE: i32 = 25;
            // SAFETY: within the buffer's own memory; collapsing keeps its contents. Before Linux 6.1 it is refused.
            let _ = unsafe { libc::madvise(memory.add(offset).cast(), HUGE, MADV_COLLAPSE) };
        }
        if is_huge(memory as usize, mapped) {
            buffer.pages = PageKind::TransparentHuge;
        }
        Ok(buffer)
    }

    fn base(length: usize) -> Result<Self> {
        let page = rustix::param::page_size();
        let mapped = length.checked_next_multiple_of(page).ok_or_else(|| Error::from(Errno::ENOMEM))?;
        let buffer = Self::aligned(length, mapped, page)?;
        buffer.touch()?;
        Ok(buffer)
    }

    /// `mapped` bytes of untouched private memory at a multiple of `alignment`.
    fn aligned(length: usize, mapped: usize, alignment: usize) -> Result<Self> {
        let failed = |error| {
            Error::system(format_args!("allocating {length} bytes"), error)
                .with_remedy("ask for less memory, or for fewer buffers (sysctl vm.max_map_count)")
        };
        // Room to be aligned in, where the kernel does not align by itself. Not more than needed: buffers with holes between
        // them are a mapping of the kernel's each, of which a process has 65,530 at most; neighbours become one.
        let spare = if alignment > rustix::param::page_size() { alignment } else { 0 };
        let reserved = mapped.checked_add(spare).ok_or_else(|| Error::from(Errno::ENOMEM))?;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                reserved,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(failed)?
        .cast::<u8>();
        let before = (start as usize).next_multiple_of(alignment) - start as usize;
        // SAFETY: `before` is at most `spare`, so all three parts lie within the reservation just made; the two that
        // are unmapped are not used by anyone.
        let memory = unsafe {
            let memory = start.add(before);
            if before > 0 {
                let _ = mm::munmap(start.cast(), before);
            }
            let after = reserved - before - mapped;
            if after > 0 {
                let _ = mm::munmap(memory.add(mapped).cast(), after);
            }
            memory
        };
        let memory = NonNull::new(memory).ok_or_else(|| Error::from(Errno::ENOMEM))?;
        Ok(Self { memory, length, mapped, pages: PageKind::Base })
    }

    /// Makes the kernel supply every page now; want of memory shows here.
    fn touch(&self) -> Result<()> {
        self.populate().map_err(|error| {
            Error::system(format_args!("touching {} bytes", self.mapped), error)
                .with_remedy("ask for less memory, or raise the cgroup's memory.max")
        })
    }

    fn populate(&self) -> rustix::io::Result<()> {
        // A signal may end it early; what is populated by then stays.
        rustix::io::retry_on_intr(|| {
            // SAFETY: populating the buffer's own memory writes nothing to it.
            unsafe { mm::madvise(self.memory.as_ptr().cast(), self.mapped, Advice::LinuxPopulateWrite) }
        })
    }

    /// A new buffer of the same size and, where there are such pages, kind, with the same contents.
    pub(crate) fn copy(&self) -> Result<Self> {
        let contiguity = if self.pages == PageKind::Base { Contiguity::Pages } else { Contiguity::Best };
        let copy = Self::new(self.length, contiguity)?;
        let mut block = [0; 4096];
        for start in (0..self.length).step_by(block.len()) {
            let block = &mut block[..4096.min(self.length - start)];
            self.read(start, block)?;
            copy.write(start, block)?;
        }
        Ok(copy)
    }

    /// Bytes, as asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Never: a buffer has at least one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What it is made of.
    #[must_use]
    pub fn pages(&self) -> PageKind {
        self.pages
    }

    /// Where it is in this process: to be shown, not to be used.
    #[must_use]
    pub fn address(&self) -> usize {
        self.memory.as_ptr() as usize
    }

    /// Its memory, for drivers of others that want a pointer. It is there as long as this value is; a device may change it at any time,
    /// so what reads or writes through it does so as such memory demands, and makes no reference to it.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// What a mapping of it covers: whole pages.
    pub(crate) fn mapped_length(&self) -> usize {
        self.mapped
    }

    fn check(&self, offset: usize, length: usize) -> Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.length => Ok(()),
            _ => Err(Error::argument(format!(
                "{length} bytes at {offset} pass the end of a buffer of {} bytes",
                self.length
            ))),
        }
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// EINVAL when they pass the end; nothing is copied.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        self.check(offset, into.len())?;
        // SAFETY: in bounds, see above.
        let from = unsafe { self.memory.add(offset) };
        copy_out(from, into);
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// EINVAL when they pass the end; nothing is copied.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.check(offset, from.len())?;
        // SAFETY: in bounds, see above.
        let to = unsafe { self.memory.add(offset) };
        copy_in(to, from);
        Ok(())
    }

    /// Sets `length` bytes from `offset` on to `value`.
    ///
    /// # Errors
    /// EINVAL when they pass the end; nothing is written.
    pub fn fill(&self, offset: usize, length: usize, value: u8) -> Result<()> {
        self.check(offset, length)?;
        let block = [value; 4096];
        for start in (0..length).step_by(block.len()) {
            self.write(offset + start, &block[..block.len().min(length - start)])?;
        }
        Ok(())
    }
}

macro_rules! words {
    ($($load:ident, $store:ident, $word:ty, $atomic:ty;)*) => {
        impl DmaBuffer {
            $(
                #[doc = concat!("Loads a `", stringify!($word), "` in one access, in the processor's byte order.")]
                ///
                /// # Errors
                /// EINVAL when it passes the end or `offset` is not aligned to it.
                #[inline]
                pub fn $load(&self, offset: usize) -> Result<$word> {
                    Ok(self.word::<$atomic>(offset)?.load(Ordering::Relaxed))
                }

                #[doc = concat!("Stores a `", stringify!($word), "` in one access, in the processor's byte order.")]
                ///
                /// # Errors
                /// EINVAL when it passes the end or `offset` is not aligned to it.
                #[inline]
                pub fn $store(&self, offset: usize, value: $word) -> Result<()> {
                    self.word::<$atomic>(offset)?.store(value, Ordering::Relaxed);
                    Ok(())
                }
            )*
        }
    };
}

words! {
    load_u8, store_u8, u8, AtomicU8;
    load_u16, store_u16, u16, AtomicU16;
    load_u32, store_u32, u32, AtomicU32;
    load_u64, store_u64, u64, AtomicU64;
}

impl DmaBuffer {
    #[inline]
    fn word<A>(&self, offset: usize) -> Result<&A> {
        self.check(offset, size_of::<A>())?;
        if !offset.is_multiple_of(align_of::<A>()) {
            return Err(Error::argument(format!("offset {offset} is not a multiple of {}", align_of::<A>())));
        }
        // SAFETY: in bounds and aligned (the buffer begins at a page border); `A` is only ever an atomic integer, for
        // which all bits are valid and which may change under the reference.
        Ok(unsafe { self.memory.add(offset).cast::<A>().as_ref() })
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        let start = self.memory.as_ptr().cast();
        // SAFETY: the memory is this value's, and nothing borrows it any more.
        let unmapped = unsafe { mm::munmap(start, self.mapped) };
        // Where the process has as many mappings as it may have, a part of one cannot be taken out; its memory can.
        if unmapped.is_err() {
            // SAFETY: as above.
            let _ = unsafe { mm::madvise(start, self.mapped, Advice::LinuxDontNeed) };
        }
    }
}

/// Copies out of memory that may change under the copy: relaxed atomic loads, words where they are aligned.
pub(crate) fn copy_out(from: NonNull<u8>, into: &mut [u8]) {
    let head = from.align_offset(8).min(into.len());
    let (head, rest) = into.split_at_mut(head);
    let (words, tail) = rest.as_chunks_mut::<8>();
    // SAFETY: the caller's buffer is valid for the whole length, by its bounds check; words lie at multiples of 8; all
    // accesses to it anywhere are atomic.
    unsafe {
        let byte = |at: NonNull<u8>| AtomicU8::from_ptr(at.as_ptr()).load(Ordering::Relaxed);
        for (index, into) in head.iter_mut().enumerate() {
            *into = byte(from.add(index));
        }
        let from = from.add(head.len());
        for (index, into) in words.iter_mut().enumerate() {
            let word = AtomicU64::from_ptr(from.cast::<u64>().add(index).as_ptr());
            *into = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        let from = from.add(words.len() * 8);
        for (index, into) in tail.iter_mut().enumerate() {
            *into = byte(from.add(index));
        }
    }
}

/// Copies into memory that may be read under the copy: relaxed atomic stores, words where they are aligned.
pub(crate) fn copy_in(to: NonNull<u8>, from: &[u8]) {
    let (head, rest) = from.split_at(to.align_offset(8).min(from.len()));
    let (words, tail) = rest.as_chunks::<8>();
    // SAFETY: as for `copy_out`.
    unsafe {
        let store =
            |at: NonNull<u8>, byte: u8| AtomicU8::from_ptr(at.as_ptr()).store(byte, Ordering::Relaxed);
        for (index, &byte) in head.iter().enumerate() {
            store(to.add(index), byte);
        }
        let to = to.add(head.len());
        for (index, &word) in words.iter().enumerate() {
            let slot = AtomicU64::from_ptr(to.cast::<u64>().add(index).as_ptr());
            slot.store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
        let to = to.add(words.len() * 8);
        for (index, &byte) in tail.iter().enumerate() {
            store(to.add(index), byte);
        }
    }
}

/// Whether huge pages map the whole range, as far as the kernel tells (6.7 and later; older: by smaps).
fn is_huge(address: usize, length: usize) -> bool {
    match crate::memory::Pagemap::open().and_then(|pagemap| pagemap.pieces(address, length)) {
        Ok(pieces) if pieces.iter().any(|piece| piece.huge) => pieces.iter().all(|piece| piece.huge),
        _ => crate::memory::huge_bytes(address, length) >= length,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_at_every_offset_and_length() {
        let buffer = DmaBuffer::new(10000, Contiguity::Pages).unwrap();
        assert_eq!((buffer.len(), buffer.mapped_length() % 4096, buffer.address() % 4096), (10000, 0, 0));
        for offset in 0..20 {
            for length in 0..40 {
                let bytes: Vec<u8> = (0..length as u8).map(|n| n ^ offset as u8 ^ 0x5a).collect();
                buffer.fill(0, 64, 0xee).unwrap();
                buffer.write(offset, &bytes).unwrap();
                let mut all = [0; 64];
                buffer.read(0, &mut all).unwrap();
                assert!(all[..offset].iter().chain(&all[offset + length..]).all(|&byte| byte == 0xee));
                assert_eq!(all[offset..offset + length], bytes);
                let mut back = vec![0; length];
                buffer.read(offset, &mut back).unwrap();
                assert_eq!(back, bytes);
            }
        }
    }

    #[test]
    fn bounds_and_alignment() {
        let buffer = DmaBuffer::new(100, Contiguity::Pages).unwrap();
        assert!(buffer.read(99, &mut [0; 2]).is_err() && buffer.write(usize::MAX, &[0; 2]).is_err());
        assert!(buffer.read(100, &mut []).is_ok() && buffer.fill(1, 100, 0).is_err());
        assert!(buffer.load_u32(96).is_ok() && buffer.load_u32(97).is_err() && buffer.load_u64(96).is_err());
        buffer.store_u64(8, 0x0102_0304_0506_0708).unwrap();
        assert_eq!(buffer.load_u16(8).unwrap().to_ne_bytes(), buffer.load_u64(8).unwrap().to_ne_bytes()[..2]);
        assert!(DmaBuffer::new(0, Contiguity::Best).is_err());
        assert_eq!(DmaBuffer::new(usize::MAX, Contiguity::Best).unwrap_err().errno(), Errno::ENOMEM);
    }

    #[test]
    fn huge_pages_are_told_only_when_they_are() {
        let buffer = DmaBuffer::new(5 << 20, Contiguity::Best).unwrap();
        if buffer.pages() == PageKind::TransparentHuge {
            assert_eq!(buffer.address() % HUGE, 0);
            assert_eq!(buffer.mapped_length(), 6 << 20);
        }
        match DmaBuffer::new(3 << 20, Contiguity::Huge) {
            Ok(buffer) => assert_ne!(buffer.pages(), PageKind::Base),
            Err(error) => assert!(error.remedy().is_some()),
        }
    }
}
