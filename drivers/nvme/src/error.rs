//! What goes wrong: with the driver's own calls, and with a command that the controller was given.

use std::borrow::Cow;
use std::fmt;

use noiommu::Errno;

use crate::status::Status;

/// How a command ended that has not done what it was told to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// The controller says so.
    Status(Status),
    /// It was not done in time, and was ended: by an Abort, or by a reset of the controller.
    TimedOut,
    /// The controller was reset meanwhile, because of another command or on request. It may have been done or not.
    Reset,
    /// The controller broke the protocol on the command's queue, and was reset.
    Violation(Violation),
    /// The controller was reset and did not come back, or was closed.
    Dead,
    /// The device is gone.
    Gone,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => status.fmt(f),
            Self::TimedOut => f.write_str("not done in time"),
            Self::Reset => f.write_str("the controller was reset meanwhile"),
            Self::Violation(violation) => write!(f, "the controller broke the protocol: {violation}"),
            Self::Dead => f.write_str("the controller is not running any more"),
            Self::Gone => f.write_str("the device is gone"),
        }
    }
}

/// What a controller did that none may do. Nothing that it says on that queue is believed any more: it is reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Violation {
    /// It completed a command that it was not given, or has completed already.
    UnknownCommand {
        /// The identifier that it told.
        identifier: u16,
    },
    /// It told that it has read past the end of the submission queue.
    HeadOutOfRange {
        /// Where it says that it is.
        head: u16,
    },
    /// It completed a command of another queue.
    WrongQueue {
        /// The submission queue that it told.
        queue: u16,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownCommand { identifier } => {
                write!(f, "it completed command {identifier:#06x}, which it was not given")
            }
            Self::HeadOutOfRange { head } => write!(f, "its head {head} passes the end of the queue"),
            Self::WrongQueue { queue } => write!(f, "it completed a command of queue {queue} on another"),
        }
    }
}

/// What kind of trouble it is, for programs that choose by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The kit's own, of this kind.
    Kit(noiommu::ErrorKind),
    /// An argument is out of range or misaligned.
    Argument,
    /// The controller or namespace is none that this driver can drive.
    Unsupported,
    /// A command failed.
    Command(Failure),
    /// The queue has as many commands outstanding as it can have.
    Full,
    /// The queue is the controller's no more, since that was reset.
    Lost,
    /// Commands are outstanding that are not the caller's business.
    Busy,
    /// The controller has not started or stopped in time, or did not answer.
    Timeout,
    /// What the controller tells of itself cannot be.
    Nonsense,
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
            ErrorKind::Full | ErrorKind::Busy => Errno::EBUSY,
            ErrorKind::Command(Failure::Gone) => Errno::ENODEV,
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

    pub(crate) fn nonsense(cause: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Nonsense, cause)
    }

    /// For programs that poll: `what` failed in that way, which a completion told.
    pub fn of_command(what: impl fmt::Display, failure: Failure) -> Self {
        Self::failed(what, failure)
    }

    /// `what` failed in that way.
    pub(crate) fn failed(what: impl fmt::Display, failure: Failure) -> Self {
        Self::new(ErrorKind::Command(failure), format!("{what}: {failure}"))
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

    /// How the command failed, if it is a command that did.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        match self.kind {
            ErrorKind::Command(failure) => Some(failure),
            _ => None,
        }
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
        Self {
            kind: ErrorKind::Kit(error.kind()),
            errno: error.errno(),
            cause: error.cause().to_owned().into(),
            remedy: error.remedy().map(|remedy| remedy.to_owned().into()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)?;
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
