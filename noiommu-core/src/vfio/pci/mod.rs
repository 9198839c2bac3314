//! A device as the kernel's vfio-pci driver presents it: what programs are told, what they may change, what is hidden.

mod neighbours;

pub use neighbours::{Address, Bound, Neighbours};
