//! Where the device's interrupts go: a line, masked when it comes and while the command register says so, or messages.
//!
//! Source: PCI Local Bus Specification 3.0, 2.2.6 and 6.8.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Config;
use crate::device::{COMMAND, COMMAND_BUS_MASTER, InterruptKind};

/// The device asserts its line: in the status register.
const STATUS: usize = 0x06;
const STATUS_LINE: u8 = 1 << 3;
/// The line is masked: in the upper byte of the command register.
const COMMAND_UPPER: usize = 0x05;
const COMMAND_LINE_MASKED: u8 = 1 << 2;
/// In the flags of the capability: MSI is enabled, with so many vectors (a power of two).
const MSI_ENABLE: u8 = 1 << 0;
const MSI_VECTORS: u8 = 7 << 4;
/// In the upper byte of the message control of the capability: MSI-X is enabled.
const MSIX_ENABLE: u8 = 1 << 7;

/// What is done when an interrupt comes.
pub(crate) type Signal = Arc<dyn Fn() + Send + Sync>;

/// The device's interrupts. Locks are taken in the order: `to`, config space.
pub(super) struct Wires {
    config: Config,
    /// Where in config space the byte is that enables messages.
    msi: Option<usize>,
    msix: Option<usize>,
    to: Mutex<To>,
    /// How often somebody was told.
    told: AtomicU64,
}

enum To {
    Nobody,
    Line(Option<Signal>),
    Messages(InterruptKind, Vec<Option<Signal>>),
}

impl Wires {
    /// `msi` and `msix`: where the capabilities are.
    pub(super) fn new(config: Config, msi: Option<usize>, msix: Option<usize>) -> Self {
        let (msi, msix) = (msi.map(|at| at + 2), msix.map(|at| at + 3));
        Self { config, msi, msix, to: Mutex::new(To::Nobody), told: AtomicU64::new(0) }
    }

    fn to(&self) -> MutexGuard<'_, To> {
        self.to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often somebody has been told of an interrupt so far.
    pub(super) fn told(&self) -> u64 {
        self.told.load(Ordering::Acquire)
    }

    fn tell(&self, signal: Option<&Signal>) {
        if let Some(signal) = signal {
            signal();
            self.told.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether messages are enabled in config space, and the bus mastered.
    fn messages(&self) -> (bool, bool) {
        self.config.with(|config| {
            let on = |at: Option<usize>, bit| at.is_some_and(|at| config[at] & bit != 0);
            let master = config[usize::from(COMMAND)] & COMMAND_BUS_MASTER as u8 != 0;
            (on(self.msi, MSI_ENABLE) || on(self.msix, MSIX_ENABLE), master)
        })
    }

    /// The device has something to tell.
    pub(super) fn raise(&self, vector: u32) {
        let to = self.to();
        let (enabled, master) = self.messages();
        if enabled {
            if let To::Messages(_, signals) = &*to
                && master
            {
                self.tell(signals.get(vector as usize).and_then(Option::as_ref));
            }
            return;
        }
        self.config.with(|config| config[STATUS] |= STATUS_LINE);
        self.deliver(&to);
    }

    /// It has nothing to tell any more.
    pub(super) fn lower(&self) {
        self.config.with(|config| config[STATUS] &= !STATUS_LINE);
    }

    /// How many messages are enabled.
    pub(super) fn vectors(&self) -> u32 {
        let to = self.to();
        match &*to {
            To::Messages(_, signals) if self.messages().0 => signals.len() as u32,
            _ => 0,
        }
    }

    /// After a change of the command register: what was masked may come now.
    pub(super) fn look(&self) {
        self.deliver(&self.to());
    }

    /// Where the line is asserted, not masked, and somebody takes it: masks it and tells.
    fn deliver(&self, to: &To) {
        let To::Line(signal) = to else { return };
        let comes = self.config.with(|config| {
            let comes = config[STATUS] & STATUS_LINE != 0 && config[COMMAND_UPPER] & COMMAND_LINE_MASKED == 0;
            if comes {
                config[COMMAND_UPPER] |= COMMAND_LINE_MASKED;
            }
            comes
        });
        if comes {
            self.tell(signal.as_ref());
        }
    }

    /// Who takes the line.
    pub(super) fn connect_line(&self, signal: Option<Signal>) {
        let mut to = self.to();
        *to = To::Line(signal);
        self.deliver(&to);
    }

    /// Who takes messages; they are enabled, and the line is masked.
    pub(super) fn connect_messages(&self, kind: InterruptKind, signals: Vec<Option<Signal>>) {
        let vectors = signals.len().next_power_of_two().trailing_zeros() as u8;
        *self.to() = To::Messages(kind, signals);
        self.config.with(|config| {
            match (kind, self.msi, self.msix) {
                (InterruptKind::Msi, Some(at), _) => {
                    config[at] = config[at] & !MSI_VECTORS | MSI_ENABLE | vectors << 4;
                }
                (InterruptKind::Msix, _, Some(at)) => config[at] |= MSIX_ENABLE,
                _ => {}
            }
            config[COMMAND_UPPER] |= COMMAND_LINE_MASKED;
        });
    }

    /// Nobody takes anything.
    pub(super) fn disconnect(&self) {
        let was = std::mem::replace(&mut *self.to(), To::Nobody);
        if let To::Messages(kind, _) = was {
            self.config.with(|config| {
                match (kind, self.msi, self.msix) {
                    (InterruptKind::Msi, Some(at), _) => config[at] &= !MSI_ENABLE,
                    (InterruptKind::Msix, _, Some(at)) => config[at] &= !MSIX_ENABLE,
                    _ => {}
                }
                config[COMMAND_UPPER] &= !COMMAND_LINE_MASKED;
            });
        }
    }
}
