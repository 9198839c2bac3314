//! Changing a table: the one writer.

use core::marker::PhantomData;
use core::ops::Deref;

use super::format::{self, Access, Entry};
use super::{Slot, Table, TableMemory, index, pack_root, unpack_root};
use crate::platform::PhysRun;
use crate::sync::Ordering;
use crate::{Errno, Iova, IovaRange, PhysAddr, TryVec};

/// What the writer knows of a frame beyond its entries.
#[derive(Debug)]
struct FrameState {
    /// Entries in use.
    live: u32,
    /// The next unused frame, while this one is unused.
    next_free: Option<u32>,
}

/// A table on the way from the top to a slot.
#[derive(Clone, Copy, Debug)]
struct Step {
    frame: u64,
    level: u32,
}

/// The one writer of a [`Table`]. Between two calls the table holds no table without entries, and its top is as low as
/// its entries allow, so an empty table holds no frame.
#[derive(Debug)]
pub struct TableWriter<M, T> {
    table: T,
    /// State of every frame the arena has been grown to by this writer, by number.
    frames: TryVec<FrameState>,
    free: Option<u32>,
    in_use: u64,
    available: u64,
    kept: Kept,
    /// The table that the last leaf went into, and the bits of the IOVAs above it: the next leaf mostly goes there, too. Gone with the
    /// next removal, which may take the table out.
    last: Option<(Step, u64)>,
    memory: PhantomData<M>,
}

/// Tables at their places whose memory is kept when they are empty: the next map there costs no page of the system, and an unmap
/// does not give one back.
const MOST_KEPT: usize = 512;

/// The places of tables that are kept, each until its turn comes round again.
#[derive(Debug)]
struct Kept {
    places: [u32; MOST_KEPT],
    /// Whose turn it is, below [`MOST_KEPT`].
    next: u32,
}

impl Kept {
    /// No place has this number: the index ends below 2^53 bytes.
    const NONE: u32 = u32::MAX;

    /// Takes in a place for the one that has been there longest.
    fn replace(&mut self, place: usize) -> Option<usize> {
        let entry = self.places.get_mut(self.next as usize)?;
        let before = core::mem::replace(entry, u32::try_from(place).unwrap_or(Self::NONE));
        self.next = self.next.wrapping_add(1) % MOST_KEPT as u32;
        (before != Self::NONE).then_some(before as usize)
    }
}

impl<M: TableMemory, T: Deref<Target = Table<M>>> TableWriter<M, T> {
    /// Becomes the writer of `table`, for good.
    ///
    /// # Errors
    /// EBUSY when the table has, or had, a writer.
    pub fn new(table: T) -> Result<Self, Errno> {
        if table.claimed.swap(true, Ordering::AcqRel) {
            return Err(Errno::EBUSY);
        }
        let kept = Kept { places: [Kept::NONE; MOST_KEPT], next: 0 };
        let (frames, memory) = (TryVec::new(), PhantomData);
        Ok(Self { table, frames, free: None, in_use: 0, available: 0, kept, last: None, memory })
    }

    /// The table, as readers see it.
    pub fn table(&self) -> &T {
        &self.table
    }

    /// Frames in use at present, 4 KiB each.
    pub fn frames_in_use(&self) -> u64 {
        self.in_use
    }

    /// Maps `length` bytes at `iova` to the contiguous memory at `address`, with leaves as large as alignment allows.
    /// `area_end` marks the last one as the end of its area. Readers see leaves as they are installed.
    ///
    /// # Errors
    /// EINVAL: an address or the length is no multiple of 4 KiB, the length is 0, or the memory passes 52 bits;
    /// EOVERFLOW: the range passes the end of the IOVA space; EEXIST: something is mapped there; ENOMEM. After an error
    /// the table is as before.
    #[inline]
    pub fn map(
        &mut self,
        iova: Iova,
        address: PhysAddr,
        length: u64,
        access: Access,
        area_end: bool,
    ) -> Result<(), Errno> {
        let run = [PhysRun { address, length }];
        if self.map_pages(iova.0, &run, access, area_end) > 0 {
            return Ok(());
        }
        self.map_run(iova, address, length, access, area_end)
    }

    fn map_run(
        &mut self,
        iova: Iova,
        address: PhysAddr,
        length: u64,
        access: Access,
        area_end: bool,
    ) -> Result<(), Errno> {
        let range = IovaRange::with_length(iova, length)?;
        if (iova.0 | address.0 | length) & 0xfff != 0 {
            return Err(Errno::EINVAL);
        }
        if address.checked_add(length.wrapping_sub(1)).is_none_or(|last| last > PhysAddr::MAX) {
            return Err(Errno::EINVAL);
        }
        let mut done = 0u64;
        while done < length {
            let at = iova.0.wrapping_add(done);
            let base = address.0.wrapping_add(done);
            let rest = length.wrapping_sub(done);
            let Some(size) = format::best_leaf(at, base, rest) else { return Err(Errno::EINVAL) };
            let bytes = 1u64 << (size & 63);
            let entry = format::leaf_entry(base, size, access, area_end && bytes == rest);
            if let Err(error) = self.install(at, size, entry, base, range.last().0) {
                if let Some(last) = at.checked_sub(1).filter(|_| done > 0) {
                    self.clear(range.first().0, last);
                }
                self.trim(at);
                return Err(error);
            }
            done = done.wrapping_add(bytes);
        }
        Ok(())
    }

    /// Maps runs of contiguous memory, one behind the other from `iova` on, each as [`TableWriter::map`] does. `area_end` marks the last
    /// leaf of all as the end of its area. Of no runs, nothing is mapped.
    ///
    /// # Errors
    /// Those of [`TableWriter::map`] for any of the runs. The table is as before then.
    pub fn map_runs(
        &mut self,
        iova: Iova,
        runs: &[PhysRun],
        access: Access,
        area_end: bool,
    ) -> Result<(), Errno> {
        let length = runs.iter().try_fold(0u64, |sum, run| sum.checked_add(run.length));
        if !runs.is_empty() {
            IovaRange::with_length(iova, length.ok_or(Errno::EOVERFLOW)?)?;
        }
        let mut at = iova.0;
        let mut rest = runs;
        while let [run, behind @ ..] = rest {
            let pages = self.map_pages(at, rest, access, area_end);
            let bytes = if pages > 0 {
                rest = rest.get(pages..).unwrap_or_default();
                (pages as u64) << format::PAGE_SHIFT
            } else {
                let ends = area_end && behind.is_empty();
                if let Err(error) = self.map_run(Iova(at), run.address, run.length, access, ends) {
                    if at != iova.0 {
                        self.clear(iova.0, at.wrapping_sub(1));
                    }
                    return Err(error);
                }
                rest = behind;
                run.length
            };
            // The IOVA space may end behind the last one.
            at = at.wrapping_add(bytes);
        }
        Ok(())
    }

    /// Maps pages, as many as go into the table where the page before them was put: of scattered memory all but one in 512 are such.
    /// Answers how many of the runs these were: up to one that is no page, or has something wrong with it.
    #[inline]
    fn map_pages(&mut self, iova: u64, runs: &[PhysRun], access: Access, area_end: bool) -> usize {
        let Some((step, prefix)) = self.last else { return 0 };
        if step.level != 0 || prefix != iova >> (format::slot_shift(1) & 63) || iova & format::PAGE_MASK != 0
        {
            return 0;
        }
        let slots = self.table.frame(step.frame).and_then(|slots| slots.get(format::slot_of(iova, 0)..));
        let page = format::leaf_entry(0, format::PAGE_SHIFT, access, false);
        let mut entered = 0usize;
        for (slot, run) in slots.unwrap_or_default().iter().zip(runs) {
            let good = run.length == 1 << format::PAGE_SHIFT
                && run.address.0 & format::PAGE_MASK == 0
                && run.address <= PhysAddr::MAX;
            if !good || slot.load(Ordering::Relaxed) != 0 {
                break;
            }
            entered = entered.wrapping_add(1);
            let ends = if area_end && entered == runs.len() { format::AREA_END } else { 0 };
            slot.store(page | run.address.0 | ends);
        }
        self.add_live(step.frame, entered as u32);
        entered
    }

    /// Unmaps `range`, which begins and ends at leaf borders or in holes, and gives back the tables it empties. Holes
    /// inside are passed over. Allocates nothing.
    ///
    /// # Errors
    /// EINVAL when a leaf lies across an end of the range; nothing is unmapped then.
    pub fn unmap(&mut self, range: IovaRange) -> Result<(), Errno> {
        let (first, last) = (range.first().0, range.last().0);
        let begins_inside = self.table.walk(first).is_some_and(|(leaf, _)| first & leaf.offset_mask() != 0);
        let ends_inside = self.table.walk(last).is_some_and(|(leaf, _)| last | leaf.offset_mask() != last);
        if begins_inside || ends_inside {
            return Err(Errno::EINVAL);
        }
        self.clear(first, last);
        Ok(())
    }

    /// The same for an area, which consists of whole leaves.
    pub(crate) fn unmap_area(&mut self, area: IovaRange) {
        self.clear(area.first().0, area.last().0);
    }

    /// Makes the leaf that ends at `last` the end of an area: an area has been cut there. Allocates nothing.
    ///
    /// # Errors
    /// ENOENT: nothing is mapped there; EINVAL: the leaf there ends elsewhere.
    pub fn end_area(&mut self, last: Iova) -> Result<(), Errno> {
        let (frame, level) = unpack_root(self.table.root.load(Ordering::Relaxed)).ok_or(Errno::ENOENT)?;
        // Of the top alone: the tables below hold a part of what it reaches.
        if !format::reaches(level, last.0) {
            return Err(Errno::ENOENT);
        }
        let mut step = Step { frame, level };
        loop {
            let slot = format::slot_of(last.0, step.level);
            let entry = self.entry(step.frame, slot);
            match format::decode(entry, step.level) {
                Entry::Empty => return Err(Errno::ENOENT),
                Entry::Table { frame } => {
                    step = Step { frame, level: step.level.checked_sub(1).ok_or(Errno::EIO)? };
                }
                Entry::Leaf(leaf) if last.0 & leaf.offset_mask() != leaf.offset_mask() => {
                    return Err(Errno::EINVAL);
                }
                Entry::Leaf(leaf) => {
                    let count = format::leaf_slots(leaf.size);
                    let from = slot & !count.wrapping_sub(1);
                    let slots =
                        self.frame(step.frame).and_then(|slots| slots.get(from..from.wrapping_add(count)));
                    for slot in slots.ok_or(Errno::EIO)? {
                        slot.store(entry | format::AREA_END);
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Puts `entry`, a leaf of 2^`size` bytes at `base`, into its slots, making the tables on the way. `reach` is the last IOVA
    /// that the operation will need, so that the top grows once.
    fn install(&mut self, iova: u64, size: u32, entry: u64, base: u64, reach: u64) -> Result<(), Errno> {
        let level = format::leaf_level(size);
        let prefix = iova.checked_shr(format::slot_shift(level.wrapping_add(1))).unwrap_or(0);
        let step = match self.last {
            Some((step, last)) if step.level == level && last == prefix => step,
            _ => {
                self.grow_top(reach, level)?;
                let step = self.descend_making(iova, level)?;
                self.last = Some((step, prefix));
                step
            }
        };
        let count = format::leaf_slots(size);
        let frame = self.table.frame(step.frame).ok_or(Errno::EIO)?;
        let from = format::slot_of(iova, level);
        let slots = frame.get(from..from.wrapping_add(count)).ok_or(Errno::EINVAL)?;
        if slots.iter().any(|slot| slot.load(Ordering::Relaxed) != 0) {
            return Err(Errno::EEXIST);
        }
        if level > 0 {
            index::prepare(&self.table.memory, iova, size)?;
        }
        for slot in slots {
            slot.store(entry);
        }
        if level > 0 {
            index::set_leaf(&self.table.memory, iova, size, base);
        }
        self.add_live(step.frame, count as u32);
        Ok(())
    }

    /// Raises the top until it reaches `iova` and is of level `least` or above: a leaf of 2^48 bytes, all that a top of level 3
    /// reaches, is none of its slots but one of a table above.
    fn grow_top(&mut self, iova: u64, least: u32) -> Result<(), Errno> {
        let root = unpack_root(self.table.root.load(Ordering::Relaxed));
        let Some((mut top, mut level)) = root else {
            let mut level = format::TOP_LEVEL_START.max(least);
            while !format::reaches(level, iova) {
                level = level.wrapping_add(1);
            }
            let frame = self.take_frame()?;
            self.table.root.store(pack_root(frame, level), Ordering::Release);
            return Ok(());
        };
        while level < least || !format::reaches(level, iova) {
            let frame = self.take_frame()?;
            level = level.wrapping_add(1);
            self.link(frame, 0, format::table_entry(level, top));
            self.table.root.store(pack_root(frame, level), Ordering::Release);
            top = frame;
        }
        Ok(())
    }

    /// The table of `level` on the way to `iova`, made if it is not there.
    fn descend_making(&mut self, iova: u64, level: u32) -> Result<Step, Errno> {
        let (frame, top) = unpack_root(self.table.root.load(Ordering::Relaxed)).ok_or(Errno::EIO)?;
        let mut step = Step { frame, level: top };
        while step.level > level {
            let slot = format::slot_of(iova, step.level);
            let child = match format::decode(self.entry(step.frame, slot), step.level) {
                Entry::Table { frame } => frame,
                Entry::Leaf(_) => return Err(Errno::EEXIST),
                Entry::Empty => {
                    let child = self.take_table(iova, step.level)?;
                    self.link(step.frame, slot, format::table_entry(step.level, child));
                    child
                }
            };
            step = Step { frame: child, level: step.level.wrapping_sub(1) };
        }
        Ok(step)
    }

    /// Clears every leaf from `first` to `last` and gives back what that empties.
    fn clear(&mut self, first: u64, last: u64) {
        let mut at = first;
        'tables: while let Some((frame, level)) = unpack_root(self.table.root.load(Ordering::Relaxed)) {
            if !format::reaches(level, at) {
                break;
            }
            // Down to the table that holds the leaf at `at`, or to the empty slot that shows the hole.
            let mut step = Step { frame, level };
            while let Entry::Table { frame } =
                format::decode(self.entry(step.frame, format::slot_of(at, step.level)), step.level)
            {
                let Some(below) = step.level.checked_sub(1) else { break 'tables };
                step = Step { frame, level: below };
            }
            let Some((cleared, next)) = self.clear_in(step, at, last) else { break };
            let live = self.live(step.frame).saturating_sub(cleared);
            self.set_live(step.frame, live);
            if live == 0 {
                self.prune(at);
            }
            match next {
                Some(next) => at = next,
                None => break,
            }
        }
        self.settle();
    }

    /// Clears the leaves of one table from `first` on, up to `last`, the end of the table, or a table in it. Answers how many slots that
    /// were, and where to go on.
    fn clear_in(&self, step: Step, first: u64, last: u64) -> Option<(u32, Option<u64>)> {
        let memory = &self.table.memory;
        // Whole leaves lie in the range, and one that fills several slots is the same in each: no entry need be decoded.
        let shift = format::slot_shift(step.level) & 63;
        let end = last.min(first | (1u64 << (shift.wrapping_add(format::INDEX_BITS) & 63)).wrapping_sub(1));
        let end = if step.level >= format::TOP_LEVEL_MAX { last } else { end };
        let slots = self.table.frame(step.frame)?;
        let slots = slots.get(format::slot_of(first, step.level)..=format::slot_of(end, step.level))?;
        let next = end.checked_add(1).filter(|&next| next <= last);
        if step.level == 0 {
            // Nothing but pages, and nothing that stands for them elsewhere.
            let mut cleared = 0u32;
            for slot in slots {
                cleared = cleared.wrapping_add(u32::from(slot.load(Ordering::Relaxed) != 0));
                slot.store(0);
            }
            return Some((cleared, next));
        }
        // Of level 1, a word of the index stands for each slot; where it does not reach, for none.
        let words = if step.level == 1 { index::words_from(memory, first) } else { &[] };
        let mut cleared = 0u32;
        let mut done = 0usize;
        while let Some(slots) = slots.get(done..).filter(|slots| !slots.is_empty()) {
            let words = words.get(done..).unwrap_or_default();
            let leaves = index::clear_leaves(words, slots);
            cleared = cleared.wrapping_add(leaves as u32);
            done = done.wrapping_add(leaves);
            // And one that the words do not tell of, if there is any.
            let (word, Some(slot)) = (words.get(leaves), slots.get(leaves)) else { break };
            let entry = slot.load(Ordering::Relaxed);
            if entry != 0 {
                let begin = (first >> shift).wrapping_add(done as u64) << shift;
                if format::is_table(entry) {
                    return Some((cleared, Some(begin.max(first))));
                }
                if let Some(word) = word {
                    word.store(0);
                } else if step.level > 1
                    && let Entry::Leaf(leaf) = format::decode(entry, step.level)
                {
                    index::clear_slot(memory, begin, shift, leaf.size);
                }
                slot.store(0);
                cleared = cleared.wrapping_add(1);
            }
            done = done.wrapping_add(1);
        }
        Some((cleared, next))
    }

    /// Takes out the tables without entries that a failed map has left on the way to `iova`.
    fn trim(&mut self, iova: u64) {
        self.prune(iova);
        self.settle();
    }

    /// The end of every removal: from here on the frames it has unlinked may be used anew, so a reader that may still
    /// stand in one of them has to notice.
    fn settle(&mut self) {
        self.last = None;
        self.lower_top();
        self.raise_epoch();
    }

    /// Unlinks the tables without entries on the way to `iova`, from below.
    fn prune(&mut self, iova: u64) {
        let Some((frame, level)) = unpack_root(self.table.root.load(Ordering::Relaxed)) else { return };
        if !format::reaches(level, iova) {
            return;
        }
        // Each round takes out the lowest empty table; a table holds at most five below it.
        loop {
            let mut parent = None;
            let mut step = Step { frame, level };
            while let Entry::Table { frame: child } =
                format::decode(self.entry(step.frame, format::slot_of(iova, step.level)), step.level)
            {
                let Some(below) = step.level.checked_sub(1) else { return };
                parent = Some(step);
                step = Step { frame: child, level: below };
            }
            match parent {
                Some(parent) if self.live(step.frame) == 0 => {
                    self.clear_slots(parent.frame, format::slot_of(iova, parent.level), 1);
                    self.give_back(step.frame);
                }
                _ => return,
            }
        }
    }

    /// Takes out top tables that hold nothing, or nothing but the table that could be the top in their place.
    fn lower_top(&mut self) {
        while let Some((frame, level)) = unpack_root(self.table.root.load(Ordering::Relaxed)) {
            if self.live(frame) == 0 {
                self.table.root.store(0, Ordering::Release);
                self.give_back(frame);
                continue;
            }
            if level == format::TOP_LEVEL_START || self.live(frame) != 1 {
                return;
            }
            let Entry::Table { frame: child } = format::decode(self.entry(frame, 0), level) else { return };
            self.table.root.store(pack_root(child, level.wrapping_sub(1)), Ordering::Release);
            // A reader that came by the old top and finds its slot cleared must not take that for a hole: the slot is
            // cleared in a later epoch than the one in which the old top could be reached.
            self.raise_epoch();
            self.clear_slots(frame, 0, 1);
            self.give_back(frame);
        }
    }

    fn raise_epoch(&self) {
        let epoch = self.table.epoch.load(Ordering::Relaxed);
        self.table.epoch.store(epoch.wrapping_add(1), Ordering::Release);
    }

    fn frame(&self, number: u64) -> Option<&[Slot; format::SLOTS]> {
        self.table.frame(number)
    }

    fn entry(&self, frame: u64, slot: usize) -> u64 {
        self.frame(frame).and_then(|slots| slots.get(slot)).map_or(0, |slot| slot.load(Ordering::Relaxed))
    }

    fn link(&mut self, frame: u64, slot: usize, entry: u64) {
        if let Some(slot) = self.frame(frame).and_then(|slots| slots.get(slot)) {
            slot.store(entry);
        }
        self.add_live(frame, 1);
    }

    fn clear_slots(&mut self, frame: u64, slot: usize, count: usize) {
        let slots = self.frame(frame).and_then(|slots| slots.get(slot..slot.wrapping_add(count)));
        for slot in slots.unwrap_or_default() {
            slot.store(0);
        }
        let live = self.live(frame).saturating_sub(count as u32);
        self.set_live(frame, live);
    }

    fn state(&mut self, frame: u64) -> Option<&mut FrameState> {
        self.frames.get_mut(usize::try_from(frame).ok()?)
    }

    /// Entries in use.
    fn live(&mut self, frame: u64) -> u32 {
        match index::place_of(frame) {
            Some(place) => index::live(&self.table.memory, place),
            None => self.state(frame).map_or(0, |state| state.live),
        }
    }

    fn set_live(&mut self, frame: u64, live: u32) {
        match index::place_of(frame) {
            Some(place) => index::set_live(&self.table.memory, place, live),
            None => {
                if let Some(state) = self.state(frame) {
                    state.live = live;
                }
            }
        }
    }

    fn add_live(&mut self, frame: u64, count: u32) {
        let live = self.live(frame).saturating_add(count);
        self.set_live(frame, live);
    }

    /// A table without entries for the slot of `iova` in one of `level`: the one at its place, where the index has it.
    fn take_table(&mut self, iova: u64, level: u32) -> Result<u64, Errno> {
        if level == 1
            && let Some(placed) = index::take_table(&self.table.memory, iova)?
        {
            self.in_use = self.in_use.wrapping_add(1);
            return Ok(placed);
        }
        self.take_frame()
    }

    /// A frame without entries.
    fn take_frame(&mut self) -> Result<u64, Errno> {
        let frame = match self.free {
            Some(frame) => {
                let state = self.state(frame.into()).ok_or(Errno::EIO)?;
                self.free = state.next_free.take();
                u64::from(frame)
            }
            None => {
                let frame = u32::try_from(self.frames.len()).map_err(|_| Errno::ENOMEM)?;
                if u64::from(frame) >= self.available {
                    self.available = self.table.memory.grow(u64::from(frame).wrapping_add(1))?;
                }
                self.frames.try_push(FrameState { live: 0, next_free: None })?;
                u64::from(frame)
            }
        };
        self.in_use = self.in_use.wrapping_add(1);
        Ok(frame)
    }

    /// Takes a frame out of use. Its entries are all cleared, and stay so until it is taken anew.
    fn give_back(&mut self, frame: u64) {
        if let Some(place) = index::place_of(frame) {
            let turn = self.kept.next;
            if let Some(longest_kept) = self.kept.replace(place) {
                index::release_kept(&self.table.memory, longest_kept, turn);
            }
            index::keep_table(&self.table.memory, place, turn);
            self.in_use = self.in_use.wrapping_sub(1);
            return;
        }
        let head = self.free;
        if let (Some(state), Ok(number)) = (self.state(frame), u32::try_from(frame)) {
            state.next_free = head;
            self.free = Some(number);
            self.in_use = self.in_use.wrapping_sub(1);
        }
    }
}
