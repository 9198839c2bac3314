//! What is to be done: the host's plan, and how memory is churned after the death of each device's driver.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::busy::Kind;

/// Who guards a driver whom nobody guards.
pub(super) const WAIVED: &str = "waived";

/// Pages that each churning process takes in all. More would detect nothing: the pages that a driver gave back have to be among the
/// first that are taken, before its device comes to write.
const PAGES: usize = 1024;

/// Whose driver dies, and how; as often as it says.
pub(super) struct Row {
    pub(super) kind: &'static Kind,
    pub(super) provider: String,
    /// What NOIOMMU_GUARDIAN is: `own`, `service` or [`WAIVED`].
    pub(super) guard: String,
    pub(super) way: String,
    pub(super) kills: u32,
}

impl Row {
    /// Reads `DEVICE PROVIDER GUARD WAY KILLS`.
    pub(super) fn parse(line: &str) -> Result<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let [kind, provider, guard, way, kills] = words[..] else { bail!("the plan says {line:?}") };
        Ok(Self {
            kind: Kind::find(kind)?,
            provider: provider.to_owned(),
            guard: guard.to_owned(),
            way: way.to_owned(),
            kills: kills.parse().context("how many kills")?,
        })
    }

    /// Whether there is a guardian that outlives the driver.
    pub(super) fn is_guarded(&self) -> bool {
        self.guard != WAIVED && self.way != "both"
    }

    /// Whether the guardian has something to do: a driver that panics drops its device as it goes.
    pub(super) fn is_rescued(&self) -> bool {
        self.is_guarded() && self.way != "panic"
    }
}

/// How memory is churned after the death of a device's driver: for a first time while the device is writing, if nobody stops it; and
/// for a second time when a guardian, if there is one, has let go of the driver's memory.
pub(super) struct Pace {
    rounds: [u32; 2],
    pause: Duration,
}

impl Pace {
    pub(super) fn of(kind: &Kind) -> Self {
        let (rounds, milliseconds) = match kind.name {
            // It writes once, 100 ms after the command.
            "edu" => ([6, 2], 25),
            // A read each 10 ms: what is queued takes 1.3 s.
            "nvme" => ([6, 6], 50),
            // Each millisecond.
            _ => ([5, 3], 15),
        };
        Self { rounds, pause: Duration::from_millis(milliseconds) }
    }

    /// The pages that are to be taken, round by round, with [`Pace::pause`] in between: the first time, or the second.
    pub(super) fn rounds(&self, time: usize) -> impl Iterator<Item = usize> + use<> {
        let all: u32 = self.rounds.iter().sum();
        (0..self.rounds[time]).map(move |_| PAGES / all as usize)
    }

    pub(super) fn pause(&self) -> Duration {
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let row = Row::parse("edu sysfs own kill 12").unwrap();
        assert_eq!((row.kind.name, row.kills, row.is_rescued()), ("edu", 12, true));
        assert!(!Row::parse("edu uio own both 1").unwrap().is_guarded());
        assert!(!Row::parse("ohci sysfs waived kill 1").unwrap().is_guarded());
        assert!(!Row::parse("nvme sysfs service panic 1").unwrap().is_rescued());
        assert!(Row::parse("edu sysfs own kill").is_err() && Row::parse("abacus sysfs own kill 1").is_err());
    }

    #[test]
    fn all_rounds_together_are_small() {
        for kind in ["edu", "nvme", "ohci"] {
            let pace = Pace::of(Kind::find(kind).unwrap());
            let pages: usize = pace.rounds(0).chain(pace.rounds(1)).sum();
            assert!(pages <= PAGES && pages > PAGES / 2, "{kind}: {pages}");
        }
    }
}
