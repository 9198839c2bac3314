//! Every allocation of a life of the kit refused in turn. Where the kit asks by itself it answers with an error; where it is a
//! collection or a string of the standard library, that ends the process (`handle_alloc_error`), and the kernel takes back
//! pins, descriptors and mappings. What never happens is an answer that is wrong.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::ptr;

use noiommu::PinChoice;

use crate::alone::alone;
use crate::counts::{Counts, pinned};
use crate::life::{self, Early, can_pin, live};

thread_local! {
    /// Allocations of this thread until one is refused; `None`: none is.
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Whether the allocation at hand is the one to refuse; those after it are not.
fn refuse() -> bool {
    LEFT.with(|left| match left.get() {
        None => false,
        Some(0) => {
            left.set(None);
            true
        }
        Some(count) => {
            left.set(Some(count - 1));
            false
        }
    })
}

struct Refusing;

// SAFETY: all is the system's allocator, but for null answers, which every caller must expect.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise, handed on.
        if refuse() { ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise, handed on.
        if refuse() { ptr::null_mut() } else { unsafe { System.realloc(memory, layout, size) } }
    }
}

#[global_allocator]
static ALLOCATOR: Refusing = Refusing;

/// Does what the test alone does, whose allocations are not refused.
pub(crate) fn spared<R>(work: impl FnOnce() -> R) -> R {
    let left = LEFT.with(Cell::take);
    let result = work();
    LEFT.with(|cell| cell.set(left));
    result
}

/// How a life ended in a forked child, as its exit code.
const LIVED: i32 = 0;
const REFUSED: i32 = 1;
const NOT_REACHED: i32 = 2;
const WRONG: i32 = 3;

#[test]
fn every_allocation_is_refused_in_turn() {
    alone(concat!(module_path!(), "::every_allocation_is_refused_in_turn"), || {
        if !can_pin(PinChoice::Best) {
            return;
        }
        let before = Counts::now();
        let (mut lived, mut refused, mut ended) = (0, 0, 0);
        for nth in 0.. {
            match live_refused(nth) {
                Ok(LIVED) => lived += 1,
                Ok(REFUSED) => refused += 1,
                Ok(NOT_REACHED) => break,
                Err(said) if said.contains("memory allocation of") && !said.contains("panicked") => {
                    ended += 1
                }
                other => panic!("allocation {nth}: {other:?}"),
            }
        }
        println!(
            "{} allocations: {ended} ended the process, {refused} were errors, {lived} not needed",
            ended + refused + lived
        );
        assert!(ended > 20, "{ended}");
        assert_eq!(Counts::now().differs(&before, true), None);
    });
}

/// Lives in a forked child, with one allocation refused; answers its exit code, or what it had to say when it was killed.
fn live_refused(nth: u64) -> Result<i32, String> {
    let said = rustix::fs::memfd_create("stderr", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    // SAFETY: nothing but the harness's thread, which waits, is beside this one; a child may use the kit anew.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: the child's own descriptor.
        unsafe { libc::dup2(said.as_raw_fd(), 2) };
        let code = std::panic::catch_unwind(|| first_life(nth)).unwrap_or(WRONG);
        // SAFETY: ends the child at once, without running what belongs to the harness.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    let mut file = File::from(said);
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) != WRONG {
        return Ok(libc::WEXITSTATUS(status));
    }
    let aborted = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGABRT;
    Err(if aborted { text } else { format!("status {status:#x}, panicked: {text}") })
}

fn first_life(nth: u64) -> i32 {
    let before = pinned();
    LEFT.with(|left| left.set(Some(nth)));
    let result = live(PinChoice::Best);
    let reached = LEFT.with(Cell::take).is_none();
    let code = match &result {
        Err(Early::Kit(error)) => {
            life::check(error);
            REFUSED
        }
        Err(Early::Own(_)) => REFUSED,
        Ok(()) if reached => LIVED,
        Ok(()) => NOT_REACHED,
    };
    // Nothing is left behind, and it works again.
    assert_eq!(Counts::settled(before).pinned, before);
    live(PinChoice::Best).unwrap();
    code
}
