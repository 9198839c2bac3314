//! Which parts of this process's memory huge pages map: the kernel's PAGEMAP_SCAN (Linux 6.7).
//!
//! Interface: the kernel's *Documentation/admin-guide/mm/pagemap.rst*.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::mm::{self, MsyncFlags};

use super::pagemap::HUGE;

/// PAGEMAP_SCAN's argument (struct pm_scan_arg, Linux 6.7).
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ScanRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;
/// PAGE_IS_HUGE: mapped by a PMD or larger.
const PAGE_IS_HUGE: u64 = 1 << 6;

/// The other categories that are asked for here.
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_ZERO_PAGE: u64 = 1 << 5;

/// Regions told by a call.
const REGIONS: usize = 64;

/// How much is gone through without a look at whether it is mapped at all.
const SHORT: usize = 32 * HUGE;

/// Whether all of `first..last` is mapped, or it is short. The kernel's own pin ends at the first hole, however far the range goes on;
/// nobody shall wait for a search through millions of millions of bytes that are nothing.
pub(super) fn is_worth_it(first: usize, last: usize) -> bool {
    let length = last.saturating_sub(first);
    if length <= SHORT {
        return true;
    }
    // Of all that asks the kernel about a range this has no effect (since Linux 2.6.19), and goes from mapping to mapping.
    // SAFETY: nothing is read, written or changed.
    unsafe { mm::msync(first as *mut _, length, MsyncFlags::ASYNC) }.is_ok()
}

/// The parts of `first..last`, multiples of [`HUGE`], that huge pages map, in order; `None` where the kernel cannot tell.
///
/// A look at one page tells of the 2 MiB around it: going through the entries of memory that is not huge takes the kernel about a
/// twentieth of what pinning it does. In exchange a hole between mappings may pass for huge, so this is for what does not have to be
/// right: see [`all_huge`].
pub(super) fn find_huge(file: &File, first: usize, last: usize) -> Option<Vec<(usize, usize)>> {
    let mut found = Vec::new();
    let mut at = first;
    while at < last {
        if first_page(file, at, at + HUGE / 512, true)?.is_none() {
            at += HUGE;
            continue;
        }
        let end = first_page(file, at, last, false)?.map_or(last, |(start, _)| start / HUGE * HUGE);
        // It may have changed between the calls.
        let end = end.max(at + HUGE);
        found.push((at, end));
        at = end;
    }
    Some(found)
}

/// The parts of `first..last` that huge pages map, in order, each page looked at; `None` where the kernel cannot tell.
pub(super) fn all_huge(file: &File, first: usize, last: usize) -> Option<Vec<(usize, usize)>> {
    let mut found = Vec::new();
    let mut regions = [ScanRegion::default(); REGIONS];
    let mut start = first;
    while start < last {
        let (count, walk_end) = scan(file, start, last, true, &mut regions)?;
        found.extend(regions.iter().take(count).map(|region| (region.start as usize, region.end as usize)));
        if walk_end <= start {
            break;
        }
        start = walk_end;
    }
    Some(found)
}

/// What pages are, as far as a picture of them goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Content {
    /// In memory, mapped by pages or by huge pages.
    Present { huge: bool },
    /// Read, but never written: all such pages are one.
    Zero,
    /// In swap space, or on the way to another place.
    Swapped,
}

/// Hands the parts of `first..last` that are not empty to `sink`, in order; `None` where the kernel cannot tell, which it says before
/// the first.
///
/// # Errors
/// Those of `sink`.
pub(crate) fn contents<E>(
    file: &File,
    first: usize,
    last: usize,
    sink: &mut dyn FnMut(usize, usize, Content) -> Result<(), E>,
) -> Option<Result<(), E>> {
    let mut regions = [ScanRegion::default(); REGIONS];
    let mut start = first;
    while start < last {
        let argument = ScanArgument {
            size: size_of::<ScanArgument>() as u64,
            start: start as u64,
            end: last as u64,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_ZERO_PAGE | PAGE_IS_HUGE,
            ..ScanArgument::default()
        };
        let (count, walk_end) = call(file, argument)?;
        for region in regions.iter().take(count) {
            let content = match region.categories {
                it if it & PAGE_IS_PRESENT == 0 => Content::Swapped,
                it if it & PAGE_IS_ZERO_PAGE != 0 => Content::Zero,
                it => Content::Present { huge: it & PAGE_IS_HUGE != 0 },
            };
            if let Err(error) = sink(region.start as usize, region.end as usize, content) {
                return Some(Err(error));
            }
        }
        if walk_end <= start {
            break;
        }
        start = walk_end;
    }
    Some(Ok(()))
}

/// The first page or huge page in `first..last` that huge pages map, or the first that they do not.
fn first_page(file: &File, first: usize, last: usize, huge: bool) -> Option<Option<(usize, usize)>> {
    let mut region = [ScanRegion::default()];
    let (count, _) = scan(file, first, last, huge, &mut region)?;
    let [ScanRegion { start, end, .. }] = region;
    Some((count > 0).then_some((start as usize, end as usize)))
}

/// Has the kernel tell the parts of `first..last` that huge pages map, or that they do not, until `regions` are full. Answers how many
/// it told, and up to where it has looked.
fn scan(
    file: &File,
    first: usize,
    last: usize,
    huge: bool,
    regions: &mut [ScanRegion],
) -> Option<(usize, usize)> {
    let argument = ScanArgument {
        size: size_of::<ScanArgument>() as u64,
        start: first as u64,
        end: last as u64,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        category_inverted: if huge { 0 } else { PAGE_IS_HUGE },
        category_mask: PAGE_IS_HUGE,
        return_mask: PAGE_IS_HUGE,
        // One page answers a question that has room for one.
        max_pages: if regions.len() == 1 { 1 } else { 0 },
        ..ScanArgument::default()
    };
    call(file, argument)
}

/// The call. Its `vec` is memory of the caller's that lives through it.
fn call(file: &File, mut argument: ScanArgument) -> Option<(usize, usize)> {
    // SAFETY: the argument and the vector it names live through the call, which writes at most `vec_len` regions.
    let count = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
    Some((usize::try_from(count).ok()?, argument.walk_end as usize))
}

const _: () = assert!(size_of::<ScanArgument>() == 0x60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Contiguity, DmaBuffer};

    fn pagemap() -> File {
        File::open("/proc/self/pagemap").unwrap()
    }

    #[test]
    fn what_has_holes_is_not_gone_through() {
        let buffer = DmaBuffer::new(4 * SHORT, Contiguity::Pages).unwrap();
        let (first, last) = (buffer.address(), buffer.address() + 4 * SHORT);
        assert!(is_worth_it(first, last) && is_worth_it(first, first));
        // The first page of the address space is nobody's, nor is what lies above all.
        assert!(!is_worth_it(first, 1 << 62) && !is_worth_it(0, 2 * SHORT));
        assert!(is_worth_it(0, SHORT), "short enough to be gone through");
    }

    /// Memory in which huge pages and others take turns: both ways of looking see the same.
    #[test]
    fn both_ways_agree() {
        let file = pagemap();
        let pages = DmaBuffer::new(4 * HUGE, Contiguity::Pages).unwrap();
        let first = pages.address().next_multiple_of(HUGE);
        let Some(all) = all_huge(&file, first, first + 2 * HUGE) else {
            eprintln!("not run: no PAGEMAP_SCAN in this kernel");
            return;
        };
        assert_eq!(find_huge(&file, first, first + 2 * HUGE), Some(all));
        let huge = DmaBuffer::new(8 * HUGE, Contiguity::Best).unwrap();
        let first = huge.address();
        // The third and the last are split: mapped by pages from here on.
        for split in [2, 7] {
            // SAFETY: a part of the buffer that nobody has a reference to loses and regains its right to be written.
            unsafe {
                let page = (first + split * HUGE) as *mut libc::c_void;
                assert_eq!(libc::mprotect(page, 4096, libc::PROT_READ), 0);
                assert_eq!(libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_WRITE), 0);
            }
        }
        let all = all_huge(&file, first, first + 8 * HUGE).unwrap();
        let ends = |parts: &[(usize, usize)]| {
            let mut joined: Vec<(usize, usize)> = Vec::new();
            for &(start, end) in parts {
                match joined.last_mut() {
                    Some(before) if before.1 == start => before.1 = end,
                    _ => joined.push((start, end)),
                }
            }
            joined
        };
        assert_eq!(find_huge(&file, first, first + 8 * HUGE).unwrap(), ends(&all));
        if huge.pages() == crate::PageKind::TransparentHuge {
            assert_eq!(
                ends(&all),
                [(first, first + 2 * HUGE), (first + 3 * HUGE, first + 7 * HUGE)],
                "of the rest nothing was split"
            );
        } else {
            eprintln!("no huge pages on this machine now");
        }
    }
}
