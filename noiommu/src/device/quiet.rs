//! Making a device quiet, and resetting it.

use std::time::{Duration, Instant};

use noiommu_core::Errno;

use super::config::{self, COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY};
use super::{Device, Inner, State};
use crate::{Error, ErrorKind, Result, ioas};

/// How a device was proved to be quiet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Quiet {
    /// Bus mastering was read back as off. A device that is gone (its config space reads as all ones) counts as off.
    pub bus_master_off: bool,
    /// The PCI Express "transactions pending" bit was read as clear; `None`: the device has no such bit.
    pub transactions_done: Option<bool>,
    /// What the driver's [recipe](Device::set_quiet_recipe) waits for came; `None`: it has given none, or the device had not been
    /// let loose.
    pub recipe: Option<bool>,
    /// The device was reset; `false`: it offers no reset.
    pub reset: bool,
}

impl Inner {
    /// The driver's recipe, bus mastering off and read back, transactions done, reset where there is one.
    pub(super) fn quiesce(&self, state: &mut State) -> Result<Quiet> {
        let config = self.config();
        // First, while the device can still do what it has to for it. A device that is gone answers with ones.
        let recipe = if state.master && !config.is_gone()? { state.recipe.run() } else { Ok(None) };
        config.change_command(COMMAND_BUS_MASTER, 0)?;
        if config.is_gone()? {
            let quiet = Quiet { bus_master_off: true, transactions_done: None, recipe: None, reset: false };
            self.now_quiet(state);
            return Ok(quiet);
        }
        let recipe = self.checked(recipe)?;
        let transactions_done = self.wait_for_transactions()?;
        let reset = self.checked(self.backend.reset()).map_err(|error| match error.kind() {
            ErrorKind::NoDevice => error,
            _ => Error::new(
                ErrorKind::NotQuiet,
                error.errno(),
                format!("{}: could not be made quiet: {}", self.backend.name(), error.cause()),
            )
            .with_remedy(
                "drop it: the kernel may be waiting for that; its memory stays pinned until the process ends",
            ),
        })?;
        // After the reset: it may have put back what was there before it.
        let bus_master_off = config.read_u16(COMMAND)? & COMMAND_BUS_MASTER == 0;
        let quiet = Quiet { bus_master_off, transactions_done, recipe, reset };
        let hanging = transactions_done == Some(false) || recipe == Some(false);
        if !bus_master_off || (hanging && !reset) {
            return Err(Error::new(
                ErrorKind::NotQuiet,
                Errno::EBUSY,
                format!("{}: could not be made quiet: {quiet:?}", self.backend.name()),
            )
            .with_remedy("reset or remove the device; its memory stays pinned until then"));
        }
        self.now_quiet(state);
        Ok(quiet)
    }

    /// Polls the "transactions pending" bit for as long as a completion may take.
    fn wait_for_transactions(&self) -> Result<Option<bool>> {
        // PCI Express Base Specification 2.8: completions time out after at most 64 s in the longest range; 50 ms is the
        // default range's end. A device that takes longer than a second is taken for hung.
        let deadline = Instant::now() + Duration::from_secs(1);
        let Some(status) = self.config().express_status_offset()? else { return Ok(None) };
        loop {
            if self.config().read_u16(status)? & config::TRANSACTIONS_PENDING == 0 {
                return Ok(Some(true));
            }
            if Instant::now() >= deadline {
                return Ok(Some(false));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn now_quiet(&self, state: &mut State) {
        if std::mem::take(&mut state.master) {
            // First: what is let go next need not be kept by anybody.
            if let Some(ward) = &state.ward {
                ward.now_quiet();
            }
            if let Some(ioas) = &state.attached {
                ioas.remove_master();
            }
        }
    }
}

impl Device {
    /// Makes the device quiet: by the driver's [recipe](Device::set_quiet_recipe), bus mastering off and read back, no transaction
    /// pending, reset where there is one. What was waiting for that is let go.
    ///
    /// # Errors
    /// [`ErrorKind::NotQuiet`] when that cannot be proved; the memory stays pinned then.
    pub fn quiesce(&self) -> Result<Quiet> {
        self.refuse_forked()?;
        self.inner.quiesce(&mut self.inner.state())
    }

    /// A forked child's copy is not to do anything to the parent's device, nor to the memory that it reaches.
    pub(super) fn refuse_forked(&self) -> Result<()> {
        if self.inner.context.is_forked() { Err(ioas::forked()) } else { Ok(()) }
    }

    /// Makes the device quiet and resets it: registers are as after power-on, config space as before but for bus mastering,
    /// which is off. Interrupts that are enabled stay so.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`]: there is no way to reset it alone; as for [`Device::quiesce`].
    pub fn reset(&self) -> Result<Quiet> {
        self.refuse_forked()?;
        let inner = self.inner();
        let mut state = inner.state();
        let quiet = inner.quiesce(&mut state)?;
        if !quiet.reset {
            return Err(Error::new(
                ErrorKind::Unsupported,
                Errno::ENOTTY,
                format!("{} has no reset of its own (or is gone)", self.name()),
            )
            .with_remedy("hot_reset() resets all that is on its bus, where the provider can"));
        }
        inner.config().change_command(0, COMMAND_MEMORY)?;
        Ok(quiet)
    }

    /// Makes the device quiet and resets the bus or slot that it is on, with all devices there.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`]: the provider cannot, or there is no such bus; EINVAL or EPERM: other devices are on it that
    /// this process has not opened; as for [`Device::quiesce`].
    pub fn hot_reset(&self) -> Result<()> {
        self.refuse_forked()?;
        let inner = self.inner();
        // Held to the end: nobody turns bus mastering on in between.
        let mut state = inner.state();
        inner.quiesce(&mut state)?;
        inner.checked(inner.backend.hot_reset())?;
        inner.config().change_command(COMMAND_BUS_MASTER, COMMAND_MEMORY)?;
        Ok(())
    }
}
