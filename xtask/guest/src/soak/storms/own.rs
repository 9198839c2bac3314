//! Trouble that a process makes for its own buffers: advice to the kernel about their addresses, changes of protection that split
//! what maps them, and forks whose children write to their copies.
//!
//! Nothing of it takes an address away from its page (as `munmap` or MADV_DONTNEED would), which is what no driver may do.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::super::chance::Chance;
use super::super::pattern::HUGE;
use super::Shared;
use super::buffers::SIZE;
use crate::matrix::driver::PAGE;

/// How long nothing happens between two deeds.
const PAUSE: Duration = Duration::from_millis(3);

/// Of so many deeds, one is a fork.
const FORKS: u64 = 20;

/// What is done to a part of a buffer, and how often the kernel has done it and refused it.
struct Deed {
    name: &'static str,
    /// Answers what the system call does.
    act: fn(*mut c_void, usize) -> i32,
    /// Whether it is done to whole huge pages.
    huge: bool,
    done: AtomicU64,
    refused: AtomicU64,
}

impl Deed {
    const fn of(name: &'static str, huge: bool, act: fn(*mut c_void, usize) -> i32) -> Self {
        Self { name, act, huge, done: AtomicU64::new(0), refused: AtomicU64::new(0) }
    }
}

fn advise(at: *mut c_void, length: usize, advice: i32) -> i32 {
    // SAFETY: a part of a buffer, as the caller has it; none of the advice given here changes what is in the memory.
    unsafe { libc::madvise(at, length, advice) }
}

fn protect(at: *mut c_void, length: usize, more: i32) -> i32 {
    // SAFETY: a part of a buffer, which stays readable and writable.
    unsafe { libc::mprotect(at, length, libc::PROT_READ | libc::PROT_WRITE | more) }
}

fn deeds() -> [Deed; 8] {
    [
        // What is mapped by one entry of 2 MiB is mapped by 512 then, and its area is three.
        Deed::of("mprotect", false, |at, length| protect(at, length, libc::PROT_EXEC)),
        // And one again.
        Deed::of("mprotect_back", true, |at, length| protect(at, length, 0)),
        Deed::of("collapse", true, |at, length| advise(at, length, libc::MADV_COLLAPSE)),
        Deed::of("pageout", false, |at, length| advise(at, length, libc::MADV_PAGEOUT)),
        Deed::of("cold", false, |at, length| advise(at, length, libc::MADV_COLD)),
        Deed::of("hugepage", true, |at, length| advise(at, length, libc::MADV_HUGEPAGE)),
        Deed::of("nohugepage", false, |at, length| advise(at, length, libc::MADV_NOHUGEPAGE)),
        Deed::of("mergeable", false, |at, length| advise(at, length, libc::MADV_MERGEABLE)),
    ]
}

/// Makes trouble until the end; answers how much.
pub(super) fn run(shared: &Shared, mut chance: Chance) -> Result<Value> {
    let deeds = deeds();
    let (mut forks, mut refused) = (0_u64, 0_u64);
    for number in 0_u64.. {
        if shared.is_over() {
            break;
        }
        if number.is_multiple_of(FORKS) {
            if fork(shared, chance.any() as u8)? {
                forks += 1;
            } else {
                refused += 1;
            }
        }
        // Each in turn, to any buffer.
        let deed = &deeds[(number % deeds.len() as u64) as usize];
        let buffer = &shared.buffers[chance.index(shared.buffers.len())];
        let (offset, length) = if deed.huge {
            (chance.index(SIZE / HUGE) * HUGE, HUGE)
        } else {
            let first = chance.index(SIZE / PAGE);
            (first * PAGE, (1 + chance.index((SIZE / PAGE - first).min(64))) * PAGE)
        };
        let at = (buffer.memory()?.address() + offset) as *mut c_void;
        let counter = if (deed.act)(at, length) == 0 { &deed.done } else { &deed.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }
    let told = deeds.iter().map(|deed| {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (deed.name.to_owned(), json!({"done": count(&deed.done), "refused": count(&deed.refused)}))
    });
    let mut told: serde_json::Map<String, Value> = told.collect();
    told.insert("fork".to_owned(), json!({"done": forks, "refused": refused}));
    Ok(Value::Object(told))
}

/// Forks a child that writes to all of its copies of the buffers, and waits for its end; `false`: no memory for one.
fn fork(shared: &Shared, byte: u8) -> Result<bool> {
    // What the child needs is looked up before.
    let places: Vec<usize> = shared
        .buffers
        .iter()
        .map(|buffer| buffer.memory().map(|memory| memory.address()))
        .collect::<Result<_>>()?;
    // SAFETY: the child does nothing but write to memory and end, which needs no lock that another thread may have held.
    let child = unsafe { libc::fork() };
    if child == 0 {
        for place in places.iter() {
            for at in (0..SIZE).step_by(64) {
                // SAFETY: within the child's copy of a buffer, which is private and writable, at any time and for anybody's eyes.
                unsafe { ((place + at) as *mut u8).write_volatile(byte) };
            }
        }
        // SAFETY: ends the child, without any of the parent's clean-up.
        unsafe { libc::_exit(0) };
    }
    if child < 0 {
        return Ok(false);
    }
    let mut status = 0;
    // SAFETY: waits for the child just made; `status` is an integer to be written.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    ensure!(waited == child, "waiting for a child: {}", std::io::Error::last_os_error());
    // Killed for want of memory it may be; anything else would be a fault of the memory's.
    let killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
    ensure!(
        killed || libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        "a child ended with {status:#x}"
    );
    Ok(!killed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is done to memory leaves what is in it.
    #[test]
    fn deeds_keep_the_bytes() {
        use super::super::super::pattern::{Foreign, Pattern};
        let pattern = Pattern::of_huge_pages(2 * HUGE / PAGE, 3).unwrap();
        for deed in deeds() {
            let (page, length) = if deed.huge { (HUGE / PAGE, HUGE) } else { (7, 9 * PAGE) };
            (deed.act)(pattern.address(page).as_ptr().cast(), length);
            let mut found = Foreign::default();
            pattern.check(0, pattern.pages(), &mut found);
            assert_eq!(found.bytes, 0, "{}", deed.name);
        }
    }
}
