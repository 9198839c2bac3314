//! Mapping and unmapping, beside the kernel calls that they cannot do without.

pub mod bare;
pub mod first;
mod map;
pub mod memory;
mod one;

use crate::suite::Group;

/// Mapping and unmapping real memory.
pub(crate) const MAP: Group = Group {
    name: "map",
    what: "Mapping memory, beside the same kernel calls made bare",
    subjects: || map::subjects().into_iter().chain(one::subjects()).collect(),
    run: |settings, sink| {
        map::run(settings, sink);
        one::run(settings, sink);
    },
};

/// From nothing to an address.
pub(crate) const FIRST: Group = Group {
    name: "first",
    what: "The first address of a process",
    subjects: || vec![first::FIRST_ADDRESS],
    run: first::run,
};
