//! The controller: taken, started, asked, and given up.

use std::sync::Arc;

use noiommu::{Bar, Device, DmaBuffer, InterruptKind, Ioas, Quiet};

use crate::core::{self, Core};
use crate::error::{Error, Result};
use crate::identify::{Identity, Namespace};
use crate::queue::Queue;
use crate::region::Region;
use crate::registers::Capabilities;
use crate::settings::Settings;

/// A controller that is stopped: it has no queues, and reaches no memory.
///
/// What is left for the caller is [the one promise of a driver](noiommu::Device::enable_bus_master).
#[derive(Debug)]
pub struct Stopped {
    device: Device,
    ioas: Ioas,
    registers: Bar,
    capabilities: Capabilities,
}

impl Stopped {
    /// Takes a device that is an NVMe controller, stops it, tells the kit what makes it quiet, and attaches it to `ioas`.
    ///
    /// # Errors
    /// No NVMe controller, or none with the NVM command set; it does not stop in its own time; what the kit answers.
    pub fn new(device: Device, ioas: &Ioas) -> Result<Self> {
        let (registers, capabilities) = core::stop_and_attach(&device, ioas)?;
        Ok(Self { device, ioas: ioas.clone(), registers, capabilities })
    }

    /// The device, whose bus mastering is to be turned on before [`Stopped::start`].
    ///
    /// What that promises, this crate keeps: the controller is given addresses of its queues, of lists and of [regions](Region)
    /// alone, all of them mapped for it; and none of these is given back before the command that it was for has been completed, or
    /// the controller has said that it is stopped, or its device is quiet. The caller adds that nobody else writes to the device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Starts the controller.
    ///
    /// # Errors
    /// Bus mastering is off; settings out of range; the controller does not start or answer in its own time, or is none that this
    /// driver can drive; no interrupts where they are asked for; what the kit answers.
    pub fn start(self, settings: &Settings) -> Result<Controller> {
        if settings.queues == 0 || settings.entries < 2 || !settings.entries.is_power_of_two() {
            return Err(Error::argument("at least one queue, of a power of two entries, at least 2"));
        }
        if settings.entries > 4096
            || !(4096..=2 << 20).contains(&settings.max_transfer)
            || !settings.max_transfer.is_multiple_of(4096)
        {
            return Err(Error::argument(
                "at most 4096 entries, and transfers of whole 4 KiB pages, up to 2 MiB",
            ));
        }
        let Self { device, ioas, registers, capabilities } = self;
        let core = Core::start(device, ioas, registers, capabilities, settings)?;
        Ok(Controller { core: Arc::new(core) })
    }
}

/// A controller that runs.
///
/// Dropped, or [closed](Controller::close), with all its queues gone, it is shut down in good order, and its device made quiet.
#[derive(Debug)]
pub struct Controller {
    core: Arc<Core>,
}

impl Controller {
    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.core.device
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// It is not running.
    pub fn identity(&self) -> Result<Identity> {
        self.core.admin().identity()
    }

    /// How many I/O queues it has granted.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.core.admin().granted()
    }

    /// How it interrupts, where it does.
    #[must_use]
    pub fn interrupts(&self) -> Option<InterruptKind> {
        self.core.interrupts.as_ref().map(noiommu::Interrupts::kind)
    }

    /// Its active namespaces that this driver can drive, and why it cannot drive the others.
    ///
    /// # Errors
    /// It does not answer; it lists what cannot be.
    pub fn namespaces(&self) -> Result<(Vec<Namespace>, Vec<Error>)> {
        let mut admin = self.core.admin();
        let (mut found, mut refused) = (Vec::new(), Vec::new());
        for number in admin.namespace_numbers(&self.core)? {
            match admin.namespace(&self.core, number) {
                Ok(namespace) => found.push(namespace),
                // One that cannot be driven is no reason not to drive the others; one that does not answer is.
                Err(error) if error.failure().is_none() => refused.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok((found, refused))
    }

    /// A namespace by its number.
    ///
    /// # Errors
    /// There is none, or none that this driver can drive; the controller does not answer.
    pub fn namespace(&self, number: u32) -> Result<Namespace> {
        self.core.admin().namespace(&self.core, number)
    }

    /// Memory for data, of so many bytes, as contiguous as it can be had; single pages will do.
    ///
    /// # Errors
    /// What the kit answers: want of memory above all.
    pub fn region(&self, bytes: usize) -> Result<Region> {
        let Core { device, ioas, capabilities, owner, .. } = &*self.core;
        Region::allocate(device, ioas, bytes, capabilities.page_shift, *owner)
    }

    /// The same of a buffer that is there already.
    ///
    /// # Errors
    /// What the kit answers. The buffer is gone then.
    pub fn region_of(&self, buffer: DmaBuffer) -> Result<Region> {
        let Core { device, ioas, capabilities, owner, .. } = &*self.core;
        Region::new(device, ioas, buffer, capabilities.page_shift, *owner)
    }

    /// An I/O queue, to be had by one thread at a time.
    ///
    /// # Errors
    /// There are as many as were granted; the controller does not make it, or does not answer; what the kit answers.
    pub fn queue(&self) -> Result<Queue> {
        Queue::new(&self.core)
    }

    /// Resets the controller: all commands of all queues end with [`Failure::Reset`](crate::Failure::Reset), and all queues are
    /// [lost](crate::Queue::recover).
    ///
    /// # Errors
    /// It does not stop or start again in its own time; what the kit answers. It may be tried again.
    pub fn reset(&self) -> Result<()> {
        self.core.reset_locked(&mut self.core.admin())
    }

    /// Shuts the controller down and makes its device quiet. Commands that are outstanding end with
    /// [`Failure::Dead`](crate::Failure::Dead).
    ///
    /// # Errors
    /// The device could not be made quiet.
    pub fn close(self) -> Result<Quiet> {
        Ok(self.core.close()?)
    }
}
