//! How the cost of a mapping grows with what is mapped already.

use std::ptr::NonNull;

use noiommu::{Context, Ioas, Mapping, PhysAddr};

use crate::measure::{nanoseconds_each, try_compare};
use crate::random::Random;
use crate::row::{Mark, Row, Subject, Unit};
use crate::suite::{Group, Settings};

const PAGE: usize = 4096;
const FEW: usize = 1000;
const MANY: usize = 1_000_000;
/// Mappings made and unmade in a round.
const COUNT: usize = 2000;

const ONE_MORE: Subject = Subject::marked(
    "areas/1m/one-more",
    "Map one page more and unmap it, with 1,000,000 areas present: against the same with 1,000 (simulated frames).",
    Unit::Ratio,
    Mark::AtMost(2.0),
);

const ANY: Subject = Subject::told(
    "areas/1m/any",
    "Unmap any one of them and map it anew, so that nothing of it is in the caches with 1,000,000: against the same with 1,000.",
    Unit::Ratio,
);

/// Mapping with many areas present.
pub(crate) const AREAS: Group = Group {
    name: "areas",
    what: "Mapping with a million areas present",
    subjects: || vec![ONE_MORE, ANY],
    run,
};

/// An IOAS with areas of a page each.
#[derive(Debug)]
pub struct Space {
    ioas: Ioas,
    areas: Vec<Mapping>,
    random: Random,
}

impl Space {
    /// So many areas, one behind the other.
    ///
    /// # Errors
    /// Want of memory.
    pub fn new(areas: usize) -> noiommu::Result<Self> {
        // Nothing looks at the memory, so none is needed: pages have places, in no order.
        let context = Context::with_frames(|address, length| {
            let page = (address / PAGE) as u64;
            vec![(PhysAddr((page.wrapping_mul(0x9e37_79b9) & 0xff_ffff_ffff) << 12), length as u64)]
        });
        let ioas = context.ioas()?;
        let areas = (0..areas).map(|page| map(&ioas, page)).collect::<noiommu::Result<_>>()?;
        Ok(Self { ioas, areas, random: Random::new(1) })
    }

    /// Maps one more and unmaps it.
    ///
    /// # Errors
    /// Want of memory.
    pub fn one_more(&mut self) -> noiommu::Result<()> {
        map(&self.ioas, self.areas.len()).map(drop)
    }

    /// Unmaps any one and maps it anew.
    ///
    /// # Errors
    /// Want of memory.
    pub fn any(&mut self) -> noiommu::Result<()> {
        let page = self.random.below(self.areas.len() as u64) as usize;
        // The last one takes its place, so one is unmapped before another is mapped.
        drop(self.areas.swap_remove(page));
        self.areas.push(map(&self.ioas, page)?);
        Ok(())
    }
}

/// Maps page `page` of memory that is not there.
fn map(ioas: &Ioas, page: usize) -> noiommu::Result<Mapping> {
    let start =
        NonNull::new(((page + 1) * PAGE) as *mut u8).ok_or_else(|| noiommu::Error::bad_argument("page 0"))?;
    // SAFETY: nothing looks at the memory behind an address of such a context.
    unsafe { ioas.map_borrowed(start, PAGE) }
}

fn run(settings: &Settings, sink: &mut dyn FnMut(Row)) {
    if let Err(error) = measure(settings, sink) {
        [ONE_MORE, ANY].iter().for_each(|subject| sink(subject.not_measured(error.to_string())));
    }
}

fn measure(settings: &Settings, sink: &mut dyn FnMut(Row)) -> noiommu::Result<()> {
    let (mut few, mut many) = (Space::new(FEW)?, Space::new(MANY)?);
    let rounds = settings.choose(20, 100);
    type Work = fn(&mut Space) -> noiommu::Result<()>;
    let each = |space: &mut Space, work: Work| {
        let mut done = Ok(());
        let each = nanoseconds_each(COUNT, || done = (0..COUNT).try_for_each(|_| work(space)));
        done.map(|()| each)
    };
    for (subject, work) in [(ONE_MORE, Space::one_more as Work), (ANY, Space::any)] {
        if settings.wants(&subject.name) {
            let compared =
                try_compare(rounds, &mut [&mut || each(&mut many, work), &mut || each(&mut few, work)])?;
            let row = subject.ratio(compared.ratio(0, 1));
            sink(row.part("with 1,000,000", compared.median(0)).part("with 1,000", compared.median(1)));
        }
    }
    Ok(())
}
