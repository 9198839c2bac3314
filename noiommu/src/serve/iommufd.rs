//! /dev/iommu: a context of the engine behind a file.

use std::any::Any;
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use noiommu_core::ioctl::Process;
use noiommu_core::platform::Caller as Privileges;
use noiommu_core::{Context, Errno, Iova, ObjectId, UserMemory};
use noiommu_uapi::iommufd::IOMMU_IOAS_NOIOMMU_GET_PA;
use rustix::fs::OFlags;

use super::fault_queue::FaultQueueFile;
use super::file::{Caller, FileOperations, MmapRequest};
use super::memory::{BarSlice, ServedBacking, ServedMemory};
use crate::memory::Backing;
use crate::stats::{ContextKind, Told, count_lookups};

/// A context that open files and bound devices share; it ends with the last of them.
pub(super) struct Iommufd {
    /// Held for reading by those who only ask for addresses.
    context: RwLock<Context<ServedMemory>>,
    /// What others see of it.
    told: Told,
    /// Memory of devices has been mapped, or was about to be. It may be taken back, which only the engine's full rules see.
    has_bars: AtomicBool,
}

impl Iommufd {
    pub(super) fn new(memory: &ServedMemory) -> Arc<Self> {
        // What may be locked is asked of who opens, as far as the kernel lets us.
        memory.prepare();
        Arc::new(Self {
            context: RwLock::new(Context::new(memory.clone())),
            told: Told::new(ContextKind::Served),
            has_bars: AtomicBool::new(false),
        })
    }

    /// The context, locked. Nothing panics while it is, so a poisoned lock is as good as any.
    pub(super) fn context(&self) -> Locked<'_> {
        Locked { context: self.context.write().unwrap_or_else(PoisonError::into_inner), told: &self.told }
    }
}

/// The context, locked. What it has is told when it is given back.
pub(super) struct Locked<'a> {
    context: RwLockWriteGuard<'a, Context<ServedMemory>>,
    told: &'a Told,
}

impl Deref for Locked<'_> {
    type Target = Context<ServedMemory>;

    fn deref(&self) -> &Self::Target {
        &self.context
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.context
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.told.tell(&self.context.totals());
    }
}

/// An open /dev/iommu.
pub(super) struct IommufdFile(pub(super) Arc<Iommufd>);

impl FileOperations for IommufdFile {
    fn ioctl(&self, caller: Caller<'_>, request: u32, argument: u64) -> Result<i64, Errno> {
        let calling = Calling { caller, iommufd: &self.0, opened: RefCell::new(None) };
        let answer = self.0.context().ioctl(&calling, request, argument);
        let answer = answer.map_err(|error| {
            tracing::debug!(request, %error, "an ioctl on /dev/iommu is refused");
            error.errno()
        })?;
        if request == IOMMU_IOAS_NOIOMMU_GET_PA {
            count_lookups(1);
        }
        Ok(i64::from(answer))
    }

    #[inline]
    fn get_pa(&self, ioas: u32, iova: u64, length: u64) -> Option<(u64, u64)> {
        let context = self.0.context.try_read().ok()?;
        // Set by a thread that held the lock before it mapped.
        if self.0.has_bars.load(Ordering::Relaxed) {
            return None;
        }
        let (address, length) = context.get_pa_of_memory(ObjectId(ioas), Iova(iova), length)?;
        Some((address.0, length))
    }

    // Only what a hardware queue offers can be mapped, and there is none.
    unsafe fn mmap(&self, request: MmapRequest) -> Result<u64, Errno> {
        if request.flags & libc::MAP_TYPE == libc::MAP_PRIVATE {
            Err(Errno::EINVAL)
        } else if request.protection & libc::PROT_EXEC != 0 {
            Err(Errno::EPERM)
        } else {
            Err(Errno::ENXIO)
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The process of a call, for the engine's rules.
struct Calling<'a> {
    caller: Caller<'a>,
    iommufd: &'a Arc<Iommufd>,
    /// The fault queue that this call has opened.
    opened: RefCell<Option<Arc<FaultQueueFile>>>,
}

impl Process<ServedBacking> for Calling<'_> {
    fn memory(&self) -> &dyn UserMemory {
        self.caller.user
    }

    fn caller(&self) -> Privileges {
        crate::memory::caller()
    }

    fn user_backing(&self, address: u64) -> ServedBacking {
        // Addresses are 64 bits wide wherever this runs.
        ServedBacking::Memory(Backing::User(address as usize))
    }

    fn file_backing(&self, descriptor: i32, start: u64, length: u64) -> Result<ServedBacking, Errno> {
        let served = self.caller.descriptors.get(descriptor);
        if let Some(slice) = served.ok().and_then(|file| BarSlice::new(&file, start, length)) {
            self.iommufd.has_bars.store(true, Ordering::Relaxed);
            return slice.map(ServedBacking::Bar);
        }
        let page = start & !0xfff;
        Ok(ServedBacking::Memory(Backing::File(Arc::new(duplicate(descriptor)?), page)))
    }

    fn open_fault_queue(&self, queue: ObjectId) -> Result<i32, Errno> {
        let file = Arc::new(FaultQueueFile::new(self.iommufd.clone(), queue));
        let descriptor = self.caller.descriptors.install(file.clone())?;
        self.opened.replace(Some(file));
        Ok(descriptor)
    }

    fn take_back(&self, descriptor: i32) {
        // The context is locked, and the engine has destroyed the queue: its file must not tell the context.
        if let Some(file) = self.opened.take() {
            file.abandon();
        }
        self.caller.descriptors.remove(descriptor);
    }
}

/// A descriptor of our own for what the caller has open.
fn duplicate(descriptor: i32) -> Result<OwnedFd, Errno> {
    if descriptor < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: only asked to be duplicated, which answers EBADF if it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    let copy = rustix::io::fcntl_dupfd_cloexec(borrowed, 0)
        .map_err(|error| Errno::from_raw(error.raw_os_error()).unwrap_or(Errno::EBADF))?;
    let flags = rustix::fs::fcntl_getfl(&copy).map_err(|_| Errno::EBADF)?;
    // A descriptor of a place (O_PATH) is no open file.
    if flags.contains(OFlags::PATH) {
        return Err(Errno::EBADF);
    }
    Ok(if flags & OFlags::ACCMODE == OFlags::RDWR { copy } else { reopened_for_writing(copy) })
}

/// Memory is pinned through a mapping for writing, whatever the caller's descriptor allows; the kernel's own iommufd does not
/// look at that. So a file that was opened for reading is opened anew, if that may be done.
fn reopened_for_writing(file: OwnedFd) -> OwnedFd {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap_or(file)
}
