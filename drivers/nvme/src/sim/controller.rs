//! The model: registers, doorbells, commands in turn.

use std::collections::{BTreeMap, VecDeque};

use noiommu::sim::{At, Bus, Identity, Model, Work};

use super::data;
use super::fault::Fault;
use super::queues::{Completions, Entry, Submission};

const CAP: u64 = 0x00;
const VS: u64 = 0x08;
const INTMS: u64 = 0x0c;
const INTMC: u64 = 0x10;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;
/// Where the MSI-X table is.
const TABLE: u32 = 0x2000;
/// Bytes of the BAR.
const SIZE: u64 = 0x4000;

const READY: u32 = 1;
const FATAL: u32 = 2;
const SHUTDOWN_DONE: u32 = 2 << 2;

/// Status codes, of the generic type: 4.6.1.2.1.
pub(super) const SUCCESS: u16 = 0;
pub(super) const INVALID_OPCODE: u16 = 0x01;
pub(super) const INVALID_FIELD: u16 = 0x02;
pub(super) const TRANSFER_ERROR: u16 = 0x04;
pub(super) const ABORTED: u16 = 0x07;
pub(super) const INVALID_NAMESPACE: u16 = 0x0b;
pub(super) const INVALID_PRP: u16 = 0x13;
pub(super) const OUT_OF_RANGE: u16 = 0x80;

/// What changes the bytes of a structure on its way to the driver.
type Forge = Box<dyn FnMut(u32, &mut [u8]) + Send>;

/// An NVMe controller with one namespace, number 1, in memory.
pub struct Controller {
    pub(super) media: Vec<u8>,
    pub(super) block_size: u32,
    /// How many I/O queues it grants.
    pub(super) granted: u16,
    /// MDTS.
    pub(super) transfer_shift: u8,
    most_entries: u16,
    vectors: u32,
    /// It takes doorbells in memory; and where they are, once it has been told.
    pub(super) takes_doorbells: bool,
    pub(super) doorbells: Option<[u64; 2]>,
    /// CAP.TO.
    patience: u8,
    has_reset: bool,
    /// Bits of CAP that are changed.
    lies: u64,
    configuration: u32,
    status: u32,
    masked: u32,
    admin_sizes: u32,
    admin_submission: u64,
    admin_completion: u64,
    pub(super) submissions: BTreeMap<u16, Submission>,
    pub(super) completions: BTreeMap<u16, Completions>,
    faults: VecDeque<Fault>,
    pub(super) forge: Option<Forge>,
    /// Commands that are done after the others, or never: queue, entry, and whether an abort ends it.
    pub(super) late: VecDeque<(u16, [u8; 64])>,
    pub(super) silent: Vec<(u16, u16, bool)>,
    /// It does nothing any more.
    stalled: bool,
    stuck: bool,
    /// Commands that it has taken from I/O queues.
    taken: u64,
    /// Writes to doorbells of I/O queues: tails and heads.
    rung: [u64; 2],
    resets: u64,
}

impl Controller {
    /// One with so many blocks of so many bytes, which are a power of two and at least 512.
    #[must_use]
    pub fn new(blocks: u64, block_size: u32) -> Self {
        Self {
            media: vec![0; blocks as usize * block_size as usize],
            block_size,
            granted: 8,
            transfer_shift: 7,
            most_entries: 1024,
            vectors: 9,
            takes_doorbells: false,
            doorbells: None,
            patience: 1,
            has_reset: true,
            lies: 0,
            configuration: 0,
            status: 0,
            masked: 0,
            admin_sizes: 0,
            admin_submission: 0,
            admin_completion: 0,
            submissions: BTreeMap::new(),
            completions: BTreeMap::new(),
            faults: VecDeque::new(),
            forge: None,
            late: VecDeque::new(),
            silent: Vec::new(),
            stalled: false,
            stuck: false,
            taken: 0,
            rung: [0; 2],
            resets: 0,
        }
    }

    /// How many I/O queues it grants: 8 without this.
    #[must_use]
    pub fn with_queues(mut self, count: u16) -> Self {
        self.granted = count;
        self
    }

    /// The most entries of its queues: 1024 without this.
    #[must_use]
    pub fn with_entries(mut self, most: u16) -> Self {
        self.most_entries = most;
        self
    }

    /// The most bytes of a command, as 4 KiB times a power of two (MDTS); 0: no limit. 7 without this.
    #[must_use]
    pub fn with_transfer_shift(mut self, shift: u8) -> Self {
        self.transfer_shift = shift;
        self
    }

    /// How many MSI-X vectors it has; 0: none, but a line. 9 without this.
    #[must_use]
    pub fn with_vectors(mut self, vectors: u32) -> Self {
        self.vectors = vectors;
        self
    }

    /// It takes doorbells in memory (7.13), as controllers do that are programs.
    #[must_use]
    pub fn with_shadow_doorbells(mut self) -> Self {
        self.takes_doorbells = true;
        self
    }

    /// It has no reset but its own.
    #[must_use]
    pub fn without_reset(mut self) -> Self {
        self.has_reset = false;
        self
    }

    /// Changes these bits of its capabilities register.
    #[must_use]
    pub fn with_lies(mut self, bits: u64) -> Self {
        self.lies = bits;
        self
    }

    /// What is on the drive.
    #[must_use]
    pub fn media(&self) -> &[u8] {
        &self.media
    }

    /// The same, to change it.
    pub fn media_mut(&mut self) -> &mut [u8] {
        &mut self.media
    }

    /// What becomes of the next commands of I/O queues, one after the other.
    pub fn inject(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.extend(faults);
    }

    /// Has somebody change the structures that Identify answers: called with which it is (CNS) and its bytes.
    pub fn forge(&mut self, forge: impl FnMut(u32, &mut [u8]) + Send + 'static) {
        self.forge = Some(Box::new(forge));
    }

    /// Commands that it has taken from I/O queues so far.
    #[must_use]
    pub fn commands(&self) -> u64 {
        self.taken
    }

    /// How often doorbells of I/O queues were written: submission tails, completion heads.
    #[must_use]
    pub fn doorbells(&self) -> [u64; 2] {
        self.rung
    }

    /// How often it was disabled.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.resets
    }

    /// Puts an entry of anybody's choice into completion queue `queue`, if there is one: its phase is made right if `valid`.
    pub fn scribble(&mut self, queue: u16, entry: [u8; 16], valid: bool, bus: &mut Bus<'_>) {
        let Some(completions) = self.completions.get_mut(&queue).filter(|queue| queue.entries > 0) else {
            return;
        };
        if valid {
            completions.put(entry, bus);
        } else {
            let _ = bus.write(completions.address + u64::from(completions.tail) * 16, &entry);
        }
    }

    /// The controller is as after power-on; what is on the drive stays.
    fn disable(&mut self) {
        self.submissions.clear();
        self.completions.clear();
        self.late.clear();
        self.silent.clear();
        self.faults.clear();
        (self.status, self.masked, self.stalled, self.doorbells) = (0, 0, false, None);
        self.resets += 1;
    }

    fn configure(&mut self, value: u32, bus: &mut Bus<'_>) {
        let before = std::mem::replace(&mut self.configuration, value);
        if self.stuck {
            return;
        }
        if before & 1 != 0 && value & 1 == 0 {
            self.disable();
            self.assert_line(bus);
        } else if before & 1 == 0 && value & 1 != 0 {
            let (submission, completion) = (self.admin_sizes & 0xfff, self.admin_sizes >> 16 & 0xfff);
            let entries = |size: u32| size as u16 + 1;
            self.submissions.insert(
                0,
                Submission {
                    address: self.admin_submission,
                    entries: entries(submission),
                    ..Submission::default()
                },
            );
            self.completions.insert(
                0,
                Completions {
                    address: self.admin_completion,
                    entries: entries(completion),
                    vector: Some(0),
                    ..Completions::default()
                },
            );
            self.status |= READY;
        }
        if value >> 14 & 3 != 0 {
            self.status |= SHUTDOWN_DONE;
        }
    }

    fn ring(&mut self, offset: u64, value: u32, bus: &mut Bus<'_>) {
        let index = (offset - DOORBELLS) / 4;
        let (queue, value) = ((index / 2) as u16, value as u16);
        if queue > 0 {
            self.rung[(index % 2) as usize] += 1;
        }
        // What cannot be, or is of a queue that is not there, is left alone: 9.5 has an asynchronous event for it.
        if index.is_multiple_of(2) {
            if let Some(submission) = self.submissions.get_mut(&queue).filter(|queue| value < queue.entries) {
                submission.tail = value;
            }
        } else if let Some(completions) =
            self.completions.get_mut(&queue).filter(|queue| value < queue.entries)
        {
            completions.head = value;
            self.assert_line(bus);
        }
    }

    /// 7.5.1: where there are no messages, the line is asserted as long as something is there that was not taken.
    fn assert_line(&mut self, bus: &mut Bus<'_>) {
        if bus.vectors() > 0 {
            return;
        }
        let interrupts = |queue: &Completions| {
            queue.is_pending() && queue.vector.is_some_and(|vector| self.masked >> vector.min(31) & 1 == 0)
        };
        if self.completions.values().any(interrupts) { bus.raise(0) } else { bus.lower() }
    }

    /// Answers a command.
    pub(super) fn complete(
        &mut self,
        queue: u16,
        identifier: u16,
        status: u16,
        result: u32,
        bus: &mut Bus<'_>,
    ) {
        self.answer(queue, identifier, status, result, Fault::None, bus);
    }

    fn answer(
        &mut self,
        queue: u16,
        identifier: u16,
        status: u16,
        result: u32,
        fault: Fault,
        bus: &mut Bus<'_>,
    ) {
        let Some(submission) = self.submissions.get(&queue) else { return };
        let Some(completions) = self.completions.get_mut(&submission.completion) else { return };
        let (mut head, mut told, mut named) = (submission.head, queue, identifier);
        match fault {
            Fault::WrongHead(by) => head = submission.entries.saturating_add(by),
            Fault::WrongQueue(other) => told = other,
            Fault::WrongIdentifier(bits) => named ^= bits,
            _ => {}
        }
        let mut entry = [0; 16];
        entry[..4].copy_from_slice(&result.to_le_bytes());
        entry[8..10].copy_from_slice(&head.to_le_bytes());
        entry[10..12].copy_from_slice(&told.to_le_bytes());
        entry[12..14].copy_from_slice(&named.to_le_bytes());
        entry[14..].copy_from_slice(&(status << 1).to_le_bytes());
        completions.put(entry, bus);
        let vector = completions.vector;
        match vector {
            Some(vector) if bus.vectors() > 0 => bus.raise(vector.into()),
            _ => self.assert_line(bus),
        }
    }

    /// Whether a completion of a command of this queue has a place.
    fn has_place(&self, submission: &Submission) -> bool {
        self.completions.get(&submission.completion).is_some_and(|queue| !queue.is_full())
    }

    /// 7.13: looks at the doorbells in memory, and says from where on the registers are to be written again.
    fn look(&mut self, bus: &mut Bus<'_>) {
        let Some([values, events]) = self.doorbells else { return };
        for (id, queue) in self.submissions.iter_mut().filter(|(id, _)| **id > 0) {
            let at = u64::from(*id) * 8;
            let _ = bus.write(events + at, &u32::from(queue.tail).to_le_bytes());
            if let Ok(value) = bus.fetch(values + at) {
                let value = u32::from_le_bytes(value) as u16;
                queue.tail = if value < queue.entries { value } else { queue.tail };
            }
            // What came until now is known; what comes after it is to be told.
            let _ = bus.write(events + at, &u32::from(queue.tail).to_le_bytes());
        }
        for (id, queue) in self.completions.iter_mut().filter(|(id, _)| **id > 0) {
            let at = u64::from(*id) * 8 + 4;
            if let Ok(value) = bus.fetch(values + at) {
                let value = u32::from_le_bytes(value) as u16;
                queue.head = if value < queue.entries { value } else { queue.head };
            }
            let _ = bus.write(events + at, &u32::from(queue.head).to_le_bytes());
        }
    }

    /// Takes the next command, the admin queue's first, then in turn.
    fn next(&mut self, bus: &mut Bus<'_>) -> Option<(u16, [u8; 64])> {
        let turn = self.taken as usize;
        let ready: Vec<u16> = self
            .submissions
            .iter()
            .filter(|(_, queue)| queue.head != queue.tail && self.has_place(queue))
            .map(|(id, _)| *id)
            .collect();
        let id = match ready.first()? {
            0 => 0,
            _ => *ready.get(turn % ready.len())?,
        };
        let entry = self.submissions.get_mut(&id)?.take(bus)?;
        self.taken += u64::from(id > 0);
        Some((id, entry))
    }

    /// A command of an I/O queue.
    fn command(&mut self, queue: u16, bytes: &[u8; 64], bus: &mut Bus<'_>) {
        let entry = Entry(bytes);
        let identifier = entry.identifier();
        let fault = self.faults.pop_front().unwrap_or(Fault::None);
        match fault {
            Fault::Late => return self.late.push_back((queue, *bytes)),
            Fault::Silence => return self.silent.push((queue, identifier, true)),
            Fault::Deaf => return self.silent.push((queue, identifier, false)),
            Fault::Status(kind, code) => {
                let status = u16::from(kind) << 8 | u16::from(code);
                return self.answer(queue, identifier, status, 0, fault, bus);
            }
            Fault::Fatal => {
                (self.stalled, self.status) = (true, self.status | FATAL);
                return;
            }
            Fault::Stall => {
                self.stalled = true;
                return;
            }
            Fault::Stuck => {
                (self.stalled, self.stuck) = (true, true);
                return;
            }
            _ => {}
        }
        let status = self.execute(entry, bus);
        self.answer(queue, identifier, status, 0, fault, bus);
        if fault == Fault::Twice {
            self.answer(queue, identifier, status, 0, fault, bus);
        }
    }

    /// CC.MPS: bytes of a page.
    pub(super) fn page(&self) -> u64 {
        4096 << (self.configuration >> 7 & 0xf)
    }

    /// 6: flush, write, read.
    fn execute(&mut self, entry: Entry<'_>, bus: &mut Bus<'_>) -> u16 {
        if entry.namespace() != 1 {
            return INVALID_NAMESPACE;
        }
        let writes = match entry.opcode() {
            0x00 => return SUCCESS,
            0x01 => true,
            0x02 => false,
            _ => return INVALID_OPCODE,
        };
        let first = u64::from(entry.word(10)) | u64::from(entry.word(11)) << 32;
        let count = u64::from(entry.word(12) & 0xffff) + 1;
        let (size, all) = (u64::from(self.block_size), self.media.len() as u64);
        let length = count * size;
        if self.transfer_shift > 0 && length >> self.transfer_shift > self.page() {
            return INVALID_FIELD;
        }
        let Some(start) = first.checked_mul(size).filter(|start| *start <= all && length <= all - start)
        else {
            return OUT_OF_RANGE;
        };
        let Some(pieces) = data::pieces(entry.prp(), length, self.page(), bus) else { return INVALID_PRP };
        let mut at = start as usize;
        for (address, length) in pieces {
            let bytes = &mut self.media[at..at + length as usize];
            let moved = if writes {
                // What nobody answers for does not change what is there.
                let mut new = vec![0; bytes.len()];
                bus.read(address, &mut new).map(|()| bytes.copy_from_slice(&new))
            } else {
                bus.write(address, bytes)
            };
            if moved.is_err() {
                return TRANSFER_ERROR;
            }
            at += length as usize;
        }
        SUCCESS
    }
}

impl Model for Controller {
    fn identity(&self) -> Identity {
        let identity = Identity::new("nvme", 0x1b36, 0x0010).class(0x01_08_02).express().bar64(0, SIZE);
        let identity = if self.has_reset { identity.resettable() } else { identity };
        match self.vectors {
            0 => identity.line(),
            vectors => identity.line().msix(vectors, 0, TABLE),
        }
    }

    fn read(&mut self, at: At, _: &mut Bus<'_>) -> u64 {
        let capabilities =
            (u64::from(self.most_entries - 1) | 1 << 16 | u64::from(self.patience) << 24 | 1 << 37)
                ^ self.lies;
        let wide = |value: u64, from: u64| value >> (8 * (at.offset - from));
        match at.offset {
            CAP | 0x04 => wide(capabilities, CAP),
            VS => 0x0001_0400,
            INTMS | INTMC => self.masked.into(),
            CC => self.configuration.into(),
            CSTS => self.status.into(),
            AQA => self.admin_sizes.into(),
            ASQ | 0x2c => wide(self.admin_submission, ASQ),
            ACQ | 0x34 => wide(self.admin_completion, ACQ),
            _ => 0,
        }
    }

    fn write(&mut self, at: At, value: u64, bus: &mut Bus<'_>) {
        let narrow = value as u32;
        let put = |whole: &mut u64, from: u64| {
            *whole = match (at.width, at.offset - from) {
                (8, _) => value,
                (_, 0) => *whole & !0xffff_ffff | value & 0xffff_ffff,
                _ => *whole & 0xffff_ffff | value << 32,
            };
        };
        match at.offset {
            INTMS => self.masked |= narrow,
            INTMC => self.masked &= !narrow,
            CC => self.configure(narrow, bus),
            AQA => self.admin_sizes = narrow,
            ASQ | 0x2c => put(&mut self.admin_submission, ASQ),
            ACQ | 0x34 => put(&mut self.admin_completion, ACQ),
            offset @ DOORBELLS..0x2000 => self.ring(offset, narrow, bus),
            _ => {}
        }
        if matches!(at.offset, INTMS | INTMC) {
            self.assert_line(bus);
        }
    }

    fn work(&mut self, bus: &mut Bus<'_>) -> Work {
        if self.stalled || self.configuration & 1 == 0 {
            return Work::Idle;
        }
        self.look(bus);
        if let Some((queue, entry)) = self.next(bus) {
            if queue == 0 {
                self.admin(&entry, bus)
            } else {
                self.command(queue, &entry, bus)
            }
            return Work::More;
        }
        // The last first: what is out of order is to be so.
        let Some((queue, entry)) = self.late.pop_back() else { return Work::Idle };
        let status = self.execute(Entry(&entry), bus);
        self.complete(queue, Entry(&entry).identifier(), status, 0, bus);
        Work::More
    }

    fn reset(&mut self) {
        self.disable();
        (self.configuration, self.stuck) = (0, false);
    }
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller")
            .field("bytes", &self.media.len())
            .field("configuration", &self.configuration)
            .field("status", &self.status)
            .field("submissions", &self.submissions)
            .field("completions", &self.completions)
            .finish_non_exhaustive()
    }
}
