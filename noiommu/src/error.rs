//! What goes wrong, why, and what to do about it.

use std::fmt;

use noiommu_core::Errno;

/// What kind of trouble it is, for programs that choose by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request breaks a rule of the IOAS or of an object; the errno says which.
    Rule,
    /// An argument of the kit's own is out of range or misaligned.
    Argument,
    /// The kernel shows this process no physical addresses (CAP_SYS_ADMIN).
    NoPhysicalAddresses,
    /// No way to pin memory: io_uring and AF_XDP are both unavailable.
    NoPinSource,
    /// RLIMIT_MEMLOCK would be passed.
    MemlockLimit,
    /// The memory is mapped read-only, so it cannot be pinned for writing.
    ReadOnlyMemory,
    /// There is no memory at the address, or none that can be pinned.
    BadMemory,
    /// Memory of a DAX device or file, which has no ordinary pages.
    Dax,
    /// The machine's memory is encrypted (SEV, TDX): a device would see ciphertext.
    EncryptedGuest,
    /// The kernel is older than 5.15.
    KernelTooOld,
    /// The process may not do that: it lacks a capability, or access to a file.
    NotPermitted,
    /// The unsafe mode has not been enabled by the administrator.
    NotEnabled,
    /// The device stands behind a real IOMMU.
    HasIommu,
    /// The device is in use: a driver is bound to it or another process holds it.
    Busy,
    /// There is no such device, or it is gone.
    NoDevice,
    /// The device cannot do what was asked of it, or cannot reach the address.
    Unsupported,
    /// The device could not be proved quiet.
    NotQuiet,
    /// There is no [guardian](crate::guardian), and none can be had; or the one that there was has died.
    NoGuardian,
    /// The device has not answered in time.
    Timeout,
    /// A system call failed for another reason.
    System,
}

/// An error: what was tried, why it failed, and what helps.
///
/// ```
/// use noiommu::{Context, ErrorKind};
///
/// let error = Context::simulated().open("0000:00:04.0").unwrap_err();
/// match error.kind() {
///     // A program chooses by the kind.
///     ErrorKind::Unsupported => {}
///     _ => unreachable!(),
/// }
/// // A person reads what failed, and what helps.
/// assert_eq!(error.cause(), "a real device cannot reach simulated memory");
/// assert!(error.remedy().is_some());
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    errno: Errno,
    cause: String,
    remedy: Option<String>,
}

/// The result of the kit's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, errno: Errno, cause: impl Into<String>) -> Self {
        Self { kind, errno, cause: cause.into(), remedy: None }
    }

    /// A failed system call: `cause` says what was tried.
    pub(crate) fn system(cause: impl fmt::Display, error: impl Into<std::io::Error>) -> Self {
        let error = error.into();
        let errno = errno_of(&error);
        let kind = match errno {
            Errno::EPERM | Errno::EACCES => ErrorKind::NotPermitted,
            _ => ErrorKind::System,
        };
        Self::new(kind, errno, format!("{cause}: {error}"))
    }

    pub(crate) fn argument(cause: impl Into<String>) -> Self {
        Self::new(ErrorKind::Argument, Errno::EINVAL, cause)
    }

    /// For drivers: an argument that is out of range.
    pub fn bad_argument(cause: impl Into<String>) -> Self {
        Self::argument(cause)
    }

    /// For drivers: the device is not of the kind they drive.
    #[must_use]
    pub fn wrong_device(device: &str, kind: &str) -> Self {
        Self::new(ErrorKind::NoDevice, Errno::ENODEV, format!("{device} is no {kind} device"))
    }

    /// For drivers: the device has not answered in time.
    #[must_use]
    pub fn timeout(device: &str, doing: &str) -> Self {
        Self::new(ErrorKind::Timeout, Errno::EIO, format!("{device} has not finished {doing} in time"))
    }

    pub(crate) fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// What kind of trouble it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The error number that the kernel's own interface answers in this case.
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// What failed and why, a sentence.
    #[must_use]
    pub fn cause(&self) -> &str {
        &self.cause
    }

    /// What to do about it, where something can be done.
    #[must_use]
    pub fn remedy(&self) -> Option<&str> {
        self.remedy.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.cause, self.errno)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl std::error::Error for Error {}

impl From<Errno> for Error {
    /// The engine's answer to a request that breaks one of its rules.
    fn from(errno: Errno) -> Self {
        let cause = match errno {
            Errno::EEXIST => "the range overlaps a mapping",
            Errno::ENOSPC => "no room in the allowed IOVA ranges",
            Errno::ENOENT => "nothing is there by that name or address",
            Errno::EBUSY => "it is in use",
            Errno::EINVAL => "a value is out of range or misaligned (mappings are made of whole 4 KiB pages)",
            Errno::EOVERFLOW => "the range passes the end of the 64-bit IOVA space",
            Errno::EADDRINUSE => "an area of the IOAS is not aligned to 4 KiB",
            Errno::ENOMEM => "out of memory for the engine's tables",
            Errno::EOPNOTSUPP => "mapped, but not pinned: no device is attached",
            Errno::EPERM => "not permitted",
            _ => "refused by the engine",
        };
        Self::new(ErrorKind::Rule, errno, cause)
    }
}

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        error.errno
    }
}

/// The number behind an error of the standard library.
pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().and_then(Errno::from_raw).unwrap_or(Errno::EIO)
}
