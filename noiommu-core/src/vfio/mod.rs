//! The rules of VFIO devices, as bytes in, bytes out and error numbers.

pub mod binding;
pub mod group;
pub mod pci;
