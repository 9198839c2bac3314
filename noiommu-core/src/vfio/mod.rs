//! The rules of VFIO devices, as bytes in, bytes out and error numbers.

mod argument;
pub mod binding;
pub mod config;
pub mod group;
pub mod pci;
