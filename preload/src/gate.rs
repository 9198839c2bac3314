//! The way into the engine: who is inside, and that nobody is while the process forks.

use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

use crate::raw;
use crate::thread::here;

/// Everybody inside holds it for reading; a fork takes it for writing, and so no lock of the engine is held by a thread that the
/// child does not have.
static GATE: RwLock<()> = RwLock::new(());

/// Whether this thread is in the engine. What the C library is asked for there is asked for by the engine: it means the kernel.
#[inline]
pub(crate) fn is_inside() -> bool {
    here(|thread| thread.depth.get()) > 0
}

/// Makes this thread one of the engine's for as long as it lives. A fork does not wait for it.
pub(crate) fn stay_inside() {
    here(|thread| thread.depth.set(1));
}

/// Runs a part of the engine. `errno` is the program's, and stays as it was.
pub(crate) fn engine<R>(work: impl FnOnce() -> R) -> R {
    let depth = here(|thread| thread.depth.get());
    // A signal handler that interrupts the engine and calls it again is inside already, and must not wait for a fork that waits
    // for it.
    let errno = raw::last_errno();
    here(|thread| thread.depth.set(depth + 1));
    let guard = (depth == 0).then(|| GATE.read().unwrap_or_else(PoisonError::into_inner));
    let cancelling = without_cancelling();
    let result = work();
    allow_cancelling(cancelling);
    drop(guard);
    here(|thread| thread.depth.set(depth));
    raw::set_errno(errno);
    result
}

/// Runs a part of the engine that makes no system call and calls nothing of the C library's, so that neither `errno` nor
/// cancellation matters. `None`: it was not run, as this thread is inside already, as `may` (asked once, see
/// [`Thread::known`](crate::thread::Thread::known)) says no, or as a fork is under way.
#[inline(always)]
pub(crate) fn quickly<R>(may: impl FnOnce() -> bool, work: impl FnOnce() -> R) -> Option<R> {
    here(|thread| {
        if thread.depth.get() > 0 || !thread.known(|| engine(may)) {
            return None;
        }
        // As in `engine`, for a signal handler that comes now.
        thread.depth.set(1);
        let answer = GATE.try_read().ok().map(|_guard| work());
        thread.depth.set(0);
        answer
    })
}

unsafe extern "C" {
    /// Of the C library; the crate `libc` has it for few systems.
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

/// No thread is cancelled in the engine, whose calls are none for the program; answers what it was before.
fn without_cancelling() -> c_int {
    const DISABLE: c_int = 1;
    let mut before = 0;
    // SAFETY: the place is here.
    unsafe { pthread_setcancelstate(DISABLE, &raw mut before) };
    before
}

fn allow_cancelling(state: c_int) {
    // SAFETY: a state that the thread had, and no place for the old one.
    unsafe { pthread_setcancelstate(state, std::ptr::null_mut()) };
}

/// The gate while it is closed, from before a fork until after it.
struct Closed(UnsafeCell<Option<RwLockWriteGuard<'static, ()>>>);

// SAFETY: touched only by the thread that forks, which holds the gate for writing: `prepare` puts the guard in after it got the
// gate, `parent` and `child` take it out before they give the gate back. In the child, that thread is the only one.
unsafe impl Sync for Closed {}

static CLOSED: Closed = Closed(UnsafeCell::new(None));

extern "C" fn prepare() {
    if is_inside() {
        return;
    }
    let guard = GATE.write().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: see `Closed`.
    unsafe { *CLOSED.0.get() = Some(guard) };
}

extern "C" fn open_again() {
    if is_inside() {
        return;
    }
    // SAFETY: see `Closed`.
    drop(unsafe { (*CLOSED.0.get()).take() });
}

extern "C" fn open_in_child() {
    open_again();
    crate::process::adopt();
}

/// Has the gate closed while the process forks.
pub(crate) fn guard_forks() {
    // SAFETY: functions that stay as long as the process: the library is never unloaded while it serves.
    unsafe { libc::pthread_atfork(Some(prepare), Some(open_again), Some(open_in_child)) };
}
