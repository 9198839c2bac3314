//! The world around the engine: physical memory that is made up, and a caller with a little memory of its own.
//!
//! The engine and the model see the same world through different doors: the engine through `Platform` and `Process`, the model
//! through [`Pages::place`].

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::OnceLock;

use noiommu_core::ioctl::Process;
use noiommu_core::platform::{Caller, PhysRun, Pins, Platform};
use noiommu_core::table::format::Access;
use noiommu_core::table::{Frame, Slot, Table, TableMemory};
use noiommu_core::{Errno, ObjectId, PhysAddr, UserMemory};

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// Where the caller's small pages are, and the first pages of its file: at a border of 2 MiB.
pub(crate) const SMALL: u64 = 0x20_0000;
/// Small pages, and pages of the file.
pub(crate) const SMALL_PAGES: u64 = 16;
/// Memory that lies in one piece, as congruent as can be; nothing ever happens to it.
pub(crate) const LARGE: u64 = 0x4000_0000;
/// Its bytes.
pub(crate) const LARGE_BYTES: u64 = 1 << 30;
/// Where that piece is.
const LARGE_PLACE: u64 = 0x1_0000_0000;
/// Memory that lies in one piece a page beside any border, so that only small leaves fit.
pub(crate) const SHIFTED: u64 = 0xc000_0000;
/// Its bytes.
pub(crate) const SHIFTED_BYTES: u64 = 4 << 20;
/// Where that piece is.
const SHIFTED_PLACE: u64 = 0x2_0000_1000;

/// Memory that a MAP names: the caller's from an address on, or its file's from an offset on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Backing {
    User(u64),
    File(u64),
}

impl Backing {
    /// The same memory, further on.
    pub(crate) fn at(self, offset: u64) -> Self {
        match self {
            Self::User(address) => Self::User(address.wrapping_add(offset)),
            Self::File(start) => Self::File(start.wrapping_add(offset)),
        }
    }
}

/// The same in the engine's hands, counted.
pub(crate) struct Held {
    backing: Backing,
    _count: Rc<()>,
}

/// A page that things happen to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// Counts what has replaced it; another page is elsewhere.
    version: u64,
    there: bool,
    writable: bool,
}

/// The small pages: of the caller, then of the file.
#[derive(Clone, Debug)]
pub(crate) struct Pages([Page; 2 * SMALL_PAGES as usize]);

impl Pages {
    /// The page there, if it is a small one.
    pub(crate) fn index(backing: Backing) -> Option<usize> {
        let (bytes, first) = match backing {
            Backing::User(address) => (address.checked_sub(SMALL)?, 0),
            Backing::File(start) => (start, SMALL_PAGES),
        };
        let page = bytes / PAGE;
        (page < SMALL_PAGES).then_some((first + page) as usize)
    }

    /// Another page comes in its place.
    pub(crate) fn replace(&mut self, index: usize) {
        self.0[index] = Page { version: self.0[index].version + 1, there: true, writable: true };
    }

    pub(crate) fn take_away(&mut self, index: usize) {
        self.0[index].there = false;
    }

    pub(crate) fn protect(&mut self, index: usize) {
        self.0[index].writable = false;
    }

    /// The physical place of a page, and the bytes that lie in one piece from there on.
    ///
    /// # Errors
    /// EFAULT: no page there, or none to be written to; EINVAL: past the end of the file.
    pub(crate) fn place(&self, backing: Backing, write: bool) -> Result<(u64, u64), Errno> {
        for (start, bytes, place) in
            [(LARGE, LARGE_BYTES, LARGE_PLACE), (SHIFTED, SHIFTED_BYTES, SHIFTED_PLACE)]
        {
            if let Backing::User(address) = backing
                && (start..start + bytes).contains(&address)
            {
                return Ok((place + (address - start), start + bytes - address));
            }
        }
        let is_file = matches!(backing, Backing::File(_));
        let Some(index) = Self::index(backing) else {
            return Err(if is_file { Errno::EINVAL } else { Errno::EFAULT });
        };
        let page = self.0[index];
        // The protection of a mapping is none of a file's business.
        if !page.there || write && !page.writable && !is_file {
            return Err(Errno::EFAULT);
        }
        let index = index as u64;
        let place = match page.version {
            // Four neighbours in a row, the first ones at a border, then elsewhere.
            0 => 0x1000_0000 + (index / 4 * 8 + index % 4) * PAGE,
            // Alone.
            version => 0x40_0000_0000 + (version << 20) + index * 2 * PAGE,
        };
        Ok((place, PAGE))
    }
}

impl Default for Pages {
    fn default() -> Self {
        Self([Page { version: 0, there: true, writable: true }; 2 * SMALL_PAGES as usize])
    }
}

/// The platform of the engine.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) pages: RefCell<Pages>,
    /// Bytes pinned at present.
    pub(crate) pinned: Rc<Cell<u64>>,
    /// Pins that may still be made; then there is no memory for one.
    pub(crate) pins_left: Cell<Option<u32>>,
    /// Whether there is no memory to learn the second half of the addresses of a pin.
    pub(crate) addresses_fail: Cell<bool>,
    /// Frames that tables may still grow by, all together.
    pub(crate) frames_left: Rc<Cell<Option<u64>>>,
}

impl Fake {
    /// Whether want of memory is an answer to everything that needs some.
    pub(crate) fn is_short(&self) -> bool {
        self.pins_left.get().is_some() || self.addresses_fail.get() || self.frames_left.get().is_some()
    }
}

/// Pinned memory: its runs as they were then.
pub(crate) struct FakePins {
    runs: Vec<PhysRun>,
    length: u64,
    pinned: Rc<Cell<u64>>,
    fail: bool,
}

impl Drop for FakePins {
    fn drop(&mut self) {
        self.pinned.set(self.pinned.get() - self.length);
    }
}

impl Pins for FakePins {
    type Error = Errno;

    fn runs(&self, sink: &mut dyn FnMut(&[PhysRun]) -> Result<(), Errno>) -> Result<(), Errno> {
        for (at, run) in self.runs.iter().enumerate() {
            if self.fail && at == self.runs.len() / 2 {
                return Err(Errno::ENOMEM);
            }
            sink(std::slice::from_ref(run))?;
        }
        Ok(())
    }
}

impl Platform for Fake {
    type Error = Errno;
    type Backing = Held;
    type Pins = FakePins;
    type Memory = Frames;
    type Table = Rc<Table<Frames>>;

    fn is_file(&self, backing: &Held) -> bool {
        matches!(backing.backing, Backing::File(_))
    }

    fn new_table(&self) -> Result<Self::Table, Errno> {
        Ok(Rc::new(Table::new(Frames::limited(self.frames_left.clone()))))
    }

    fn pin(
        &self,
        backing: &Held,
        offset: u64,
        length: u64,
        access: Access,
        _: Caller,
    ) -> Result<FakePins, Errno> {
        assert!(
            (offset | length).is_multiple_of(PAGE) && length > 0,
            "pins whole pages: {offset:#x}, {length:#x}"
        );
        if let Some(left) = self.pins_left.get() {
            self.pins_left.set(Some(left.checked_sub(1).ok_or(Errno::ENOMEM)?));
        }
        let (pages, mut runs, mut at) = (self.pages.borrow(), Vec::new(), 0);
        while at < length {
            let (place, bytes) = pages.place(backing.backing.at(offset + at), access.write)?;
            let bytes = bytes.min(length - at);
            runs.push(PhysRun { address: PhysAddr(place), length: bytes });
            at += bytes;
        }
        self.pinned.set(self.pinned.get() + length);
        Ok(FakePins { runs, length, pinned: self.pinned.clone(), fail: self.addresses_fail.get() })
    }
}

/// Table frames on the heap, in chunks that double, so that none ever moves.
pub(crate) struct Frames {
    chunks: [OnceLock<Box<[Frame]>>; 20],
    left: Rc<Cell<Option<u64>>>,
    /// The index of the first 128 MiB: what is beyond has none.
    words: Box<[Slot]>,
    entries: Box<[Slot]>,
}

impl Frames {
    /// Frames that may still be taken: as many as `left` says, one at a time.
    pub(crate) fn limited(left: Rc<Cell<Option<u64>>>) -> Self {
        Self {
            chunks: Default::default(),
            left,
            words: (0..64).map(|_| Slot::new()).collect(),
            entries: (0..64 * 512).map(|_| Slot::new()).collect(),
        }
    }
}

impl Frames {
    fn spend(&self) -> Result<(), Errno> {
        match self.left.get() {
            Some(left) => Ok(self.left.set(Some(left.checked_sub(1).ok_or(Errno::ENOMEM)?))),
            None => Ok(()),
        }
    }
}

impl TableMemory for Frames {
    fn frame(&self, number: u64) -> Option<&Frame> {
        // Chunk k holds frames 2^k - 1 .. 2^(k+1) - 1.
        let chunk = (number + 1).ilog2();
        self.chunks.get(chunk as usize)?.get()?.get((number + 1 - (1 << chunk)) as usize)
    }

    fn grow(&self, frames: u64) -> Result<u64, Errno> {
        // One at a time, so that want of memory can come at each of them.
        self.spend()?;
        let chunk = frames.ilog2();
        let slot = self.chunks.get(chunk as usize).ok_or(Errno::ENOMEM)?;
        slot.get_or_init(|| (0..1u64 << chunk).map(|_| Frame::new()).collect());
        Ok(frames)
    }

    fn words(&self) -> &[Slot] {
        &self.words
    }

    fn entries(&self) -> &[Slot] {
        &self.entries
    }

    fn prepare_table(&self, _: usize) -> Result<(), Errno> {
        self.spend()
    }
}

/// Where the caller's argument memory begins; nothing is around it.
pub(crate) const BASE: u64 = 0x10_0000;
/// Its bytes.
pub(crate) const BYTES: usize = 512;

/// The caller's argument memory.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) bytes: [u8; BYTES],
    pub(crate) writable: bool,
}

impl Memory {
    fn place(&self, address: u64, length: usize) -> Result<usize, Errno> {
        let at = address.checked_sub(BASE).ok_or(Errno::EFAULT)?;
        match at.checked_add(length as u64) {
            Some(end) if end <= BYTES as u64 => Ok(at as usize),
            _ => Err(Errno::EFAULT),
        }
    }

    pub(crate) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        let at = self.place(address, into.len())?;
        into.copy_from_slice(&self.bytes[at..at + into.len()]);
        Ok(())
    }

    pub(crate) fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Errno> {
        let at = self.place(address, from.len())?;
        if !self.writable {
            return Err(Errno::EFAULT);
        }
        self.bytes[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }
}

/// The process that calls.
pub(crate) struct Somebody {
    pub(crate) memory: RefCell<Memory>,
    pub(crate) caller: Cell<Caller>,
    /// Fault queues with an open descriptor.
    pub(crate) queues: RefCell<Vec<u32>>,
    /// Whether there are descriptors left.
    pub(crate) descriptors: Cell<bool>,
    /// Counts the memory that the engine holds by name.
    pub(crate) held: Rc<()>,
}

/// The descriptor of the caller's file.
pub(crate) const FILE: i32 = 3;
/// Descriptors of fault queues are that much above the queue's id.
pub(crate) const QUEUE: i32 = 100;

impl UserMemory for Somebody {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.memory.borrow().read(address, into)
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        self.memory.borrow_mut().write(address, from)
    }
}

impl Process<Held> for Somebody {
    fn memory(&self) -> &dyn UserMemory {
        self
    }

    fn caller(&self) -> Caller {
        self.caller.get()
    }

    fn user_backing(&self, address: u64) -> Held {
        Held { backing: Backing::User(address), _count: self.held.clone() }
    }

    fn file_backing(&self, descriptor: i32, start: u64, _: u64) -> Result<Held, Errno> {
        let held = Held { backing: Backing::File(start & !(PAGE - 1)), _count: self.held.clone() };
        if descriptor == FILE { Ok(held) } else { Err(Errno::EBADF) }
    }

    fn open_fault_queue(&self, queue: ObjectId) -> Result<i32, Errno> {
        if !self.descriptors.get() {
            return Err(Errno::EMFILE);
        }
        self.queues.borrow_mut().push(queue.0);
        Ok(queue.0 as i32 + QUEUE)
    }

    fn take_back(&self, descriptor: i32) {
        let mut queues = self.queues.borrow_mut();
        let at = queues.iter().position(|queue| *queue as i32 + QUEUE == descriptor);
        queues.remove(at.expect("takes back what it got"));
    }
}
