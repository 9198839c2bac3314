//! How a guardian learns that its driver has died, and what it keeps open then.

use std::ffi::CStr;
use std::os::fd::RawFd;

use super::board::{Board, SLOTS, blank};
use super::record::Record;
use super::sys;

/// How often is looked whether the driver still is what it was: milliseconds.
const LOOK: u32 = 1000;

/// Where the pidfd's number is to be, out of the way of a driver that counts on low ones.
const HIGH: i32 = 512;

/// Returns when the parent has died, or has become another program (exec), or has left the table of descriptors.
///
/// The pidfd tells at once. It is a number in the driver's table, where the driver may close it, or have something else under the
/// number: so it is never believed, and who the parent is is asked of the kernel.
pub(super) fn until_death(parent: i32) {
    let own = sys::process();
    let is_child = || sys::parent() == parent;
    while is_child() {
        let Some(pidfd) = sys::open_process(parent) else {
            // No descriptors left: it will have to do without for a moment.
            sys::pause(50);
            continue;
        };
        let pidfd = sys::raise(pidfd, HIGH);
        loop {
            let told = sys::wait_readable(pidfd, LOOK);
            if !is_child() {
                return;
            }
            if told {
                // Closed or taken by something else: not to be closed here. Not too often, whatever is going on.
                sys::pause(1);
                break;
            }
            if sys::same_descriptors(parent, own) == Some(false) && !is_shared(parent, own) {
                return;
            }
        }
    }
}

/// Whether any thread of a process has the table of descriptors of another; true where that cannot be told. One thread may have
/// taken a table of its own (unshare) while the others go on with this one; after exec there is one thread, and it has not.
fn is_shared(process: i32, own: i32) -> bool {
    let mut path = [0u8; 32];
    path_of(b"/proc/", process, b"/task", &mut path);
    let directory = CStr::from_bytes_until_nul(&path)
        .ok()
        .and_then(|path| sys::open(path, libc::O_RDONLY | libc::O_DIRECTORY));
    let Some(directory) = directory else { return true };
    let mut shared = false;
    each_number(directory, |thread| shared |= sys::same_descriptors(thread, own) != Some(false));
    sys::close(directory);
    shared
}

/// Closes what the driver had open, but for what pins memory, what devices that may be doing DMA are reached by, and where is
/// logged to: whoever waits for the end of a pipe, or wants a port, shall not wait for a device.
pub(super) fn keep_only(board: &Board) {
    let Some(directory) = sys::open(c"/proc/self/fd", libc::O_RDONLY | libc::O_DIRECTORY) else {
        // Nobody can tell what is open: all of it stays for a moment longer.
        return;
    };
    each_number(directory, |file| {
        if file != directory && file != libc::STDERR_FILENO && !pins(file) && !is_of_device(board, file) {
            sys::close(file);
        }
    });
    sys::close(directory);
}

/// The names in a directory that are numbers.
fn each_number(directory: RawFd, mut each: impl FnMut(i32)) {
    let mut memory = [0u64; 512];
    loop {
        let mut entries = sys::entries(directory, &mut memory);
        if entries.is_empty() {
            return;
        }
        while let Some((name, rest)) = entry(entries) {
            if let Some(number) = number(name) {
                each(number);
            }
            entries = rest;
        }
    }
}

/// The name of the first entry of a directory, and the entries after it. See *getdents64(2)*: inode, offset, length, type, name.
fn entry(entries: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = entries.get(16..18)?.try_into().ok().map(u16::from_ne_bytes)?;
    let (entry, rest) = entries.split_at_checked(length.into())?;
    Some((CStr::from_bytes_until_nul(entry.get(19..)?).ok()?.to_bytes(), rest))
}

fn number(name: &[u8]) -> Option<RawFd> {
    if name.is_empty() {
        return None;
    }
    name.iter().try_fold(0, |value: RawFd, byte| {
        let digit = char::from(*byte).to_digit(10)?;
        value.checked_mul(10)?.checked_add(digit.cast_signed())
    })
}

/// Whether a descriptor is one that pins memory: an io_uring, or an AF_XDP socket.
pub(super) fn pins(file: RawFd) -> bool {
    let mut target = [0u8; 64];
    let target = target_of(file, &mut target);
    target == b"anon_inode:[io_uring]"
        || target.starts_with(b"socket:") && sys::socket_domain(file) == Some(libc::AF_XDP)
}

/// What /proc/self/fd says of a descriptor.
pub(super) fn target_of(file: RawFd, into: &mut [u8; 64]) -> &[u8] {
    let mut path = [0u8; 32];
    path_of(b"/proc/self/fd/", file, b"", &mut path);
    match CStr::from_bytes_until_nul(&path) {
        Ok(path) => sys::read_link(path, into),
        Err(_) => &[],
    }
}

/// A path with a number in it, which is not negative; zeros at its end, as there is more place than any number fills.
fn path_of(before: &[u8], number: i32, after: &[u8], into: &mut [u8; 32]) {
    let mut digits = [0u8; 10];
    let mut rest = number.unsigned_abs();
    let mut count = 0;
    for digit in &mut digits {
        *digit = b'0' + (rest % 10) as u8;
        count += 1;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let number = digits.iter().take(count).rev();
    for (byte, from) in into.iter_mut().zip(before.iter().chain(number).chain(after)) {
        *byte = *from;
    }
}

/// Whether a device that may be doing DMA is reached by a descriptor.
fn is_of_device(board: &Board, file: RawFd) -> bool {
    let mut record: Record = blank();
    (0..SLOTS).any(|slot| board.loose(slot, &mut record) && record.files().any(|of| of == file))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use rustix::net::AddressFamily;

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
        assert_ne!(sys::same_descriptors(process, thread), Some(false));
        assert_ne!(sys::same_descriptors(process, 1), Some(true));
    }

    #[test]
    fn descriptors_are_listed() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let directory = sys::open(c"/proc/self/fd", libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
        let mut found = false;
        each_number(directory, |number| found |= number == file.as_raw_fd());
        sys::close(directory);
        assert!(found && !sys::is_open(-1));
        let mut target = [0; 64];
        assert_eq!(target_of(file.as_raw_fd(), &mut target), b"/dev/null");
    }

    /// A thread that has taken a table of its own does not make the table nobody's.
    #[test]
    fn one_thread_may_leave() {
        // SAFETY: no argument.
        let (process, leader) = unsafe { (libc::getpid(), libc::gettid()) };
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let child = other.id().cast_signed();
        let left = std::thread::spawn(move || {
            // SAFETY: this thread has a table of its own from here on, and opens nothing in it for others.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
            // SAFETY: no argument.
            let own = unsafe { libc::gettid() };
            // As a guardian would see it that has the leader's table, and one that has this thread's.
            (sys::same_descriptors(own, leader), is_shared(process, leader), is_shared(child, own))
        });
        let (same, shared, others) = left.join().unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(shared);
        if same.is_some() {
            assert_eq!((same, others), (Some(false), false));
        }
    }
}
