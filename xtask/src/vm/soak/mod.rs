//! Soak tests: what must not happen at all, tried for as long as one likes. Each has a control, a run in which it has to happen,
//! since a test that cannot fail shows nothing.

mod guardian;
mod shares;
mod storms;

pub(crate) use self::guardian::{Guardian, guardian};
pub(crate) use self::storms::{Storms, storms};
