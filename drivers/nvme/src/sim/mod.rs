//! A controller in software: drivers and programs are tested against it in plain `cargo test`, without hardware, without root.
//!
//! It is a [`Model`](noiommu::sim::Model) of the kit's simulated devices, with one namespace in memory, and does what the *NVM
//! Express Base Specification 1.4* says. It can also be told to do what none may do: see [`Fault`].

mod admin;
mod controller;
mod data;
mod fault;
mod queues;

pub use self::controller::Controller;
pub use self::fault::Fault;
