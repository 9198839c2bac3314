//! A simulated device as the kit opens it: the seam's side of the processor.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use noiommu_core::Errno;
use rustix::event::{EventfdFlags, eventfd};

use super::Model;
use super::machine::Machine;
use super::wires::Signal;
use crate::device::{Backend, InterruptKind, Provider, Registers, Source, mask_line};
use crate::{Error, ErrorKind, Result};

/// What tells a driver that its device is about to go.
pub(super) type Removal = Arc<Mutex<Option<OwnedFd>>>;

/// The one driver's hold of a device, until this is dropped.
pub(super) struct Claim<M: Model> {
    machine: Arc<Machine<M>>,
    removal: Removal,
}

impl<M: Model> Claim<M> {
    /// # Errors
    /// EBUSY: a driver has it.
    pub(super) fn new(machine: &Arc<Machine<M>>, removal: &Removal) -> Result<Self> {
        let outside = machine.outside();
        if outside.open.swap(true, Ordering::AcqRel) {
            return Err(Error::new(
                ErrorKind::Busy,
                Errno::EBUSY,
                format!("{} is open already", outside.name),
            )
            .with_remedy("drop the Device, and what was got from it (BARs, interrupts), first"));
        }
        outside.mastered.store(false, Ordering::Release);
        Ok(Self { machine: machine.clone(), removal: removal.clone() })
    }
}

impl<M: Model> Drop for Claim<M> {
    fn drop(&mut self) {
        let outside = self.machine.outside();
        outside.wires.disconnect();
        outside.open.store(false, Ordering::Release);
        *self.removal.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// An eventfd, and a signal that writes to it.
fn event() -> Result<(OwnedFd, Signal)> {
    let event = new_event()?;
    let held = event.try_clone().map_err(|error| Error::system("eventfd", error))?;
    let signal: Signal = Arc::new(move || ring(&held));
    Ok((event, signal))
}

pub(super) fn new_event() -> Result<OwnedFd> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    eventfd(0, flags).map_err(|error| Error::system("eventfd", error))
}

/// Makes an eventfd readable.
pub(super) fn ring(event: &OwnedFd) {
    // A counter that is full has been signalled.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

impl<M: Model> Backend for Claim<M> {
    fn name(&self) -> &str {
        &self.machine.outside().name
    }

    fn provider(&self) -> Provider {
        Provider::Sim
    }

    fn config_read(&self, offset: u16, into: &mut [u8]) -> Result<()> {
        self.machine.config_read(offset, into)
    }

    fn config_write(&self, offset: u16, from: &[u8]) -> Result<()> {
        self.machine.config_write(offset, from)
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn Registers>> {
        self.machine.registers(index).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                Errno::EINVAL,
                format!("{} has no memory BAR {index}", self.name()),
            )
        })
    }

    fn bar_write_combining(&self, index: u8) -> Result<Arc<dyn Registers>> {
        // Writes that are not combined are as good.
        self.bar(index)
    }

    fn interrupt_count(&self, kind: InterruptKind) -> Result<u32> {
        let identity = self.machine.identity();
        let vectors = |messages: Option<(u32, usize)>| messages.map_or(0, |(vectors, _)| vectors);
        Ok(match kind {
            InterruptKind::Intx => identity.has_line.into(),
            InterruptKind::Msi => vectors(identity.msi),
            InterruptKind::Msix => vectors(identity.msix),
        })
    }

    fn enable_interrupts(&self, kind: InterruptKind, count: u32) -> Result<Vec<Source>> {
        let events = (0..count).map(|_| event()).collect::<Result<Vec<_>>>()?;
        let (events, mut signals): (Vec<_>, Vec<_>) =
            events.into_iter().map(|(event, signal)| (event, Some(signal))).unzip();
        match kind {
            InterruptKind::Intx => {
                // As with the others, whatever it was before.
                mask_line(self, kind, false)?;
                self.machine.connect_line(signals.pop().flatten());
            }
            _ => self.machine.connect_messages(kind, signals),
        }
        Ok(events.into_iter().map(Source::eventfd).collect())
    }

    fn disable_interrupts(&self, _: InterruptKind) {
        self.machine.disconnect();
    }

    fn mask_interrupt(&self, kind: InterruptKind, _: u32, masked: bool) -> Result<()> {
        mask_line(self, kind, masked)
    }

    fn about_to_wait(&self) {
        self.machine.about_to_wait();
        self.machine.raise();
    }

    fn reset(&self) -> Result<bool> {
        Ok(self.machine.reset())
    }

    fn removal(&self) -> Result<Option<OwnedFd>> {
        let event = new_event()?;
        let held = event.try_clone().map_err(|error| Error::system("eventfd", error))?;
        *self.removal.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
        Ok(Some(event))
    }

    fn attached(&self, ioas: Option<u32>) {
        self.machine.outside().set_ioas(ioas);
    }
}
