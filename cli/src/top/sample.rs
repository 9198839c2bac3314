//! One look at the machine, and what has happened since the one before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use noiommu::stats::{self, ProcessStats, Rescue, RescueOutcome, Seen};

/// What happened in a second, since the last look.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Rates {
    pub(super) maps: f64,
    pub(super) unmaps: f64,
    pub(super) lookups: f64,
}

impl Rates {
    fn between(before: &ProcessStats, now: &ProcessStats, time: Duration) -> Self {
        // A process whose id another one had before, or a context that has just ended, may have less than before.
        let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / time.as_secs_f64();
        Self {
            maps: rate(before.maps, now.maps),
            unmaps: rate(before.unmaps, now.unmaps),
            lookups: rate(before.lookups, now.lookups),
        }
    }
}

/// Devices whose drivers have died, since the machine was started.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Rescues {
    pub(super) quiet: usize,
    pub(super) not_quiet: usize,
    pub(super) lost: usize,
    pub(super) last: Option<Rescue>,
}

impl Rescues {
    fn of(all: Vec<Rescue>) -> Self {
        let count = |outcome| all.iter().filter(|rescue| rescue.outcome == outcome).count();
        Self {
            quiet: count(RescueOutcome::Quiet),
            not_quiet: count(RescueOutcome::NotQuiet),
            lost: count(RescueOutcome::Lost),
            last: all.into_iter().next_back(),
        }
    }
}

/// A look.
pub(super) struct Sample {
    at: Instant,
    pub(super) time: SystemTime,
    pub(super) seen: Seen,
    /// By process; none at the first look at it.
    pub(super) rates: BTreeMap<u32, Rates>,
    pub(super) rescues: Rescues,
}

impl Sample {
    /// Looks.
    ///
    /// # Errors
    /// What reading /proc or the guardians' notes answers.
    pub(super) fn take(before: Option<&Self>) -> noiommu::Result<Self> {
        let at = Instant::now();
        let seen = stats::processes()?;
        let mut rates = BTreeMap::new();
        if let Some(before) = before {
            let known = |process: u32| before.seen.processes.iter().find(|it| it.process == process);
            let both = seen.processes.iter().filter_map(|now| Some((known(now.process)?, now)));
            let time = at.duration_since(before.at);
            rates = both.map(|(before, now)| (now.process, Rates::between(before, now, time))).collect();
        }
        let rescues = Rescues::of(stats::rescues()?);
        Ok(Self { at, time: SystemTime::now(), seen, rates, rescues })
    }
}
