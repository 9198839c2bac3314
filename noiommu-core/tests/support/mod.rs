//! What the tests of the engine share.
#![allow(dead_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use noiommu_core::Errno;
use noiommu_core::table::{Frame, TableMemory};

/// Frames on the heap, in chunks that double, so that none ever moves.
#[derive(Default, Debug)]
pub(crate) struct HeapFrames {
    chunks: [OnceLock<Box<[Frame]>>; 24],
    /// Frames that may still be handed out; counts down, then `grow` fails.
    budget: Option<AtomicU64>,
}

impl HeapFrames {
    /// An arena that runs out after `frames`.
    pub(crate) fn limited(frames: u64) -> Self {
        Self { budget: Some(AtomicU64::new(frames)), ..Self::default() }
    }
}

impl TableMemory for HeapFrames {
    fn frame(&self, number: u64) -> Option<&Frame> {
        // Chunk k holds frames 2^k - 1 .. 2^(k+1) - 1.
        let chunk = (number + 1).ilog2();
        self.chunks.get(chunk as usize)?.get()?.get((number + 1 - (1 << chunk)) as usize)
    }

    fn grow(&self, frames: u64) -> Result<u64, Errno> {
        if self.budget.as_ref().is_some_and(|budget| frames > budget.load(Ordering::Relaxed)) {
            return Err(Errno::ENOMEM);
        }
        let chunk = frames.ilog2();
        let Some(slot) = self.chunks.get(chunk as usize) else { return Err(Errno::ENOMEM) };
        slot.get_or_init(|| (0..1u64 << chunk).map(|_| Frame::new()).collect());
        // One at a time where a budget counts, else the chunk whole.
        Ok(if self.budget.is_some() { frames } else { (1 << (chunk + 1)) - 1 })
    }
}
