//! A driver of the crate's, at work on a device: started, called, waited for, ended.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use noiommu::{Device, Quiet};
use virtio_drivers::Error as CrateError;
use virtio_drivers::transport::DeviceType;

use crate::device::VirtioDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::hal::{self, Place};
use crate::pool::{Pool, Shape};
use crate::registers::Registers;
use crate::transport::KitTransport;

/// How often a device that has been given something is looked at before anything else is done with the processor.
const SPINS: u32 = 200;
/// How often one that does not answer is looked after, and from when on the processor is given away.
const LOOK: Duration = Duration::from_millis(1);
const PAUSE: Duration = Duration::from_micros(50);

/// A driver, its device and its memory.
pub(crate) struct Hosted<D> {
    /// There until this is dropped.
    driver: Option<D>,
    registers: Arc<Registers>,
    place: Place,
    timeout: Duration,
}

impl<D> Hosted<D> {
    /// Makes memory for the device, lets it reach that, and has the crate start it.
    ///
    /// # Errors
    /// Those of pinning and mapping; what the device does not have or not agree to; what the kit answers.
    pub(crate) fn start(
        device: VirtioDevice,
        kind: DeviceType,
        shape: Shape,
        make: impl FnOnce(KitTransport) -> Result<D, CrateError>,
    ) -> Result<Self> {
        let VirtioDevice { device, ioas, registers, timeout, .. } = device;
        let pool = Pool::new(&device, &ioas, shape)?;
        registers.set_pool(&pool);
        let place = Place { device: Arc::new(device), pool };
        // SAFETY: the promise of this driver. The device is given addresses by two ways alone. The registers of a queue are written by
        // `Registers::make_queue`, which refuses what is not within a ring of this pool. Descriptors are written by the crate, into
        // such rings, with an address that `Pool::share` has answered for a slot and the length of what was copied there, which is
        // the slot's at most. Slots and rings are mapped in the IOAS that the device is attached to; they are given up after the device
        // has been reset, or else wait in the kit's quarantine until it is quiet.
        unsafe { place.device.enable_bus_master()? };
        let transport = KitTransport::new(&registers, kind);
        let made = hal::enter(&place, || make(transport));
        // What the transport could not tell comes first: what the crate makes of it is but the consequence.
        let made = registers.check().and_then(|()| {
            made.map_err(|error| match place.pool.take_note() {
                Some(note) => note,
                None => refused(&registers, error),
            })
        });
        match made {
            Ok(driver) => Ok(Self { driver: Some(driver), registers, place, timeout }),
            Err(error) => {
                let _ = registers.stop();
                Err(error)
            }
        }
    }

    pub(crate) fn device(&self) -> &Device {
        &self.place.device
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.place.pool
    }

    pub(crate) fn registers(&self) -> &Registers {
        &self.registers
    }

    /// Calls the driver.
    ///
    /// # Errors
    /// Why the device is used no more, before the call or since.
    pub(crate) fn call<T>(&mut self, work: impl FnOnce(&mut D) -> T) -> Result<T> {
        self.registers.check()?;
        let driver = self.driver.as_mut().ok_or_else(|| Error::argument("a driver that has ended"))?;
        let answer = hal::enter(&self.place, || work(driver));
        self.registers.check()?;
        Ok(answer)
    }

    /// Calls the driver for what it waits for without an end: one request on `queue`, the only one there. If the device does not
    /// answer in time it is reset, and the request ends undone.
    ///
    /// # Errors
    /// As for [`Hosted::call`]; want of threads.
    pub(crate) fn call_waiting<T>(&mut self, queue: u16, work: impl FnOnce(&mut D) -> T) -> Result<T> {
        let (registers, timeout) = (self.registers.clone(), self.timeout);
        let watch = Watch::default();
        thread::scope(|scope| {
            let watching = thread::Builder::new().name("virtio-watch".to_owned()).spawn_scoped(scope, || {
                let began = Instant::now();
                while !watch.ended_within(LOOK) {
                    let given_up = began.elapsed() > timeout;
                    if given_up {
                        late(&registers, "a request");
                    }
                    if given_up || registers.look_after().is_err() {
                        return registers.answer_for_device(queue);
                    }
                }
            });
            watching.map_err(|error| {
                Error::unsupported(format!("no thread to watch {}: {error}", registers.name()))
                    .with_remedy("raise the limit of threads (ulimit -u, or the cgroup's pids.max)")
            })?;
            // However it ends, by a panic too, the watch does.
            let _end = EndOf(&watch);
            self.call(work)
        })
    }

    /// Waits for something of the device's.
    ///
    /// # Errors
    /// It does not come in time: the device has been reset, and is used no more. It is gone or has failed.
    pub(crate) fn wait<T>(&mut self, what: &str, mut look: impl FnMut(&mut D) -> Option<T>) -> Result<T> {
        let began = Instant::now();
        let mut looked = began;
        let mut spins = 0;
        loop {
            if let Some(found) = self.call(&mut look)? {
                return Ok(found);
            }
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
                continue;
            }
            let now = Instant::now();
            if now.duration_since(began) > self.timeout {
                return Err(late(&self.registers, what));
            }
            if now.duration_since(looked) > LOOK {
                looked = now;
                self.registers.look_after()?;
            }
            thread::sleep(PAUSE);
        }
    }

    /// Ends the driver and makes the device quiet.
    ///
    /// # Errors
    /// When it cannot be made quiet: its memory stays pinned then.
    pub(crate) fn close(mut self) -> Result<Quiet> {
        self.end();
        Ok(self.place.device.quiesce()?)
    }

    /// Resets the device, then gives its memory up.
    fn end(&mut self) {
        if let Some(driver) = self.driver.take() {
            // If it fails, the kit looks after what the device may still reach.
            let _ = self.registers.stop();
            hal::enter(&self.place, || drop(driver));
        }
    }
}

impl<D> Drop for Hosted<D> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<D> std::fmt::Debug for Hosted<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hosted").field("device", &self.place.device).finish_non_exhaustive()
    }
}

/// The device has not answered in time: it is reset, and used no more.
fn late(registers: &Registers, what: &str) -> Error {
    let error = registers.fail(
        Error::new(ErrorKind::Timeout, format!("{} has not finished {what} in time", registers.name()))
            .with_remedy("open the device anew"),
    );
    let _ = registers.stop();
    error
}

/// What the crate answers when it does not start a device.
fn refused(registers: &Registers, error: CrateError) -> Error {
    Error::unsupported(format!("{} cannot be started: {error}", registers.name()))
}

/// Whether something has ended.
#[derive(Default)]
struct Watch {
    ended: Mutex<bool>,
    told: Condvar,
}

impl Watch {
    fn ended_within(&self, timeout: Duration) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.told.wait_timeout_while(ended, timeout, |ended| !*ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Tells the watch when it is dropped.
struct EndOf<'a>(&'a Watch);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        *self.0.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.told.notify_all();
    }
}
