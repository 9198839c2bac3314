//! Registers of simulated devices, mapped: there is no memory behind them that a model could look at, so every access has to
//! fault, and whoever serves the program's faults carries it out.
//!
//! The mapping is one of an empty file, at the offset that the device's file has it: what its protection allows is SIGBUS, what it
//! forbids SIGSEGV, as with registers that are not there for the moment, however the program changes, splits or moves it.

use std::fs;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use noiommu_core::Errno;
use rustix::fs::MemfdFlags;

use super::devices::map_file;
use super::file::MmapRequest;

static SERVED: AtomicBool = AtomicBool::new(false);

/// Tells that from now on every SIGBUS of the program in a mapping of a served file is handed to
/// [`FileOperations::touch`](super::FileOperations::touch). Until then simulated registers cannot be mapped.
pub fn serve_touches() {
    SERVED.store(true, Ordering::Release);
}

/// Whether [`serve_touches`] has been called.
#[must_use]
pub fn touches_are_served() -> bool {
    SERVED.load(Ordering::Acquire)
}

/// The name of the empty file in /proc/self/maps.
const NAME: &str = "noiommu-registers";

/// Mappings of registers that are not there.
#[derive(Default)]
pub(super) struct Phantoms {
    empty: Option<OwnedFd>,
    known: Vec<Phantom>,
}

#[derive(Clone)]
struct Phantom {
    addresses: Range<u64>,
    /// In the device's file.
    offset: u64,
}

impl Phantoms {
    /// Maps nothing in the place of registers; answers the address.
    ///
    /// # Errors
    /// Those of `mmap`.
    ///
    /// # Safety
    /// That of `mmap`: with MAP_FIXED it replaces what is there.
    pub(super) unsafe fn map(&mut self, request: MmapRequest) -> Result<u64, Errno> {
        let empty = match &self.empty {
            Some(empty) => empty,
            None => {
                let made = rustix::fs::memfd_create(NAME, MemfdFlags::CLOEXEC);
                let made =
                    made.map_err(|error| Errno::from_raw(error.raw_os_error()).unwrap_or(Errno::ENOMEM))?;
                self.empty.insert(made)
            }
        };
        // SAFETY: the caller's own promise.
        let start = unsafe { map_file(empty, request.offset, request) }?;
        let addresses = start..start.saturating_add(request.length.next_multiple_of(4096));
        self.note(Phantom { addresses, offset: request.offset });
        Ok(start)
    }

    fn note(&mut self, new: Phantom) {
        let Range { start, end } = new.addresses;
        self.known.retain(|old| old.addresses.end <= start || old.addresses.start >= end);
        self.known.push(new);
    }

    /// The offset in the device's file that `address`, in one of its mappings, stands for.
    pub(super) fn offset(&mut self, address: u64) -> Option<u64> {
        let found = match self.known.iter().find(|phantom| phantom.addresses.contains(&address)) {
            Some(known) => known.clone(),
            // It was moved.
            None => {
                let maps = fs::read_to_string("/proc/self/maps").ok()?;
                let found =
                    maps.lines().filter_map(parse).find(|phantom| phantom.addresses.contains(&address))?;
                self.note(found.clone());
                found
            }
        };
        Some(found.offset + (address - found.addresses.start))
    }
}

/// `start-end perms offset dev inode   path`
fn parse(line: &str) -> Option<Phantom> {
    let number = |text| u64::from_str_radix(text, 16).ok();
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let offset = number(fields.nth(1)?)?;
    let ours = fields.nth(2)?.strip_prefix("/memfd:")? == NAME;
    ours.then_some(Phantom { addresses: number(start)?..number(end)?, offset })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_follow_the_mapping() {
        let mut phantoms = Phantoms::default();
        let request = MmapRequest {
            address: 0,
            length: 0x3000,
            protection: libc::PROT_READ,
            flags: libc::MAP_SHARED,
            offset: 3 << 40 | 0x5000,
        };
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe { phantoms.map(request) }.unwrap();
        assert_eq!(phantoms.offset(start + 0x2004), Some(3 << 40 | 0x7004));
        assert_eq!(phantoms.offset(start + 0x3000), None);
        // Moved, in part.
        // SAFETY: the mapping made above, which nobody touches.
        let moved = unsafe {
            libc::mremap(
                (start + 0x1000) as *mut _,
                0x1000,
                0x1000,
                libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP,
            )
        };
        let moved = if moved == libc::MAP_FAILED {
            // SAFETY: as above; older kernels do not leave the old one.
            unsafe { libc::mremap((start + 0x1000) as *mut _, 0x1000, 0x2000, libc::MREMAP_MAYMOVE) }
        } else {
            moved
        } as u64;
        assert_ne!(moved, u64::MAX);
        assert_eq!(phantoms.offset(moved + 8), Some(3 << 40 | 0x6008));
        assert_eq!(phantoms.offset(start), Some(3 << 40 | 0x5000));
        for (at, length) in [(start, 0x3000), (moved, 0x1000)] {
            // SAFETY: mapped above, or nothing.
            unsafe { libc::munmap(at as *mut _, length) };
        }
        assert!(parse("7f00-7f10 rw-s 0 00:01 5  /memfd:other (deleted)").is_none());
        assert!(parse("7f00-7f10 rw-p 0 00:00 0").is_none());
    }
}
