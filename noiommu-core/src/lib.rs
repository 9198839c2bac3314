//! The engine of *noiommu*: DMA mappings for devices without an IOMMU, as Linux 7.3's iommufd keeps them.
#![no_std]
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::integer_division
)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic))]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod addr;
mod context;
mod errno;
mod ids;
mod ioas;
pub mod ioctl;
mod pages;
pub mod platform;
mod slab;
mod space;
mod sync;
pub mod table;
mod user;
mod vec;
pub mod vfio;

pub use addr::{Iova, IovaRange, PhysAddr};
pub use context::{Context, CopyRequest, MapRequest, ObjectId, ObjectKind, Totals, Usage};
pub use errno::Errno;
pub use ioas::Place;
pub use space::{AllowedRanges, Area, Fit, IovaSpace, Placement, automatic_iova};
pub use user::UserMemory;
pub use vec::TryVec;
