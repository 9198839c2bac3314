//! What goes wrong: with a request, with the device, with the kit.

use std::borrow::Cow;
use std::fmt;

use noiommu::Errno;

/// What kind of trouble it is, for programs that choose by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The kit's own, of this kind.
    Kit(noiommu::ErrorKind),
    /// An argument is out of range or misaligned.
    Argument,
    /// The device is none that this driver can drive, or cannot do what was asked of it.
    Unsupported,
    /// The device says that it could not do the request.
    Failed,
    /// The device has not answered in time. It has been reset, and is not used any more.
    Timeout,
    /// The device broke the protocol. It has been reset, and is not used any more.
    Violation,
    /// The device is gone.
    Gone,
}

/// An error: what was tried, why it failed, and what helps.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    errno: Errno,
    cause: Cow<'static, str>,
    remedy: Option<Cow<'static, str>>,
}

/// The result of this driver's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, cause: impl Into<Cow<'static, str>>) -> Self {
        let errno = match kind {
            ErrorKind::Argument => Errno::EINVAL,
            ErrorKind::Unsupported => Errno::EOPNOTSUPP,
            ErrorKind::Gone => Errno::ENODEV,
            _ => Errno::EIO,
        };
        Self { kind, errno, cause: cause.into(), remedy: None }
    }

    pub(crate) fn argument(cause: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Argument, cause)
    }

    pub(crate) fn unsupported(cause: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unsupported, cause)
    }

    /// The device did what none may do.
    pub(crate) fn violation(device: &str, what: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Violation, format!("{device} broke the protocol: {what}"))
            .with_remedy("open the device anew")
    }

    pub(crate) fn with_remedy(mut self, remedy: impl Into<Cow<'static, str>>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// What kind of trouble it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The error number that comes nearest to it.
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

impl From<noiommu::Error> for Error {
    fn from(error: noiommu::Error) -> Self {
        let kind = match error.kind() {
            noiommu::ErrorKind::NoDevice => ErrorKind::Gone,
            kind => ErrorKind::Kit(kind),
        };
        Self {
            kind,
            errno: error.errno(),
            cause: error.cause().to_owned().into(),
            remedy: error.remedy().map(|remedy| remedy.to_owned().into()),
        }
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
