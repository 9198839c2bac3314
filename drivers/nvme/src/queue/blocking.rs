//! Reads and writes that return when they are done, of any length.

use super::{Completion, Queue};
use crate::error::{Error, ErrorKind, Failure, Result};
use crate::identify::Namespace;
use crate::region::Region;

/// Which way.
#[derive(Clone, Copy)]
enum Way {
    Read,
    Write,
}

impl Queue {
    /// Reads `count` blocks from `first` on to `offset` in a region, which is a multiple of 4. What is longer than
    /// [`max_transfer`](Queue::max_transfer) is several commands, as many at once as the queue is [deep](Queue::depth).
    ///
    /// # Errors
    /// As for [`Queue::submit_read`], but neither full nor lost: a lost queue is recovered first. [`ErrorKind::Busy`] where commands
    /// are outstanding that were submitted. [`ErrorKind::Command`]: the first that failed; the region may hold a part.
    pub fn read(
        &mut self,
        namespace: &Namespace,
        first: u64,
        count: u64,
        region: &Region,
        offset: usize,
    ) -> Result<()> {
        self.transfer(Way::Read, namespace, first, count, region, offset)
    }

    /// Writes `count` blocks from `first` on from `offset` in a region; the same.
    ///
    /// # Errors
    /// As for [`Queue::read`]; a part may have been written.
    pub fn write(
        &mut self,
        namespace: &Namespace,
        first: u64,
        count: u64,
        region: &Region,
        offset: usize,
    ) -> Result<()> {
        self.transfer(Way::Write, namespace, first, count, region, offset)
    }

    /// Has what was written before outlive a loss of power.
    ///
    /// # Errors
    /// As for [`Queue::read`].
    pub fn flush(&mut self, namespace: &Namespace) -> Result<()> {
        self.prepare()?;
        self.submit_flush(namespace)?;
        self.ring()?;
        self.finish("flush", &mut None)
    }

    fn transfer(
        &mut self,
        way: Way,
        namespace: &Namespace,
        first: u64,
        count: u64,
        region: &Region,
        offset: usize,
    ) -> Result<()> {
        self.prepare()?;
        let shift = namespace.block_shift();
        let blocks = (self.max_transfer() >> shift).clamp(1, super::MOST_BLOCKS as usize) as u64;
        // Before anything is done: a range that does not fit is refused whole.
        let bytes = count.checked_mul(1 << shift).and_then(|bytes| usize::try_from(bytes).ok());
        let fits = bytes.and_then(|bytes| bytes.checked_add(offset)).is_some_and(|end| end <= region.len())
            && first.checked_add(count).is_some_and(|end| end <= namespace.blocks());
        if !fits {
            return Err(Error::argument(format!(
                "{count} blocks from {first} on at {offset} of a region of {} bytes: past its end, or the namespace's",
                region.len()
            )));
        }
        let what = match way {
            Way::Read => "read",
            Way::Write => "write",
        };
        let mut failed = None;
        let mut begun = 0;
        while begun < count && failed.is_none() {
            while begun < count && self.room() > 0 {
                let part = blocks.min(count - begun) as u32;
                let (at, place) = (first + begun, offset + ((begun as usize) << shift));
                let submitted = match way {
                    Way::Read => self.submit_read(namespace, at, part, region, place),
                    Way::Write => self.submit_write(namespace, at, part, region, place),
                };
                if let Err(error) = submitted {
                    // What has been submitted is waited for: its memory is the controller's as long.
                    self.ring()?;
                    let _ = self.finish(what, &mut failed);
                    return Err(error);
                }
                begun += u64::from(part);
            }
            self.ring()?;
            self.turn(&mut failed)?;
        }
        self.finish(what, &mut failed)
    }

    /// Nothing is outstanding, and the queue is the controller's.
    fn prepare(&mut self) -> Result<()> {
        if self.outstanding() > 0 {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("queue {} has {} commands outstanding", self.number(), self.outstanding()),
            )
            .with_remedy("poll() them first, or use another queue"));
        }
        if self.is_lost() {
            let mut done = Vec::new();
            self.recover(&mut done)?;
        }
        Ok(())
    }

    /// Waits for something, and keeps the first failure in mind.
    fn turn(&mut self, failed: &mut Option<Failure>) -> Result<()> {
        let mut done = std::mem::take(&mut self.done);
        let waited = self.poll_or_wait(&mut done);
        let failure = |completion: Completion| completion.outcome.err();
        *failed = failed.or(done.drain(..).find_map(failure));
        self.done = done;
        waited
    }

    /// Waits for all that is outstanding.
    fn finish(&mut self, what: &str, failed: &mut Option<Failure>) -> Result<()> {
        while self.outstanding() > 0 {
            self.turn(failed)?;
        }
        match *failed {
            Some(failure) => Err(Error::failed(format_args!("{}: {what}", self.core.device.name()), failure)),
            None => Ok(()),
        }
    }
}
