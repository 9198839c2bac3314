//! The drivers against simulated devices: as they should be, in trouble, and hostile.

mod block;
mod common;
mod hostile;
mod net;
