//! What the tests have in common: a simulated device that is driven, and numbers of no order.

use std::time::Duration;

use noiommu::sim::{Model as _, Pace, Slot, Work};
use noiommu::{Context, Ioas};
use noiommu_virtio::sim::{Card, Disk, Kind, Virtio};
use noiommu_virtio::{Block, Net, Result, VirtioDevice};

/// No test waits for so long, but a busy machine may.
const PATIENCE: Duration = Duration::from_secs(600);
/// For devices that are not going to answer, and work at once if they do.
pub(crate) const IMPATIENCE: Duration = Duration::from_millis(5);

/// A machine with a device in it.
pub(crate) struct Machine<K: Kind> {
    pub(crate) slot: Slot<Virtio<K>>,
    pub(crate) ioas: Ioas,
    pub(crate) context: Context,
}

impl<K: Kind> Machine<K> {
    pub(crate) fn new(model: Virtio<K>, pace: Pace) -> Self {
        let context = Context::simulated();
        context.sanitizer().unwrap().tell_dropped(true);
        let (ioas, slot) = (context.ioas().unwrap(), context.sim_device_at(model, pace).unwrap());
        Self { slot, ioas, context }
    }

    pub(crate) fn open(&self, timeout: Option<Duration>) -> Result<VirtioDevice> {
        let mut device = VirtioDevice::open(self.slot.open()?, &self.ioas)?;
        device.set_timeout(timeout.unwrap_or(PATIENCE));
        Ok(device)
    }

    /// Nothing is left behind: no report, no memory that waits, no queue.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.context.sanitizer().unwrap().reports(), []);
        assert_eq!(self.ioas.quarantined(), 0);
        assert_eq!(self.ioas.usage().areas, 0);
    }

    pub(crate) fn model<T>(&self, act: impl FnOnce(&mut Virtio<K>) -> T) -> T {
        self.slot.act(|model, _| act(model))
    }
}

/// A disk with so many sectors.
pub(crate) fn disk(sectors: u64) -> Machine<Disk> {
    Machine::new(Virtio::new(Disk::new(sectors)), Pace::AtOnce)
}

/// A card on a wire of the test's.
pub(crate) fn card() -> Machine<Card> {
    Machine::new(Virtio::new(Card::default()), Pace::AtOnce)
}

impl Machine<Disk> {
    pub(crate) fn block(&self) -> Block {
        self.open(None).unwrap().block().unwrap()
    }
}

impl Machine<Card> {
    pub(crate) fn net(&self) -> Net {
        self.open(None).unwrap().net().unwrap()
    }

    /// Frames arrive, as far as the card has memory for them.
    pub(crate) fn arrive(&self, frames: impl IntoIterator<Item = Vec<u8>>) {
        self.slot.act(|model, bus| {
            model.kind.coming.extend(frames);
            while model.work(bus) == Work::More {}
        });
    }
}

/// Numbers of no order, but the same each time.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn any(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        (self.any() >> 11) % end
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.any() as u8).collect()
    }
}
