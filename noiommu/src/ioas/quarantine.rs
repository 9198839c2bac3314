//! Memory that was given up: kept while a device could still reach it, and watched where that was asked for.

use noiommu_core::IovaRange;

use super::mapping::Owned;
use super::watch::{LateWrite, Occasion, Watch};
use crate::sim::Creator;

/// A mapping that was given up, mapped and pinned still.
pub(super) struct Given {
    pub(super) range: IovaRange,
    /// Bytes as asked for.
    pub(super) length: u64,
    /// Who mapped it.
    pub(super) by: Creator,
    pub(super) memory: Owned,
}

/// What keeps memory that was given up. What its methods answer is to be unmapped and dropped.
#[derive(Default)]
pub(super) struct Quarantine {
    /// Attached devices that may be doing DMA.
    masters: usize,
    /// What waits for them to be quiet.
    held: Vec<Given>,
    watch: Option<Watch>,
    /// What is attached.
    devices: Vec<String>,
}

impl Quarantine {
    /// Mappings that wait for a device to be quiet.
    pub(super) fn held(&self) -> usize {
        self.held.len()
            + self.watch.as_ref().map_or(0, |watch| if self.masters > 0 { watch.dropped() } else { 0 })
    }

    pub(super) fn attach(&mut self, device: &str) {
        self.devices.push(device.to_owned());
        if let Some(watch) = &mut self.watch {
            watch.attached(device);
        }
    }

    pub(super) fn detach(&mut self, device: &str) {
        if let Some(at) = self.devices.iter().position(|name| name == device) {
            self.devices.swap_remove(at);
        }
    }

    pub(super) fn add_master(&mut self) {
        self.masters += 1;
    }

    /// A device less that may be doing DMA. With the last one, what was waiting for it is let go; what is watched is looked at.
    pub(super) fn remove_master(&mut self) -> Vec<Given> {
        self.masters = self.masters.saturating_sub(1);
        if self.masters > 0 {
            return Vec::new();
        }
        if let Some(watch) = &mut self.watch {
            watch.check(Occasion::Quiet);
        }
        std::mem::take(&mut self.held)
    }

    /// Whether a mapping that is given up now is answered at once, and nothing else.
    pub(super) fn keeps_nothing(&self) -> bool {
        self.masters == 0 && self.watch.is_none()
    }

    /// A mapping was given up: its memory is kept, or answered.
    pub(super) fn give(&mut self, given: Given) -> Vec<Given> {
        let left = match &mut self.watch {
            Some(watch) if watch.takes(&given) => watch.push(given, &self.devices, false),
            _ => vec![(given, false)],
        };
        self.leave(left)
    }

    /// Whether a mapping whose owner wants its memory back at once would be watched.
    pub(super) fn would_watch(&self, given: &Given) -> bool {
        self.watch.as_ref().is_some_and(|watch| watch.takes(given))
    }

    /// The same for a mapping whose owner has been given a copy, and has said that no device uses it any more.
    pub(super) fn give_reclaimed(&mut self, given: Given) -> Vec<Given> {
        let left = match &mut self.watch {
            Some(watch) => watch.push(given, &self.devices, true),
            None => vec![(given, true)],
        };
        self.leave(left)
    }

    /// What is not watched any more, with whether its owner has said that no device uses it.
    fn leave(&mut self, left: Vec<(Given, bool)>) -> Vec<Given> {
        let mut free = Vec::new();
        for (given, reclaimed) in left {
            if reclaimed || self.masters == 0 { &mut free } else { &mut self.held }.push(given);
        }
        free
    }

    /// Watches so many bytes from now on.
    pub(super) fn watch(&mut self, bytes: u64) -> Vec<Given> {
        let left = self.watch.get_or_insert_default().set_limit(bytes);
        self.leave(left)
    }

    /// Looks at all that is watched; answers all that has been found and not told.
    pub(super) fn check(&mut self) -> Vec<LateWrite> {
        self.watch.as_mut().map_or_else(Vec::new, |watch| {
            watch.check(Occasion::Asked);
            watch.take()
        })
    }

    /// The end: nothing is kept any more.
    pub(super) fn end(&mut self) -> Vec<Given> {
        let mut all = std::mem::take(&mut self.held);
        if let Some(watch) = &mut self.watch {
            all.extend(watch.end().into_iter().map(|(given, _)| given));
        }
        all
    }
}
