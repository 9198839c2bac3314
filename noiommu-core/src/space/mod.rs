//! The IOVA space of an IOAS: which IOVAs are in use, and where a new mapping goes.

mod gap;
mod node;
mod placement;
#[cfg(test)]
mod tests;
mod tree;

pub use gap::Fit;
pub use placement::{AllowedRanges, Placement, automatic_iova};
pub use tree::{Area, IovaSpace};
