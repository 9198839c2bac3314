//! What all queues of a controller share: its device, its registers, and how it is started, reset and stopped.
//!
//! Source: NVM Express Base Specification 1.4, 7.6 (initialization and shutdown), 7.3.2 (controller reset).
//!
//! # Resets
//! A reset is made under the lock of the admin queue. When the controller has said that it is stopped (CSTS.RDY is 0), none of its
//! commands reaches memory any more; only then the generation is raised, by which every queue learns that its commands are
//! no more and lets go of what they owned. I/O queues are made again by whoever has them, and nobody else writes their doorbells:
//! so what is written late meets a queue that is not there.

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use noiommu::{Bar, Device, InterruptKind, Interrupts, Ioas, QuietStep};

use crate::admin::Admin;
use crate::error::{Error, ErrorKind, Failure, Result};
use crate::registers::{
    ACQ, AQA, ASQ, BAR, CAP, CC, CC_ENABLE, CC_ENTRY_SIZES, CC_PAGE_SHIFT, CC_SHUTDOWN, CC_SHUTDOWN_NORMAL,
    CSTS, CSTS_FATAL, CSTS_READY, CSTS_SHUTDOWN, CSTS_SHUTDOWN_DONE, Capabilities, GONE, INTMC, INTMS,
};
use crate::settings::Settings;

/// In config space: the class code, and what an NVMe controller has there (storage, non-volatile memory, NVM Express).
const CLASS: u16 = 0x09;
const CLASS_NVME: [u8; 3] = [0x02, 0x08, 0x01];
/// In config space: the command register, and its bit for bus mastering.
const COMMAND: u16 = 0x04;
const COMMAND_BUS_MASTER: u8 = 1 << 2;

/// The longest wait of a quiet-recipe.
const LONGEST_WAIT: Duration = Duration::from_secs(65);
/// How long a controller may take to shut down, which some write their caches in.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// What has become of a controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Fate {
    /// It runs, or is being reset.
    Running,
    /// It is stopped, or its device is quiet, and did not start again or is not to.
    Dead,
    /// It could not be stopped: memory that it has been given it may still reach.
    Stuck,
    /// The device is gone.
    Gone,
}

impl Fate {
    /// What became of a command that was outstanding.
    pub(crate) fn failure(self) -> Failure {
        match self {
            Self::Running => Failure::Reset,
            Self::Dead | Self::Stuck => Failure::Dead,
            Self::Gone => Failure::Gone,
        }
    }
}

/// A controller, shared by its queues.
pub(crate) struct Core {
    pub(crate) device: Device,
    pub(crate) registers: Bar,
    pub(crate) ioas: Ioas,
    pub(crate) capabilities: Capabilities,
    pub(crate) settings: Settings,
    pub(crate) interrupts: Option<Interrupts>,
    /// The line has come and nobody has let it through since.
    pub(crate) line_masked: AtomicBool,
    /// No other controller of this process has it.
    pub(crate) owner: u64,
    /// Counts resets.
    generation: AtomicU32,
    fate: AtomicU8,
    admin: Mutex<Admin>,
    /// What a controller that could not be stopped may still reach.
    limbo: Mutex<Vec<Box<dyn Any + Send>>>,
}

/// Takes a device that is a controller and stops it, and tells what makes it quiet.
pub(crate) fn stop_and_attach(device: &Device, ioas: &Ioas) -> Result<(Bar, Capabilities)> {
    let mut class = [0; 3];
    device.config_read(CLASS, &mut class)?;
    if class != CLASS_NVME {
        return Err(noiommu::Error::wrong_device(device.name(), "NVMe").into());
    }
    let registers = device.bar(BAR)?;
    let capabilities = registers.get(CAP)?;
    if capabilities == u64::MAX {
        return Err(gone(device));
    }
    let capabilities = Capabilities::new(capabilities)?;
    // Whoever had it before may have left it running, with queues of its own.
    stop(device, &registers, &capabilities)?;
    device.set_quiet_recipe(&[
        QuietStep::Update { bar: BAR, offset: CC.offset(), width: 4, clear: CC_ENABLE.into(), set: 0 },
        QuietStep::Wait {
            bar: BAR,
            offset: CSTS.offset(),
            width: 4,
            mask: CSTS_READY.into(),
            value: 0,
            timeout: capabilities.timeout.min(LONGEST_WAIT),
        },
    ])?;
    device.attach(ioas)?;
    Ok((registers, capabilities))
}

/// 7.3.2: disables the controller, and waits until it says that it is. Then it has no queues, and reaches no memory.
fn stop(device: &Device, registers: &Bar, capabilities: &Capabilities) -> Result<()> {
    let configuration = registers.get(CC)?;
    // A controller that is being told to shut down is not to be disabled in the same write.
    registers.set(CC, configuration & !(CC_ENABLE | CC_SHUTDOWN))?;
    wait(device, registers, "stopping", capabilities.timeout, |status| status & CSTS_READY == 0)
}

/// Polls CSTS until it is as wanted.
fn wait(
    device: &Device,
    registers: &Bar,
    what: &str,
    limit: Duration,
    done: impl Fn(u32) -> bool,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let status = registers.get(CSTS)?;
        if status == GONE {
            return Err(gone(device));
        }
        if done(status) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let cause =
                format!("{} has not finished {what} within {limit:?} (CSTS {status:#x})", device.name());
            return Err(Error::new(ErrorKind::Timeout, cause).with_remedy("reset the device, or the machine"));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

#[cold]
pub(crate) fn gone(device: &Device) -> Error {
    Error::failed(device.name(), Failure::Gone)
}

impl Core {
    /// Starts a controller that is stopped and attached, and whose device masters the bus.
    pub(crate) fn start(
        device: Device,
        ioas: Ioas,
        registers: Bar,
        capabilities: Capabilities,
        settings: &Settings,
    ) -> Result<Self> {
        static OWNERS: AtomicU64 = AtomicU64::new(1);

        let interrupts =
            if settings.interrupts { Some(enable_interrupts(&device, settings.queues)?) } else { None };
        // A line falls when the controller is told that a completion was taken.
        let polled = interrupts.as_ref().is_none_or(|on| on.kind() == InterruptKind::Msix);
        let admin = Admin::new(&device, &ioas, &registers, &capabilities, settings.queues, polled)?;
        let core = Self {
            device,
            registers,
            ioas,
            capabilities,
            settings: settings.clone(),
            interrupts,
            line_masked: AtomicBool::new(false),
            owner: OWNERS.fetch_add(1, Ordering::Relaxed),
            generation: AtomicU32::new(0),
            fate: AtomicU8::new(Fate::Running as u8),
            admin: Mutex::new(admin),
            limbo: Mutex::new(Vec::new()),
        };
        core.begin(&mut core.admin())?;
        Ok(core)
    }

    /// The admin queue.
    pub(crate) fn admin(&self) -> MutexGuard<'_, Admin> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raised with every reset, after the controller has stopped.
    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// What has become of it.
    pub(crate) fn fate(&self) -> Fate {
        match self.fate.load(Ordering::Acquire) {
            fate if fate == Fate::Running as u8 => Fate::Running,
            fate if fate == Fate::Dead as u8 => Fate::Dead,
            fate if fate == Fate::Gone as u8 => Fate::Gone,
            _ => Fate::Stuck,
        }
    }

    /// The controller is no longer what the queues know it as.
    fn turn(&self, fate: Fate) {
        self.fate.store(fate as u8, Ordering::Release);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether it needs a reset: it says that it has failed. An error: it is gone.
    pub(crate) fn has_failed(&self) -> Result<bool> {
        match self.registers.get(CSTS)? {
            GONE => Err(gone(&self.device)),
            status => Ok(status & CSTS_FATAL != 0),
        }
    }

    /// 7.6.1: the stopped controller is given its admin queues and started.
    fn begin(&self, admin: &mut Admin) -> Result<()> {
        let mut command = [0];
        self.device.config_read(COMMAND, &mut command)?;
        if command[0] & COMMAND_BUS_MASTER == 0 {
            let cause = format!("{}: bus mastering is off, so it cannot read its queues", self.device.name());
            return Err(Error::argument(cause).with_remedy("unsafe { device.enable_bus_master()? } first"));
        }
        let (submission, completion) = admin.restart()?;
        let size = |entries: u16| u32::from(entries) - 1;
        self.registers.set(AQA, size(completion.0) << 16 | size(submission.0))?;
        self.registers.set(ASQ, submission.1)?;
        self.registers.set(ACQ, completion.1)?;
        let page = (self.capabilities.page_shift - 12) << CC_PAGE_SHIFT;
        self.registers.set(CC, CC_ENTRY_SIZES | page | CC_ENABLE)?;
        let limit = self.capabilities.timeout;
        wait(&self.device, &self.registers, "starting", limit, |status| {
            status & (CSTS_READY | CSTS_FATAL) != 0
        })?;
        if self.has_failed()? {
            let cause = format!("{} has failed while it started (CSTS.CFS)", self.device.name());
            return Err(Error::new(ErrorKind::Timeout, cause));
        }
        match self.interrupts.as_ref().map(Interrupts::kind) {
            // 3.1.3: with MSI-X these are not to be touched.
            Some(InterruptKind::Msix) => {}
            Some(_) => self.registers.set(INTMC, u32::MAX)?,
            None => self.registers.set(INTMS, u32::MAX)?,
        }
        admin.set_up(self)
    }

    /// Resets the controller, unless that has been done since the `seen` generation: all commands of all queues end, and all I/O
    /// queues are lost.
    ///
    /// # Errors
    /// Where it does not stop or start again. Then it is [dead](Fate).
    pub(crate) fn reset(&self, seen: u32) -> Result<()> {
        let mut admin = self.admin();
        if self.generation() != seen {
            return Ok(());
        }
        self.reset_locked(&mut admin)
    }

    /// The same in any case, with the admin queue at hand.
    pub(crate) fn reset_locked(&self, admin: &mut Admin) -> Result<()> {
        self.halt()?;
        self.turn(Fate::Running);
        self.begin(admin).inspect_err(|_| {
            // Whatever it has begun: it ends here.
            if self.halt().is_ok() {
                self.turn(Fate::Dead);
            }
        })
    }

    /// Stops the controller, by its device's reset if need be. Where neither helps, it is dead for the queues, too.
    fn halt(&self) -> Result<()> {
        let Err(error) = stop(&self.device, &self.registers, &self.capabilities) else { return Ok(()) };
        if error.failure() == Some(Failure::Gone) || matches!(self.device.is_gone(), Ok(true)) {
            self.turn(Fate::Gone);
            return Err(gone(&self.device));
        }
        let quiet = self.device.quiesce().is_ok();
        self.turn(if quiet { Fate::Dead } else { Fate::Stuck });
        let remedy =
            if quiet { "unsafe { device.enable_bus_master()? }, then reset()" } else { "reset the machine" };
        Err(error.with_remedy(remedy))
    }

    /// 7.6.2: has a controller that runs shut down in good order.
    fn shut_down(&self) {
        if self.fate() != Fate::Running {
            return;
        }
        let told = self.registers.get(CC).and_then(|configuration| {
            self.registers.set(CC, configuration & !CC_SHUTDOWN | CC_SHUTDOWN_NORMAL)
        });
        if told.is_ok() {
            // One that takes longer loses what it has not written; it is stopped all the same.
            let done = |status| status & CSTS_SHUTDOWN == CSTS_SHUTDOWN_DONE || status & CSTS_FATAL != 0;
            let _ = wait(&self.device, &self.registers, "shutting down", SHUTDOWN, done);
        }
    }

    /// Shuts the controller down and makes its device quiet.
    pub(crate) fn close(&self) -> noiommu::Result<noiommu::Quiet> {
        let _admin = self.admin();
        self.shut_down();
        let quiet = self.device.quiesce();
        let fate = match (&quiet, self.fate()) {
            (_, Fate::Gone) => Fate::Gone,
            (Ok(_), _) => Fate::Dead,
            (Err(_), _) => Fate::Stuck,
        };
        self.turn(fate);
        quiet
    }

    /// Keeps what the controller may still reach until its device is quiet.
    pub(crate) fn keep(&self, what: Box<dyn Any + Send>) {
        self.limbo.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }
}

/// The best kind that there is, with a vector for each queue if there are as many.
fn enable_interrupts(device: &Device, queues: u16) -> Result<Interrupts> {
    for kind in InterruptKind::ALL {
        let count = device.interrupt_count(kind)?;
        let wanted = match kind {
            // The first one is the admin queue's.
            InterruptKind::Msix => u32::from(queues) + 1,
            // Of several, how many are granted is not the driver's say.
            InterruptKind::Msi | InterruptKind::Intx => 1,
        };
        if count > 0 {
            return Ok(device.enable_interrupts(kind, wanted.min(count))?);
        }
    }
    Err(Error::unsupported(format!(
        "{}: the provider {} hands on no interrupts",
        device.name(),
        device.provider().name()
    ))
    .with_remedy("poll (Settings::interrupts), or give it to vfio-pci or uio_pci_generic: noiommu bind"))
}

impl Drop for Core {
    fn drop(&mut self) {
        // Before any memory goes that the controller has been given; the device's own drop makes it quiet.
        self.shut_down();
        self.interrupts = None;
        let stopped = stop(&self.device, &self.registers, &self.capabilities);
        if stopped.is_err() && self.device.quiesce().is_err() {
            let limbo = std::mem::take(self.limbo.get_mut().unwrap_or_else(PoisonError::into_inner));
            std::mem::forget(limbo);
            self.admin.get_mut().unwrap_or_else(PoisonError::into_inner).keep_for_ever();
        }
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("device", &self.device)
            .field("fate", &self.fate())
            .finish_non_exhaustive()
    }
}
