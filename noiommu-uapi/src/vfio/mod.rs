//! The calls of VFIO, by the file that answers them.
//!
//! Structures begin with `argsz`, the bytes that the caller has there; a call needs those up to a certain field (EINVAL for
//! less) and, where it tells more than fits, answers the bytes it would have taken in `argsz`. More of it may be a chain of
//! capabilities behind the structure: [`VfioInfoCapHeader`].

pub mod container;
pub mod device;
pub mod feature;
pub mod gfx;
pub mod group;
pub mod pci;
pub mod spapr;

use crate::layout::structures;

structures! {
    /// What each capability behind an info structure begins with.
    struct VfioInfoCapHeader = vfio_info_cap_header, 8 {
        /// Which capability; the numbers belong to the call.
        0 => id: u16,
        /// The version of what follows.
        2 => version: u16,
        /// Where the next one is, from the start of the info structure; 0 after the last.
        4 => next: u32,
    }
}
