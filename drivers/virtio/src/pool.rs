//! Memory that the device is given: rings, and slots that buffers are copied to and from.
//!
//! A buffer of the caller's is ordinary memory: it moves, and its pages are anywhere. So the device is given a slot instead, which is
//! pinned, mapped once for all, and contiguous. A request costs two copies and no system call.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use noiommu::{Contiguity, Device, DmaBuffer, DmaView, Ioas, Mapping};

use crate::error::{Error, Result};

/// The unit of memory that is contiguous wherever it comes from, and in which rings are asked for.
pub(crate) const PAGE: usize = 4096;
/// Bytes of a small slot: of what is around the data of a request.
pub(crate) const SMALL: usize = 64;
/// From here on a buffer is made of huge pages, where there are some.
const HUGE: usize = 2 << 20;

/// How much of it there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Slots of each size. As many as all queues have descriptors: then one is always free for who has a descriptor.
    pub(crate) slots: u16,
    /// Bytes of a large slot, a power of two: as many as these, if memory is so contiguous,
    pub(crate) largest: usize,
    /// but no fewer than these, at most a page.
    pub(crate) smallest: usize,
}

/// A piece of the mapping, contiguous for the device.
#[derive(Debug)]
struct Slot {
    /// Where it is for the device, and in the buffer.
    address: u64,
    offset: usize,
    length: usize,
}

/// A device's memory. The device may reach it until it is quiet: dropped before, it waits for that in the kit's quarantine.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Where slots are; views keep their mappings alive, too.
    mapping: Mapping,
    _view: DmaView,
    /// In the order of their addresses.
    slots: Box<[Slot]>,
    large: usize,
    ioas: Ioas,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Indices of slots that nobody has.
    small: Vec<usize>,
    large: Vec<usize>,
    /// Which slots somebody has.
    taken: Box<[bool]>,
    rings: Vec<Ring>,
    /// Why there was no memory for a queue, which the crate has no words for.
    note: Option<Error>,
}

/// Memory of a queue.
#[derive(Debug)]
struct Ring {
    mapping: Mapping,
    _view: DmaView,
    address: u64,
    /// Where it is in its buffer.
    offset: usize,
    length: usize,
}

impl Ring {
    /// Where it is in this process.
    fn memory(&self) -> Option<*mut u8> {
        Some(self.mapping.buffer()?.as_ptr().wrapping_add(self.offset))
    }
}

impl Pool {
    /// Memory in the IOAS that the device is attached to.
    ///
    /// # Errors
    /// Those of pinning and mapping; an address that the device cannot reach.
    pub(crate) fn new(device: &Device, ioas: &Ioas, shape: Shape) -> Result<Arc<Self>> {
        let count = usize::from(shape.slots);
        let head = (count * SMALL).next_multiple_of(PAGE);
        let wanted = head + count * shape.largest;
        // Huge pages come whole.
        let (bytes, contiguity) = if wanted > HUGE / 4 {
            (wanted.next_multiple_of(HUGE), Contiguity::Best)
        } else {
            (wanted, Contiguity::Pages)
        };
        let mapping = ioas.map(DmaBuffer::new(bytes, contiguity)?).map_err(noiommu::Error::from)?;
        let view = mapping.for_device(device)?;

        let mut slots = pieces(&view, 0..head, SMALL);
        slots.truncate(count);
        let mut large = shape.largest;
        let mut more = pieces(&view, head..bytes, large);
        while more.len() < count && large > shape.smallest {
            large /= 2;
            more = pieces(&view, head..bytes, large);
        }
        more.truncate(count);
        if slots.len() < count || more.len() < count {
            return Err(Error::unsupported(format!(
                "{}: its memory is in pieces of less than {} bytes",
                device.name(),
                shape.smallest
            )));
        }
        slots.append(&mut more);
        slots.sort_unstable_by_key(|slot| slot.address);
        let of = |length: usize| {
            slots.iter().enumerate().filter(move |(_, slot)| slot.length == length).map(|(index, _)| index)
        };
        let state = State {
            small: of(SMALL).collect(),
            large: of(large).collect(),
            taken: vec![false; slots.len()].into(),
            rings: Vec::new(),
            note: None,
        };
        let (slots, state) = (slots.into(), Mutex::new(state));
        Ok(Arc::new(Self { mapping, _view: view, slots, large, ioas: ioas.clone(), state }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the longest buffer that can be shared.
    pub(crate) fn longest(&self) -> usize {
        self.large
    }

    /// Slots that somebody has.
    pub(crate) fn taken(&self) -> usize {
        self.state().taken.iter().filter(|taken| **taken).count()
    }

    /// Copies `bytes` to where the device finds them: its address. `None`: they are too long, or as many are shared as can be.
    ///
    /// This is done for memory that the device is to write, too: what it leaves out is as it was then, and nothing of another request.
    pub(crate) fn share(&self, bytes: &[u8]) -> Option<u64> {
        let index = {
            let mut state = self.state();
            let index = match bytes.len() {
                length if length <= SMALL => state.small.pop(),
                length if length <= self.large => state.large.pop(),
                _ => None,
            }?;
            *state.taken.get_mut(index)? = true;
            index
        };
        let slot = self.slots.get(index)?;
        self.mapping.buffer()?.write(slot.offset, bytes).ok()?;
        Some(slot.address)
    }

    /// Takes back what was shared at `address`, and copies what is there now into `into`. `false`: nothing is shared there.
    pub(crate) fn unshare(&self, address: u64, into: Option<&mut [u8]>) -> bool {
        let Ok(index) = self.slots.binary_search_by_key(&address, |slot| slot.address) else { return false };
        let (Some(slot), Some(buffer)) = (self.slots.get(index), self.mapping.buffer()) else { return false };
        let mut state = self.state();
        match state.taken.get_mut(index) {
            Some(taken) if *taken => *taken = false,
            _ => return false,
        }
        // Under the lock: nobody else is given the slot before its bytes are read.
        let read = into.is_none_or(|into| buffer.read(slot.offset, into).is_ok());
        if slot.length == SMALL { &mut state.small } else { &mut state.large }.push(index);
        read
    }

    /// Zeroed memory for a queue, contiguous for the device: the device's address and ours.
    ///
    /// # Errors
    /// Those of pinning and mapping; no memory that is so contiguous.
    pub(crate) fn ring(&self, device: &Device, pages: usize) -> Result<(u64, *mut u8)> {
        let length = pages.checked_mul(PAGE).filter(|length| *length > 0);
        let length = length.ok_or_else(|| Error::argument(format!("a queue of {pages} pages")))?;
        // Single pages need not lie one behind the other, but among more of them some mostly do.
        let more = length.saturating_mul(16);
        let tries = [(length, Contiguity::Pages), (more, Contiguity::Pages), (length, Contiguity::Huge)];
        let mut ring = None;
        for (bytes, contiguity) in tries {
            ring = self.map_ring(device, length, bytes, contiguity)?;
            if ring.is_some() {
                break;
            }
        }
        let ring = ring.ok_or_else(|| {
            Error::unsupported(format!("no {length} contiguous bytes for a queue of {}", device.name()))
                .with_remedy("reserve huge pages (sysctl vm.nr_hugepages), or use shorter queues")
        })?;
        let memory = ring.memory().ok_or_else(|| Error::argument("a ring without a buffer"))?;
        let address = ring.address;
        self.state().rings.push(ring);
        Ok((address, memory))
    }

    /// `bytes` of memory, for the `length` of them that are contiguous; `None`: none are.
    fn map_ring(
        &self,
        device: &Device,
        length: usize,
        bytes: usize,
        contiguity: Contiguity,
    ) -> Result<Option<Ring>> {
        let buffer = match DmaBuffer::new(bytes, contiguity) {
            // There are no huge pages.
            Err(_) if contiguity == Contiguity::Huge => return Ok(None),
            buffer => buffer?,
        };
        let mapping = self.ioas.map(buffer).map_err(noiommu::Error::from)?;
        let view = mapping.for_device(device)?;
        let Some(run) = view.segments().find(|segment| segment.length >= length as u64) else {
            return Ok(None);
        };
        let (address, offset) = (run.address.bits(), run.offset as usize);
        Ok(Some(Ring { mapping, _view: view, address, offset, length }))
    }

    /// Gives a queue's memory up: it goes when the device is quiet. `false`: there is none at this place.
    pub(crate) fn free_ring(&self, address: u64, memory: *mut u8, pages: usize) -> bool {
        let mut state = self.state();
        let found = state.rings.iter().position(|ring| {
            ring.address == address
                && Some(ring.length) == pages.checked_mul(PAGE)
                && ring.memory() == Some(memory)
        });
        found.map(|at| state.rings.swap_remove(at)).is_some()
    }

    /// Keeps in mind why something failed, for who can tell it.
    pub(crate) fn note(&self, error: Error) {
        self.state().note = Some(error);
    }

    /// What was noted last.
    pub(crate) fn take_note(&self) -> Option<Error> {
        self.state().note.take()
    }

    /// Whether `length` bytes at `address` are a queue's.
    pub(crate) fn is_ring(&self, address: u64, length: u64) -> bool {
        self.with_ring(address, length, |_, _| ()).is_some()
    }

    /// Looks into a queue's memory: the buffer, and where in it `address` is; `None`: there are no such bytes.
    pub(crate) fn with_ring<T>(
        &self,
        address: u64,
        length: u64,
        look: impl FnOnce(&DmaBuffer, usize) -> T,
    ) -> Option<T> {
        let state = self.state();
        state
            .rings
            .iter()
            .find_map(|ring| {
                let offset = address.checked_sub(ring.address)?;
                let end = offset.checked_add(length)?;
                (end <= ring.length as u64).then_some((ring.mapping.buffer()?, ring.offset + offset as usize))
            })
            .map(|(buffer, offset)| look(buffer, offset))
    }
}

/// Cuts a part of the view into pieces of `size` bytes, each contiguous.
fn pieces(view: &DmaView, part: std::ops::Range<usize>, size: usize) -> Vec<Slot> {
    let mut slots = Vec::new();
    for segment in view.segments() {
        let (start, end) = (segment.offset as usize, (segment.offset + segment.length) as usize);
        let (first, last) = (start.max(part.start), end.min(part.end));
        let mut offset = first;
        while offset + size <= last {
            let address = segment.address.bits() + (offset - start) as u64;
            slots.push(Slot { address, offset, length: size });
            offset += size;
        }
    }
    slots
}

#[cfg(test)]
mod tests {
    use noiommu::Context;

    use super::*;

    const SHAPE: Shape = Shape { slots: 4, largest: 16 << 10, smallest: 4096 };

    /// On simulated memory no more than two pages lie one behind the other.
    fn pool() -> (Device, Arc<Pool>) {
        let context = Context::simulated();
        let (ioas, device) = (context.ioas().unwrap(), context.sim_edu().unwrap());
        device.attach(&ioas).unwrap();
        let pool = Pool::new(&device, &ioas, SHAPE).unwrap();
        (device, pool)
    }

    #[test]
    fn what_is_shared_is_somewhere_else_and_comes_back() {
        let (_device, pool) = pool();
        assert!([4096, 8192].contains(&pool.longest()), "{}", pool.longest());
        let (long, short) = (vec![1; pool.longest()], [2; SMALL]);
        let mut shared = Vec::new();
        for _ in 0..4 {
            shared.push((pool.share(&long).unwrap(), long.len()));
            shared.push((pool.share(&short).unwrap(), SMALL));
        }
        assert!(pool.share(&[]).is_none() && pool.share(&long).is_none(), "four of each");
        assert_eq!(pool.taken(), 8);
        let mut places = shared.clone();
        places.sort_unstable();
        assert!(
            places.windows(2).all(|pair| pair[0].0 + pair[0].1 as u64 <= pair[1].0),
            "apart: {places:x?}"
        );
        for (address, length) in shared {
            let mut into = vec![0; length];
            assert!(!pool.unshare(address + 1, None), "within a slot");
            assert!(pool.unshare(address, Some(&mut into)));
            assert_eq!(into, if length == SMALL { short.to_vec() } else { long.clone() });
            assert!(!pool.unshare(address, Some(&mut into)), "twice");
        }
        assert_eq!(pool.taken(), 0);
        assert!(pool.share(&vec![0; pool.longest() + 1]).is_none());
        assert!(pool.share(&long).is_some() && pool.share(&short).is_some());
    }

    #[test]
    fn rings_are_contiguous_and_zero() {
        let (device, pool) = pool();
        for pages in [1, 2] {
            let (address, memory) = pool.ring(&device, pages).unwrap();
            assert_eq!((address % 4096, memory as usize % 4096), (0, 0));
            let length = (pages * PAGE) as u64;
            assert!(pool.is_ring(address, length) && pool.is_ring(address + 1, length - 1));
            assert!(!pool.is_ring(address, length + 1) && !pool.is_ring(address - 1, 2));
            let zero = pool.with_ring(address, length, |buffer, at| {
                let mut bytes = vec![1; pages * PAGE];
                buffer.read(at, &mut bytes).map(|()| bytes.iter().all(|byte| *byte == 0))
            });
            assert_eq!(zero, Some(Ok(true)));
            assert!(
                !pool.free_ring(address, memory, pages + 1) && !pool.free_ring(address + 1, memory, pages)
            );
            assert!(pool.free_ring(address, memory, pages) && !pool.free_ring(address, memory, pages));
            assert!(!pool.is_ring(address, 1));
        }
        // No three pages are contiguous here, huge ones or not.
        assert!(pool.ring(&device, 3).unwrap_err().remedy().is_some());
        assert!(pool.ring(&device, 0).is_err() && pool.ring(&device, usize::MAX).is_err());
    }
}
