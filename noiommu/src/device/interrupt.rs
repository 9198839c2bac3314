//! Interrupts as a driver waits for them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use noiommu_core::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Device, Inner};
use crate::{Error, ErrorKind, Result, ioas};

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
    Uio(Arc<Mutex<u32>>),
}

impl Source {
    /// An eventfd that does not block.
    pub(crate) fn eventfd(file: OwnedFd) -> Self {
        Self { file: Arc::new(file), counter: Counter::Eventfd }
    }

    /// A file of uio, of which so many interrupts have been seen.
    pub(crate) fn uio(file: Arc<OwnedFd>, seen: Arc<Mutex<u32>>) -> Self {
        Self { file, counter: Counter::Uio(seen) }
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
    pub(super) fn take(&self) -> rustix::io::Result<u64> {
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
/// there for reading, and call [`Interrupt::try_wait`] when it is ready, until that answers `None`, which suits both
/// level-triggered and edge-triggered waiting. Nothing else is to read from the descriptor: what there is to read depends on
/// the provider.
///
/// ```
/// # fn main() -> noiommu::Result<()> {
/// use std::time::Duration;
/// use noiommu::{Context, InterruptKind};
///
/// let device = Context::simulated().sim_edu()?;
/// let interrupts = device.enable_interrupts(InterruptKind::Intx, 1)?;
/// let (interrupt, registers) = (&interrupts[0], device.bar(0)?);
/// assert_eq!(interrupt.try_wait()?, None);
/// registers.write_u32(0x60, 1)?; // edu: raise
/// assert_eq!(interrupt.wait(Some(Duration::from_secs(60)))?, Some(1));
/// registers.write_u32(0x64, 1)?; // edu: heard
/// interrupt.unmask()?; // a line is masked when it comes
/// # Ok(())
/// # }
/// ```
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
        if self.device.context.is_forked() {
            return Err(ioas::forked());
        }
        self.device.backend.about_to_wait();
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
        self.set_masked(true)
    }

    /// Lets the interrupt through: after [`Interrupt::mask`], and after each one of a line.
    ///
    /// # Errors
    /// As for [`Interrupt::mask`].
    pub fn unmask(&self) -> Result<()> {
        self.set_masked(false)
    }

    fn set_masked(&self, masked: bool) -> Result<()> {
        if self.device.context.is_forked() {
            return Err(ioas::forked());
        }
        // Under the lock: the mask may be a bit of the command register, and what is written there must not bring back the
        // bus-master bit that another thread has just turned off.
        let _state = self.device.state();
        self.device.checked(self.device.backend.mask_interrupt(self.kind, self.index, masked))
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
///
/// ```
/// # fn main() -> noiommu::Result<()> {
/// use std::time::Duration;
/// use noiommu::{Context, InterruptKind};
///
/// let device = Context::simulated().sim_edu()?;
/// let interrupts = device.enable_interrupts(InterruptKind::Intx, 1)?;
/// let registers = device.bar(0)?;
/// registers.write_u32(0x60, 1)?; // edu: raise
/// for interrupt in interrupts.iter() {
///     assert_eq!(interrupt.wait(Some(Duration::from_secs(10)))?, Some(1));
///     registers.write_u32(0x64, 1)?; // edu: heard
///     interrupt.unmask()?; // a line is masked when it comes
/// }
/// # Ok(())
/// # }
/// ```
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
        // Under the lock, as for masking.
        let mut state = device.state();
        device.backend.disable_interrupts(self.kind);
        state.interrupts = None;
    }
}

impl Device {
    /// How many vectors of a kind can be enabled: what the device has and the provider can hand on; 0 for none.
    ///
    /// # Errors
    /// ENODEV when it is gone; what the provider answers.
    pub fn interrupt_count(&self, kind: InterruptKind) -> Result<u32> {
        self.inner().checked(self.inner().backend.interrupt_count(kind))
    }

    /// Enables the first `count` vectors of a kind, until the answer is dropped. One kind can be on at a time.
    ///
    /// Messages are writes to memory: they come only while [bus mastering](Device::enable_bus_master) is on. A line is masked
    /// whenever it comes, with every provider; if it is raised still when it is unmasked, it comes once more.
    ///
    /// # Errors
    /// EBUSY: some are enabled already; EINVAL: none, or more than there are, is asked for;
    /// [`ErrorKind::Unsupported`]: the provider hands on no interrupts of this kind, and why; what the provider answers.
    pub fn enable_interrupts(&self, kind: InterruptKind, count: u32) -> Result<Interrupts> {
        self.refuse_forked()?;
        let inner = self.inner();
        let there = self.interrupt_count(kind)?;
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
        let sources = inner.checked(inner.backend.enable_interrupts(kind, count))?;
        state.interrupts = Some(kind);
        drop(state);
        let vector = |(source, index)| Interrupt { source, kind, index, device: inner.clone() };
        let vectors = sources.into_iter().zip(0..).map(vector).collect();
        Ok(Interrupts { vectors, kind, device: Enabled(inner.clone()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bar, Context, ErrorKind};

    const RAISE: u64 = 0x60;
    const HEARD: u64 = 0x64;

    fn setup() -> (Device, Bar) {
        let context = Context::simulated();
        let device = context.sim_edu().unwrap();
        device.attach(&context.ioas().unwrap()).unwrap();
        // Messages are writes to memory.
        // SAFETY: nobody tells the device to do DMA.
        unsafe { device.enable_bus_master().unwrap() };
        let bar = device.bar(0).unwrap();
        (device, bar)
    }

    const NOW: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn a_line_comes_masked_and_again_until_it_is_heard() {
        let (device, bar) = setup();
        let interrupts = device.enable_interrupts(InterruptKind::Intx, 1).unwrap();
        let line = &interrupts[0];
        assert_eq!(line.wait(NOW).unwrap(), None);
        bar.write_u32(RAISE, 1).unwrap();
        assert_eq!(line.wait(None).unwrap(), Some(1));
        assert_eq!(line.wait(NOW).unwrap(), None, "masked");
        line.unmask().unwrap();
        assert_eq!(line.wait(NOW).unwrap(), Some(1), "still raised");
        bar.write_u32(HEARD, 1).unwrap();
        line.unmask().unwrap();
        assert_eq!(line.wait(NOW).unwrap(), None);
        // Masked by hand, it waits.
        line.mask().unwrap();
        bar.write_u32(RAISE, 1).unwrap();
        assert_eq!(line.try_wait().unwrap(), None);
        line.unmask().unwrap();
        assert_eq!(line.try_wait().unwrap(), Some(1));
    }

    #[test]
    fn messages_add_up_and_are_not_masked() {
        let (device, bar) = setup();
        let interrupts = device.enable_interrupts(InterruptKind::Msi, 1).unwrap();
        let message = &interrupts[0];
        for _ in 0..3 {
            bar.write_u32(RAISE, 1).unwrap();
        }
        assert_eq!(message.wait(None).unwrap(), Some(3));
        assert_eq!(message.mask().unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(message.unmask().unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(
            (interrupts.len(), interrupts.kind(), interrupts.iter().count()),
            (1, InterruptKind::Msi, 1)
        );
        assert!(interrupts.get(1).is_none() && !interrupts.is_empty());
    }

    #[test]
    fn a_wait_ends_with_its_time_or_by_the_interrupt() {
        let (device, bar) = setup();
        let interrupts = device.enable_interrupts(InterruptKind::Msi, 1).unwrap();
        let message = &interrupts[0];
        let (start, time) = (Instant::now(), Duration::from_millis(20));
        assert_eq!(message.wait(Some(time)).unwrap(), None);
        assert!(start.elapsed() >= time);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| message.wait(Some(Duration::MAX)));
            std::thread::sleep(time);
            bar.write_u32(RAISE, 1).unwrap();
            assert_eq!(waiting.join().unwrap().unwrap(), Some(1));
        });
    }

    #[test]
    fn the_descriptor_is_readable_until_it_is_taken() {
        let (device, bar) = setup();
        let interrupts = device.enable_interrupts(InterruptKind::Msi, 1).unwrap();
        let message = &interrupts[0];
        let ready = || {
            let mut files = [PollFd::new(message, PollFlags::IN)];
            poll(&mut files, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap()
        };
        assert_eq!(ready(), 0);
        bar.write_u32(RAISE, 1).unwrap();
        assert_eq!(ready(), 1);
        assert_eq!(message.try_wait().unwrap(), Some(1));
        assert_eq!((message.try_wait().unwrap(), ready()), (None, 0));
    }

    #[test]
    fn only_what_is_there_and_one_kind_at_a_time() {
        let (device, bar) = setup();
        let counts = [InterruptKind::Intx, InterruptKind::Msi, InterruptKind::Msix]
            .map(|kind| device.interrupt_count(kind).unwrap());
        assert_eq!(counts, [1, 1, 0]);
        for count in [0, 2] {
            let error = device.enable_interrupts(InterruptKind::Msi, count).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Argument);
            assert!(error.cause().contains(&format!("{count} MSI interrupts asked for, of 1")), "{error}");
        }
        let none = device.enable_interrupts(InterruptKind::Msix, 1).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::Unsupported);
        let line = device.enable_interrupts(InterruptKind::Intx, 1).unwrap();
        let refused = device.enable_interrupts(InterruptKind::Msi, 1);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Busy);
        drop(line);
        let message = device.enable_interrupts(InterruptKind::Msi, 1).unwrap();
        bar.write_u32(RAISE, 1).unwrap();
        assert_eq!(message[0].try_wait().unwrap(), Some(1));
        drop(message);
        // Dropped, they are off: what comes now is told to nobody, and one that was masked before is let through at the next time.
        bar.write_u32(HEARD, 1).unwrap();
        for _ in 0..2 {
            let line = device.enable_interrupts(InterruptKind::Intx, 1).unwrap();
            assert_eq!(line[0].try_wait().unwrap(), None);
            bar.write_u32(RAISE, 1).unwrap();
            assert_eq!(line[0].try_wait().unwrap(), Some(1));
            bar.write_u32(HEARD, 1).unwrap();
        }
    }

    #[test]
    fn uio_counts_on_past_the_end_of_its_numbers() {
        // A pipe has bytes to read as the kernel's file has: its count of all that ever came.
        let (read, write) = std::io::pipe().unwrap();
        let source = Source::uio(Arc::new(read.into()), Arc::new(Mutex::new(u32::MAX - 1)));
        assert_eq!(source.wait(NOW).unwrap(), None);
        for (total, new) in [(u32::MAX, 1), (2, 3), (3, 1)] {
            rustix::io::write(&write, &total.to_ne_bytes()).unwrap();
            assert_eq!(source.wait(NOW).unwrap(), Some(new));
        }
    }

    #[test]
    fn the_mask_and_bus_mastering_do_not_undo_each_other() {
        use crate::device::config::{COMMAND, COMMAND_BUS_MASTER};

        let context = Context::simulated();
        let device = context.sim_edu().unwrap();
        device.attach(&context.ioas().unwrap()).unwrap();
        let interrupts = device.enable_interrupts(InterruptKind::Intx, 1).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    interrupts[0].mask().unwrap();
                    interrupts[0].unmask().unwrap();
                }
            });
            let wrong = (0..2000).find(|_| {
                // SAFETY: nobody tells the device to do anything.
                unsafe { device.enable_bus_master().unwrap() };
                device.quiesce().unwrap();
                (0..20).any(|_| device.inner().config().read_u16(COMMAND).unwrap() & COMMAND_BUS_MASTER != 0)
            });
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(wrong, None, "a quiet device masters the bus");
        });
    }
}
