//! What a served file can do: the calls of a character device, without a kernel.

use std::sync::Arc;

use noiommu_core::{Errno, UserMemory};

/// An open file that this process serves in the kernel's place. Clones are one open file, as descriptors after `dup` are;
/// with the last clone it is released.
pub type File = Arc<dyn FileOperations>;

/// The descriptors of the calling process, as far as they are served files.
pub trait Descriptors {
    /// The served file behind a descriptor.
    ///
    /// # Errors
    /// EBADF: there is no such descriptor; EBADFD: it is a file that is not served here.
    fn get(&self, descriptor: i32) -> Result<File, Errno>;

    /// Gives a new descriptor, closed on exec, to `file`.
    ///
    /// # Errors
    /// EMFILE and ENFILE as any open; ENOMEM.
    fn install(&self, file: File) -> Result<i32, Errno>;

    /// Takes back a descriptor that [`Descriptors::install`] gave and that the caller has not been told of.
    fn remove(&self, descriptor: i32);
}

/// Who calls: the memory and the descriptors that arguments name.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The caller's memory.
    pub user: &'a dyn UserMemory,
    /// The caller's descriptors.
    pub descriptors: &'a dyn Descriptors,
}

/// The arguments of `mmap`, as it takes them.
#[derive(Clone, Copy, Debug)]
pub struct MmapRequest {
    /// The address asked for, 0 for any.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// PROT_ flags.
    pub protection: i32,
    /// MAP_ flags.
    pub flags: i32,
    /// The offset in the file.
    pub offset: u64,
}

/// An access of the program to a mapping that has no memory behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Touch {
    /// Where.
    pub address: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub width: u8,
    /// What is written; `None` for reading.
    pub value: Option<u64>,
}

/// What the kernel knows of a file before it asks it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// It answers `ioctl` only: reading and writing are EINVAL whatever their arguments.
    Calls,
    /// Bytes at offsets. `poll` finds it ready always, `lseek` cannot move in it.
    Bytes,
    /// What comes and goes in its order: no offsets (`pread` is ESPIPE), and `poll` finds it ready to be written.
    Queue,
}

/// The calls of a served file. Where a method is not overridden, the file answers as a character device without it.
pub trait FileOperations: Send + Sync {
    /// `ioctl`. The answer is the call's return value.
    ///
    /// # Errors
    /// The kernel's for this file and call; ENOTTY for calls that it does not know.
    fn ioctl(&self, caller: Caller<'_>, request: u32, argument: u64) -> Result<i64, Errno>;

    /// What IOMMU_IOAS_NOIOMMU_GET_PA answers a caller who has CAP_SYS_RAWIO about `length` bytes at `iova` of the IOAS with this id:
    /// the physical address, and how many of them are contiguous. No system call is made for it, and no lock is waited for. `None`:
    /// there is an error to be told, or it cannot be answered so quickly, and [`FileOperations::ioctl`] is to be asked.
    fn get_pa(&self, ioas: u32, iova: u64, length: u64) -> Option<(u64, u64)> {
        let _ = (ioas, iova, length);
        None
    }

    /// What kind of file it is.
    fn kind(&self) -> FileKind {
        FileKind::Calls
    }

    /// `read` and `pread` of `length` bytes at `offset` into the caller's memory at `address`; answers the bytes read.
    ///
    /// # Errors
    /// EINVAL for a file that cannot be read; EFAULT; the file's own.
    fn read(&self, caller: Caller<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno> {
        let _ = (caller, address, length, offset);
        Err(Errno::EINVAL)
    }

    /// `write` and `pwrite`, the other way.
    ///
    /// # Errors
    /// As for [`FileOperations::read`].
    fn write(&self, caller: Caller<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno> {
        let _ = (caller, address, length, offset);
        Err(Errno::EINVAL)
    }

    /// `mmap`; answers the address. The caller keeps the file open as long as the mapping is there.
    ///
    /// # Errors
    /// ENODEV for a file that cannot be mapped; the file's own.
    ///
    /// # Safety
    /// That of `mmap` itself: with MAP_FIXED it replaces what the caller has at the address.
    unsafe fn mmap(&self, request: MmapRequest) -> Result<u64, Errno> {
        let _ = request;
        Err(Errno::ENODEV)
    }

    /// The program has touched a mapping of this file and got SIGBUS, as it does where simulated registers are mapped
    /// ([`touches_are_served`](super::touches_are_served)): answers what was read, or 0 after a write; `None`: the signal stands.
    fn touch(&self, touch: Touch) -> Option<u64> {
        let _ = touch;
        None
    }

    /// The file as what it is, for calls that take another file's descriptor (`VFIO_DEVICE_BIND_IOMMUFD`).
    fn as_any(&self) -> &dyn std::any::Any;
}
