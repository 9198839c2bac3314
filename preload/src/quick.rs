//! The quick way: IOMMU_IOAS_NOIOMMU_GET_PA, which a driver may ask for every page, answered without a system call.
//!
//! It serves what succeeds, and nothing else: whatever is out of the ordinary (an error, a bad pointer, a lock that another thread has)
//! is left to the general way, which begins anew. Two things the general way asks the kernel in each call. Here a thread asks
//! once, and again after whatever may have changed the answer, which the hooks of such calls tell it (`hooks/signal.rs`,
//! `hooks/identity.rs`).
//!
//! * Whether SIGSEGV and SIGBUS arrive at this thread, so that a bad pointer is an answer (see `copy.rs`).
//! * Whether it has CAP_SYS_RAWIO.

use std::mem::size_of;

use noiommu::serve::File;
use noiommu_uapi::iommufd::IommuIoasNoiommuGetPa;
use rustix::thread::{CapabilitySet, capabilities};

use crate::{copy, gate};

/// Bytes of the call's structure.
const SIZE: usize = size_of::<IommuIoasNoiommuGetPa>();

/// Answers the call with its structure at `argument`, if it is an ordinary one. `false`: nothing has happened.
#[inline]
pub(crate) fn get_pa(file: &File, argument: usize) -> bool {
    gate::quickly(may_be_quick, || {
        let mut call = IommuIoasNoiommuGetPa {
            size: 0,
            flags: 0,
            ioas_id: 0,
            __reserved: 0,
            iova: 0,
            length: 0,
            out_phys: 0,
        };
        let place = (&raw mut call).cast::<u8>();
        // SAFETY: `call` takes that many bytes, all of which make numbers; a fault in reading is an answer.
        if !unsafe { copy::bytes(place, argument as *const u8, SIZE) } || !file.get_pa(&mut call) {
            return false;
        }
        // SAFETY: `call` has that many bytes; the place is the one that the program gave to be written to, and a fault is an answer.
        unsafe { copy::bytes(argument as *mut u8, place, SIZE) }
    })
    .unwrap_or(false)
}

/// What a thread asks of the kernel.
fn may_be_quick() -> bool {
    let privileged =
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RAWIO));
    copy::faults_arrive() && privileged()
}
