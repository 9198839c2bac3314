//! The caller's eventfds: signalled by us, and watched for it.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use noiommu_core::Errno;
use rustix::event::{EventfdFlags, PollFd, PollFlags, epoll, eventfd, poll};
use rustix::fs::CWD;
use rustix::io::{IoSliceMut, ReadWriteFlags};

/// An eventfd of the caller that is held here, whatever becomes of the caller's descriptor.
#[derive(Clone)]
pub(crate) struct Event(Arc<OwnedFd>);

impl Event {
    /// Holds the eventfd at a descriptor.
    ///
    /// # Errors
    /// EBADF: there is none; EINVAL: it is no eventfd; EMFILE.
    pub(crate) fn new(descriptor: i32) -> Result<Self, Errno> {
        if descriptor < 0 {
            return Err(Errno::EBADF);
        }
        // SAFETY: only duplicated, which answers EBADF where it is not open.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let held = rustix::io::fcntl_dupfd_cloexec(descriptor, 0).map_err(errno)?;
        let link = rustix::fs::readlinkat(CWD, format!("/proc/self/fd/{}", held.as_raw_fd()), Vec::new());
        if link.map_err(errno)?.as_bytes() != b"anon_inode:[eventfd]" {
            return Err(Errno::EINVAL);
        }
        Ok(Self(Arc::new(held)))
    }

    /// Signals it. Never waits: where the counter is full, it has been signalled.
    pub(crate) fn signal(&self) {
        let mut ready = [PollFd::new(&*self.0, PollFlags::OUT)];
        if poll(&mut ready, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(1) {
            let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
        }
    }

    /// Takes the signals off it.
    fn take(&self) {
        let mut count = [0; 8];
        // Without waiting, though the caller may have opened it to wait, and may have been first.
        let mut into = [IoSliceMut::new(&mut count)];
        let _ = rustix::io::preadv2(&*self.0, &mut into, u64::MAX, ReadWriteFlags::NOWAIT);
    }
}

/// An error of the system as the uAPI's number.
pub(crate) fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error()).unwrap_or(Errno::EIO)
}

/// An interrupt line, as a file of the kernel's tells it: each interrupt can be read, as 4 bytes, once.
pub(crate) struct Line {
    file: OwnedFd,
    /// What it signals.
    event: Mutex<Option<Event>>,
}

impl Line {
    pub(crate) fn new(file: OwnedFd) -> Self {
        Self { file, event: Mutex::new(None) }
    }

    fn event(&self) -> std::sync::MutexGuard<'_, Option<Event>> {
        self.event.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the line signals from now on; interrupts from before do not count.
    pub(crate) fn connect(&self, event: Option<Event>) {
        let mut held = self.event();
        if held.is_none() {
            self.take();
        }
        *held = event;
    }

    /// Takes off what there is to read; tells whether there was something.
    fn take(&self) -> bool {
        let mut ready = [PollFd::new(&self.file, PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // A file that has failed is always ready, and has nothing.
        poll(&mut ready, Some(&now)) == Ok(1) && rustix::io::read(&self.file, &mut [0; 4]) == Ok(4)
    }

    /// There is something to read.
    fn came(&self) {
        let event = self.event();
        if self.take()
            && let Some(event) = &*event
        {
            event.signal();
        }
    }
}

/// What a watcher looks at.
#[derive(Clone)]
enum Watched {
    Event(Event),
    Line(Arc<Line>),
}

impl Watched {
    fn file(&self) -> BorrowedFd<'_> {
        match self {
            Self::Event(event) => event.0.as_fd(),
            Self::Line(line) => line.file.as_fd(),
        }
    }
}

/// Tells of eventfds that are signalled, from a thread of its own, which there is once something is watched.
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    epoll: OwnedFd,
    /// Ends the thread.
    stop: OwnedFd,
    stopped: AtomicBool,
    watched: Mutex<HashMap<u64, Watched>>,
    tell: Box<dyn Fn(u64) + Send + Sync>,
}

/// The token that ends the thread; devices count theirs from 1.
const STOP: u64 = 0;
/// That of the line.
const LINE: u64 = u64::MAX;

impl Shared {
    fn watched(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        // All that may be watched at once: eventfds that several wait for are told to all of them, before the signal is taken.
        let mut events = [MaybeUninit::uninit(); 1024];
        while !self.stopped.load(Ordering::Acquire) {
            let Ok((ready, _)) = epoll::wait(&self.epoll, &mut events, None) else { continue };
            for event in ready.iter() {
                let token = event.data.u64();
                let watched = self.watched().get(&token).cloned();
                match watched {
                    Some(Watched::Event(event)) => {
                        event.take();
                        (self.tell)(token);
                    }
                    Some(Watched::Line(line)) => line.came(),
                    None => {}
                }
            }
        }
    }
}

impl Watcher {
    /// One that calls `tell` with the token of what is signalled.
    ///
    /// # Errors
    /// EMFILE; ENOMEM.
    pub(crate) fn new(tell: impl Fn(u64) + Send + Sync + 'static) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(errno)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(errno)?;
        epoll::add(&epoll, &stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN).map_err(errno)?;
        let shared = Shared {
            epoll,
            stop,
            stopped: AtomicBool::new(false),
            watched: Mutex::default(),
            tell: Box::new(tell),
        };
        Ok(Self { shared: Arc::new(shared), thread: Mutex::new(None) })
    }

    /// Watches the eventfd at a descriptor of the caller.
    ///
    /// # Errors
    /// Those of [`Event::new`]; EAGAIN: no thread.
    pub(crate) fn watch(&self, descriptor: i32, token: u64) -> Result<Watch, Errno> {
        self.add(Watched::Event(Event::new(descriptor)?), token)
    }

    /// Has a line signal what it is connected to.
    ///
    /// # Errors
    /// EAGAIN: no thread; EPERM: a file that cannot be waited for.
    pub(crate) fn watch_line(&self, line: &Arc<Line>) -> Result<Watch, Errno> {
        self.add(Watched::Line(line.clone()), LINE)
    }

    fn add(&self, watched: Watched, token: u64) -> Result<Watch, Errno> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let shared = self.shared.clone();
            let started = thread::Builder::new().name("noiommu:watch".to_owned()).spawn(move || shared.run());
            *thread = Some(started.map_err(|_| Errno::EAGAIN)?);
        }
        let data = epoll::EventData::new_u64(token);
        epoll::add(&self.shared.epoll, watched.file(), data, epoll::EventFlags::IN).map_err(errno)?;
        self.shared.watched().insert(token, watched);
        Ok(Watch { shared: self.shared.clone(), token })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // Not from the thread itself, which may be the last to hold the device for a moment.
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// What is watched, until this is dropped.
pub(crate) struct Watch {
    shared: Arc<Shared>,
    token: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(watched) = self.shared.watched().remove(&self.token) {
            let _ = epoll::delete(&self.shared.epoll, watched.file());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
    }

    fn count(event: &OwnedFd) -> u64 {
        let mut bytes = [0; 8];
        match rustix::io::read(event, &mut bytes) {
            Ok(_) => u64::from_ne_bytes(bytes),
            Err(_) => 0,
        }
    }

    #[test]
    fn eventfds_alone_are_held() {
        let event = made();
        let held = Event::new(event.as_raw_fd()).unwrap();
        held.signal();
        held.signal();
        assert_eq!(count(&event), 2);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(Event::new(file.as_raw_fd()).err(), Some(Errno::EINVAL));
        for none in [-1, -2, 1 << 20] {
            assert_eq!(Event::new(none).err(), Some(Errno::EBADF));
        }
        // Full: not waited for.
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        held.signal();
        assert_eq!(count(&event), u64::MAX - 1);
    }

    #[test]
    fn what_is_watched_is_told_and_taken() {
        let (send, told) = std::sync::mpsc::channel();
        let send = Mutex::new(send);
        let watcher = Watcher::new(move |token| send.lock().unwrap().send(token).unwrap()).unwrap();
        let (first, second) = (made(), made());
        let kept = watcher.watch(first.as_raw_fd(), 7).unwrap();
        let dropped = watcher.watch(second.as_raw_fd(), 8).unwrap();
        drop(dropped);
        for event in [&second, &first] {
            rustix::io::write(event, &1u64.to_ne_bytes()).unwrap();
        }
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(10)), Ok(7));
        assert_eq!((count(&first), count(&second)), (0, 1));
        rustix::io::write(&first, &1u64.to_ne_bytes()).unwrap();
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(10)), Ok(7));
        drop((watcher, kept));
        assert!(told.recv().is_err(), "the thread has ended");
    }
}
