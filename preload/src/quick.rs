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

use crate::thread::{Thread, here};
use crate::{copy, gate};

/// The size and no flags, as a word. (Both architectures put the first field lowest.)
const PLAIN: u64 = size_of::<IommuIoasNoiommuGetPa>() as u64;

/// Answers the call with its structure at `argument`, if it is an ordinary one. `false`: nothing has happened.
#[inline]
pub(crate) fn get_pa(file: &File, argument: usize) -> bool {
    gate::quickly(may_be_quick, || {
        // SAFETY: `may_be_quick` has asked whether faults arrive.
        let Some([plain, ioas, iova, length, _]) = (unsafe { copy::read_words(argument) }) else {
            return false;
        };
        // The reserved field is in the upper half.
        let Ok(id) = u32::try_from(ioas) else { return false };
        if plain != PLAIN {
            return false;
        }
        let Some((address, length)) = file.get_pa(id, iova, length) else { return false };
        // SAFETY: as above; and the place is the one that the program gave to be written to.
        let answered = unsafe { copy::write_words(argument, [plain, ioas, iova, length, address]) };
        if answered {
            here(Thread::count_answer);
        }
        answered
    })
    .unwrap_or(false)
}

/// What a thread asks of the kernel.
fn may_be_quick() -> bool {
    let privileged =
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RAWIO));
    copy::faults_arrive() && privileged()
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn the_structure_is_these_words() {
        type Call = IommuIoasNoiommuGetPa;
        assert_eq!(size_of::<Call>(), 40);
        let offsets = [
            offset_of!(Call, size),
            offset_of!(Call, ioas_id),
            offset_of!(Call, iova),
            offset_of!(Call, length),
            offset_of!(Call, out_phys),
        ];
        assert_eq!(offsets, [0, 8, 16, 24, 32]);
        assert_eq!((offset_of!(Call, flags), offset_of!(Call, __reserved)), (4, 12));
        assert_eq!(PLAIN.to_ne_bytes(), [40, 0, 0, 0, 0, 0, 0, 0]);
    }
}
