//! A run from start to end: take memory, set up the classes, make the kernel move pages, count, check the bytes.

use std::fs;
use std::time::{Duration, Instant};

use rustix::param::page_size;

use super::budget::pool_mib;
use super::frames::Pagemap;
use super::pool::{Layout, Pool};
use super::recipes::{Compactor, Recipe, can_collapse, collapse, drain_free_lists};
use super::tally::{Class, PerClass, Tally, Verdict, enough};
use super::{Error, Pinner};

/// What a run is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// How often memory is fragmented and tidied up.
    pub(crate) rounds: usize,
    /// Pages per class, or as many as there is room for.
    pub(crate) pages: Option<usize>,
    /// Size of the pool in MiB, or a safe default.
    pub(crate) pool_mib: Option<u64>,
    /// How pages are made to move.
    pub(crate) recipe: Recipe,
}

/// What is known before the first round.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// The running kernel's release.
    pub(crate) kernel: String,
    /// Its machine, like x86_64.
    pub(crate) machine: String,
    /// Size of the pool in MiB.
    pub(crate) pool_mib: u64,
    /// Bytes per page.
    pub(crate) page_size: usize,
    /// The memory zone that the pages lie in.
    pub(crate) zone: String,
    /// Pages per class.
    pub(crate) pages: usize,
    /// How many rounds there will be.
    pub(crate) rounds: usize,
    /// How pages are made to move.
    pub(crate) recipe: Recipe,
    /// How pages are pinned.
    pub(crate) pin: String,
    /// What a reader should know about this machine.
    pub(crate) notes: Vec<String>,
}

/// What happened in one round.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    /// Counted from 1.
    pub(crate) number: usize,
    /// How often memory was compacted.
    pub(crate) compactions: usize,
    /// Whether the victims were collapsed.
    pub(crate) collapsed: bool,
    /// Pages that moved in this round.
    pub(crate) moved: PerClass<usize>,
    /// How long it took.
    pub(crate) took: Duration,
}

/// What a run found.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    /// What was known before.
    pub(crate) setup: Setup,
    /// The rounds, in order.
    pub(crate) rounds: Vec<Round>,
    /// Pages that moved in any round, each counted once.
    pub(crate) moved: PerClass<usize>,
    /// What that proves.
    pub(crate) verdict: Verdict,
    /// How long it took.
    pub(crate) took: Duration,
}

/// Is told how a run goes on.
pub(crate) trait Progress {
    /// `done` of `total` steps of the whole run are over, and `what` is being done.
    fn step(&mut self, done: usize, total: usize, what: &str);
    /// The classes are set up and the first round is next.
    fn started(&mut self, setup: &Setup);
    /// A round is over.
    fn round(&mut self, setup: &Setup, round: &Round);
}

/// How often a round compacts before it is taken to move too few.
const ATTEMPTS: usize = 3;

/// Steps of the progress bar for filling the pool and for each round.
const STEPS: usize = 100;

/// Runs the proof. The pinned pages are pinned by `pinner` and by nothing else.
pub(crate) fn run<P: Pinner>(
    pinner: &P,
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Report, Error> {
    let begin = Instant::now();
    let total = STEPS * (options.rounds + 1);
    let compactor = match options.recipe {
        Recipe::Auto | Recipe::Compaction => Some(Compactor::open()?),
        Recipe::Collapse => None,
    };
    let mut mover = Mover {
        compactor,
        recipe: options.recipe,
        collapse: can_collapse(),
        mlocked: Compactor::moves_mlocked(),
        collapsed: false,
    };
    mover.check()?;
    let pagemap = Pagemap::open(page_size())?;
    pagemap.check_shown()?;
    let mib = pool_mib(options.pool_mib)?;
    // Should memory run out after all, this program is the one to end. Without the right to say so, nothing is lost.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");

    let mut pool = Pool::fill(mib, |done, all| progress.step(done * STEPS / all, total, "filling memory"))?;
    // The first compaction fills the holes that were there before, with the pool's lowest pages. So the only holes
    // above the victims are those that the rounds open, and there are always higher ones left for the next round.
    mover.settle()?;
    pool.sort(&pagemap)?;
    let layout = Layout::new(pool.len(), options.rounds, options.pages, page_size())?;
    let mut pins = Vec::new();
    for &(class, chunk) in &layout.victims {
        pool.write_pattern(chunk);
        match class {
            Class::Plain => {}
            Class::Mlock => pool.lock(chunk)?,
            Class::Pinned => {
                pins.push(pinner.pin(pool.address(chunk), super::pool::CHUNK).map_err(|cause| {
                    Error::new(
                        format!("cannot pin {} KiB: {cause}", super::pool::CHUNK / 1024),
                        "allow io_uring (sysctl kernel.io_uring_disabled=0) or raise ulimit -l",
                    )
                })?)
            }
        }
    }
    let look = |class| {
        let frames: Result<Vec<_>, _> = layout.of(class).map(|chunk| pool.frames(chunk, &pagemap)).collect();
        frames.map(|frames| frames.concat())
    };
    let mut tallies =
        PerClass { plain: look(Class::Plain)?, mlock: look(Class::Mlock)?, pinned: look(Class::Pinned)? }
            .map(Tally::new);

    let uname = rustix::system::uname();
    let setup = Setup {
        kernel: uname.release().to_string_lossy().into_owned(),
        machine: uname.machine().to_string_lossy().into_owned(),
        pool_mib: mib,
        page_size: page_size(),
        zone: pool.zone().name.clone(),
        pages: layout.pages(page_size()),
        rounds: options.rounds,
        recipe: options.recipe,
        pin: pinner.name().to_owned(),
        notes: mover.notes(),
    };
    progress.started(&setup);

    let mut rounds = Vec::with_capacity(options.rounds);
    for number in 1..=options.rounds {
        let started = Instant::now();
        progress.step(STEPS * number, total, "opening holes");
        if number > 1 {
            // The victims lie among the last of these now; without them the victims are the lowest pages again.
            (0..number - 1).flat_map(|over| layout.stage(over)).try_for_each(|chunk| pool.release(chunk))?;
        }
        layout.stage(number - 1).try_for_each(|chunk| pool.open_hole(chunk))?;
        if number > 1 && mover.compactor.is_some() {
            drain_free_lists();
            pool.plaster(layout.stage(number - 2))?;
        }
        Class::ALL.into_iter().for_each(|class| tallies.get_mut(class).begin_round());
        progress.step(STEPS * number + STEPS / 4, total, "moving pages");
        let (compactions, collapsed) = mover.round(&pool, &layout, || {
            for class in Class::ALL {
                tallies.get_mut(class).look(&look(class)?);
            }
            Ok(enough(tallies.mlock.moved_in_round(), setup.pages))
        })?;
        let moved = PerClass::from_fn(|class| tallies.get(class).moved_in_round());
        let round = Round { number, compactions, collapsed, moved, took: started.elapsed() };
        progress.round(&setup, &round);
        rounds.push(round);
    }

    for &(class, chunk) in &layout.victims {
        if let Some(page) = pool.lost_page(chunk) {
            return Err(Error::new(
                format!("page {page} of a {} chunk lost its bytes: memory was corrupted", class.name()),
                "do not trust this machine; check its memory and its kernel",
            ));
        }
    }
    drop(pins);
    let moved = PerClass::from_fn(|class| tallies.get(class).moved());
    let verdict = Verdict::of(&moved, setup.pages);
    Ok(Report { setup, rounds, moved, verdict, took: begin.elapsed() })
}

/// Applies the recipes of a run.
#[derive(Debug)]
struct Mover {
    /// The switch, where compaction is wanted.
    compactor: Option<Compactor>,
    /// What was asked for.
    recipe: Recipe,
    /// Whether this kernel can collapse.
    collapse: bool,
    /// Whether compaction moves mlocked pages here.
    mlocked: bool,
    /// Whether the victims were collapsed in an earlier round.
    collapsed: bool,
}

impl Mover {
    /// Refuses a recipe that cannot work here.
    fn check(&self) -> Result<(), Error> {
        if self.recipe == Recipe::Collapse && !self.collapse {
            return Err(Error::new(
                "this kernel cannot collapse 2 MiB of pages (MADV_COLLAPSE needs Linux 6.1 and huge pages)",
                "use --recipe compaction",
            ));
        }
        Ok(())
    }

    /// Packs memory before the first round, where compaction is used at all.
    fn settle(&mut self) -> Result<(), Error> {
        self.compactor.as_mut().map_or(Ok(()), Compactor::compact)
    }

    /// What a reader should know.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.compactor.is_some() && !self.mlocked {
            notes.push("vm.compact_unevictable_allowed=0: compaction spares mlocked pages".to_owned());
        }
        if self.recipe == Recipe::Auto && !self.collapse {
            notes.push("no MADV_COLLAPSE in this kernel: compaction alone".to_owned());
        }
        notes
    }

    /// One round: compacts until `look` says that enough moved, then collapses where that is still not so. Answers
    /// how often it compacted and whether it collapsed.
    fn round(
        &mut self,
        pool: &Pool,
        layout: &Layout,
        mut look: impl FnMut() -> Result<bool, Error>,
    ) -> Result<(usize, bool), Error> {
        let mut compactions = 0;
        if let Some(compactor) = &mut self.compactor {
            // Once in a while a compaction moves nothing. Repeating is vain where it may not move mlocked pages, and
            // after a collapse: a folio of 2 MiB is as large as the blocks that compaction works for.
            let attempts = if self.mlocked && !self.collapsed { ATTEMPTS } else { 1 };
            while compactions < attempts {
                compactor.compact()?;
                compactions += 1;
                if look()? {
                    return Ok((compactions, false));
                }
            }
        }
        if self.recipe == Recipe::Compaction || !self.collapse {
            return Ok((compactions, false));
        }
        collapse(pool, layout.victims.iter().map(|victim| victim.1));
        self.collapsed = true;
        look()?;
        Ok((compactions, true))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::ptr::NonNull;

    use super::super::EnginePinner;
    use super::super::render::Silent;
    use super::*;

    /// Claims to pin, and does nothing.
    struct Liar;

    impl Pinner for Liar {
        type Pin = ();

        fn pin(&self, _address: NonNull<u8>, _length: usize) -> Result<(), String> {
            Ok(())
        }

        fn name(&self) -> &str {
            "nothing"
        }
    }

    /// Cannot pin.
    struct Refuser;

    impl Pinner for Refuser {
        type Pin = ();

        fn pin(&self, _address: NonNull<u8>, _length: usize) -> Result<(), String> {
            Err("no pins today".to_owned())
        }

        fn name(&self) -> &str {
            "nothing"
        }
    }

    #[test]
    fn real_pins_hold_and_false_ones_are_found_out() {
        let options = Options { rounds: 3, pages: None, pool_mib: Some(256), recipe: Recipe::Auto };
        let ran = EnginePinner::new().and_then(|pinner| run(&pinner, &options, &mut Silent));
        let report = match ran {
            Ok(report) => report,
            Err(error) => {
                // Not eprintln: the test harness would swallow it.
                let _ = writeln!(std::io::stderr(), "SKIPPED, the proof was not run here: {error}");
                assert!(!rustix::process::geteuid().is_root(), "root must be able to run it: {error}");
                return;
            }
        };
        assert_eq!(report.verdict, Verdict::Proven, "{report:?}");
        assert_eq!(report.rounds.len(), 3);
        assert_eq!(report.moved.pinned, 0);

        let report = run(&Liar, &options, &mut Silent).unwrap();
        assert_eq!(report.verdict, Verdict::PinMoved, "{report:?}");

        let error = run(&Refuser, &options, &mut Silent).unwrap_err();
        assert!(error.cause.contains("no pins today"));
    }
}
