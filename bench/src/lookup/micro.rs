//! The same lookups for a micro-benchmark, which times by itself.

use noiommu::{DmaView, Error, Ioas};

use super::baseline::ThreeLevels;
use super::space::{Plan, Space};
use super::{dependent, independent, places, plans, three_levels};

/// Places of a look at all of them.
const PLACES: usize = 1 << 12;

/// Memory that is mapped, and random places in it.
pub struct Micro {
    space: Space,
    view: DmaView,
    baseline: ThreeLevels,
    iovas: Vec<u64>,
    offsets: Vec<u64>,
}

/// Who is asked, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The IOAS, place after place.
    Ioas,
    /// The IOAS, each place known by the answer before.
    IoasDependent,
    /// The view that a device has of the mapping.
    View,
    /// A plain table of three levels, place after place.
    Baseline,
    /// The same, each place known by the answer before.
    BaselineDependent,
}

impl Micro {
    /// All kinds of memory that there are: the size of their pieces, and how much there is of it.
    pub const KINDS: [&'static str; 3] = ["2m/1g", "4k/64m", "mixed/1g"];

    /// Ways to ask, with their names.
    pub const WAYS: [(&'static str, Way); 5] = [
        ("ioas", Way::Ioas),
        ("ioas/dependent", Way::IoasDependent),
        ("view", Way::View),
        ("baseline", Way::Baseline),
        ("baseline/dependent", Way::BaselineDependent),
    ];

    /// Lookups of one [`Micro::look`].
    pub const LOOKUPS: usize = PLACES;

    /// Memory of a kind; one that is not known is taken for the last.
    ///
    /// # Errors
    /// Want of memory for the tables.
    pub fn new(kind: &str) -> Result<Self, Error> {
        let plan: Plan = match kind {
            "2m/1g" => plans::scattered(512, 1 << 21),
            "4k/64m" => plans::scattered(1 << 14, 4096),
            _ => plans::mixed(1 << 30),
        };
        let space = Space::new(plan)?;
        let (view, baseline) = (space.view()?, three_levels(&space));
        let (iovas, offsets) =
            (places(space.first(), space.bytes(), PLACES), places(0, space.bytes(), PLACES));
        Ok(Self { space, view, baseline, iovas, offsets })
    }

    /// Looks all places up; the last answer. `None`: a hole, and there is none.
    #[must_use]
    pub fn look(&self, way: Way) -> Option<u64> {
        match way {
            Way::Ioas => independent::<0, Ioas>(&self.space.ioas, &self.iovas),
            Way::IoasDependent => dependent::<0, Ioas>(&self.space.ioas, &self.iovas),
            Way::View => independent::<0, DmaView>(&self.view, &self.offsets),
            Way::Baseline => independent::<0, ThreeLevels>(&self.baseline, &self.iovas),
            Way::BaselineDependent => dependent::<0, ThreeLevels>(&self.baseline, &self.iovas),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_find_the_same() {
        for kind in Micro::KINDS {
            let micro = Micro::new(kind).unwrap();
            let answers = Micro::WAYS.map(|(_, way)| micro.look(way).unwrap());
            // The offsets of a view are other places, by the same chance.
            assert!(answers.iter().all(|answer| *answer > 1 << 30), "{kind}: {answers:x?}");
            assert_eq!(answers[0], answers[3]);
            assert_eq!(answers[1], answers[4]);
        }
    }
}
