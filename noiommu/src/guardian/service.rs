//! The guardian as a service, for drivers whose cgroup or PID namespace is ended as a whole.
//!
//! It does for a driver what the driver could do itself: what it reads, writes and resets are descriptors that the driver has sent,
//! so whoever may connect gains nothing by it. The one privilege that it needs beyond that is to fetch rings from the driver
//! (pidfd_getfd, which wants CAP_SYS_PTRACE or the same user).

use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use noiommu_core::Errno;
use rustix::event::{PollFd, PollFlags};
use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use zerocopy::IntoBytes as _;

use super::board::{FREE, HELD, LOOSE, SLOTS};
use super::record::Record;
use super::wire::{LONGEST, MOST_FILES, Reply, Request, VERSION};
use super::{last, rescue, sys, watch};
use crate::{Error, Result};

/// The most descriptors that are held for one driver: each is a ring of up to 16,384 buffers, or an AF_XDP socket of one.
const MOST_HELD: usize = 65_536;

/// What the service knows of a driver.
pub(super) struct Session {
    /// Devices by slot.
    devices: Vec<Option<Device>>,
    /// What pins memory, by number.
    held: Vec<Option<OwnedFd>>,
    greeted: bool,
}

/// A device of a driver's: the record has the descriptors of this process.
struct Device {
    record: Box<Record>,
    loose: bool,
    _files: Vec<OwnedFd>,
}

/// What a session needs of the world.
pub(super) trait World {
    /// Fetches a descriptor of the driver's.
    fn fetch(&mut self, file: RawFd) -> Result<OwnedFd, Errno>;

    /// Whether a descriptor pins memory.
    fn pins(&self, file: &OwnedFd) -> bool;

    /// Whether a descriptor is a device's: a file that nobody can make shorter under a mapping of it.
    fn is_device(&self, file: &OwnedFd) -> bool;
}

impl Session {
    pub(super) fn new() -> Self {
        Self { devices: Vec::new(), held: Vec::new(), greeted: false }
    }

    /// Answers a message. Bad ones change nothing.
    pub(super) fn answer(&mut self, world: &mut dyn World, bytes: &[u8], files: Vec<OwnedFd>) -> Reply {
        match self.handle(world, bytes, files) {
            Ok(number) => Reply { errno: 0, number },
            Err(errno) => Reply { errno: errno.raw().unsigned_abs(), number: 0 },
        }
    }

    fn handle(&mut self, world: &mut dyn World, bytes: &[u8], files: Vec<OwnedFd>) -> Result<u32, Errno> {
        match Request::decode(bytes).ok_or(Errno::EINVAL)? {
            Request::Hello { version: VERSION } => {
                self.greeted = true;
                Ok(0)
            }
            _ if !self.greeted => Err(Errno::EINVAL),
            Request::Hello { .. } => Err(Errno::EOPNOTSUPP),
            Request::Hold { file } => {
                let free = self.held.iter().position(Option::is_none).unwrap_or(self.held.len());
                if free >= MOST_HELD {
                    return Err(Errno::ENOSPC);
                }
                let file = world.fetch(file)?;
                if !world.pins(&file) {
                    return Err(Errno::EINVAL);
                }
                if free == self.held.len() {
                    self.held.push(None);
                }
                if let Some(place) = self.held.get_mut(free) {
                    *place = Some(file);
                }
                Ok(free as u32)
            }
            Request::Release { number } => {
                let place = usize::try_from(number).ok().and_then(|number| self.held.get_mut(number));
                place.and_then(Option::take).map(|_| 0).ok_or(Errno::ENOENT)
            }
            Request::Set { slot, state, record } => self.set(world, slot, state, record, files),
        }
    }

    fn set(
        &mut self,
        world: &dyn World,
        slot: u32,
        state: u32,
        mut record: Box<Record>,
        files: Vec<OwnedFd>,
    ) -> Result<u32, Errno> {
        let slot = usize::try_from(slot).map_err(|_| Errno::EINVAL)?;
        if slot >= SLOTS || ![FREE, HELD, LOOSE].contains(&state) {
            return Err(Errno::EINVAL);
        }
        let device = if state == FREE {
            None
        } else {
            if !files.iter().all(|file| world.is_device(file)) {
                return Err(Errno::EINVAL);
            }
            let known = |place: RawFd| {
                let file = usize::try_from(place).ok().and_then(|place| files.get(place));
                file.map(|file| file.as_raw_fd())
            };
            record.map_files(known);
            if record.config().is_none() {
                return Err(Errno::EBADF);
            }
            Some(Device { record, loose: state == LOOSE, _files: files })
        };
        if self.devices.len() <= slot {
            self.devices.resize_with(slot + 1, || None);
        }
        if let Some(place) = self.devices.get_mut(slot) {
            *place = device;
        }
        Ok(0)
    }

    /// The driver is dead: makes its devices quiet, and lets go of its memory after that. `tell`: is given what became of each.
    pub(super) fn end(mut self, mut tell: impl FnMut(&Record, rescue::Outcome)) {
        let mut first = true;
        self.devices.retain(|device| device.as_ref().is_some_and(|device| device.loose));
        self.loose().for_each(rescue::mark);
        while !self.devices.is_empty() {
            self.devices.retain(|device| {
                let Some(device) = device else { return false };
                let outcome = rescue::rescue(&device.record);
                if first || outcome.is_quiet() {
                    tell(&device.record, outcome);
                }
                !outcome.is_quiet()
            });
            if !self.devices.is_empty() {
                sys::pause(last::AGAIN);
            }
            first = false;
        }
        drop(self.held);
    }

    /// The devices that would be made quiet now.
    pub(super) fn loose(&self) -> impl Iterator<Item = &Record> {
        self.devices.iter().flatten().filter(|device| device.loose).map(|device| &*device.record)
    }
}

/// A driver's process.
struct Driver {
    pidfd: OwnedFd,
    any_file: bool,
}

impl World for Driver {
    fn fetch(&mut self, file: RawFd) -> Result<OwnedFd, Errno> {
        if file < 0 {
            return Err(Errno::EBADF);
        }
        let flags = PidfdGetfdFlags::empty();
        rustix::process::pidfd_getfd(&self.pidfd, file, flags).map_err(errno)
    }

    fn pins(&self, file: &OwnedFd) -> bool {
        watch::pins(file.as_raw_fd())
    }

    fn is_device(&self, file: &OwnedFd) -> bool {
        /// SYSFS_MAGIC of *linux/magic.h*.
        const SYSFS: i64 = 0x6265_6572;
        let of_sysfs = || rustix::fs::fstatfs(file).is_ok_and(|status| status.f_type == SYSFS);
        // VFIO's files are no nodes of a file system: the link tells.
        let of_vfio = || {
            let mut target = [0; 64];
            watch::target_of(file.as_raw_fd(), &mut target) == b"anon_inode:[vfio-device]"
        };
        self.any_file || of_sysfs() || of_vfio()
    }
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error()).unwrap_or(Errno::EIO)
}

/// The service, listening.
///
/// ```
/// use noiommu::guardian::Service;
///
/// # fn main() -> noiommu::Result<()> {
/// let directory = std::env::temp_dir().join(format!("noiommu-doc-{}", std::process::id()));
/// let socket = directory.join("guardian.sock");
/// let service = Service::listen(&socket, 0o600)?;
/// assert!(Service::listen(&socket, 0o600).is_err(), "one listens there");
/// // Here `service.run()` would guard drivers, for ever.
/// # drop(service);
/// # let _ = std::fs::remove_dir_all(directory);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Service {
    socket: OwnedFd,
    path: PathBuf,
    /// Takes any file for a device's: for tests, whose devices are plain files.
    pub(super) any_file: bool,
}

impl Service {
    /// Listens on a socket, which replaces one that nobody listens on any more. `mode`: who may connect, as permissions of the file;
    /// 0o600 for this user alone.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`](crate::ErrorKind::Busy): a service listens there; [`ErrorKind::NotPermitted`](crate::ErrorKind::NotPermitted);
    /// what the system answers.
    pub fn listen(path: &Path, mode: u32) -> Result<Self> {
        let failed = |what: &str, error: rustix::io::Errno| {
            let error = Error::system(format_args!("{what} {}", path.display()), error);
            error.with_remedy("run it as root, or let it listen elsewhere")
        };
        if super::client::connect(path).is_ok() {
            return Err(Error::new(
                crate::ErrorKind::Busy,
                Errno::EADDRINUSE,
                format!("a guardian listens on {}", path.display()),
            )
            .with_remedy("end that one first, or listen on another socket"));
        }
        if let Some(directory) = path.parent() {
            let _ = std::fs::create_dir_all(directory);
        }
        let address = SocketAddrUnix::new(path).map_err(|error| failed("the address", error))?;
        let _ = std::fs::remove_file(path);
        let socket = packets()?;
        // Nobody may connect before the permissions are right.
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = rustix::net::bind(&socket, &address);
        rustix::process::umask(before);
        bound.map_err(|error| failed("binding", error))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o777))
            .map_err(|error| Error::system(format_args!("permissions of {}", path.display()), error))?;
        rustix::net::listen(&socket, 64).map_err(|error| failed("listening on", error))?;
        Ok(Self { socket, path: path.to_owned(), any_file: false })
    }

    /// Guards whoever connects, for ever.
    ///
    /// # Errors
    /// What the system answers where nobody can connect any more.
    pub fn run(&self) -> Result<()> {
        loop {
            match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    let any_file = self.any_file;
                    let spawned = std::thread::Builder::new()
                        .name("noiommu-guard".to_owned())
                        .spawn(move || guard(&socket, any_file));
                    if let Err(error) = spawned {
                        // The driver sees its socket closed, and that nobody guards it.
                        tracing::error!(%error, "a driver cannot be guarded");
                    }
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                // No descriptors left for a moment: those who are guarded go on.
                Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE | rustix::io::Errno::NOMEM) => {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
                Err(error) => {
                    return Err(Error::system(format_args!("accepting on {}", self.path.display()), error));
                }
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A socket of whole packets.
pub(super) fn packets() -> Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|error| Error::system("a socket", error))
}

/// Guards one driver until it dies, or closes its end.
fn guard(socket: &OwnedFd, any_file: bool) {
    let (process, pidfd) = match peer(socket) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::error!(%error, "a driver cannot be guarded: who is it?");
            return;
        }
    };
    tracing::info!(process, "a driver has come");
    let mut driver = Driver { pidfd, any_file };
    let mut session = Session::new();
    loop {
        let mut poll = [PollFd::new(socket, PollFlags::IN), PollFd::new(&driver.pidfd, PollFlags::IN)];
        if retry_on_intr(|| rustix::event::poll(&mut poll, None)).is_err() || !poll[1].revents().is_empty() {
            break;
        }
        let Ok((bytes, files)) = receive(socket) else { break };
        if bytes.is_empty() {
            break;
        }
        let reply = session.answer(&mut driver, &bytes, files);
        let sent = retry_on_intr(|| rustix::net::send(socket, reply.as_bytes(), SendFlags::NOSIGNAL));
        if sent.is_err() {
            break;
        }
    }
    // Closed first: a driver that lives on sees that nobody guards it any more.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
    session.end(|record, outcome| last::tell(record, process, outcome));
    tracing::info!(process, "a driver has gone");
}

/// The process at the other end.
fn peer(socket: &OwnedFd) -> Result<(i32, OwnedFd)> {
    /// SO_PEERPIDFD of *asm-generic/socket.h* (Linux 6.5).
    const PEER_PIDFD: i32 = 77;
    let failed = |error: rustix::io::Errno| Error::system("asking who has connected", error);
    let credentials = rustix::net::sockopt::socket_peercred(socket).map_err(failed)?;
    let mut pidfd: RawFd = -1;
    let mut length = size_of::<RawFd>() as libc::socklen_t;
    // SAFETY: both are live and as long as told.
    let told = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            PEER_PIDFD,
            (&raw mut pidfd).cast(),
            &raw mut length,
        )
    };
    let pidfd = if told == 0 && pidfd >= 0 {
        // SAFETY: the kernel has just made it for us.
        unsafe { OwnedFd::from_raw_fd(pidfd) }
    } else {
        let process = Pid::from_raw(credentials.pid.as_raw_nonzero().get()).ok_or(rustix::io::Errno::SRCH);
        let pidfd = process.and_then(|process| rustix::process::pidfd_open(process, PidfdFlags::empty()));
        let pidfd = pidfd.map_err(failed)?;
        // The number may be somebody else's by now; but then the one who had it is dead, and the socket is closed.
        let mut poll = [PollFd::new(socket, PollFlags::empty())];
        let _ = rustix::event::poll(&mut poll, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
        if poll[0].revents().contains(PollFlags::HUP) {
            return Err(failed(rustix::io::Errno::SRCH));
        }
        pidfd
    };
    Ok((credentials.pid.as_raw_nonzero().get(), pidfd))
}

/// A packet, with the descriptors that came with it; no bytes: the other end is closed.
pub(super) fn receive(socket: &impl AsFd) -> rustix::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; LONGEST + 1];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut files = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            files.extend(sent);
        }
    }
    // Cut off: more than there can be.
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        bytes.truncate(1);
        return Ok((bytes, Vec::new()));
    }
    bytes.truncate(received.bytes);
    Ok((bytes, files))
}
