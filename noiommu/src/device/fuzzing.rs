//! A hostile device, played by a fuzzer: a config space that answers what it likes, and other bytes the next time.

use std::sync::{Arc, Mutex, PoisonError};

use noiommu_core::Errno;

use super::config::{COMMAND, COMMAND_BUS_MASTER, ConfigSpace, TRANSACTIONS_PENDING};
use super::{Backend, Device, Provider, Registers};
use crate::{Context, Contiguity, DmaBuffer, Error, ErrorKind, InterruptKind, Result};

/// Accesses of config space that one walk may make: each of its words, a few times over.
const MOST_ACCESSES: u32 = 8 * 1024;

/// Looks at a device that `data` is the config space of, and takes it through its life: nothing panics, every walk ends, and no access
/// is out of config space. Whatever the device answers, its memory is let go only once its bus mastering was read as off.
///
/// The first byte tells how it lies: bits that are other ones at every second look, or the number of accesses after which it is gone,
/// or fails, or answers honestly. The second tells how long config space is; the rest is what is in it, again and again.
#[doc(hidden)]
pub fn play_device(data: &[u8]) {
    let Some(([how, size, flips], filling)) = data.split_first_chunk::<3>() else { return };
    if filling.is_empty() {
        return;
    }
    let size = if size % 2 == 0 { 256 } else { 4096 };
    let bytes = filling.iter().copied().cycle().take(size).collect();
    let hostile = Hostile { how: *how, flips: *flips, bytes: Mutex::new(bytes), accesses: Mutex::new(0) };
    look(&hostile);
    live(hostile);
}

struct Hostile {
    how: u8,
    flips: u8,
    bytes: Mutex<Vec<u8>>,
    accesses: Mutex<u32>,
}

impl Hostile {
    /// Counts an access; answers its number.
    fn access(&self, offset: u16, length: usize) -> Result<u32> {
        let mut accesses = self.accesses.lock().unwrap_or_else(PoisonError::into_inner);
        *accesses += 1;
        assert!(usize::from(offset) + length <= 4096, "{length} bytes at {offset:#x}");
        assert!(*accesses <= MOST_ACCESSES, "a walk does not end");
        // It fails from its so many-th access on.
        if self.how & 3 == 3 && *accesses > u32::from(self.how >> 2) {
            return Err(Error::new(ErrorKind::System, Errno::EIO, "the device fails"));
        }
        Ok(*accesses)
    }

    fn rest(&self) {
        *self.accesses.lock().unwrap_or_else(PoisonError::into_inner) = 0;
    }
}

impl Backend for Hostile {
    fn name(&self) -> &str {
        "hostile"
    }

    fn provider(&self) -> Provider {
        Provider::Sysfs
    }

    fn config_read(&self, offset: u16, into: &mut [u8]) -> Result<()> {
        let number = self.access(offset, into.len())?;
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, byte) in (usize::from(offset)..).zip(into.iter_mut()) {
            // Behind its end there is nobody.
            *byte = bytes.get(at).copied().unwrap_or(0xff);
        }
        match self.how & 3 {
            1 if number % 2 == 1 => into.iter_mut().for_each(|byte| *byte ^= self.flips),
            2 if number > u32::from(self.how >> 2) => into.fill(0xff),
            _ => {}
        }
        Ok(())
    }

    fn config_write(&self, offset: u16, from: &[u8]) -> Result<()> {
        self.access(offset, from.len())?;
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, value) in (usize::from(offset)..).zip(from) {
            if let Some(byte) = bytes.get_mut(at) {
                // What it keeps is its business, too.
                *byte = if self.how & 0x40 == 0 { *value } else { *byte };
            }
        }
        Ok(())
    }

    fn bar(&self, _: u8) -> Result<Arc<dyn Registers>> {
        Err(Errno::EINVAL.into())
    }

    fn reset(&self) -> Result<bool> {
        Ok(self.how & 0x80 != 0)
    }
}

/// Every question that the kit asks config space, each of which ends by itself.
fn look(hostile: &Hostile) {
    let config = || {
        hostile.rest();
        ConfigSpace(hostile)
    };
    let _ = (config().is_gone(), config().is_bridge(), config().read_u16(COMMAND));
    for id in 0..0x20 {
        if let Ok(found) = config().capabilities(id) {
            assert!(found.iter().all(|at| (0x40..0x100).contains(at)), "{found:x?}");
        }
    }
    for id in 0..0x40 {
        if let Ok(Some(at)) = config().extended_capability(id) {
            assert!((0x100..4096).contains(&at) && at % 4 == 0, "{at:#x}");
        }
    }
    for index in 0..6 {
        let _ = config().is_memory_bar(index);
    }
    if let Ok(Some(at)) = config().express_status_offset() {
        assert!((0x40..0xff).contains(&at), "{at:#x}");
    }
    hostile.rest();
}

/// The life of a device: attached, let loose, made quiet, dropped.
fn live(hostile: Hostile) {
    let config = ConfigSpace(&hostile);
    let status = config.express_status_offset().ok().flatten().and_then(|at| config.read_u16(at).ok());
    let command = config.read_u16(COMMAND).unwrap_or(0);
    hostile.rest();
    // One with transactions pending is waited for, for a second; of one that cannot be proved quiet, memory stays pinned for good.
    // Neither is for a fuzzer, which goes on for hours.
    let pends = status.is_some_and(|status| status & TRANSACTIONS_PENDING != 0);
    let stubborn = hostile.how & 0x40 != 0 && command & COMMAND_BUS_MASTER != 0;
    if pends || stubborn || matches!(hostile.how & 3, 1 | 3) {
        return;
    }
    let context = Context::simulated();
    let Ok(ioas) = context.ioas() else { return };
    let Ok(device) = Device::new(ioas.inner().context(), Box::new(hostile)) else { return };
    if device.attach(&ioas).is_err() {
        return;
    }
    let buffer = DmaBuffer::new(4096, Contiguity::Pages).and_then(|buffer| Ok(ioas.map(buffer)?));
    // SAFETY: there is no device that could reach anything.
    let _ = unsafe { device.enable_bus_master() };
    let _ = (device.id(), device.is_gone(), device.config_write(COMMAND, &[0xff; 2]));
    let _ = (device.interrupt_count(InterruptKind::Msi), device.enable_interrupts(InterruptKind::Msix, 1));
    drop(buffer);
    let quiet = device.quiesce();
    if let Ok(quiet) = quiet {
        assert!(quiet.bus_master_off, "{quiet:?}");
        assert_eq!(ioas.quarantined(), 0);
    }
    drop(device);
    assert_eq!((ioas.quarantined(), ioas.usage().areas), (0, 0), "{quiet:?}");
}
