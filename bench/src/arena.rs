//! Table memory of a fixed size.

use noiommu_core::Errno;
use noiommu_core::table::{Frame, TableMemory};

/// Frames, all of them there from the beginning.
#[derive(Debug)]
pub(crate) struct Fixed {
    frames: Box<[Frame]>,
}

impl Fixed {
    /// So many frames.
    pub(crate) fn new(frames: usize) -> Self {
        Self { frames: (0..frames).map(|_| Frame::new()).collect() }
    }
}

impl TableMemory for Fixed {
    #[inline]
    fn frame(&self, number: u64) -> Option<&Frame> {
        self.frames.get(number as usize)
    }

    fn grow(&self, frames: u64) -> Result<u64, Errno> {
        let there = self.frames.len() as u64;
        if frames <= there { Ok(there) } else { Err(Errno::ENOMEM) }
    }
}
