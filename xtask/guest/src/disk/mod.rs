//! A drive that two drivers have in turns: what is written to it, and how it is seen through the kernel's.

pub(crate) mod kernel;
pub(crate) mod pattern;
