//! I/O queues: commands are submitted and rung for, completions are polled.

mod blocking;
mod late;
mod wait;

use std::sync::Arc;

use noiommu::InterruptKind;

use crate::command::Command;
use crate::core::{Core, Fate};
use crate::error::{Error, ErrorKind, Failure, Result, Violation};
use crate::identify::Namespace;
use crate::pair::Pair;
use crate::prp::Lists;
use crate::region::Region;
use crate::status::Status;

/// The most blocks of a command (6.9: a number of 16 bits, less one).
const MOST_BLOCKS: u32 = 1 << 16;
/// Polls after which it is looked for commands that are late.
const POLLS: u32 = 1 << 14;

/// A command that was submitted: its completion bears the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Token {
    identifier: u16,
    slot: u16,
}

impl Token {
    /// A number below the queue's [depth](Queue::depth) that no other outstanding command of the queue has: an index of what a
    /// program knows of its commands.
    #[must_use]
    #[inline]
    pub fn index(self) -> usize {
        self.slot.into()
    }
}

/// A command that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// Which one.
    pub token: Token,
    /// How. The memory that it was given is not the controller's any more.
    pub outcome: Result<(), Failure>,
}

/// What an outstanding command owns: its memory, if it has any.
type Owned = Option<Region>;

/// An I/O queue, of one thread at a time: move it to another one as you like.
///
/// Commands are given by [`submit_read`](Queue::submit_read) and its like, in any number up to [`room`](Queue::room), and are the
/// controller's after [`ring`](Queue::ring), which is one write to a register however many there are. [`poll`](Queue::poll) takes
/// what has been completed, in memory; none of the three takes a lock, allocates, or makes a system call.
///
/// ```
/// # use noiommu::Context;
/// # use noiommu_nvme::{Settings, Stopped, sim};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let context = Context::simulated();
/// # let slot = context.sim_device(sim::Controller::new(64, 512))?;
/// # let (ioas, device) = (context.ioas()?, slot.open()?);
/// let stopped = Stopped::new(device, &ioas)?;
/// // SAFETY: nobody else writes to the device; the driver keeps the rest of the promise.
/// unsafe { stopped.device().enable_bus_master()? };
/// let controller = stopped.start(&Settings::default())?;
/// let namespace = controller.namespace(1)?;
/// let region = controller.region(8 * 512)?;
/// let mut queue = controller.queue()?;
///
/// for block in 0..8 {
///     queue.submit_read(&namespace, block, 1, &region, block as usize * 512)?;
/// }
/// queue.ring()?;
/// let mut done = Vec::with_capacity(queue.depth());
/// while queue.outstanding() > 0 {
///     queue.poll(&mut done);
/// }
/// assert!(done.iter().all(|completion| completion.outcome.is_ok()));
/// # Ok(())
/// # }
/// ```
///
/// # Trouble
/// A command that is not done in time is aborted; if that does not help, the controller is reset. So is one that answers what
/// none may answer. Every outstanding command of every queue ends then, with what became of it; the queue is *lost* and
/// [`recover`](Queue::recover) makes it anew. All this is done by `poll` (and by whatever waits), in the polling thread.
#[derive(Debug)]
pub struct Queue {
    core: Arc<Core>,
    /// `None`: its memory has been left to a controller that could not be stopped.
    parts: Option<Parts>,
    /// The controller's when the queue was made; another one: the queue is lost.
    generation: u32,
    /// Whether it is the controller's.
    alive: bool,
    /// The controller has broken the protocol here.
    violation: Option<Violation>,
    /// The command that is the reason for a reset.
    culprit: Option<u16>,
    /// Polls since it was last looked for commands that are late.
    polls: u32,
    max_transfer: usize,
    /// Whether its interrupt is that of other queues, too.
    shares_interrupt: bool,
    /// For the blocking calls, so that these do not allocate at each turn.
    done: Vec<Completion>,
}

#[derive(Debug)]
struct Parts {
    pair: Pair<Owned>,
    lists: Lists,
}

impl Queue {
    /// A queue with the first free number.
    pub(crate) fn new(core: &Arc<Core>) -> Result<Self> {
        let Core { device, ioas, registers, capabilities, settings, .. } = &**core;
        let mut admin = core.admin();
        let identity = admin.identity()?;
        let unit = 1_u64 << capabilities.page_shift;
        let most = identity.max_transfer.unwrap_or(u64::MAX).min(settings.max_transfer.into()).max(unit);
        let max_transfer = most as usize;
        let id = admin.take_number().ok_or_else(|| {
            let cause = format!("{}: all {} I/O queues are taken", device.name(), admin.granted());
            Error::new(ErrorKind::Busy, cause).with_remedy("drop one, or ask for more (Settings::queues)")
        })?;
        let polled = core.interrupts.is_none();
        // A transfer that does not begin with a page touches one page more.
        let max_pages = max_transfer.div_ceil(unit as usize) + 1;
        let made =
            Pair::new(device, ioas, registers, capabilities, id, settings.entries, polled).and_then(|pair| {
                let lists = Lists::new(device, ioas, pair.slots.count() as u16, max_pages)?;
                Ok(Parts { pair, lists })
            });
        let parts = made.inspect_err(|_| admin.give_number(id))?;
        let done = Vec::with_capacity(parts.pair.slots.count());
        let mut queue = Self {
            core: core.clone(),
            parts: Some(parts),
            generation: core.generation(),
            alive: false,
            violation: None,
            culprit: None,
            polls: 0,
            max_transfer,
            shares_interrupt: core
                .interrupts
                .as_ref()
                .is_some_and(|on| on.len() <= usize::from(admin.granted())),
            done,
        };
        // Should it fail, the queue is dropped, which wants the lock.
        let created = queue.create(&mut admin);
        drop(admin);
        created.map(|()| queue)
    }

    /// 7.6.1 and 5.3, 5.4: has the controller make both queues. It has none of this number.
    fn create(&mut self, admin: &mut crate::admin::Admin) -> Result<()> {
        let Some(Parts { pair, .. }) = &mut self.parts else { return Err(dead()) };
        pair.restart(admin.doorbells())?;
        let (submission, completion) = (pair.submission()?, pair.completion()?);
        let id = pair.id();
        let vector = self.core.interrupts.as_ref().map(|on| vector_of(id, on.len()));
        let command = Command::create_completion(id, completion.0, completion.1, vector);
        admin.command(&self.core, "creating a completion queue", &command)?;
        let command = Command::create_submission(id, submission.0, submission.1);
        if let Err(error) = admin.command(&self.core, "creating a submission queue", &command) {
            // Of a controller that has been reset, neither is left; else the one that was made goes, by a reset if need be.
            if error.failure().is_some_and(|failure| matches!(failure, Failure::Status(_))) {
                let command = Command::delete_completion(id);
                if admin.command(&self.core, "deleting a completion queue", &command).is_err() {
                    self.core.reset_locked(admin)?;
                }
            }
            return Err(error);
        }
        self.generation = self.core.generation();
        self.alive = true;
        Ok(())
    }

    /// Its number, from 1 on.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.parts.as_ref().map_or(0, |parts| parts.pair.id())
    }

    /// The most commands that can be outstanding.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.parts.as_ref().map_or(0, |parts| parts.pair.slots.count())
    }

    /// How many are outstanding.
    #[must_use]
    #[inline]
    pub fn outstanding(&self) -> usize {
        self.parts.as_ref().map_or(0, |parts| parts.pair.slots.outstanding())
    }

    /// How many more can be submitted now.
    #[must_use]
    #[inline]
    pub fn room(&self) -> usize {
        self.parts.as_ref().map_or(0, |parts| parts.pair.slots.room())
    }

    /// The most bytes of one command.
    #[must_use]
    pub fn max_transfer(&self) -> usize {
        self.max_transfer
    }

    /// Submits a read of `count` blocks from `first` on, to `offset` in a region, which is a multiple of 4.
    ///
    /// # Errors
    /// [`ErrorKind::Full`]; [`ErrorKind::Argument`] for blocks past the end of the namespace, memory past the end of the region, a
    /// region or namespace of another controller, or more than [`max_transfer`](Queue::max_transfer);
    /// [`ErrorKind::Lost`]. Nothing has been submitted then.
    #[inline]
    pub fn submit_read(
        &mut self,
        namespace: &Namespace,
        first: u64,
        count: u32,
        region: &Region,
        offset: usize,
    ) -> Result<Token> {
        self.submit_data(Command::read(namespace.id(), first, count), namespace, first, count, region, offset)
    }

    /// Submits a write of `count` blocks from `first` on, from `offset` in a region, which is a multiple of 4.
    ///
    /// # Errors
    /// As for [`Queue::submit_read`].
    #[inline]
    pub fn submit_write(
        &mut self,
        namespace: &Namespace,
        first: u64,
        count: u32,
        region: &Region,
        offset: usize,
    ) -> Result<Token> {
        self.submit_data(
            Command::write(namespace.id(), first, count),
            namespace,
            first,
            count,
            region,
            offset,
        )
    }

    /// Submits a flush: what has been written to the namespace by commands that were completed before outlives a loss of power
    /// when it completes.
    ///
    /// # Errors
    /// [`ErrorKind::Full`], [`ErrorKind::Lost`]; [`ErrorKind::Argument`] for a namespace of another controller.
    pub fn submit_flush(&mut self, namespace: &Namespace) -> Result<Token> {
        if namespace.owner != self.core.owner {
            return Err(foreign());
        }
        self.submit(&Command::flush(namespace.id()), None)
    }

    #[inline]
    fn submit_data(
        &mut self,
        mut command: Command,
        namespace: &Namespace,
        first: u64,
        count: u32,
        region: &Region,
        offset: usize,
    ) -> Result<Token> {
        if namespace.owner != self.core.owner {
            return Err(foreign());
        }
        let length = (count as usize) << namespace.block_shift();
        if count == 0
            || count > MOST_BLOCKS
            || length > self.max_transfer
            || first.checked_add(count.into()).is_none_or(|end| end > namespace.blocks())
        {
            return Err(out_of_range(namespace, first, count, self.max_transfer));
        }
        let part = region.part(self.core.owner, offset, length)?;
        let Some(parts) = &self.parts else { return Err(dead()) };
        if let Some(slot) = parts.pair.slots.next() {
            command.prp = parts.lists.describe(slot, part)?;
        }
        self.submit(&command, Some(region.clone()))
    }

    #[inline]
    fn submit(&mut self, command: &Command, owned: Owned) -> Result<Token> {
        if !self.alive {
            return Err(self.lost());
        }
        let Some(parts) = &mut self.parts else { return Err(dead()) };
        let slot = parts.pair.slots.next().unwrap_or_default() as u16;
        let identifier = parts.pair.submit(command, owned)?;
        Ok(Token { identifier, slot })
    }

    /// Hands all that has been submitted to the controller.
    ///
    /// # Errors
    /// What the kit answers: that the device is gone.
    #[inline]
    pub fn ring(&mut self) -> Result<()> {
        match &mut self.parts {
            // One that is lost is the controller's no more, whatever it has by this number.
            Some(parts) if self.alive => parts.pair.ring(),
            _ => Ok(()),
        }
    }

    /// Appends what has ended since the last time to `done`, which need not allocate if it has room for
    /// [`outstanding`](Queue::outstanding) more; answers how many. Commands that are late, or a controller that misbehaves, it deals
    /// with at times, which may take as long as [`Settings::timeout`](crate::Settings::timeout).
    #[inline]
    pub fn poll(&mut self, done: &mut Vec<Completion>) -> usize {
        let before = done.len();
        self.take(done);
        self.polls += 1;
        if self.polls >= POLLS {
            self.look();
        }
        if self.core.generation() != self.generation || self.violation.is_some() {
            self.lose(done);
        }
        done.len() - before
    }

    /// Takes completions out of memory.
    #[inline]
    fn take(&mut self, done: &mut Vec<Completion>) {
        let Some(Parts { pair, .. }) = &mut self.parts else { return };
        // What a lost queue has in memory has been taken, or is not believed.
        if !self.alive || self.violation.is_some() {
            return;
        }
        let bits = pair.slots.bits();
        loop {
            match pair.next() {
                Ok(Some((entry, owned))) => {
                    drop(owned);
                    let outcome = if entry.status.is_success() {
                        Ok(())
                    } else {
                        Err(failure_of(entry.status, pair.slots.was_aborted(entry.identifier)))
                    };
                    let slot = entry.identifier & ((1 << bits) - 1);
                    done.push(Completion { token: Token { identifier: entry.identifier, slot }, outcome });
                }
                Ok(None) => break,
                Err(violation) => {
                    self.violation = Some(violation);
                    break;
                }
            }
        }
        // One that is gone does not need to know; that it is, is found when a command is late.
        let _ = pair.tell_head();
    }

    /// The controller has been reset, or has to be: all commands end.
    #[cold]
    fn lose(&mut self, done: &mut Vec<Completion>) {
        if self.violation.is_some() && self.core.generation() == self.generation {
            // Whether it helps or not: afterwards the controller is stopped, or known to be stuck.
            let _ = self.core.reset(self.generation);
        }
        // What was completed before the reset has been.
        self.take(done);
        self.alive = false;
        self.generation = self.core.generation();
        let failure = self.violation.take().map_or(self.core.fate().failure(), Failure::Violation);
        let culprit = self.culprit.take();
        let Some(Parts { pair, .. }) = &mut self.parts else { return };
        let bits = pair.slots.bits();
        let mut kept = Vec::new();
        while let Some(identifier) = pair.slots.any() {
            kept.extend(pair.slots.give(identifier).flatten());
            let outcome = Err(if culprit == Some(identifier) { Failure::TimedOut } else { failure });
            let slot = identifier & ((1 << bits) - 1);
            done.push(Completion { token: Token { identifier, slot }, outcome });
        }
        if self.core.fate() == Fate::Stuck {
            // It may still write there.
            self.core.keep(Box::new(kept));
            if let Some(parts) = self.parts.take() {
                self.core.keep(Box::new(parts));
            }
        }
    }

    /// Whether the queue is lost: the controller has been reset since it was made. It takes no commands before it is
    /// [recovered](Queue::recover).
    #[must_use]
    pub fn is_lost(&self) -> bool {
        !self.alive || self.core.generation() != self.generation
    }

    /// Has the controller make the queue anew, where it is [lost](Queue::is_lost). What has ended by then is polled first, and
    /// appended to `done`.
    ///
    /// # Errors
    /// The controller is not running ([`Controller::reset`](crate::Controller::reset) tries to start it again), refuses, or does not
    /// answer.
    pub fn recover(&mut self, done: &mut Vec<Completion>) -> Result<()> {
        self.poll(done);
        let core = self.core.clone();
        // Under the lock nobody resets it.
        let mut admin = core.admin();
        if !self.is_lost() {
            return Ok(());
        }
        self.lose(done);
        match core.fate() {
            Fate::Running => self.create(&mut admin),
            fate => Err(Error::failed(core.device.name(), fate.failure())
                .with_remedy("Controller::reset() tries to start it again")),
        }
    }

    #[cold]
    fn lost(&self) -> Error {
        Error::new(ErrorKind::Lost, format!("queue {} is lost: the controller was reset", self.number()))
            .with_remedy("recover() it")
    }

    /// Whether an interrupt tells of its completions ([`Settings::interrupts`](crate::Settings::interrupts)).
    #[must_use]
    pub fn has_interrupt(&self) -> bool {
        self.core.interrupts.is_some()
    }

    /// Whether a line, which other queues may share, interrupts.
    fn has_line(&self) -> bool {
        self.core.interrupts.as_ref().is_some_and(|on| on.kind() == InterruptKind::Intx)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        let core = self.core.clone();
        let mut admin = core.admin();
        let id = parts.pair.id();
        if self.alive && core.generation() == self.generation {
            // 7.4.3: after this none of its commands goes on. What the controller does not delete, a reset does, which
            // `command` makes of a controller that does not answer.
            let both = [Command::delete_submission(id), Command::delete_completion(id)];
            let deleted =
                both.iter().try_for_each(|one| admin.command(&core, "deleting a queue", one).map(drop));
            if deleted.is_err() && core.generation() == self.generation {
                let _ = core.reset_locked(&mut admin);
            }
        }
        admin.give_number(id);
        if core.fate() == Fate::Stuck {
            core.keep(Box::new(parts));
        }
    }
}

/// The vector by which a queue interrupts: the first is the admin queue's, where there is another one.
fn vector_of(id: u16, vectors: usize) -> u16 {
    match vectors as u16 {
        0 | 1 => 0,
        vectors => 1 + (id - 1) % (vectors - 1),
    }
}

#[cold]
fn failure_of(status: Status, aborted: bool) -> Failure {
    if aborted && status == Status::ABORT_REQUESTED { Failure::TimedOut } else { Failure::Status(status) }
}

#[cold]
fn foreign() -> Error {
    Error::argument("the namespace is another controller's")
}

#[cold]
fn dead() -> Error {
    Error::failed("the queue", Failure::Dead)
}

#[cold]
fn out_of_range(namespace: &Namespace, first: u64, count: u32, max_transfer: usize) -> Error {
    Error::argument(format!(
        "{count} blocks from {first} on: none, past the end of namespace {} ({} blocks), or more than {max_transfer} bytes",
        namespace.id(),
        namespace.blocks()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_shared_where_there_are_too_few() {
        assert_eq!([1, 2, 3, 4].map(|id| vector_of(id, 5)), [1, 2, 3, 4]);
        assert_eq!([1, 2, 3, 4].map(|id| vector_of(id, 3)), [1, 2, 1, 2]);
        assert_eq!([1, 2].map(|id| vector_of(id, 1)), [0, 0]);
    }

    #[test]
    fn queues_can_be_moved_to_threads() {
        fn is_send<T: Send>() {}
        is_send::<Queue>();
        is_send::<crate::Controller>();
        is_send::<Region>();
    }
}
