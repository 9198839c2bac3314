//! The device by its registers: its status, its features, its queues, and what it died of.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use noiommu::{Device, QuietStep, barrier};

use crate::error::{Error, ErrorKind, Result};
use crate::pool::Pool;
use crate::structure::Structures;

// 4.1.4.3, the common configuration.
const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const DEVICE_STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY: u64 = 0x1e;
const QUEUE_DESCRIPTORS: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

/// 2.1: the driver is content with the features.
const FEATURES_OK: u8 = 8;
/// 2.1: the device has failed.
const NEEDS_RESET: u8 = 64;
/// What a register of a device reads as that is gone.
const GONE: u8 = 0xff;
/// No message for a queue.
const NO_VECTOR: u16 = 0xffff;

// 6, features of every kind of device.
const INDIRECT: u64 = 1 << 28;
const EVENT_INDEX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const ACCESS_PLATFORM: u64 = 1 << 33;

/// How long a device may take for its reset. Some take none at all.
const RESET: Duration = Duration::from_secs(2);
/// How often the configuration is read again that changes meanwhile.
pub(crate) const MOST_READS: u32 = 1000;
/// No device has so many queues that this driver uses.
const MOST_QUEUES: u16 = 4;

/// A queue that has been made.
#[derive(Clone, Copy, Debug)]
struct Queue {
    index: u16,
    size: u16,
    /// Where it is notified, in that structure.
    bell: u64,
    /// Its available and its used ring, for the device.
    driver: u64,
    device: u64,
}

/// A device's registers. Shared by the crate's transport and by who looks after it.
#[derive(Debug)]
pub(crate) struct Registers {
    name: String,
    structures: Structures,
    pool: OnceLock<Arc<Pool>>,
    /// Features of the kind that were agreed on.
    features: Mutex<u64>,
    queues: Mutex<Vec<Queue>>,
    /// The first thing that went wrong so that the device is not used any more.
    fault: Mutex<Option<Error>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registers {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            name: device.name().to_owned(),
            structures: Structures::find(device)?,
            pool: OnceLock::new(),
            features: Mutex::default(),
            queues: Mutex::default(),
            fault: Mutex::default(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The memory that queues have to be in.
    pub(crate) fn set_pool(&self, pool: &Arc<Pool>) {
        let _ = self.pool.set(pool.clone());
    }

    /// What makes the device quiet in whatever state it is: its reset, which ends all its work (2.4). Turning bus mastering off is not
    /// enough for every device, and most of these have no other reset.
    pub(crate) fn quiet_recipe(&self) -> [QuietStep; 2] {
        let (bar, offset) = (self.structures.common.index, self.structures.common.at + DEVICE_STATUS);
        [
            QuietStep::Write { bar, offset, width: 1, value: 0 },
            QuietStep::Wait { bar, offset, width: 1, mask: 0xff, value: 0, timeout: RESET },
        ]
    }

    /// The device is used no more, because of this or of what came before; answers which.
    pub(crate) fn fail(&self, error: Error) -> Error {
        lock(&self.fault).get_or_insert(error).clone()
    }

    /// The device did what none may do. It is reset, and used no more.
    pub(crate) fn violation(&self, what: impl std::fmt::Display) -> Error {
        let error = self.fail(Error::violation(&self.name, what));
        let _ = self.stop();
        error
    }

    /// Why the device is used no more.
    ///
    /// # Errors
    /// If it is not.
    pub(crate) fn check(&self) -> Result<()> {
        lock(&self.fault).clone().map_or(Ok(()), Err)
    }

    /// What a register access answers; a failure is the device's end, since the crate's transport cannot tell it.
    pub(crate) fn noted<T>(&self, answer: Result<T>, otherwise: T) -> T {
        answer.unwrap_or_else(|error| {
            self.fail(error);
            otherwise
        })
    }

    /// The device's status.
    pub(crate) fn status(&self) -> Result<u8> {
        self.structures.common.read_u8(DEVICE_STATUS)
    }

    /// Resets the device, and waits until it has been.
    ///
    /// # Errors
    /// It does not do it in time, or is gone.
    pub(crate) fn stop(&self) -> Result<()> {
        self.structures.common.write_u8(DEVICE_STATUS, 0)?;
        let deadline = Instant::now() + RESET;
        loop {
            match self.status()? {
                0 => return Ok(()),
                GONE => return Err(self.gone()),
                _ if Instant::now() > deadline => {
                    return Err(Error::new(
                        ErrorKind::Timeout,
                        format!("{} has not finished its reset in time", self.name),
                    ));
                }
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn gone(&self) -> Error {
        Error::new(ErrorKind::Gone, format!("{} is gone", self.name))
    }

    /// Sets the device's status: 0 resets it. Nothing is told to a device that is used no more, but that.
    pub(crate) fn set_status(&self, status: u8) -> Result<()> {
        if status == 0 {
            return self.stop();
        }
        self.check()?;
        self.structures.common.write_u8(DEVICE_STATUS, status)?;
        // 3.1.1: it may not agree. Told once, it stays told.
        if status & FEATURES_OK != 0 {
            let now = self.status()?;
            if now == GONE {
                return Err(self.gone());
            }
            if now & FEATURES_OK == 0 {
                let features = *lock(&self.features);
                return Err(Error::unsupported(format!(
                    "{} does not take the features {features:#x} of those that it offers",
                    self.name
                )));
            }
        }
        Ok(())
    }

    /// What the device offers, and the crate's drivers are to know of.
    ///
    /// Not indirect descriptors, which are memory of another kind for each request; and not the event index: the crate compares
    /// numbers that wrap as if they did not, and would leave a notification out.
    pub(crate) fn offered(&self) -> Result<u64> {
        Ok(self.all_offered()? & !(INDIRECT | EVENT_INDEX))
    }

    fn all_offered(&self) -> Result<u64> {
        let mut offered = 0;
        for half in 0..2 {
            self.structures.common.write_u32(DEVICE_FEATURE_SELECT, half)?;
            offered |= u64::from(self.structures.common.read_u32(DEVICE_FEATURE)?) << (32 * half);
        }
        Ok(offered)
    }

    /// Agrees on features. A device that is to be told addresses as the platform has them is told that it will be, of which the
    /// crate's drivers know nothing: what it is given always are such (behind an IOMMU, IOVAs).
    pub(crate) fn accept(&self, features: u64) -> Result<()> {
        if features & VERSION_1 == 0 {
            return Err(Error::unsupported(format!("{} is a device of before version 1", self.name)));
        }
        let features = features | self.all_offered()? & ACCESS_PLATFORM;
        for half in 0..2 {
            self.structures.common.write_u32(DRIVER_FEATURE_SELECT, half)?;
            self.structures.common.write_u32(DRIVER_FEATURE, (features >> (32 * half)) as u32)?;
        }
        *lock(&self.features) = features;
        Ok(())
    }

    /// What was agreed on.
    pub(crate) fn features(&self) -> u64 {
        *lock(&self.features)
    }

    /// Counts the changes of the configuration of the kind.
    pub(crate) fn generation(&self) -> Result<u32> {
        Ok(self.structures.common.read_u8(CONFIG_GENERATION)?.into())
    }

    /// Why an interrupt came; reading it lets the line fall.
    pub(crate) fn reason(&self) -> Result<u8> {
        self.structures.isr.read_u8(0)
    }

    /// Bytes of the configuration of the kind; `None`: there is none.
    pub(crate) fn specific_length(&self) -> Option<u64> {
        self.structures.specific.as_ref().map(crate::structure::Structure::len)
    }

    /// Reads a field there, in accesses of `width` bytes (4.1.3.1).
    pub(crate) fn read_specific(&self, offset: u64, width: usize, into: &mut [u8]) -> Result<()> {
        let specific = self.specific()?;
        for (at, into) in (offset..).step_by(width).zip(into.chunks_mut(width)) {
            match width {
                1 => into.copy_from_slice(&[specific.read_u8(at)?]),
                2 => into.copy_from_slice(&specific.read_u16(at)?.to_le_bytes()),
                _ => into.copy_from_slice(&specific.read_u32(at)?.to_le_bytes()),
            }
        }
        Ok(())
    }

    /// Writes a field there.
    pub(crate) fn write_specific(&self, offset: u64, width: usize, from: &[u8]) -> Result<()> {
        let specific = self.specific()?;
        for (at, from) in (offset..).step_by(width).zip(from.chunks(width)) {
            match *from {
                [a] => specific.write_u8(at, a)?,
                [a, b] => specific.write_u16(at, u16::from_le_bytes([a, b]))?,
                [a, b, c, d] => specific.write_u32(at, u32::from_le_bytes([a, b, c, d]))?,
                _ => return Err(Error::argument(format!("a field in parts of {width} bytes"))),
            }
        }
        Ok(())
    }

    fn specific(&self) -> Result<&crate::structure::Structure> {
        let specific = self.structures.specific.as_ref();
        specific.ok_or_else(|| Error::unsupported(format!("{} has no configuration of its kind", self.name)))
    }

    /// The most descriptors of a queue; 0: there is no such queue.
    pub(crate) fn most_descriptors(&self, index: u16) -> Result<u16> {
        self.structures.common.write_u16(QUEUE_SELECT, index)?;
        self.structures.common.read_u16(QUEUE_SIZE)
    }

    /// Whether a queue is in use.
    pub(crate) fn is_queue_enabled(&self, index: u16) -> Result<bool> {
        self.structures.common.write_u16(QUEUE_SELECT, index)?;
        Ok(self.structures.common.read_u16(QUEUE_ENABLE)? != 0)
    }

    /// Makes a queue (4.1.5.1.3), without interrupts.
    ///
    /// # Errors
    /// Rings that are not in the memory that is there for them; a place for notifications that the device does not have.
    pub(crate) fn make_queue(
        &self,
        index: u16,
        size: u32,
        [descriptors, driver, device]: [u64; 3],
    ) -> Result<()> {
        let (common, notify) = (&self.structures.common, &self.structures.notify);
        // 2.7: bytes of each part.
        let parts = [
            (descriptors, 16 * u64::from(size)),
            (driver, 6 + 2 * u64::from(size)),
            (device, 6 + 8 * u64::from(size)),
        ];
        let owned =
            |(address, length): (u64, u64)| self.pool.get().is_some_and(|pool| pool.is_ring(address, length));
        let short = u16::try_from(size).ok().filter(|size| size.is_power_of_two());
        let Some(size) = short.filter(|_| parts.into_iter().all(owned) && index < MOST_QUEUES) else {
            return Err(Error::argument(format!(
                "queue {index} with {size} descriptors at {descriptors:#x}, {driver:#x} and {device:#x} is not in this device's memory"
            )));
        };
        common.write_u16(QUEUE_SELECT, index)?;
        common.write_u16(QUEUE_SIZE, size)?;
        common.write_u16(QUEUE_VECTOR, NO_VECTOR)?;
        common.write_u64(QUEUE_DESCRIPTORS, descriptors)?;
        common.write_u64(QUEUE_DRIVER, driver)?;
        common.write_u64(QUEUE_DEVICE, device)?;
        let bell = u64::from(common.read_u16(QUEUE_NOTIFY)?) * u64::from(self.structures.multiplier);
        if bell % 2 != 0 || bell + 2 > notify.len() {
            return Err(self.violation(format_args!(
                "queue {index} is to be notified at {bell:#x} of {:#x} bytes",
                notify.len()
            )));
        }
        common.write_u16(QUEUE_ENABLE, 1)?;
        let mut queues = lock(&self.queues);
        queues.retain(|queue| queue.index != index);
        queues.push(Queue { index, size, bell, driver, device });
        Ok(())
    }

    /// Tells the device to look at a queue.
    pub(crate) fn notify(&self, index: u16) -> Result<()> {
        // The device is told after what it is to find is there: the write has that barrier.
        match self.queue(index) {
            Some(queue) => self.structures.notify.write_u16(queue.bell, index),
            None => Err(Error::argument(format!("queue {index} is notified, and has not been made"))),
        }
    }

    fn queue(&self, index: u16) -> Option<Queue> {
        lock(&self.queues).iter().find(|queue| queue.index == index).copied()
    }

    /// Looks whether a device that does not answer is there still; and tells it once more to look at its queues.
    ///
    /// The crate reads whether the device wants to be told right after it has made a request known, with nothing in between that
    /// would keep a processor from reading first (2.7.13.4.1), and so may leave out a notification that was wanted. One too many does
    /// no harm.
    ///
    /// # Errors
    /// It is gone, or says that it has failed.
    pub(crate) fn look_after(&self) -> Result<()> {
        self.check()?;
        let status = self.status()?;
        if status == GONE {
            return Err(self.fail(self.gone()));
        }
        if status & NEEDS_RESET != 0 {
            return Err(self.violation("it says that it has failed and needs a reset"));
        }
        barrier::dma_full();
        let queues: Vec<u16> = lock(&self.queues).iter().map(|queue| queue.index).collect();
        for index in queues {
            self.notify(index).map_err(|error| self.fail(error))?;
        }
        Ok(())
    }

    /// Answers the one request of a queue in the device's place, without having done it: who waits for it goes on. The device has been
    /// reset, or does not answer; what is written to its ring by both of them is at worst another wrong number.
    pub(crate) fn answer_for_device(&self, index: u16) {
        let (Some(queue), Some(pool)) = (self.queue(index), self.pool.get()) else { return };
        let size = u64::from(queue.size);
        let request = pool.with_ring(queue.driver, 4 + 2 * size, |ring, at| {
            let made = ring.load_u16(at + 2)?;
            barrier::dma_read();
            let slot = made.wrapping_sub(1) & (queue.size - 1);
            Ok::<_, noiommu::Error>((made, slot, ring.load_u16(at + 4 + 2 * usize::from(slot))?))
        });
        let Some(Ok((made, slot, head))) = request else { return };
        let _ = pool.with_ring(queue.device, 4 + 8 * size, |ring, at| {
            let entry = at + 4 + 8 * usize::from(slot);
            ring.store_u32(entry, head.into())?;
            ring.store_u32(entry + 4, 0)?;
            barrier::dma_write();
            ring.store_u16(at + 2, made)
        });
    }
}
