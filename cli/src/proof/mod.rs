//! `noiommu proof pins`: do pages stay where a device was told they are?
//!
//! Three classes of the same 4 KiB pages lie side by side: plain ones, mlocked ones and pinned ones. Memory is
//! fragmented around them and the kernel is asked to tidy up, several times. After each time the physical frames
//! are read back. Plain and mlocked pages move; a pinned page that moves would break the whole library.

mod budget;
mod command;
mod engine_pinner;
mod error;
mod frames;
mod pinner;
mod pool;
mod recipes;
mod render;
mod rounds;
mod tally;
mod zones;

pub(crate) use command::Command;
pub(crate) use engine_pinner::EnginePinner;
pub(crate) use error::Error;
pub(crate) use pinner::Pinner;
pub(crate) use rounds::run;
