//! The rules of VFIO devices, as bytes in, bytes out and error numbers.

pub mod config;
pub mod group;
