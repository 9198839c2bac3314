//! Interrupts as a driver waits for them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use noiommu_core::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Device, Inner};
use crate::{Error, ErrorKind, Result};

/// How a device interrupts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum InterruptKind {
    /// By its line, which it may share with others. Masked when it comes, until [`Interrupt::unmask`].
    Intx,
    /// By messages, up to 32 (PCI Local Bus Specification 3.0, 6.8.1).
    Msi,
    /// By messages of a table, up to 2048 (the same, 6.8.2).
    Msix,
}

impl InterruptKind {
    /// All of them, the best first.
    pub const ALL: [Self; 3] = [Self::Msix, Self::Msi, Self::Intx];

    /// Its name in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Intx => "INTx",
            Self::Msi => "MSI",
            Self::Msix => "MSI-X",
        }
    }
}

/// What tells that interrupts have come.
pub(crate) struct Source {
    file: Arc<OwnedFd>,
    counter: Counter,
}

/// What reading the file tells.
enum Counter {
    /// 8 bytes: how many since it was last read.
    Eventfd,
    /// 4 bytes: how many there ever were, modulo 2^32; and how many were known of.
    Uio(Mutex<u32>),
}

impl Source {
    /// An eventfd that does not block.
    pub(crate) fn eventfd(file: OwnedFd) -> Self {
        Self { file: Arc::new(file), counter: Counter::Eventfd }
    }

    /// A file of uio, of which so many interrupts have been seen.
    pub(crate) fn uio(file: Arc<OwnedFd>, seen: u32) -> Self {
        Self { file, counter: Counter::Uio(Mutex::new(seen)) }
    }

    /// Waits until there is something to read; tells whether there is.
    fn poll(&self, timeout: Option<Duration>) -> rustix::io::Result<bool> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            let mut ready = [PollFd::new(&*self.file, PollFlags::IN)];
            match poll(&mut ready, left.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
    }

    /// The interrupts since the last look, when there is something to read.
    fn take(&self) -> rustix::io::Result<u64> {
        match &self.counter {
            Counter::Eventfd => {
                let mut bytes = [0; 8];
                match rustix::io::retry_on_intr(|| rustix::io::read(&*self.file, &mut bytes)) {
                    Ok(_) => Ok(u64::from_ne_bytes(bytes)),
                    // Another thread was faster.
                    Err(rustix::io::Errno::AGAIN) => Ok(0),
                    Err(error) => Err(error),
                }
            }
            Counter::Uio(seen) => {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                // Under the lock, and once more: what another thread has read would be waited for here.
                if !self.poll(Some(Duration::ZERO))? {
                    return Ok(0);
                }
                let mut bytes = [0; 4];
                rustix::io::retry_on_intr(|| rustix::io::read(&*self.file, &mut bytes))?;
                let count = u32::from_ne_bytes(bytes);
                let came = count.wrapping_sub(std::mem::replace(&mut seen, count));
                Ok(came.into())
            }
        }
    }

    fn wait(&self, timeout: Option<Duration>) -> rustix::io::Result<Option<u64>> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !self.poll(if timeout.is_some() { left.or(timeout) } else { None })? {
                return Ok(None);
            }
            match self.take()? {
                0 => {}
                count => return Ok(Some(count)),
            }
        }
    }
}

/// One interrupt vector, or the line.
///
/// Its descriptor ([`AsFd`]) is readable when the interrupt has come, for poll, epoll or an asynchronous runtime: register it
/// there for reading, and call [`Interrupt::try_wait`] when it is ready, until that answers `None`. Nothing else is to read
/// from the descriptor.
pub struct Interrupt {
    source: Source,
    kind: InterruptKind,
    index: u32,
    device: Arc<Inner>,
}

impl Interrupt {
    /// Waits until the interrupt has come, for so long at most (`None`: for ever), and answers how often it came since the
    /// last wait; `None`: it did not. A line must then be [unmasked](Interrupt::unmask), after the device has been told to
    /// release it.
    ///
    /// # Errors
    /// ENODEV: the device is gone; what the system answers. Signals do not end it.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Option<u64>> {
        self.source.wait(timeout).map_err(|error| self.failed(error))
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// As for [`Interrupt::wait`].
    pub fn try_wait(&self) -> Result<Option<u64>> {
        self.wait(Some(Duration::ZERO))
    }

    fn failed(&self, error: rustix::io::Errno) -> Error {
        match self.device.config().is_gone() {
            Ok(false) => {
                Error::system(format_args!("waiting for an interrupt of {}", self.device.name()), error)
            }
            _ => self.device.config().gone(),
        }
    }

    /// Holds the interrupt back; one that comes meanwhile is told after [`Interrupt::unmask`].
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`]: this kind cannot be masked by this provider; what the provider answers.
    pub fn mask(&self) -> Result<()> {
        self.device.backend.mask_interrupt(self.kind, self.index, true)
    }

    /// Lets the interrupt through: after [`Interrupt::mask`], and after each one of a line.
    ///
    /// # Errors
    /// As for [`Interrupt::mask`].
    pub fn unmask(&self) -> Result<()> {
        self.device.backend.mask_interrupt(self.kind, self.index, false)
    }

    /// Which kind.
    #[must_use]
    pub fn kind(&self) -> InterruptKind {
        self.kind
    }

    /// Which vector, from 0.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl AsFd for Interrupt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.file.as_fd()
    }
}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} of {}", self.kind.name(), self.index, self.device.name())
    }
}

/// The interrupts of a device that are enabled, until this is dropped. Keeps the device claimed.
#[derive(Debug)]
pub struct Interrupts {
    vectors: Vec<Interrupt>,
    kind: InterruptKind,
    // After the vectors: it must be there when they are turned off.
    device: Enabled,
}

impl Interrupts {
    /// Which kind.
    #[must_use]
    pub fn kind(&self) -> InterruptKind {
        self.kind
    }
}

impl std::ops::Deref for Interrupts {
    type Target = [Interrupt];

    fn deref(&self) -> &[Interrupt] {
        &self.vectors
    }
}

/// The right to turn the device's interrupts off.
struct Enabled(Arc<Inner>);

impl std::fmt::Debug for Enabled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name())
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        let device = &self.device.0;
        if device.context.is_forked() {
            return;
        }
        device.backend.disable_interrupts(self.kind);
        device.state().interrupts = None;
    }
}

impl Device {
    /// How many vectors of a kind can be enabled: what the device has and the provider can hand on; 0 for none.
    ///
    /// # Errors
    /// ENODEV when it is gone; what the provider answers.
    pub fn interrupt_count(&self, kind: InterruptKind) -> Result<u32> {
        self.inner().backend.interrupt_count(kind)
    }

    /// Enables the first `count` vectors of a kind, until the answer is dropped.
    ///
    /// # Errors
    /// EBUSY: some are enabled already; EINVAL: none, or more than there are, is asked for;
    /// [`ErrorKind::Unsupported`]: the provider hands on no interrupts of this kind, and why; what the provider answers.
    pub fn enable_interrupts(&self, kind: InterruptKind, count: u32) -> Result<Interrupts> {
        let inner = self.inner();
        let there = inner.backend.interrupt_count(kind)?;
        if there == 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                Errno::EOPNOTSUPP,
                format!(
                    "{}: no {} interrupts, {}",
                    self.name(),
                    kind.name(),
                    inner.backend.why_no_interrupts(kind)
                ),
            ));
        }
        if count == 0 || count > there {
            return Err(Error::argument(format!(
                "{}: {count} {} interrupts asked for, of {there} that there are",
                self.name(),
                kind.name()
            )));
        }
        let mut state = inner.state();
        if let Some(enabled) = state.interrupts {
            return Err(Error::new(
                ErrorKind::Busy,
                Errno::EBUSY,
                format!("{}: {} interrupts are enabled", self.name(), enabled.name()),
            )
            .with_remedy("drop them first"));
        }
        let sources = inner.backend.enable_interrupts(kind, count)?;
        state.interrupts = Some(kind);
        drop(state);
        let vector = |(source, index)| Interrupt { source, kind, index, device: inner.clone() };
        let vectors = sources.into_iter().zip(0..).map(vector).collect();
        Ok(Interrupts { vectors, kind, device: Enabled(inner.clone()) })
    }
}
