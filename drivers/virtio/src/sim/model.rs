//! The model: registers, notifications, requests in turn.

use std::collections::VecDeque;

use noiommu::sim::{Aborted, At, Bus, Identity, Model, Work};

use super::fault::{Fault, Lie};
use super::queue::{Chain, Queue};

/// Where the structures are in the BAR, and their bytes (4.1.4): configuration, notifications, interrupts, that of the kind.
const BAR: u8 = 4;
const SIZE: u64 = 0x4000;
const STRUCTURES: [(u32, u32); 4] = [(0x0000, 0x38), (0x3000, 0x100), (0x1000, 4), (0x2000, 0x40)];
const MULTIPLIER: u32 = 4;
/// 6: version 1, and what this driver takes no part in.
const FEATURES: u64 = 1 << 32 | 1 << 28 | 1 << 29;

const NEEDS_RESET: u8 = 64;
const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;

/// What a device is for.
pub trait Kind: Send + 'static {
    /// What it is called, and its number (5).
    const NAME: (&'static str, u16);
    /// How many queues it has, and how many descriptors these have.
    const QUEUES: (usize, u16);
    /// The features of its own that it offers.
    const FEATURES: u64;

    /// Its configuration.
    fn configuration(&self) -> Vec<u8>;

    /// Whether it has a use for a request on this queue now.
    fn wants(&self, queue: usize) -> bool {
        let _ = queue;
        true
    }

    /// Does a request: how many bytes it has written to it.
    ///
    /// # Errors
    /// Nobody is there on the bus.
    fn request(&mut self, queue: usize, chain: &Chain, bus: &mut Bus<'_>) -> Result<u32, Aborted>;

    /// Writes a status into a request that is not done; how many bytes that are.
    ///
    /// # Errors
    /// Nobody is there on the bus.
    fn refuse(&mut self, chain: &Chain, status: u8, bus: &mut Bus<'_>) -> Result<u32, Aborted> {
        let _ = (chain, status, bus);
        Ok(0)
    }
}

/// A virtio device of a kind.
pub struct Virtio<K> {
    /// What it is for.
    pub kind: K,
    lies: Vec<Lie>,
    faults: VecDeque<Fault>,
    queues: Vec<Queue>,
    selected: usize,
    feature_halves: [u32; 2],
    accepted: u64,
    status: u8,
    generation: u8,
    /// Which queues were notified.
    rung: Vec<bool>,
    /// A request that is done after the next one.
    late: Option<(usize, Chain)>,
    resets: u64,
    failed: bool,
}

impl<K: Kind> Virtio<K> {
    /// A device of this kind.
    #[must_use]
    pub fn new(kind: K) -> Self {
        let (count, size) = K::QUEUES;
        Self {
            kind,
            lies: Vec::new(),
            faults: VecDeque::new(),
            queues: vec![Queue::new(size); count],
            selected: 0,
            feature_halves: [0; 2],
            accepted: 0,
            status: 0,
            generation: 0,
            rung: vec![false; count],
            late: None,
            resets: 0,
            failed: false,
        }
    }

    /// Has it say what is not so.
    #[must_use]
    pub fn with_lie(mut self, lie: Lie) -> Self {
        self.lies.push(lie);
        self
    }

    /// What becomes of the next requests, in turn; after these, of each what should.
    pub fn inject(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.extend(faults);
    }

    /// What the driver has agreed to.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Whether a driver has it at work.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    /// How often it was reset.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.resets
    }

    /// Writes an entry into a used ring that no request is behind, and says that `step` more are done.
    pub fn scribble(&mut self, queue: usize, id: u32, length: u32, step: u16, bus: &mut Bus<'_>) {
        if let Some(queue) = self.queues.get_mut(queue).filter(|queue| queue.enabled) {
            queue.give_back(id, length, step, bus);
        }
    }

    fn has_lie(&self, lie: Lie) -> bool {
        self.lies.contains(&lie)
    }

    fn offered(&self) -> u64 {
        let changed = self.lies.iter().fold(0, |bits, lie| match lie {
            Lie::Features(more) => bits ^ more,
            _ => bits,
        });
        (FEATURES | K::FEATURES) ^ changed
    }

    fn find<T>(&self, look: impl Fn(&Lie) -> Option<T>, otherwise: T) -> T {
        self.lies.iter().find_map(look).unwrap_or(otherwise)
    }

    fn restart(&mut self) {
        let (_, size) = K::QUEUES;
        self.queues.fill(Queue::new(size));
        self.rung.fill(false);
        (self.status, self.accepted, self.selected) = (0, 0, 0);
        (self.late, self.failed) = (None, false);
        self.resets += 1;
    }

    fn queue(&self) -> Queue {
        self.queues.get(self.selected).copied().unwrap_or_default()
    }

    fn with_queue(&mut self, change: impl FnOnce(&mut Queue)) {
        if let Some(queue) = self.queues.get_mut(self.selected) {
            change(queue);
        }
    }

    fn read_common(&mut self, offset: u64) -> u64 {
        match offset {
            0x00 => self.feature_halves[0].into(),
            0x04 => self.offered() >> (32 * (self.feature_halves[0] & 1)) & 0xffff_ffff,
            0x08 => self.feature_halves[1].into(),
            0x12 => self.queues.len() as u64,
            0x14 => self.status.into(),
            0x15 => {
                if self.has_lie(Lie::Changing) {
                    self.generation = self.generation.wrapping_add(1);
                }
                self.generation.into()
            }
            0x16 => self.selected as u64,
            0x18 if self.selected < self.queues.len() => self
                .find(
                    |lie| match lie {
                        Lie::QueueSize(size) => Some(*size),
                        _ => None,
                    },
                    self.queue().size,
                )
                .into(),
            0x1a => self.queue().vector.into(),
            0x1c => u64::from(self.queue().enabled || self.has_lie(Lie::Enabled)),
            0x1e => {
                let offset = |lie: &Lie| match lie {
                    Lie::NotifyOffset(offset) => Some(*offset),
                    _ => None,
                };
                self.find(offset, self.selected as u16).into()
            }
            _ => 0,
        }
    }

    fn write_common(&mut self, offset: u64, value: u64) {
        match offset {
            0x00 => self.feature_halves[0] = value as u32,
            0x08 => self.feature_halves[1] = value as u32,
            0x0c => {
                let shift = 32 * (self.feature_halves[1] & 1);
                self.accepted = self.accepted & !(0xffff_ffff << shift) | value << shift;
            }
            0x14 if value == 0 && self.has_lie(Lie::Running) => {}
            0x14 if value == 0 => self.restart(),
            0x14 => {
                self.status = value as u8;
                let agreed = self.accepted & !self.offered() == 0 && !self.has_lie(Lie::Disagrees);
                if !agreed {
                    self.status &= !FEATURES_OK;
                }
            }
            0x16 => self.selected = value as usize,
            0x18 => self.with_queue(|queue| queue.size = value as u16),
            0x1a => self.with_queue(|queue| queue.vector = value as u16),
            0x1c => self.with_queue(|queue| queue.enabled = value == 1),
            0x20..0x38 => self.with_queue(|queue| {
                let (part, shift) = ((offset as usize - 0x20) / 8, 8 * (offset & 4));
                queue.parts[part] = queue.parts[part] & !(0xffff_ffff << shift) | value << shift;
            }),
            _ => {}
        }
    }

    /// Does a request, or what it was told to do instead.
    fn serve(&mut self, queue: usize, chain: Chain, bus: &mut Bus<'_>) {
        let fault = self.faults.pop_front().unwrap_or(Fault::None);
        match fault {
            Fault::Silence => return,
            Fault::Late if self.late.is_none() => {
                self.late = Some((queue, chain));
                return;
            }
            Fault::Fail => {
                self.status |= NEEDS_RESET;
                self.failed = true;
                return;
            }
            _ => {}
        }
        let done = match fault {
            Fault::Nothing => Ok(chain.room() as u32),
            Fault::Status(status) => self.kind.refuse(&chain, status, bus),
            _ => self.kind.request(queue, &chain, bus),
        };
        let Ok(written) = done else {
            self.failed = true;
            return;
        };
        let Some(ring) = self.queues.get_mut(queue) else { return };
        let id = u32::from(chain.head);
        match fault {
            Fault::WrongId(bits) => ring.give_back(id ^ bits, written, 1, bus),
            Fault::Length(length) => ring.give_back(id, length, 1, bus),
            Fault::Jump(more) => ring.give_back(id, written, more.wrapping_add(1), bus),
            Fault::Twice => {
                ring.give_back(id, written, 1, bus);
                ring.give_back(id, written, 1, bus);
            }
            _ => ring.give_back(id, written, 1, bus),
        }
    }
}

impl<K: Kind> Model for Virtio<K> {
    fn identity(&self) -> Identity {
        let (name, number) = K::NAME;
        let mut identity = Identity::new(name, 0x1af4, 0x1040 + number).revision(1).bar(BAR, SIZE);
        for (kind, place) in (1..).zip(STRUCTURES) {
            let lie = |lie: &Lie| match lie {
                Lie::Structure(which, at, length) if *which == kind => Some((*at, *length)),
                _ => None,
            };
            let (at, length) = self.find(lie, place);
            let mut body = vec![if kind == 2 { 20 } else { 16 }, kind, BAR, 0, 0, 0];
            body.extend([at.to_le_bytes(), length.to_le_bytes()].concat());
            if kind == 2 {
                let multiplier = |lie: &Lie| match lie {
                    Lie::Multiplier(multiplier) => Some(*multiplier),
                    _ => None,
                };
                body.extend(self.find(multiplier, MULTIPLIER).to_le_bytes());
            }
            identity = identity.capability(0x09, &body, &[]);
        }
        identity
    }

    fn read(&mut self, at: At, _: &mut Bus<'_>) -> u64 {
        match at.offset {
            0x0000..0x1000 => self.read_common(at.offset),
            0x2000..0x3000 => {
                let bytes = self.kind.configuration();
                let byte =
                    |index: u64| bytes.get((at.offset - 0x2000 + index) as usize).copied().unwrap_or(0);
                (0..u64::from(at.width)).fold(0, |value, index| value | u64::from(byte(index)) << (8 * index))
            }
            _ => 0,
        }
    }

    fn write(&mut self, at: At, value: u64, _: &mut Bus<'_>) {
        match at.offset {
            0x0000..0x1000 => self.write_common(at.offset, value),
            0x3000..0x4000 => {
                if let Some(rung) = self.rung.get_mut(value as usize) {
                    *rung = true;
                }
            }
            _ => {}
        }
    }

    fn work(&mut self, bus: &mut Bus<'_>) -> Work {
        if !self.is_running() || self.failed {
            return Work::Idle;
        }
        let deaf = self.has_lie(Lie::Deaf);
        for index in 0..self.queues.len() {
            let Some(queue) = self.queues.get_mut(index) else { continue };
            if deaf {
                queue.want(false, bus);
                continue;
            }
            if !self.rung.get(index).is_some_and(|rung| *rung) || !self.kind.wants(index) {
                continue;
            }
            if let Some(chain) = queue.take(bus) {
                self.serve(index, chain, bus);
                return Work::More;
            }
            self.rung[index] = false;
            if let Some((queue, chain)) = self.late.take_if(|(queue, _)| *queue == index) {
                self.serve(queue, chain, bus);
                return Work::More;
            }
        }
        Work::Idle
    }
}
