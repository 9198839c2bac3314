//! The driver against the simulated controller.

mod common;
mod hostile;
mod transfers;
mod trouble;
