//! Doorbells in memory, for controllers that are programs: each write to a register costs these much, and they say when they do
//! not need one.
//!
//! Source: NVM Express Base Specification 1.4, 5.7 (Doorbell Buffer Config), 7.13 (what host and controller do). Values wrap with
//! the queue, and are compared as numbers of 16 bits.

use std::sync::Arc;

use noiommu::{Device, Ioas, barrier};

use crate::error::Result;
use crate::pages::{PAGE, Pages};

/// Both pages: what the driver would have written to the doorbells; and how far each may go before the controller is to be told by
/// the register.
#[derive(Debug)]
pub(crate) struct Doorbells {
    values: Pages,
    events: Pages,
}

impl Doorbells {
    pub(crate) fn new(device: &Device, ioas: &Ioas, page_shift: u32) -> Result<Self> {
        Ok(Self {
            values: Pages::new(device, ioas, PAGE, page_shift)?,
            events: Pages::new(device, ioas, PAGE, page_shift)?,
        })
    }

    /// Where they are.
    pub(crate) fn addresses(&self) -> Result<[u64; 2]> {
        Ok([self.values.address(0)?, self.events.address(0)?])
    }

    /// As if no doorbell had ever been rung.
    pub(crate) fn clear(&self) -> Result<()> {
        self.values.clear()?;
        self.events.clear()
    }
}

/// One doorbell of them.
#[derive(Clone, Debug)]
pub(crate) struct Doorbell {
    doorbells: Arc<Doorbells>,
    at: usize,
}

impl Doorbell {
    /// The one that is so many bytes behind the first; `None`: past the end of the page.
    pub(crate) fn new(doorbells: &Arc<Doorbells>, distance: u64) -> Option<Self> {
        let at = usize::try_from(distance).ok().filter(|at| *at <= PAGE - 4)?;
        Some(Self { doorbells: doorbells.clone(), at })
    }

    /// As when the queue is made.
    pub(crate) fn restart(&self) -> Result<()> {
        self.doorbells.values.memory()?.store_u32(self.at, 0)?;
        Ok(self.doorbells.events.memory()?.store_u32(self.at, 0)?)
    }

    /// Tells a new value in place of an old one; whether the register has to be written, too. What the controller says of that need
    /// not be true: whoever believes it looks at times.
    #[inline]
    pub(crate) fn tell(&self, old: u16, new: u16) -> Result<bool> {
        // What it is told of is there before.
        barrier::dma_write();
        self.doorbells.values.memory()?.store_u32(self.at, u32::from(new).to_le())?;
        // The value is there before the controller's is read: else both could miss the other's.
        barrier::dma_full();
        let event = u32::from_le(self.doorbells.events.memory()?.load_u32(self.at)?) as u16;
        Ok(is_passed(event, old, new))
    }
}

/// Whether `event` is passed on the way from `old` to `new`.
fn is_passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::is_passed;

    #[test]
    fn an_event_is_passed_once() {
        // It waits at 5: who goes from there on has to tell, who was past it need not.
        assert!(is_passed(5, 5, 6) && is_passed(5, 3, 9) && !is_passed(5, 6, 9) && !is_passed(5, 2, 5));
        // A queue of 64 begins anew.
        assert!(is_passed(63, 63, 0) && is_passed(62, 60, 3) && !is_passed(30, 60, 2));
    }
}
