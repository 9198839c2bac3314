//! What writes to config space set off, besides changing bits.

use super::permissions::id;
use super::{
    BARS, COMMAND, COMMAND_LINE_MASKED, COMMAND_MEMORY, COMMAND_PORTS, EXTENDED, ROM, read_register,
    write_register,
};
use crate::Errno;
use crate::vfio::pci::interrupts::Active;
use crate::vfio::pci::{Backend, Messages, PciDevice};

/// In the power capability: control and status.
const POWER_CONTROL: u16 = 4;
/// In the vital product data capability: the address with its flag "done", and the data.
const VPD_ADDRESS: u16 = 2;
const VPD_DATA: u16 = 4;
const VPD_DONE: u16 = 1 << 15;
/// In the MSI capability.
const MSI_FLAGS: u16 = 2;
const MSI_ENABLE: u16 = 1 << 0;
const MSI_VECTORS: u16 = 7 << 4;
/// In the PCI Express capability.
const EXPRESS_CAPABILITIES: u16 = 4;
const EXPRESS_CAN_RESET: u32 = 1 << 28;
const EXPRESS_CONTROL: u16 = 8;
const EXPRESS_RESET: u16 = 1 << 15;
const EXPRESS_READ_REQUEST: u16 = 7 << 12;
const EXPRESS_PAYLOAD: u16 = 7 << 5;
/// In the capability of advanced features.
const FEATURES: u16 = 3;
const FEATURES_CAN_RESET: u32 = 3;
const FEATURES_CONTROL: u16 = 4;

impl<B: Backend> PciDevice<B> {
    /// One access of a write to config space.
    pub(super) fn config_change(&mut self, at: u16, width: u8, value: u32) -> Result<(), Errno> {
        let owner = self.config.owner(at);
        let start = self.config.start(at);
        let offset = at.wrapping_sub(start);
        if owner == 0 && at == COMMAND {
            self.before_command(value as u16)?;
        }
        let read_request = self.config.image(start.wrapping_add(EXPRESS_CONTROL), 2) as u16;
        self.config.write(&self.backend, at, width, value)?;
        if at >= EXTENDED {
            return Ok(());
        }
        match owner {
            0 => self.header_written(at, value as u16)?,
            id::POWER if offset == POWER_CONTROL => self.set_power((value & 3) as u8),
            id::VPD => self.vpd_written(start, offset, width),
            // A write that ends right before the flags counts too, as in the kernel.
            id::MSI if offset <= MSI_FLAGS && offset.wrapping_add(width.into()) >= MSI_FLAGS => {
                self.msi_written(start)?;
            }
            id::EXPRESS => self.express_written(start, read_request),
            id::ADVANCED_FEATURES => self.features_written(start),
            _ => {}
        }
        Ok(())
    }

    /// Before the command register changes: a device that was reset behind our back has lost its BARs. The caller believes
    /// decoding to be on and sets it again, while the device has it off; or the BARs simply differ.
    fn before_command(&mut self, new: u16) -> Result<(), Errno> {
        let device = self.backend.config_read(COMMAND, 2)? as u16;
        let lost = new & self.config.command() & !device & (COMMAND_MEMORY | COMMAND_PORTS) != 0;
        if lost || self.bars_differ() {
            self.restore_bars();
        }
        Ok(())
    }

    fn bars_differ(&self) -> bool {
        self.bars
            .iter()
            .take(6)
            .zip((BARS..).step_by(4))
            .any(|(&bar, at)| bar != 0 && self.backend.config_read(at, 4) != Ok(bar))
    }

    /// Writes the BARs that the system assigned. Errors are those of a device that is gone, which the next access tells.
    fn restore_bars(&self) {
        for (&bar, at) in self.bars.iter().zip((BARS..BARS.wrapping_add(24)).step_by(4).chain([ROM])) {
            let _ = self.backend.config_write(at, 4, bar);
        }
    }

    fn header_written(&mut self, at: u16, value: u16) -> Result<(), Errno> {
        if at == COMMAND {
            // Remembered as the caller's wish, to notice resets by.
            let decoding = COMMAND_MEMORY | COMMAND_PORTS;
            let command = self.config.command() & !decoding | value & decoding;
            self.config.set_image(COMMAND, 2, command.into());
            self.memory_changed();
        }
        if at == COMMAND || at == COMMAND.wrapping_add(1) {
            self.caller_masks_line(self.config.command() & COMMAND_LINE_MASKED != 0)?;
        }
        Ok(())
    }

    /// The flag in the address's upper byte begins an access, and toggles when it is done; it does not when that fails.
    fn vpd_written(&mut self, start: u16, offset: u16, width: u8) {
        let flag = VPD_ADDRESS.wrapping_add(1);
        if offset > flag || offset.wrapping_add(width.into()) <= flag {
            return;
        }
        let address = self.config.image(start.wrapping_add(VPD_ADDRESS), 2) as u16;
        let data = start.wrapping_add(VPD_DATA);
        if address & VPD_DONE != 0 {
            if self.backend.vpd_write(address & !VPD_DONE, self.config.image(data, 4)).is_err() {
                return;
            }
        } else {
            match self.backend.vpd_read(address) {
                Ok(value) => self.config.set_image(data, 4, value),
                Err(_) => return,
            }
        }
        self.config.set_image(start.wrapping_add(VPD_ADDRESS), 2, (address ^ VPD_DONE).into());
    }

    /// Enabled only while the call for interrupts has enabled it, and with no more vectors than that gave.
    fn msi_written(&mut self, start: u16) -> Result<(), Errno> {
        let at = start.wrapping_add(MSI_FLAGS);
        let mut flags = self.config.image(at, 2) as u16;
        if !matches!(self.interrupt, Active::Messages { kind: Messages::Msi, .. }) {
            flags &= !MSI_ENABLE;
        }
        if (flags & MSI_VECTORS).wrapping_shr(4) > self.msi_vectors_log2.into() {
            flags = flags & !MSI_VECTORS | u16::from(self.msi_vectors_log2).wrapping_shl(4);
        }
        self.config.set_image(at, 2, flags.into());
        write_register(&self.backend, at, 2, flags.into())
    }

    /// The reset bit reads as zero again, and resets. The read request size reaches the device, but never below its payload
    /// size, which does not.
    fn express_written(&mut self, start: u16, before: u16) {
        let at = start.wrapping_add(EXPRESS_CONTROL);
        let mut control = self.config.image(at, 2) as u16;
        if control & EXPRESS_RESET != 0 {
            control &= !EXPRESS_RESET;
            self.config.set_image(at, 2, control.into());
            let can = read_register(&self.backend, start.wrapping_add(EXPRESS_CAPABILITIES), 4);
            if can.is_ok_and(|can| can & EXPRESS_CAN_RESET != 0) {
                self.reset_by_register();
            }
        }
        if (control ^ before) & EXPRESS_READ_REQUEST != 0
            && let Ok(device) = read_register(&self.backend, at, 2)
        {
            let device = device as u16;
            // Sizes are powers of two from 128 bytes on; 4096 (5) is the largest.
            let wanted = (control & EXPRESS_READ_REQUEST).wrapping_shr(12);
            let size = wanted.max((device & EXPRESS_PAYLOAD).wrapping_shr(5));
            if size <= 5 {
                let _ = self.backend.config_write(
                    at,
                    2,
                    (device & !EXPRESS_READ_REQUEST | size.wrapping_shl(12)).into(),
                );
            }
        }
    }

    fn features_written(&mut self, start: u16) {
        let at = start.wrapping_add(FEATURES_CONTROL);
        let control = self.config.image(at, 1);
        if control & 1 != 0 {
            self.config.set_image(at, 1, control & !1);
            let can = read_register(&self.backend, start.wrapping_add(FEATURES), 1);
            if can.is_ok_and(|can| can & FEATURES_CAN_RESET == FEATURES_CAN_RESET) {
                self.reset_by_register();
            }
        }
    }

    fn reset_by_register(&mut self) {
        self.revoke();
        // The caller hears no more of a failure than of a device that ignores the bit.
        let _ = self.backend.reset();
        self.memory_changed();
    }
}
