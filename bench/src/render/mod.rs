//! What a run looks like.

mod json;
mod table;
mod values;

pub use json::json;
pub use table::{Look, lines, list, verdict};
pub use values::value;
