//! What the engine costs: each figure is a ratio to something measured in the same run, and has a mark to keep.
//!
//! [`measure`] compares things in turn and says how noisy that was, [`row`] is one figure with its mark, [`suite`] knows all
//! figures, [`render`] shows them. Each group of figures is a module of its own.

pub mod areas;
mod arena;
pub mod kernel_calls;
pub mod lookup;
pub mod measure;
pub mod random;
pub mod render;
pub mod row;
pub mod suite;
mod table_memory;

pub use measure::{Ratio, Rounds, black_box, compare, nanoseconds_each, try_compare, try_compare_several};
pub use row::{Mark, Part, Row, Subject, Unit};
pub use suite::{GROUPS, Group, Progress, Settings};
