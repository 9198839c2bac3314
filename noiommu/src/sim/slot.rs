//! Where a model is plugged in: the test's hand on the device.

use std::sync::{Arc, PoisonError};

use super::claim::{Claim, Removal, ring};
use super::machine::Machine;
use super::{Bus, Model};
use crate::device::Device;
use crate::{Result, context};

/// A simulated device in its slot. A driver [opens](Slot::open) it, and again when it has closed it; a test watches it, steps it,
/// lets it hang and pulls it out. Cheap to clone; all clones are one device, which is there until all of them, and what was
/// opened, are gone.
///
/// ```
/// # fn main() -> noiommu::Result<()> {
/// use noiommu::sim::{Edu, Pace};
/// use noiommu::{Context, ErrorKind};
///
/// let context = Context::simulated();
/// let slot = context.sim_device_at(Edu::default(), Pace::OnTouch)?;
/// let device = slot.open()?;
/// let ioas = context.ioas()?;
/// assert_eq!(device.id()?, (0x1234, 0x11e8));
/// assert!(slot.open().is_err(), "it is open already");
/// // The test looks into the device,
/// slot.act(|edu, _| assert!(!edu.is_copying()));
/// // and pulls it out.
/// slot.unplug();
/// assert_eq!(device.id().unwrap_err().kind(), ErrorKind::NoDevice);
/// # drop(ioas);
/// # Ok(())
/// # }
/// ```
pub struct Slot<M: Model> {
    machine: Arc<Machine<M>>,
    context: Arc<context::Inner>,
    removal: Removal,
}

impl<M: Model> Clone for Slot<M> {
    fn clone(&self) -> Self {
        let (machine, context, removal) = (self.machine.clone(), self.context.clone(), self.removal.clone());
        Self { machine, context, removal }
    }
}

impl<M: Model> Slot<M> {
    pub(super) fn new(context: &Arc<context::Inner>, machine: Machine<M>) -> Self {
        Self { machine: Arc::new(machine), context: context.clone(), removal: Removal::default() }
    }

    /// Opens the device, as [`Context::open`](crate::Context::open) opens a real one: claimed, with bus mastering off.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`](crate::ErrorKind::Busy): a driver has it, or BARs or interrupts of it.
    pub fn open(&self) -> Result<Device> {
        let claim = Claim::new(&self.machine, &self.removal)?;
        Device::new(&self.context, Box::new(claim))
    }

    /// What people call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.machine.outside().name
    }

    /// Looks at the model or changes it, between two pieces of its work; with its bus, so that a test can have it do what no
    /// driver has told it: write late, read where it should not.
    pub fn act<T>(&self, act: impl FnOnce(&mut M, &mut Bus<'_>) -> T) -> T {
        let answer = self.machine.act(act);
        self.machine.raise();
        answer
    }

    /// Has the model do one piece of [work](Model::work), if there is one to do; tells whether there was. With any
    /// [`Pace`](super::Pace).
    pub fn step(&self) -> bool {
        let stepped = self.machine.step();
        self.machine.raise();
        stepped
    }

    /// The device stands still: registers answer, nothing goes on behind them, as with one that has crashed.
    pub fn hang(&self) {
        self.machine.set_hung(true);
    }

    /// It goes on where it stood still. A reset has the same effect.
    pub fn resume(&self) {
        self.machine.set_hung(false);
    }

    /// Pulls the device out: config space and registers read as ones, writes vanish, it reaches no memory and interrupts no
    /// more. It does not come back. [`Device::removal`] becomes readable.
    pub fn unplug(&self) {
        self.machine.unplug();
        self.announce_removal();
    }

    /// Tells the driver that the device is about to go, and does no more: [`Device::removal`] becomes readable.
    pub fn announce_removal(&self) {
        if let Some(event) = &*self.removal.lock().unwrap_or_else(PoisonError::into_inner) {
            ring(event);
        }
    }
}

impl<M: Model> std::fmt::Debug for Slot<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("device", &self.name()).finish_non_exhaustive()
    }
}
