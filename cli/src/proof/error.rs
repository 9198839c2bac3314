//! Why a proof could not be run, and what to do about it.

use std::fmt;

/// A failure that kept the proof from running to its end: what happened, and the next thing to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Error {
    /// What happened.
    pub(crate) cause: String,
    /// What a person can do about it.
    pub(crate) remedy: String,
}

impl Error {
    /// An error of a cause and its remedy.
    pub(crate) fn new(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { cause: cause.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  {}", self.cause, self.remedy)
    }
}

impl std::error::Error for Error {}
