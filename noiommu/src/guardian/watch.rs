//! How a guardian learns that its driver has died, and what it keeps open then.
//!
//! Takes no memory from the heap.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, Mode, OFlags, RawDir};
use rustix::net::AddressFamily;
use rustix::process::{Pid, PidfdFlags};

use super::board::{Board, SLOTS, blank};
use super::record::{Record, borrow};

/// How often is looked whether the driver still is what it was: seconds.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Returns when the parent has died, or has become another program (exec), or has left the table of descriptors.
///
/// The pidfd tells at once. It is a number in the driver's table, where the driver may close it, or have something else under the
/// number: so it is never believed, and who the parent is is asked of the kernel.
pub(super) fn until_death(parent: i32) {
    // SAFETY: no argument.
    let own = unsafe { libc::getpid() };
    // SAFETY: no argument.
    let is_child = || unsafe { libc::getppid() } == parent;
    while is_child() {
        let Some(pidfd) = open(parent) else {
            // No descriptors left: it will have to do without for a moment.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        loop {
            // SAFETY: not negative; that it may be closed by the driver is what this loop is about.
            let mut poll = [PollFd::from_borrowed_fd(unsafe { borrow(pidfd) }, PollFlags::IN)];
            let told = rustix::event::poll(&mut poll, Some(&LOOK));
            if !is_child() {
                return;
            }
            if told != Ok(0) {
                // Closed or taken by something else: not to be closed here. Not too often, whatever is going on.
                std::thread::sleep(Duration::from_millis(1));
                break;
            }
            if same_descriptors(parent, own) == Some(false) {
                return;
            }
        }
    }
}

/// A descriptor of the driver's process, which only its number tells.
fn open(process: i32) -> Option<RawFd> {
    let pidfd = rustix::process::pidfd_open(Pid::from_raw(process)?, PidfdFlags::empty()).ok()?;
    Some(std::os::fd::IntoRawFd::into_raw_fd(pidfd))
}

/// Whether two threads have one table of descriptors; `None`: the kernel does not tell (kcmp is not built in, or not allowed).
pub(super) fn same_descriptors(one: i32, other: i32) -> Option<bool> {
    /// KCMP_FILES of *linux/kcmp.h*.
    const FILES: i32 = 2;
    // SAFETY: numbers alone.
    match unsafe { libc::syscall(libc::SYS_kcmp, one, other, FILES, 0, 0) } {
        0 => Some(true),
        1..=3 => Some(false),
        _ => None,
    }
}

/// Closes what the driver had open, but for what pins memory, what devices that may be doing DMA are reached by, and where is
/// logged to: whoever waits for the end of a pipe, or wants a port, shall not wait for a device.
pub(super) fn keep_only(board: &Board) {
    let Ok(directory) = rustix::fs::openat(
        CWD,
        c"/proc/self/fd",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) else {
        // Nobody can tell what is open: all of it stays for a moment longer.
        return;
    };
    let own = directory.as_raw_fd();
    let mut memory = [MaybeUninit::<u8>::uninit(); 4096];
    let mut entries = RawDir::new(&directory, &mut memory);
    while let Some(entry) = entries.next() {
        let Ok(entry) = entry else { return };
        let Some(file) = entry.file_name().to_str().ok().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        if file != own && file != libc::STDERR_FILENO && !pins(file) && !is_of_device(board, file) {
            close(file);
        }
    }
}

/// Closes a descriptor of the dead driver's, if it is open.
pub(super) fn close(file: RawFd) {
    // SAFETY: the table is this process's alone, and nothing here uses the descriptor. Not by an owner of it, who would take one that
    // is not open for a fault of the program's.
    unsafe { libc::close(file) };
}

/// Whether a descriptor is one that pins memory: an io_uring, or an AF_XDP socket.
pub(super) fn pins(file: RawFd) -> bool {
    const RING: &[u8] = b"anon_inode:[io_uring]";
    let mut path = [0u8; 32];
    let path = self_path(&mut path, file);
    let mut target = [0u8; 64];
    // SAFETY: the path ends with a zero, and the kernel writes no more than the length told.
    let length = unsafe { libc::readlink(path.cast(), target.as_mut_ptr().cast(), target.len()) };
    let target = usize::try_from(length).ok().and_then(|length| target.get(..length)).unwrap_or(&[]);
    // SAFETY: not negative, being listed as open.
    let domain = || rustix::net::sockopt::socket_domain(unsafe { borrow(file) });
    target == RING || target.starts_with(b"socket:") && domain() == Ok(AddressFamily::XDP)
}

/// `/proc/self/fd/N`, ended with a zero.
fn self_path(into: &mut [u8; 32], file: RawFd) -> *const u8 {
    const DIRECTORY: &[u8] = b"/proc/self/fd/";
    let mut digits = [0u8; 10];
    let mut rest = file.unsigned_abs();
    let mut count = 0;
    loop {
        digits[count] = b'0' + (rest % 10) as u8;
        count += 1;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let number = digits[..count].iter().rev();
    for (byte, from) in into.iter_mut().zip(DIRECTORY.iter().chain(number).chain(&[0])) {
        *byte = *from;
    }
    into.as_ptr()
}

/// Whether a device that may be doing DMA is reached by a descriptor.
fn is_of_device(board: &Board, file: RawFd) -> bool {
    let mut record: Record = blank();
    (0..SLOTS).any(|slot| board.loose(slot, &mut record) && record.files().any(|of| of == file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pins_is_told_from_what_does_not() {
        let ring = io_uring::IoUring::new(1).unwrap();
        assert!(pins(ring.as_raw_fd()));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(!pins(null.as_raw_fd()));
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!pins(socket.as_raw_fd()));
        let xdp = rustix::net::socket_with(
            AddressFamily::XDP,
            rustix::net::SocketType::RAW,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        );
        assert!(xdp.is_err() || pins(xdp.unwrap().as_raw_fd()));
    }

    #[test]
    fn a_thread_has_the_descriptors_of_its_process() {
        // SAFETY: no argument.
        let (process, thread) = unsafe { (libc::getpid(), libc::gettid()) };
        assert_ne!(same_descriptors(process, thread), Some(false));
        assert_ne!(same_descriptors(process, 1), Some(true));
    }
}
