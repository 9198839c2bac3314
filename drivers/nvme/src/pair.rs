//! A submission queue and the completion queue that its commands complete in: two rings in memory, and their doorbells.
//!
//! Source: NVM Express Base Specification 1.4, 4.1 (rings), 4.6 (completions, phase), 3.1.24 and 3.1.25 (doorbells).

use std::sync::Arc;

use noiommu::{Bar, Device, DmaBuffer, Ioas, Register, WriteOnly, barrier};

use crate::command::{Command, ENTRY_SHIFT};
use crate::error::{Error, Result, Violation};
use crate::pages::Pages;
use crate::registers::{Capabilities, DOORBELLS};
use crate::shadow::{Doorbell, Doorbells};
use crate::slots::Slots;
use crate::status::Status;

/// Bytes of a completion, as a power of two.
const COMPLETION_SHIFT: u32 = 4;
/// Where in a completion its words of 32 bits are.
const RESULT: usize = 0;
const HEAD_AND_QUEUE: usize = 8;
const IDENTIFIER_AND_STATUS: usize = 12;
/// Entries of a completion queue that fit into a page.
const COMPLETIONS_OF_A_PAGE: u32 = 256;

/// A completion, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    /// The command's identifier.
    pub(crate) identifier: u16,
    /// How it ended.
    pub(crate) status: Status,
    /// What the command answers, if it is one that does.
    pub(crate) result: u32,
}

/// The two rings. The commands that are outstanding own a `T` each.
///
/// Invariant: only whoever has the pair writes its doorbells, and the same has the controller make the queues. So a doorbell of
/// before a reset never reaches a queue of after it.
#[derive(Debug)]
pub(crate) struct Pair<T> {
    /// The number of both queues; 0 is the admin queues'.
    id: u16,
    registers: Bar,
    submission: Pages,
    completion: Pages,
    /// Entries, powers of two.
    entries: u16,
    completions: u16,
    tail_doorbell: Register<u32, WriteOnly>,
    head_doorbell: Register<u32, WriteOnly>,
    /// The same in memory, where the controller takes that: then the registers are written when it says so.
    shadows: Option<[Doorbell; 2]>,
    /// Where the next command goes, and what the controller was told of that.
    tail: u16,
    told_tail: u16,
    /// Where the next completion comes, and what the controller was told of that.
    head: u16,
    told_head: u16,
    /// How many completions have to be taken before the controller is told: fewer than it has places for.
    lag: u16,
    /// The phase of the next completion, in the place where it is in the last word.
    phase: u32,
    /// The commands that are outstanding.
    pub(crate) slots: Slots<T>,
}

impl<T> Pair<T> {
    /// Memory for queues of up to so many entries, as many as are contiguous. `polled`: nobody waits for an interrupt, so the
    /// completion head need not be told at once.
    pub(crate) fn new(
        device: &Device,
        ioas: &Ioas,
        registers: &Bar,
        capabilities: &Capabilities,
        id: u16,
        entries: u16,
        polled: bool,
    ) -> Result<Self> {
        let (tail_doorbell, head_doorbell) = capabilities
            .doorbells(id)
            .filter(|(_, head)| head.offset() + 4 <= registers.size())
            .ok_or_else(|| Error::nonsense(format!("{}: no doorbells of queue {id}", device.name())))?;
        let most = capabilities.entries.min(4096);
        let entries = floor_power(u32::from(entries).min(most)).max(2);
        let submission =
            Pages::new(device, ioas, (entries as usize) << ENTRY_SHIFT, capabilities.page_shift)?;
        let entries = entries.min(floor_power((submission.contiguous()? >> ENTRY_SHIFT) as u32));
        let completions = floor_power(entries.max(COMPLETIONS_OF_A_PAGE).min(most)).max(entries);
        let completion =
            Pages::new(device, ioas, (completions as usize) << COMPLETION_SHIFT, capabilities.page_shift)?;
        let contiguous = floor_power((completion.contiguous()? >> COMPLETION_SHIFT) as u32);
        let completions = completions.min(contiguous);
        // As many commands as there can be completions, which have to have a place each.
        let entries = entries.min(completions);
        Ok(Self {
            id,
            registers: registers.clone(),
            submission,
            completion,
            entries: entries as u16,
            completions: completions as u16,
            tail_doorbell,
            head_doorbell,
            shadows: None,
            tail: 0,
            told_tail: 0,
            head: 0,
            told_head: 0,
            lag: if polled { completions as u16 / 2 } else { 1 },
            phase: 1 << 16,
            slots: Slots::new(entries as u16 - 1),
        })
    }

    /// The number of both queues.
    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    /// Entries of the submission queue, and where it is.
    pub(crate) fn submission(&self) -> Result<(u16, u64)> {
        Ok((self.entries, self.submission.address(0)?))
    }

    /// The same of the completion queue.
    pub(crate) fn completion(&self) -> Result<(u16, u64)> {
        Ok((self.completions, self.completion.address(0)?))
    }

    /// As if nothing had ever been in it. The controller has no such queues at this time; `doorbells` is what it takes in memory.
    pub(crate) fn restart(&mut self, doorbells: Option<&Arc<Doorbells>>) -> Result<()> {
        let shadow = |register: Register<u32, WriteOnly>| {
            Doorbell::new(doorbells?, register.offset() - DOORBELLS.offset())
        };
        self.shadows = match (shadow(self.tail_doorbell), shadow(self.head_doorbell)) {
            (Some(tail), Some(head)) => Some([tail, head]),
            _ => None,
        };
        for shadow in self.shadows.iter().flatten() {
            shadow.restart()?;
        }
        self.submission.clear()?;
        self.completion.clear()?;
        (self.tail, self.told_tail, self.head, self.told_head) = (0, 0, 0, 0);
        self.phase = 1 << 16;
        Ok(())
    }

    /// Puts a command into the queue. It is the controller's when it has been [rung](Self::ring) for.
    #[inline]
    pub(crate) fn submit(&mut self, command: &Command, owned: T) -> Result<u16> {
        let memory = self.submission.memory()?;
        let Some(identifier) = self.slots.take(owned) else { return Err(full()) };
        // No more are outstanding than entries less one, so this one has been read.
        let at = usize::from(self.tail) << ENTRY_SHIFT;
        for (index, word) in command.entry(identifier).into_iter().enumerate() {
            memory.store_u64(at + index * 8, word.to_le())?;
        }
        self.tail = (self.tail + 1) & (self.entries - 1);
        Ok(identifier)
    }

    /// Tells the controller of the commands that it has not been told of.
    #[inline]
    pub(crate) fn ring(&mut self) -> Result<()> {
        if self.tail != self.told_tail {
            let by_register = match &self.shadows {
                Some([tail, _]) => tail.tell(self.told_tail, self.tail)?,
                None => true,
            };
            if by_register {
                self.registers.set(self.tail_doorbell, self.tail.into())?;
            }
            self.told_tail = self.tail;
        }
        Ok(())
    }

    /// Tells the controller once more what it has been told, by the registers: should it have overlooked it in memory.
    #[cold]
    pub(crate) fn ring_again(&self) -> Result<()> {
        if self.shadows.is_some() {
            self.registers.set(self.tail_doorbell, self.told_tail.into())?;
            self.registers.set(self.head_doorbell, self.told_head.into())?;
        }
        Ok(())
    }

    /// Whether there is a completion.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        let at = usize::from(self.head) << COMPLETION_SHIFT;
        let last = |memory: &DmaBuffer| memory.load_u32(at + IDENTIFIER_AND_STATUS);
        self.completion
            .memory()
            .ok()
            .and_then(|memory| last(memory).ok())
            .is_some_and(|word| u32::from_le(word) & 1 << 16 == self.phase)
    }

    /// The next completion, if there is one, and what its command owned.
    ///
    /// # Errors
    /// What the controller may not do. The completion stays where it is: nothing behind it is believed.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<(Done, T)>, Violation> {
        let Ok(memory) = self.completion.memory() else { return Ok(None) };
        let at = usize::from(self.head) << COMPLETION_SHIFT;
        let Ok(last) = memory.load_u32(at + IDENTIFIER_AND_STATUS) else { return Ok(None) };
        let last = u32::from_le(last);
        if last & 1 << 16 != self.phase {
            return Ok(None);
        }
        barrier::dma_read();
        let word = |offset| memory.load_u32(at + offset).map_or(0, u32::from_le);
        let (place, result) = (word(HEAD_AND_QUEUE), word(RESULT));
        let (submission_head, queue) = (place as u16, (place >> 16) as u16);
        if queue != self.id {
            return Err(Violation::WrongQueue { queue });
        }
        if submission_head >= self.entries {
            return Err(Violation::HeadOutOfRange { head: submission_head });
        }
        let identifier = last as u16;
        let Some(owned) = self.slots.give(identifier) else {
            return Err(Violation::UnknownCommand { identifier });
        };
        self.head += 1;
        if self.head == self.completions {
            self.head = 0;
            self.phase ^= 1 << 16;
        }
        Ok(Some((Done { identifier, status: Status::of_entry((last >> 16) as u16), result }, owned)))
    }

    /// Tells the controller which completions have been taken, where it needs to know.
    #[inline]
    pub(crate) fn tell_head(&mut self) -> Result<()> {
        let untold = self.head.wrapping_sub(self.told_head) & (self.completions - 1);
        if untold >= self.lag {
            let by_register = match &self.shadows {
                // Where it interrupts it is told in any case: what lets a line fall is the register.
                Some([_, head]) => head.tell(self.told_head, self.head)? || self.lag == 1,
                None => true,
            };
            if by_register {
                self.registers.set(self.head_doorbell, self.head.into())?;
            }
            self.told_head = self.head;
        }
        Ok(())
    }
}

#[cold]
fn full() -> Error {
    Error::new(crate::ErrorKind::Full, "the queue has as many commands outstanding as it can have")
        .with_remedy("poll() it, until it has room()")
}

/// The largest power of two that is not larger; 1 of 0.
fn floor_power(number: u32) -> u32 {
    1 << number.max(1).ilog2()
}
