//! Where the device's interrupts go: a line, masked when it comes and while the command register says so, or messages.
//!
//! Source: PCI Local Bus Specification 3.0, 2.2.6 and 6.8.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Config;

/// The device asserts its line: in the status register.
const STATUS: usize = 0x06;
const STATUS_LINE: u8 = 1 << 3;
/// The line is masked: in the upper byte of the command register.
const COMMAND_UPPER: usize = 0x05;
const COMMAND_LINE_MASKED: u8 = 1 << 2;
/// MSI is enabled: in the flags of its capability.
pub(super) const MSI_FLAGS: usize = 0x42;
const MSI_ENABLE: u8 = 1 << 0;

/// What is done when an interrupt comes.
pub(crate) type Signal = Arc<dyn Fn() + Send + Sync>;

/// The device's interrupts. Locks are taken in the order: `to`, config space.
pub(super) struct Wires {
    config: Config,
    to: Mutex<To>,
}

enum To {
    Nobody,
    Line(Option<Signal>),
    Message(Option<Signal>),
}

impl Wires {
    pub(super) fn new(config: Config) -> Self {
        Self { config, to: Mutex::new(To::Nobody) }
    }

    fn to(&self) -> MutexGuard<'_, To> {
        self.to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with config space.
    fn config<T>(&self, work: impl FnOnce(&mut [u8]) -> T) -> T {
        work(&mut *self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The device has something to tell.
    pub(super) fn raise(&self) {
        let to = self.to();
        if self.config(|config| config[MSI_FLAGS] & MSI_ENABLE != 0) {
            if let To::Message(Some(signal)) = &*to {
                signal();
            }
            return;
        }
        self.config(|config| config[STATUS] |= STATUS_LINE);
        self.deliver(&to);
    }

    /// It has nothing to tell any more.
    pub(super) fn lower(&self) {
        self.config(|config| config[STATUS] &= !STATUS_LINE);
    }

    /// After a change of the command register: what was masked may come now.
    pub(super) fn look(&self) {
        self.deliver(&self.to());
    }

    /// Where the line is asserted, not masked, and somebody takes it: masks it and tells.
    fn deliver(&self, to: &To) {
        let To::Line(signal) = to else { return };
        let comes = self.config(|config| {
            let comes = config[STATUS] & STATUS_LINE != 0 && config[COMMAND_UPPER] & COMMAND_LINE_MASKED == 0;
            if comes {
                config[COMMAND_UPPER] |= COMMAND_LINE_MASKED;
            }
            comes
        });
        if let Some(signal) = signal
            && comes
        {
            signal();
        }
    }

    /// Who takes the line.
    pub(super) fn connect_line(&self, signal: Option<Signal>) {
        let mut to = self.to();
        *to = To::Line(signal);
        self.deliver(&to);
    }

    /// Who takes messages; they are enabled, and the line is masked.
    pub(super) fn connect_message(&self, signal: Option<Signal>) {
        *self.to() = To::Message(signal);
        self.config(|config| {
            config[MSI_FLAGS] |= MSI_ENABLE;
            config[COMMAND_UPPER] |= COMMAND_LINE_MASKED;
        });
    }

    /// Nobody takes anything.
    pub(super) fn disconnect(&self) {
        let was = std::mem::replace(&mut *self.to(), To::Nobody);
        if matches!(was, To::Message(_)) {
            self.config(|config| {
                config[MSI_FLAGS] &= !MSI_ENABLE;
                config[COMMAND_UPPER] &= !COMMAND_LINE_MASKED;
            });
        }
    }
}
