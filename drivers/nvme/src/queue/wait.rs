//! Waiting for completions.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Completion, Parts, Queue};
use crate::error::Result;

/// The longest sleep of a wait: where queues share an interrupt, it may be another's thread that takes it.
const SHARED: Duration = Duration::from_millis(10);
/// The same where a queue has a vector of its own: how often it is looked for late commands.
const OWN: Duration = Duration::from_secs(1);
/// Looks before a wait without interrupts begins to pause.
const LOOKS: u32 = 1000;
/// The longest pause of such a wait.
const PAUSE: Duration = Duration::from_micros(200);

impl Queue {
    /// Waits until there is something to [poll](Queue::poll), for so long at most; tells whether there is. By the queue's
    /// interrupt where there is one ([`Settings::interrupts`](crate::Settings::interrupts)), else by looking, with short pauses.
    ///
    /// # Errors
    /// What the kit answers: that the device is gone.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now().checked_add(timeout);
        let left = || deadline.map_or(OWN, |deadline| deadline.saturating_duration_since(Instant::now()));
        let mut looks = 0;
        loop {
            if self.is_ready() {
                return Ok(true);
            }
            let left = left();
            if left.is_zero() {
                return Ok(false);
            }
            if !self.sleep(left)? {
                looks += 1;
                if looks < LOOKS {
                    std::hint::spin_loop();
                    continue;
                }
                std::thread::sleep(PAUSE.min(left));
            }
            // What it ends is for `poll`.
            self.look();
        }
    }

    /// Whether a poll would find something, or has something to do.
    #[inline]
    fn is_ready(&self) -> bool {
        let Some(Parts { pair, .. }) = &self.parts else { return true };
        pair.is_ready() || self.core.generation() != self.generation
    }

    /// Sleeps until the queue's interrupt comes, or for a while; `false`: there is none.
    fn sleep(&self, left: Duration) -> Result<bool> {
        let (Some(interrupts), Some(parts)) = (&self.core.interrupts, &self.parts) else { return Ok(false) };
        let vector = usize::from(super::vector_of(parts.pair.id(), interrupts.len()));
        let Some(interrupt) = interrupts.get(vector) else { return Ok(false) };
        let line = self.has_line();
        if line && self.core.line_masked.swap(false, Ordering::AcqRel) {
            // What was there then has been polled by now. If there is more, it comes again.
            interrupt.unmask()?;
        }
        let longest = if self.shares_interrupt { SHARED } else { OWN };
        if interrupt.wait(Some(left.min(longest)))?.is_some() && line {
            self.core.line_masked.store(true, Ordering::Release);
        }
        Ok(true)
    }

    /// Waits for something and appends it to `done`.
    pub(super) fn poll_or_wait(&mut self, done: &mut Vec<Completion>) -> Result<()> {
        for _ in 0..LOOKS {
            if self.poll(done) > 0 {
                return Ok(());
            }
            if self.core.interrupts.is_some() {
                break;
            }
        }
        self.wait(SHARED).map(drop)
    }
}
