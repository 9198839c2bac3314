//! The admin queue: commands one at a time, each waited for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use noiommu::{Bar, Device, Ioas};

use crate::command::Command;
use crate::core::{Core, Fate};
use crate::error::{Error, Failure, Result, Violation};
use crate::identify::{ACTIVE_NAMESPACES, CONTROLLER, Identity, NAMESPACE, Namespace, STRUCTURE, Structure};
use crate::pages::Pages;
use crate::pair::Pair;
use crate::registers::{Capabilities, VS};
use crate::shadow::Doorbells;

/// Entries of the admin queues: one command at a time, and no wrap at every turn.
const ENTRIES: u16 = 32;
/// The most namespaces that are listed.
const MOST_NAMESPACES: usize = 65_536;
/// The longest pause between two looks.
const PAUSE: Duration = Duration::from_millis(1);
/// Looks before the first pause.
const LOOKS: u32 = 200;

/// The admin queue, and what is settled by it.
#[derive(Debug)]
pub(crate) struct Admin {
    /// Emptied out where its memory is never to be given back.
    parts: Option<Parts>,
    /// Which numbers of I/O queues are taken: from 0 on, which is the admin queue's own.
    taken: Vec<bool>,
    /// How many I/O queues the controller has granted.
    granted: u16,
    identity: Option<Identity>,
    /// Doorbells in memory, where the controller takes them.
    doorbells: Option<Arc<Doorbells>>,
}

#[derive(Debug)]
struct Parts {
    pair: Pair<()>,
    /// Where structures are put.
    data: Pages,
}

/// Why a command was not answered.
enum Trouble {
    TimedOut,
    Failed,
    Violation(Violation),
    Error(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<noiommu::Error> for Trouble {
    fn from(error: noiommu::Error) -> Self {
        Self::Error(error.into())
    }
}

impl Admin {
    pub(crate) fn new(
        device: &Device,
        ioas: &Ioas,
        registers: &Bar,
        capabilities: &Capabilities,
        queues: u16,
        polled: bool,
    ) -> Result<Self> {
        let pair = Pair::new(device, ioas, registers, capabilities, 0, ENTRIES, polled)?;
        let data = Pages::new(device, ioas, STRUCTURE, capabilities.page_shift)?;
        let taken = vec![false; usize::from(queues) + 1];
        Ok(Self { parts: Some(Parts { pair, data }), taken, granted: 0, identity: None, doorbells: None })
    }

    fn parts(&mut self) -> Result<&mut Parts> {
        self.parts.as_mut().ok_or_else(|| Error::failed("the admin queue", Failure::Dead))
    }

    /// Empties the queues of a controller that is stopped; entries and address of the submission queue and of the completion queue.
    pub(crate) fn restart(&mut self) -> Result<((u16, u64), (u16, u64))> {
        let Parts { pair, .. } = self.parts()?;
        while let Some(identifier) = pair.slots.any() {
            pair.slots.give(identifier);
        }
        pair.restart(None)?;
        Ok((pair.submission()?, pair.completion()?))
    }

    /// What a controller is asked and told before anything else.
    pub(crate) fn set_up(&mut self, core: &Core) -> Result<()> {
        let bytes = self.structure(core, CONTROLLER, 0, Self::execute)?;
        let version = core.registers.get(VS)?;
        self.identity = Some(Identity::new(&Structure(&bytes), core.capabilities.page_shift, version)?);
        let command = Command::number_of_queues(core.settings.queues);
        let granted = self.execute(core, "setting the number of queues", &command)?;
        // Less one each: submission queues in the lower half.
        let fewest = (granted & 0xffff).min(granted >> 16) as u16;
        self.granted = fewest.saturating_add(1).min(core.settings.queues);
        self.set_up_doorbells(core)
    }

    /// 5.7: doorbells of I/O queues go to memory, if the controller likes that.
    fn set_up_doorbells(&mut self, core: &Core) -> Result<()> {
        if !self.identity.as_ref().is_some_and(|identity| identity.shadow_doorbells) {
            self.doorbells = None;
            return Ok(());
        }
        // Those of before a reset will do: whoever has a queue writes there until it is found to be lost.
        let doorbells = match self.doorbells.take() {
            Some(doorbells) => doorbells,
            None => Arc::new(Doorbells::new(&core.device, &core.ioas, core.capabilities.page_shift)?),
        };
        doorbells.clear()?;
        let command = Command::doorbell_buffer(doorbells.addresses()?);
        match self.execute(core, "telling of doorbells in memory", &command) {
            Ok(_) => self.doorbells = Some(doorbells),
            // It is no worse off without. What it has been told of it may still read: that is its own until it is stopped.
            Err(error) if matches!(error.failure(), Some(Failure::Status(_))) => {
                core.keep(Box::new(doorbells));
            }
            Err(error) => {
                // It is going to be stopped, or is stuck.
                core.keep(Box::new(doorbells));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Doorbells in memory, where there are any.
    pub(crate) fn doorbells(&self) -> Option<&Arc<Doorbells>> {
        self.doorbells.as_ref()
    }

    /// What the controller says of itself.
    pub(crate) fn identity(&self) -> Result<Identity> {
        self.identity.clone().ok_or_else(|| Error::failed("identifying the controller", Failure::Dead))
    }

    /// How many I/O queues there can be.
    pub(crate) fn granted(&self) -> u16 {
        self.granted
    }

    /// Takes the first free number of an I/O queue.
    pub(crate) fn take_number(&mut self) -> Option<u16> {
        let numbers = self.taken.iter_mut().zip(0_u16..).skip(1).take(self.granted.into());
        let (taken, number) = numbers.into_iter().find(|(taken, _)| !**taken)?;
        *taken = true;
        Some(number)
    }

    /// Gives it back: the controller has no such queue.
    pub(crate) fn give_number(&mut self, number: u16) {
        if let Some(taken) = self.taken.get_mut(usize::from(number)) {
            *taken = false;
        }
    }

    /// Leaves its memory to a controller that could not be stopped.
    pub(crate) fn keep_for_ever(&mut self) {
        std::mem::forget((self.parts.take(), self.doorbells.take()));
    }

    /// Does a command; answers its result. Where the controller does not answer, it is reset.
    pub(crate) fn command(&mut self, core: &Core, what: &str, command: &Command) -> Result<u32> {
        if core.fate() != Fate::Running {
            let error = Error::failed(format_args!("{}: {what}", core.device.name()), core.fate().failure());
            return Err(error.with_remedy("Controller::reset() tries to start it again"));
        }
        let failure = match self.attempt(core, command) {
            Ok((status, result)) if status.is_success() => return Ok(result),
            Ok((status, _)) => return Err(Error::failed(what, Failure::Status(status))),
            Err(Trouble::Error(error)) => return Err(error),
            Err(Trouble::TimedOut) => Failure::TimedOut,
            Err(Trouble::Failed) => Failure::Reset,
            Err(Trouble::Violation(violation)) => Failure::Violation(violation),
        };
        let reset = core.reset_locked(self);
        let failure = if reset.is_ok() { failure } else { core.fate().failure() };
        Err(Error::failed(format_args!("{}: {what}", core.device.name()), failure))
    }

    /// The same, while the controller is being started: nobody resets it.
    fn execute(&mut self, core: &Core, what: &str, command: &Command) -> Result<u32> {
        let failure = match self.attempt(core, command) {
            Ok((status, result)) if status.is_success() => return Ok(result),
            Ok((status, _)) => Failure::Status(status),
            Err(Trouble::Error(error)) => return Err(error),
            Err(Trouble::TimedOut) => Failure::TimedOut,
            Err(Trouble::Failed) => Failure::Dead,
            Err(Trouble::Violation(violation)) => Failure::Violation(violation),
        };
        Err(Error::failed(format_args!("{}: {what}", core.device.name()), failure))
    }

    fn attempt(&mut self, core: &Core, command: &Command) -> Result<(crate::Status, u32), Trouble> {
        let Parts { pair, .. } = self.parts()?;
        let identifier = pair.submit(command, ())?;
        pair.ring()?;
        let deadline = Instant::now() + core.settings.timeout;
        let (mut looks, mut pause) = (0, Duration::from_micros(10));
        loop {
            match pair.next() {
                Ok(Some((done, ()))) => {
                    pair.tell_head()?;
                    // One command at a time: it is the one.
                    debug_assert_eq!(done.identifier, identifier);
                    return Ok((done.status, done.result));
                }
                Ok(None) => {}
                Err(violation) => return Err(Trouble::Violation(violation)),
            }
            looks += 1;
            if looks < LOOKS {
                std::hint::spin_loop();
                continue;
            }
            if pause >= PAUSE && core.has_failed()? {
                return Err(Trouble::Failed);
            }
            if Instant::now() >= deadline {
                return Err(Trouble::TimedOut);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE);
        }
    }

    /// 5.15: a structure's bytes.
    fn structure(
        &mut self,
        core: &Core,
        which: u32,
        namespace: u32,
        execute: fn(&mut Self, &Core, &str, &Command) -> Result<u32>,
    ) -> Result<Vec<u8>> {
        let Parts { data, .. } = self.parts()?;
        data.clear()?;
        let command = Command::identify(which, namespace, data.address(0)?);
        execute(self, core, "identifying", &command)?;
        let mut bytes = vec![0; STRUCTURE];
        self.parts()?.data.memory()?.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// The numbers of the active namespaces, in order.
    pub(crate) fn namespace_numbers(&mut self, core: &Core) -> Result<Vec<u32>> {
        let mut numbers = Vec::new();
        let mut last = 0;
        loop {
            let bytes = self.structure(core, ACTIVE_NAMESPACES, last, Self::command)?;
            let list = Structure(&bytes);
            for at in (0..STRUCTURE).step_by(4) {
                let number = list.u32(at);
                if number == 0 {
                    return Ok(numbers);
                }
                // Ascending: so the lists end.
                if number <= last || numbers.len() == MOST_NAMESPACES {
                    return Err(Error::nonsense(format!(
                        "{}: namespace {number} is listed after namespace {last}, as number {}",
                        core.device.name(),
                        numbers.len() + 1
                    )));
                }
                last = number;
                numbers.push(number);
            }
        }
    }

    /// A namespace by its number.
    pub(crate) fn namespace(&mut self, core: &Core, number: u32) -> Result<Namespace> {
        let bytes = self.structure(core, NAMESPACE, number, Self::command)?;
        Namespace::new(number, &Structure(&bytes), core.owner)
    }
}
