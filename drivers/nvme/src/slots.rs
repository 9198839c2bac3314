//! The commands of a queue that are outstanding, and what each of them owns until it is answered.

use std::time::Instant;

/// How far a command that is late has been seen to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Late {
    /// It has not been looked at since it was given.
    Unseen,
    /// It was outstanding then.
    Seen(Instant),
    /// It was asked to be aborted then.
    Aborted(Instant),
}

/// A place for a command.
#[derive(Debug)]
struct Slot<T> {
    /// The identifier of the command that it has, or of the last one: the slot's number in the lower bits, and above them how
    /// often it was used. So an answer to a command of before is not taken for one to the command of now.
    identifier: u16,
    /// What the command owns; `None`: there is none.
    owned: Option<T>,
    late: Late,
}

/// Places for commands, fewer than the queue has entries: a full ring would look empty.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    slots: Box<[Slot<T>]>,
    /// Numbers of free slots, the one first that has been free for the longest: a ring.
    free: Box<[u16]>,
    next_free: usize,
    free_count: usize,
    /// Bits of an identifier that are the slot's number.
    bits: u32,
}

impl<T> Slots<T> {
    /// At most 4095.
    pub(crate) fn new(count: u16) -> Self {
        let bits = u32::from(count).next_power_of_two().trailing_zeros();
        let slot = |identifier| Slot { identifier, owned: None, late: Late::Unseen };
        Self {
            slots: (0..count).map(slot).collect(),
            free: (0..count).collect(),
            next_free: 0,
            free_count: count.into(),
            bits,
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.slots.len()
    }

    /// Bits of an identifier that are the slot's number.
    #[inline]
    pub(crate) fn bits(&self) -> u32 {
        self.bits
    }

    /// How many commands are outstanding.
    #[inline]
    pub(crate) fn outstanding(&self) -> usize {
        self.slots.len() - self.free_count
    }

    /// How many more there can be.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        self.free_count
    }

    /// The slot that the next command gets.
    #[inline]
    pub(crate) fn next(&self) -> Option<usize> {
        if self.free_count == 0 { None } else { self.free.get(self.next_free).map(|&slot| slot.into()) }
    }

    /// Gives that slot to a command; answers its identifier.
    #[inline]
    pub(crate) fn take(&mut self, owned: T) -> Option<u16> {
        let index = self.next()?;
        let slot = self.slots.get_mut(index)?;
        let mut identifier = slot.identifier.wrapping_add(1 << self.bits);
        // 5.14.1.1: the error log says 0xffff for "no command".
        if identifier == u16::MAX {
            identifier = index as u16;
        }
        slot.identifier = identifier;
        slot.owned = Some(owned);
        slot.late = Late::Unseen;
        self.next_free = if self.next_free + 1 == self.free.len() { 0 } else { self.next_free + 1 };
        self.free_count -= 1;
        Some(identifier)
    }

    /// A command was answered: what it owned. `None`: none of this name is outstanding.
    #[inline]
    pub(crate) fn give(&mut self, identifier: u16) -> Option<T> {
        let index = usize::from(identifier) & ((1 << self.bits) - 1);
        let slot = self.slots.get_mut(index)?;
        if slot.identifier != identifier {
            return None;
        }
        let owned = slot.owned.take()?;
        let mut last = self.next_free + self.free_count;
        if last >= self.free.len() {
            last -= self.free.len();
        }
        if let Some(place) = self.free.get_mut(last) {
            *place = index as u16;
        }
        self.free_count += 1;
        Some(owned)
    }

    /// The identifiers of all that are outstanding, with how late each is.
    pub(crate) fn late(&mut self) -> impl Iterator<Item = (u16, &mut Late)> {
        let used = self.slots.iter_mut().filter(|slot| slot.owned.is_some());
        used.map(|slot| (slot.identifier, &mut slot.late))
    }

    /// The identifier of any that is outstanding.
    pub(crate) fn any(&self) -> Option<u16> {
        self.slots.iter().find(|slot| slot.owned.is_some()).map(|slot| slot.identifier)
    }

    /// Whether a command was asked to be aborted.
    pub(crate) fn was_aborted(&self, identifier: u16) -> bool {
        let index = usize::from(identifier) & ((1 << self.bits) - 1);
        self.slots.get(index).is_some_and(|slot| matches!(slot.late, Late::Aborted(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_not_used_again_soon() {
        for count in [1, 2, 3, 31, 63, 64, 1000, 4095] {
            let mut slots = Slots::new(count);
            let mut last = std::collections::VecDeque::new();
            for round in 0..20_000_u32 {
                let index = slots.next().unwrap();
                let identifier = slots.take(round).unwrap();
                assert_ne!(identifier, u16::MAX);
                assert_eq!(usize::from(identifier) & ((1 << slots.bits) - 1), index);
                assert!(!last.contains(&identifier), "{count}: {identifier:#x} again");
                last.push_back(identifier);
                if last.len() > 15 {
                    last.pop_front();
                }
                assert_eq!(slots.give(identifier), Some(round));
                assert_eq!(slots.give(identifier), None, "twice");
            }
        }
    }

    #[test]
    fn all_are_used_and_each_once() {
        let mut slots = Slots::new(5);
        let taken: Vec<u16> = (0..5).map(|number| slots.take(number).unwrap()).collect();
        assert_eq!((slots.room(), slots.outstanding(), slots.next(), slots.take(9)), (0, 5, None, None));
        let mut different = taken.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), 5);
        assert_eq!(slots.give(taken[3] ^ 5), None, "a slot past the last");
        assert_eq!(slots.give(taken[3] ^ 8), None, "a command of before");
        // In any order.
        for index in [3, 0, 4, 1, 2] {
            assert_eq!(slots.give(taken[index]), Some(index));
        }
        assert_eq!((slots.room(), slots.any()), (5, None));
        assert_eq!(slots.late().count(), 0);
    }
}
