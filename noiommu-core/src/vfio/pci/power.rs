//! The power state, which the caller changes through us: between the states that the device has, with the delays it needs.
//!
//! Source: PCI Bus Power Management Interface Specification 1.2, 3.2.4 and 5.6.1.

use super::config::{CAPABILITY_POWER, read_register, write_register};
use super::saved::Saved;
use super::{Backend, PciDevice};
use crate::Errno;

const CAPABILITIES: u16 = 2;
const CONTROL: u16 = 4;
const STATE: u16 = 3;
const NO_RESET: u16 = 1 << 3;
/// D3hot: registers do not answer.
pub(super) const D3: u8 = 3;
/// Milliseconds into and out of D3hot.
const D3_DELAY: u32 = 10;

impl<B: Backend> PciDevice<B> {
    /// Changes the state, where the device and the order of states allow it; else nothing happens, which the caller reads
    /// from the register.
    pub(super) fn set_power(&mut self, state: u8) {
        if state >= D3 {
            self.revoke();
        }
        let _ = self.change_power(state);
        self.memory_changed();
    }

    fn change_power(&mut self, state: u8) -> Result<(), Errno> {
        let Some(start) = self.config.find(CAPABILITY_POWER) else { return Ok(()) };
        let control = start.wrapping_add(CONTROL);
        let now = read_register(&self.backend, control, 2)? as u16;
        if state == self.power || now == u16::MAX {
            return Ok(());
        }
        if state == 0 {
            if now & STATE != 0 {
                // All of the register: wake-up events off, too.
                write_register(&self.backend, control, 2, 0)?;
                self.backend.pause(if now & STATE == D3.into() { D3_DELAY } else { 1 });
            }
            self.power = (read_register(&self.backend, control, 2)? as u16 & STATE) as u8;
            if self.power == 0
                && let Some(saved) = self.asleep.take()
            {
                saved.restore(&self.backend, &self.config)?;
            }
            return Ok(());
        }
        let supported = read_register(&self.backend, start.wrapping_add(CAPABILITIES), 2)?;
        let bit = match state {
            1 => 1 << 9,
            2 => 1 << 10,
            _ => 0,
        };
        // Only downwards; up again by way of D0 alone.
        if supported & bit != bit || self.power > state {
            return Ok(());
        }
        // A device that resets itself on the way back loses its config space.
        let saved = match state {
            D3 if now & NO_RESET == 0 => Some(Saved::new(&self.backend, &self.config)?),
            _ => None,
        };
        write_register(&self.backend, control, 2, (now & !STATE | u16::from(state)).into())?;
        self.backend.pause(if state == D3 { D3_DELAY } else { 1 });
        self.power = (read_register(&self.backend, control, 2)? as u16 & STATE) as u8;
        if self.power >= D3 {
            self.asleep = saved;
        }
        Ok(())
    }
}
