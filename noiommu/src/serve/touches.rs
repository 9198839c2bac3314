//! Registers of simulated devices, mapped: there is no memory behind them that a model could look at, so every access has to
//! fault, and whoever serves the program's faults carries it out.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use noiommu_core::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};

use super::file::{MmapRequest, Touch};

static SERVED: AtomicBool = AtomicBool::new(false);

/// Tells that from now on every access of the program that faults in a mapping of a served file is handed to
/// [`FileOperations::touch`](super::FileOperations::touch). Until then simulated registers cannot be mapped.
pub fn serve_touches() {
    SERVED.store(true, Ordering::Release);
}

/// Whether [`serve_touches`] has been called.
#[must_use]
pub fn touches_are_served() -> bool {
    SERVED.load(Ordering::Acquire)
}

/// Mappings of registers that are not there.
#[derive(Default)]
pub(super) struct Phantoms(Vec<Phantom>);

struct Phantom {
    addresses: Range<u64>,
    bar: u8,
    /// In the BAR.
    offset: u64,
    /// PROT_ flags, as the program asked for them.
    protection: i32,
}

impl Phantoms {
    /// Maps nothing in the place of registers; answers the address.
    ///
    /// # Errors
    /// Those of `mmap`.
    ///
    /// # Safety
    /// That of `mmap`: with MAP_FIXED it replaces what is there.
    pub(super) unsafe fn map(&mut self, bar: u8, offset: u64, request: MmapRequest) -> Result<u64, Errno> {
        const PAGE: u64 = 4096;
        // What places the mapping; a mapping of registers is neither filled nor locked.
        let kept = libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE | libc::MAP_32BIT;
        let flags = request.flags & kept | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let length = usize::try_from(request.length).map_err(|_| Errno::ENOMEM)?;
        // SAFETY: the caller's own promise.
        let address = unsafe {
            mm::mmap_anonymous(
                request.address as *mut _,
                length,
                ProtFlags::empty(),
                MapFlags::from_bits_retain(flags.cast_unsigned()),
            )
        };
        let start =
            address.map_err(|error| Errno::from_raw(error.raw_os_error()).unwrap_or(Errno::ENOMEM))? as u64;
        let addresses = start..start.saturating_add(request.length.next_multiple_of(PAGE));
        self.0.retain(|old| old.addresses.end <= addresses.start || old.addresses.start >= addresses.end);
        self.0.push(Phantom { addresses, bar, offset, protection: request.protection });
        Ok(start)
    }

    /// Which register an access is meant for; `None` where the mapping does not allow it.
    pub(super) fn find(&self, touch: Touch) -> Option<(u8, u64)> {
        let phantom = self.0.iter().find(|phantom| phantom.addresses.contains(&touch.address))?;
        // On the processors that this is for, what can be written or executed can be read.
        let allowed = match touch.value {
            Some(_) => phantom.protection & libc::PROT_WRITE,
            None => phantom.protection,
        };
        (allowed != 0).then(|| (phantom.bar, phantom.offset + (touch.address - phantom.addresses.start)))
    }
}
