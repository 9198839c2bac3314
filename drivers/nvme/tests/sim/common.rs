//! What the tests have in common: a simulated controller that is driven, and numbers of no order.

use std::time::Duration;

use noiommu::sim::{Pace, Slot};
use noiommu::{Context, Ioas};
use noiommu_nvme::{Completion, Controller, Error, Queue, Settings, Stopped, sim};

/// A machine with a controller that runs.
pub(crate) struct Machine {
    pub(crate) controller: Controller,
    pub(crate) slot: Slot<sim::Controller>,
    pub(crate) ioas: Ioas,
    pub(crate) context: Context,
}

/// No test waits for so long, but a busy machine may.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// Settings with that patience.
pub(crate) fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.timeout = PATIENCE;
    settings.queues = 8;
    settings
}

/// The same for controllers that are not going to answer, and are not to be waited for. Only for those that work at once.
pub(crate) fn impatient() -> Settings {
    let mut settings = settings();
    settings.timeout = Duration::from_millis(10);
    settings
}

impl Machine {
    pub(crate) fn new(model: sim::Controller, pace: Pace, settings: &Settings) -> Self {
        Self::start(model, pace, settings).unwrap()
    }

    pub(crate) fn start(model: sim::Controller, pace: Pace, settings: &Settings) -> Result<Self, Error> {
        let context = Context::simulated();
        context.sanitizer().unwrap().tell_dropped(true);
        let (ioas, slot) = (context.ioas()?, context.sim_device_at(model, pace)?);
        let stopped = Stopped::new(slot.open()?, &ioas)?;
        // SAFETY: nobody else writes to the device; the driver keeps the rest of the promise.
        unsafe { stopped.device().enable_bus_master()? };
        let controller = stopped.start(settings)?;
        Ok(Self { controller, slot, ioas, context })
    }

    /// The sanitizer has nothing to tell.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.context.sanitizer().unwrap().reports(), []);
    }
}

/// Polls until nothing is outstanding.
pub(crate) fn drain(queue: &mut Queue) -> Vec<Completion> {
    let mut done = Vec::new();
    while queue.outstanding() > 0 {
        queue.poll(&mut done);
    }
    done
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

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill_with(|| self.any() as u8);
    }
}
