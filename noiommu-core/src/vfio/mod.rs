//! The rules of VFIO devices, as bytes in, bytes out and error numbers.

mod argument;
pub mod pci;
