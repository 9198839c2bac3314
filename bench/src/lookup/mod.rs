//! Lookups: addresses from an IOAS and from a mapping's view, and runs, beside plain tables.
//!
//! Every answer is compared with the baseline's before anything is timed.

mod address;
mod baseline;
mod code;
mod layout;
mod micro;
mod plans;
mod run;
mod space;
mod threads;
mod view;

pub use address::GROUP as ADDRESS;
pub use micro::{Micro, Way};
pub use run::GROUP as RUN;
pub use threads::GROUP as THREADS;
pub use view::GROUP as VIEW;

use noiommu::{DmaView, Ioas, Iova};

use self::baseline::{ThreeLevels, TwoLevels};
use self::space::Space;
use crate::random::Random;

/// What knows addresses of IOVAs, or of offsets in a view.
trait Lookup {
    fn address(&self, at: u64) -> Option<u64>;
}

impl Lookup for Ioas {
    #[inline(always)]
    fn address(&self, at: u64) -> Option<u64> {
        Ioas::address(self, Iova(at)).map(|address| address.0)
    }
}

impl Lookup for DmaView {
    #[inline(always)]
    fn address(&self, at: u64) -> Option<u64> {
        DmaView::address(self, at).map(noiommu::DmaAddr::bits)
    }
}

impl Lookup for TwoLevels {
    #[inline(always)]
    fn address(&self, at: u64) -> Option<u64> {
        TwoLevels::address(self, at)
    }
}

impl Lookup for ThreeLevels {
    #[inline(always)]
    fn address(&self, at: u64) -> Option<u64> {
        ThreeLevels::address(self, at)
    }
}

/// Places to look up, by chance: `count` of them in `bytes` from `first` on.
fn places(first: u64, bytes: u64, count: usize) -> Vec<u64> {
    let mut chance = Random::new(bytes);
    (0..count).map(|_| first + chance.below(bytes)).collect()
}

/// Looks up place after place, none waiting for the one before. Ends at a hole, as a driver would.
#[inline(never)]
fn independent<const PLACE: usize, L: Lookup>(of: &L, places: &[u64]) -> Option<u64> {
    layout::place::<PLACE>();
    let mut last = 0;
    macro_rules! look {
        // The address is used, as far as the compiler knows.
        ($($at:ident)*) => {$( last = layout::opaque(of.address(layout::opaque($at))?); )*};
    }
    // Several in a turn of the loop, so that it is lookups that are timed and not the loop.
    let (eights, rest) = places.as_chunks::<8>();
    for &[a, b, c, d, e, f, g, h] in eights {
        look!(a b c d e f g h);
    }
    for &at in rest {
        look!(at);
    }
    Some(last)
}

/// Looks up place after place, each of which is known only with the answer before: `nothing` is 0, which nobody knows.
#[inline(never)]
fn dependent<const PLACE: usize, L: Lookup>(of: &L, places: &[u64]) -> Option<u64> {
    layout::place::<PLACE>();
    let nothing = layout::opaque(0);
    let mut last = 0;
    for &at in places {
        last = of.address(at ^ (last & nothing))?;
    }
    Some(last)
}

/// A table of two levels with what a space has, which is made of pieces of 2 MiB.
fn two_levels(space: &Space) -> TwoLevels {
    let mut table = TwoLevels::new(space.first() + space.bytes());
    for (iova, address, bytes) in space.pieces() {
        for done in (0..bytes).step_by(1 << 21) {
            table.map(iova + done, address + done);
        }
    }
    table
}

/// A table of three levels with what a space has.
fn three_levels(space: &Space) -> ThreeLevels {
    let mut table = ThreeLevels::new(space.first() + space.bytes());
    for (iova, address, bytes) in space.pieces() {
        table.map(iova, address, bytes);
    }
    table
}

/// Whether two agree on all places, and know them.
fn agree(one: &impl Lookup, other: &impl Lookup, places: &[u64]) -> Result<(), String> {
    match places.iter().find(|&&at| one.address(at).is_none() || one.address(at) != other.address(at)) {
        None => Ok(()),
        Some(&at) => Err(format!(
            "the engine has {:x?} at {at:#x}, the baseline {:x?}",
            one.address(at),
            other.address(at)
        )),
    }
}
