//! Mapping and unmapping, beside the kernel calls that they cannot do without.

mod bare;
mod map;
mod memory;

use crate::suite::Group;

/// Mapping and unmapping real memory.
pub(crate) const MAP: Group = Group {
    name: "map",
    what: "Mapping memory, beside the same kernel calls made bare",
    subjects: map::subjects,
    run: map::run,
};
