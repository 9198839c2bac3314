//! A guardian of a process's own: forked from it, sharing its table of descriptors.
//!
//! Whatever the driver opens, rings and devices, the guardian has at the same moment under the same number, and it stays open when
//! the driver dies: nothing is handed over, so nothing can be refused (by Yama, by a process that is not dumpable), and no address
//! leaves the kit before the guardian holds the ring that pins it. When the driver is dead the table is the guardian's alone.
//!
//! What runs in the child takes no memory from the heap, makes no error of the kit's and calls nothing of the C library's: see
//! [`memory`] and [`sys`].

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::mm::{self, MapFlags, ProtFlags};

use super::board::{Board, DIED};
use super::{cgroup, memory, sys, watch};
use crate::raw::system;
use crate::{Error, ErrorKind, Result};

/// Bytes of the guardian's stack.
const STACK: usize = 256 << 10;

/// How long a guardian may take to begin, in steps of 100 us.
const BEGINNING: u32 = 100_000;

/// A guardian that has begun.
#[derive(Clone, Copy)]
pub(super) struct Own {
    /// Its process.
    pub(super) process: u32,
}

/// What the child is given.
struct Start {
    board: &'static Board,
    /// The driver.
    parent: i32,
    /// Its stack, in which this lies too.
    stack: std::ops::Range<usize>,
}

/// Starts a guardian for this process, on a board that has none.
///
/// # Errors
/// [`ErrorKind::NoGuardian`]: why it did not begin.
pub(super) fn start(board: &'static Board) -> Result<Own> {
    let failed = |what: &str, error: &std::io::Error| {
        Error::new(
            ErrorKind::NoGuardian,
            crate::error::errno_of(error),
            format!("no guardian can be started: {what}: {error}"),
        )
        .with_remedy(super::WAIVER)
    };
    // None, until it says that it is there.
    board.guardian.store(DIED, Ordering::Release);
    let stack = Stack::new().map_err(|error| failed("memory for its stack", &error))?;
    let parent = std::process::id().cast_signed();
    let range = stack.base..stack.base + STACK;
    let top = stack.put(Start { board, parent, stack: range });
    // No handler of the driver's may run in the child.
    let before = block_signals();
    // CLONE_FILES alone: the table of descriptors is shared, memory is not. No signal tells of its end, so that a driver
    // that waits for its children does not meet this one.
    // SAFETY: the child runs `run` on a stack of its own, of which nothing but `Start` is in use.
    let child = unsafe { libc::clone(run, top, libc::CLONE_FILES, top) };
    let error = std::io::Error::last_os_error();
    restore_signals(&before);
    if child < 0 {
        return Err(failed("clone", &error));
    }
    // The child has its own copy of the stack, which is dropped here.
    drop(stack);
    for _ in 0..BEGINNING {
        let word = board.guardian.load(Ordering::Acquire);
        if word & DIED == 0 {
            return Ok(Own { process: child.cast_unsigned() });
        }
        if reap(child) {
            break;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    // SAFETY: a signal to the child that was just made, which nobody else waits for.
    unsafe { libc::kill(child, libc::SIGKILL) };
    Err(failed("it ended at once", &std::io::Error::from_raw_os_error(libc::ECHILD)))
}

/// Whether the child has ended; takes its status then, so that nothing is left of it.
pub(super) fn reap(child: i32) -> bool {
    // SAFETY: no status is asked for. __WCLONE: a child that tells its end by no signal.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::WNOHANG | libc::__WCLONE) == child }
}

/// Whether this thread and the guardian still have one table of descriptors. A program that takes its own (unshare) has left the
/// guardian with the old one.
pub(super) fn shares_descriptors(guardian: u32) -> bool {
    sys::same_descriptors(sys::thread(), guardian.cast_signed()) != Some(false)
}

/// Memory for the guardian's stack.
struct Stack {
    base: usize,
}

impl Stack {
    fn new() -> std::io::Result<Self> {
        // SAFETY: a new mapping at a place of the kernel's choice.
        let base = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                STACK,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        Ok(Self { base: base as usize })
    }

    /// Puts what the child is given at its top; answers where, which is where the stack begins.
    fn put(&self, start: Start) -> *mut c_void {
        // 16 bytes: what the calling conventions of x86-64 and AArch64 want of a stack.
        let at = (self.base + STACK - size_of::<Start>()) & !15;
        let place = at as *mut Start;
        // SAFETY: within the mapping, aligned to 16, and nobody else uses it.
        unsafe { place.write(start) };
        place.cast()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; the child has a copy of its own.
        let _ = unsafe { mm::munmap(self.base as *mut c_void, STACK) };
    }
}

/// All signals of this thread, blocked; answers which were.
fn block_signals() -> libc::sigset_t {
    // SAFETY: plain data, for which zeros are a value.
    let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: both are live.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
    }
    before
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: the set is live.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, std::ptr::null_mut()) };
}

/// The guardian's life. What it answers is the process's status.
extern "C" fn run(start: *mut c_void) -> c_int {
    // SAFETY: `start` put it there, and the stack is not used above.
    let start = unsafe { &*start.cast::<Start>() };
    let Start { board, parent, .. } = *start;
    let stack = start.stack.clone();
    let (at, length) = board.range();
    // A session of its own: nothing that happens to the driver's terminal or process group reaches it.
    sys::set_apart(c"noiommu-guard");
    // Where that cannot be it goes on with the driver's memory: more than it needs, but no less right.
    // SAFETY: a process of one thread, which uses its code, its stack and the board from here on.
    let _ = unsafe { memory::give_up(&[stack, at..at + length]) };
    let apart = cgroup::leave();
    board.apart.store(apart.into(), Ordering::Relaxed);
    let mut robust = Robust::new(&board.guardian);
    robust.register();
    board.guardian.store(sys::thread().cast_unsigned(), Ordering::Release);
    watch::until_death(parent);
    board.begin_rescue();
    watch::keep_only(board);
    super::last::rescue_all(board, parent);
    // Ended in order: it has not died. Nobody is left to see it, but for a driver that has gone on by exec.
    0
}

/// The guardian's list of robust futexes, with the word of the board as the only one: when the guardian ends, however it does,
/// the kernel sets [`DIED`] in it, so that the driver sees it by a load. See *get_robust_list(2)* and the kernel's
/// *Documentation/locking/robust-futex-ABI.rst*.
#[repr(C)]
struct Robust {
    /// The first of the list.
    first: *const Robust,
    /// From an entry of the list to its word.
    offset: isize,
    pending: *const Robust,
    /// The one entry: the next of it.
    entry: *const Robust,
    word: *const AtomicU32,
}

impl Robust {
    fn new(word: &AtomicU32) -> Self {
        let null = std::ptr::null();
        Self { first: null, offset: 0, pending: null, entry: null, word: std::ptr::from_ref(word) }
    }

    /// Tells the kernel of it, which looks at it when the thread ends: it must stay where it is until then.
    fn register(&mut self) {
        let entry = (&raw const self.entry).cast::<Self>();
        // A ring: the last entry leads back to the head.
        self.first = entry;
        self.entry = std::ptr::from_ref(self);
        self.offset = (self.word as isize).wrapping_sub(entry as isize);
        // SAFETY: only tells an address; the kernel asks for the size of its head: three words.
        unsafe { system!(SYS_set_robust_list, &raw const *self, 3 * size_of::<usize>()) };
    }
}
