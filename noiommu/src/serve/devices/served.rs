//! A device whose rules are kept here: the core's, over one of our backends.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use noiommu_core::Errno;
use noiommu_core::vfio::pci::{Backend, PciDevice, Surroundings};
use rustix::mm::{self, MapFlags, ProtFlags};

use super::buffer::{Exporter, Presence};
use super::event::{Event, Watch, Watcher, errno};
use super::{ServedDevice, Session};
use crate::serve::touches::Phantoms;
use crate::serve::{MmapRequest, Touch};

/// A way to reach a device: opened when the device is, and closed (dropped) with it.
pub(super) trait Way: Send + Sync + 'static {
    type Backend: Mappable + Backend<Event = Event, Watch = Watch> + Send;

    /// Claims and enables the device.
    fn open(&self, watcher: Watcher) -> Result<Self::Backend, Errno>;
}

/// BARs that can be mapped.
pub(super) trait Mappable {
    /// The file whose bytes are those of a BAR; `None`: there is none, and every access has to be served.
    ///
    /// # Errors
    /// The system's.
    fn file(&self, bar: u8) -> Result<Option<OwnedFd>, Errno>;
}

/// A device that can be opened.
pub(super) struct Served<W: Way> {
    way: W,
    open: Arc<Mutex<Option<Open<W::Backend>>>>,
}

struct Open<B: Backend> {
    device: PciDevice<B>,
    presence: Arc<Presence>,
    phantoms: Phantoms,
}

impl<B: Backend> Open<B> {
    /// After anything that may have turned the device's memory on or off.
    fn tell_presence(&self) {
        self.presence.set(self.device.memory_enabled(), self.device.revocations());
    }
}

impl<W: Way> Served<W> {
    pub(super) fn new(way: W) -> Self {
        Self { way, open: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open<W::Backend>>> {
        lock(&self.open)
    }

    /// Does something with the open device.
    fn with<T>(&self, work: impl FnOnce(&mut Open<W::Backend>) -> Result<T, Errno>) -> Result<T, Errno> {
        let mut open = self.lock();
        let open = open.as_mut().ok_or(Errno::EINVAL)?;
        let outcome = work(open);
        open.tell_presence();
        outcome
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An eventfd that the device watches was signalled.
fn watched<B: Backend>(open: &Weak<Mutex<Option<Open<B>>>>, token: u64) {
    if let Some(open) = open.upgrade()
        && let Some(open) = lock(&open).as_mut()
    {
        open.device.watched(token);
    }
}

impl<W: Way> ServedDevice for Served<W> {
    fn open_first(&self) -> Result<(), Errno> {
        let this = Arc::downgrade(&self.open);
        let watcher = Watcher::new(move |token| watched(&this, token))?;
        let device = PciDevice::open(self.way.open(watcher)?)?;
        let open = Open { device, presence: Arc::default(), phantoms: Phantoms::default() };
        open.tell_presence();
        *self.lock() = Some(open);
        Ok(())
    }

    fn close_last(&self) {
        let open = self.lock().take();
        // Not under the lock: the thread that watches may be waiting for it, and has to end.
        if let Some(open) = open {
            let revocations = open.device.revocations().wrapping_add(1);
            drop(open.device.close());
            open.presence.set(false, revocations);
        }
    }

    fn ioctl(&self, session: Session<'_>, request: u32, argument: u64) -> Result<i64, Errno> {
        self.with(|open| {
            let export = Exporter { caller: session.caller, presence: &open.presence };
            let around =
                Surroundings { user: session.caller.user, neighbours: session.neighbours, export: &export };
            open.device.ioctl(around, request, argument)
        })
    }

    fn read(&self, session: Session<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno> {
        self.with(|open| open.device.read(session.caller.user, address, length, offset))
    }

    fn write(&self, session: Session<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno> {
        self.with(|open| open.device.write(session.caller.user, address, length, offset))
    }

    unsafe fn mmap(&self, request: MmapRequest) -> Result<u64, Errno> {
        self.with(|open| {
            let shared =
                matches!(request.flags & libc::MAP_TYPE, libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE);
            let place = open.device.map(request.offset, request.length, shared)?;
            match open.device.backend().file(place.bar)? {
                // SAFETY: passed on from the caller.
                Some(file) => unsafe { map_file(&file, place.offset, request) },
                // SAFETY: passed on from the caller.
                None => unsafe { open.phantoms.map(request) },
            }
        })
    }

    fn touch(&self, touch: Touch) -> Option<u64> {
        let mut open = self.lock();
        let Open { device, phantoms, .. } = open.as_mut()?;
        let place = device.map(phantoms.offset(touch.address)?, touch.width.into(), true).ok()?;
        // As the kernel takes the mapping away.
        if !device.mappings_answer() || place.offset % u64::from(touch.width) != 0 {
            return None;
        }
        match touch.value {
            None => device.backend().register_read(place.bar, place.offset, touch.width).ok(),
            Some(value) => {
                device.backend().register_write(place.bar, place.offset, touch.width, value).ok().map(|()| 0)
            }
        }
    }
}

/// `mmap` of another file at another offset in the caller's name.
///
/// # Safety
/// That of `mmap`.
pub(in crate::serve) unsafe fn map_file(
    file: &impl AsFd,
    offset: u64,
    request: MmapRequest,
) -> Result<u64, Errno> {
    let length = usize::try_from(request.length).map_err(|_| Errno::ENOMEM)?;
    // SAFETY: the caller's own promise.
    let address = unsafe {
        mm::mmap(
            request.address as *mut _,
            length,
            ProtFlags::from_bits_retain(request.protection.cast_unsigned()),
            MapFlags::from_bits_retain(request.flags.cast_unsigned()),
            file,
            offset,
        )
    };
    address.map(|address| address as u64).map_err(errno)
}
