//! Virtio devices in software: drivers and programs are tested against them in plain `cargo test`, without hardware, without root.
//!
//! A [`Virtio`] is a [`Model`](noiommu::sim::Model) of the kit's simulated devices, of version 1, and of a [`Kind`]: a [`Disk`] in memory
//! or a [`Card`] on a wire that the test holds. It can also be told to do what none may do: see [`Fault`] and [`Lie`].

mod card;
mod disk;
mod fault;
mod model;
mod queue;

pub use self::card::Card;
pub use self::disk::Disk;
pub use self::fault::{Fault, Lie};
pub use self::model::{Kind, Virtio};
pub use self::queue::Chain;
