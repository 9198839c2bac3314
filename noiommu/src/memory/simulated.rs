//! Made-up physical memory, for trying and testing without privileges: every page gets a frame of its own, deliberately
//! scattered, so that a driver which adds offsets across page borders goes wrong here as it would on a real machine.
//!
//! A frame that has been given back is not given out again before 2^28 others have been (1 TiB of mappings), so that a device
//! which still uses it does not hit what was mapped since.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use noiommu_core::PhysAddr;
use noiommu_core::platform::PhysRun;

const PAGE: usize = 4096;
/// Frames lie below 2^40 bytes: as in a large machine, beyond 32 bits.
const FRAME_BITS: u32 = 28;

/// The frames given out, and the pages they stand for.
#[derive(Default)]
pub(crate) struct SimulatedMemory {
    state: Mutex<State>,
}

struct State {
    /// Frame number to (page address, times pinned).
    frames: HashMap<u64, (usize, u32)>,
    /// Page address to frame number.
    pages: HashMap<usize, u64>,
    next: u64,
}

impl Default for State {
    fn default() -> Self {
        // The first frame of all would lie below 4 GiB, where a driver that cuts addresses to 32 bits is right.
        Self { frames: HashMap::new(), pages: HashMap::new(), next: 2 }
    }
}

/// Pages that have a frame until this is dropped.
pub(crate) struct SimulatedPins {
    memory: Arc<SimulatedMemory>,
    address: usize,
    length: usize,
}

impl SimulatedMemory {
    /// Gives every page of the range a frame; a page that has one keeps it.
    pub(crate) fn pin(self: &Arc<Self>, address: usize, length: usize) -> SimulatedPins {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for page in pages(address, length) {
            let frame = state.frame_of(page);
            if let Some((_, pins)) = state.frames.get_mut(&frame) {
                *pins += 1;
            }
        }
        SimulatedPins { memory: self.clone(), address, length }
    }

    /// The address in this process of the byte at `place`, and how many bytes follow it in the page.
    pub(crate) fn find(&self, place: PhysAddr) -> Option<(usize, usize)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let offset = place.0 as usize % PAGE;
        state.frames.get(&(place.0 / PAGE as u64)).map(|&(page, _)| (page + offset, PAGE - offset))
    }
}

impl State {
    fn frame_of(&mut self, page: usize) -> u64 {
        if let Some(&frame) = self.pages.get(&page) {
            return frame;
        }
        // An odd multiplier makes every number of FRAME_BITS bits turn up once before any does again, in no order; pairs of
        // pages stay together, so that runs longer than a page occur too.
        let frame = loop {
            let pair = self.next >> 1;
            let scattered =
                pair.wrapping_mul(0x09e3_779b).wrapping_add(0x1234) & ((1 << (FRAME_BITS - 1)) - 1);
            let frame = scattered << 1 | self.next & 1;
            self.next += 1;
            if frame != 0 && !self.frames.contains_key(&frame) {
                break frame;
            }
        };
        self.pages.insert(page, frame);
        self.frames.insert(frame, (page, 0));
        frame
    }
}

impl SimulatedPins {
    /// The frames, page by page.
    pub(crate) fn runs(&self) -> Vec<PhysRun> {
        let end = self.address + self.length;
        let state = self.memory.state.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = pages(self.address, self.length).filter_map(|page| {
            let frame = state.pages.get(&page)?;
            let start = page.max(self.address);
            let address = PhysAddr(frame * PAGE as u64 + (start - page) as u64);
            Some(PhysRun { address, length: ((page + PAGE).min(end) - start) as u64 })
        });
        runs.collect()
    }
}

impl Drop for SimulatedPins {
    fn drop(&mut self) {
        let mut state = self.memory.state.lock().unwrap_or_else(PoisonError::into_inner);
        for page in pages(self.address, self.length) {
            let Some(&frame) = state.pages.get(&page) else { continue };
            let Some((_, pins)) = state.frames.get_mut(&frame) else { continue };
            *pins = pins.saturating_sub(1);
            if *pins == 0 {
                state.frames.remove(&frame);
                state.pages.remove(&page);
            }
        }
    }
}

fn pages(address: usize, length: usize) -> impl Iterator<Item = usize> {
    (address / PAGE * PAGE..address + length).step_by(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_keep_their_frame_while_pinned() {
        let memory = Arc::new(SimulatedMemory::default());
        let first = memory.pin(0x10000, 0x4000);
        let runs = first.runs();
        assert_eq!(runs.len(), 4);
        assert!(runs.windows(2).any(|pair| pair[0].address.0 + 4096 != pair[1].address.0), "scattered");
        let second = memory.pin(0x11000, 0x1000);
        drop(first);
        assert_eq!(memory.find(PhysAddr(runs[1].address.0 + 5)), Some((0x11005, 4091)));
        assert_eq!(memory.find(runs[0].address), None, "gone with its last pin");
        drop(second);
        assert_eq!(memory.find(runs[1].address), None);
        assert!(memory.state.lock().unwrap().frames.is_empty());
    }
}
