//! Taking a controller, real or simulated.

use noiommu::Context;
use noiommu_nvme::{Controller, Namespace, Settings, Stopped, sim};

use super::Trouble;

/// The word for a simulated controller, in place of an address.
const SIMULATED: &str = "sim";
/// Blocks of its namespace, and their bytes.
const SIMULATED_BLOCKS: u64 = 64 << 10;
const SIMULATED_BLOCK: u32 = 512;

/// Which controller and which namespace.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// The controller's PCI address, as lspci has it; `sim`: a simulated one of 32 MiB, which needs nothing and keeps nothing
    #[arg(value_name = "DEVICE")]
    device: String,

    /// The number of the namespace
    #[arg(short, long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    namespace: u32,
}

/// A controller that runs. What belongs to it goes after it.
pub(crate) struct Opened {
    pub(crate) controller: Controller,
}

impl Place {
    /// Takes the controller and starts it.
    pub(crate) fn open(&self, settings: &Settings) -> Result<Opened, Trouble> {
        let (context, device) = if self.device == SIMULATED {
            let context = Context::simulated();
            let slot = context.sim_device(sim::Controller::new(SIMULATED_BLOCKS, SIMULATED_BLOCK))?;
            let device = slot.open()?;
            (context, device)
        } else {
            let context = Context::new()?;
            let device = context.open(&self.device)?;
            (context, device)
        };
        let ioas = context.ioas()?;
        let stopped = Stopped::new(device, &ioas)?;
        // SAFETY: nobody else writes to the device, which is this program's; the driver keeps the rest of the promise.
        unsafe { stopped.device().enable_bus_master()? };
        Ok(Opened { controller: stopped.start(settings)? })
    }

    /// The namespace of it.
    pub(crate) fn namespace(&self, opened: &Opened) -> Result<Namespace, Trouble> {
        Ok(opened.controller.namespace(self.namespace)?)
    }
}
