//! The guest's clock: the frequency of the time stamp counter, told to its kernel.
//!
//! An emulated processor's counter is the host's own. A kernel measures its frequency against a timer at boot; on a busy host
//! both stand still now and then, not together, and one of some fifty guests came out with a clock that ran ten to twenty times
//! too fast: time limits ended early and the kernel saw stalls that were none.

use std::thread;
use std::time::{Duration, Instant};

/// How long the counter is watched.
const WATCH: Duration = Duration::from_millis(50);

/// kHz of this machine's counter, or nothing where there is none.
pub(super) fn counter_khz() -> Option<u64> {
    let (first, began) = pair()?;
    thread::sleep(WATCH);
    let (last, ended) = pair()?;
    let nanoseconds = u64::try_from((ended - began).as_nanos()).ok()?;
    last.checked_sub(first)?.checked_mul(1_000_000)?.checked_div(nanoseconds)
}

/// The counter and the time of the same moment: of some tries, the one between whose ends the least time went by.
fn pair() -> Option<(u64, Instant)> {
    const TRIES: usize = 20;
    let sample = || {
        let before = counter()?;
        let now = Instant::now();
        let after = counter()?;
        Some((after.checked_sub(before)?, before, now))
    };
    (0..TRIES)
        .filter_map(|_| sample())
        .min_by_key(|(gap, ..)| *gap)
        .map(|(gap, before, now)| (before + gap / 2, now))
}

#[cfg(target_arch = "x86_64")]
fn counter() -> Option<u64> {
    // SAFETY: every x86-64 processor has this instruction, which only reads a counter. An operating system may forbid it to
    // programs; Linux does so at a program's own request only.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_counter_runs_evenly() {
        let (one, two) = (counter_khz().unwrap(), counter_khz().unwrap());
        // From 100 MHz to 100 GHz, and the same within a percent.
        assert!((100_000..100_000_000).contains(&one), "{one} kHz");
        assert!(one.abs_diff(two) < one / 100, "{one} and {two} kHz");
    }
}
