//! Config space as it was, to be put back: the header, and what of PCI Express software sets.

use super::Backend;
use super::config::{CAPABILITY_EXPRESS, ConfigSpace, read_register, write_register};
use crate::Errno;

/// The control registers of the PCI Express capability: device, link, device 2, link 2. Version 1 ends before the latter
/// two, and the root complex's own endpoints have no link.
const EXPRESS_CONTROLS: [u16; 4] = [0x08, 0x10, 0x28, 0x30];
/// Where the status register is in the header's second 4 bytes: writing its ones would clear errors.
const COMMAND_INDEX: usize = 1;

/// What was saved.
pub(super) struct Saved {
    header: [u32; 16],
    express: Option<(u16, [u16; 4])>,
}

impl Saved {
    /// Looks at the device now.
    pub(super) fn new(backend: &impl Backend, config: &ConfigSpace) -> Result<Self, Errno> {
        let mut header = [0; 16];
        for (value, at) in header.iter_mut().zip((0..).step_by(4)) {
            *value = backend.config_read(at, 4)?;
        }
        let express = match config.find(CAPABILITY_EXPRESS) {
            Some(start) if start & 3 == 0 => {
                let mut controls = [0; 4];
                for (value, at) in controls.iter_mut().zip(EXPRESS_CONTROLS) {
                    let at = start.wrapping_add(at);
                    if at < config.end(start) {
                        *value = read_register(backend, at, 2)? as u16;
                    }
                }
                Some((start, controls))
            }
            _ => None,
        };
        Ok(Self { header, express })
    }

    /// Puts it back where it differs: the command last, so that the BARs are right when they are decoded.
    pub(super) fn restore(&self, backend: &impl Backend, config: &ConfigSpace) -> Result<(), Errno> {
        if let Some((start, controls)) = self.express {
            for (&value, at) in controls.iter().zip(EXPRESS_CONTROLS) {
                let at = start.wrapping_add(at);
                if at < config.end(start) && read_register(backend, at, 2)? != u32::from(value) {
                    write_register(backend, at, 2, value.into())?;
                }
            }
        }
        for (index, &value) in self.header.iter().enumerate().rev() {
            let at = (index as u16).wrapping_mul(4);
            if index == COMMAND_INDEX {
                if backend.config_read(at, 2)? != value & 0xffff {
                    backend.config_write(at, 2, value & 0xffff)?;
                }
            } else if backend.config_read(at, 4)? != value {
                backend.config_write(at, 4, value)?;
            }
        }
        Ok(())
    }
}
