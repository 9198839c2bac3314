//! What each thread knows of itself, in one place: that it is in the engine, and whether it can be answered the quick way.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};

/// How often something has changed that all threads may know of themselves. Odd numbers only, so that `Thread::asked` can say with
/// the lowest bit what the answer was; and from 3 on, so that a thread that has not asked knows nothing.
static CHANGES: AtomicU32 = AtomicU32::new(3);

/// What a thread knows of itself.
pub(crate) struct Thread {
    /// How deep it is in the engine; 0: in the program.
    pub(crate) depth: Cell<u32>,
    /// [`CHANGES`] when it asked the kernel, less 1 if the answer was no.
    asked: Cell<u32>,
    /// Addresses that it was answered the quick way and that have not been told of.
    answered: Cell<u32>,
}

#[cfg(not(target_arch = "x86_64"))]
thread_local! {
    // Without a destructor and with a constant to begin with: reading it never allocates and is always allowed.
    static THREAD: Thread = const { Thread { depth: Cell::new(0), asked: Cell::new(0), answered: Cell::new(0) } };
}

/// Runs `work` with what the calling thread knows.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(crate) fn here<R>(work: impl FnOnce(&Thread) -> R) -> R {
    THREAD.with(work)
}

// What a shared library has for each thread is found by a call of the dynamic linker, unless it says that it is loaded with the
// program, as this one is: then its place is at a fixed distance from the thread's pointer. rustc cannot be told so yet.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .tbss.noiommu_thread,\"awT\",@nobits",
    ".p2align 3",
    ".type noiommu_thread, @object",
    ".globl noiommu_thread",
    ".hidden noiommu_thread",
    "noiommu_thread:",
    ".zero {size}",
    ".size noiommu_thread, {size}",
    ".popsection",
    size = const size_of::<Thread>(),
);

/// Runs `work` with what the calling thread knows.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn here<R>(work: impl FnOnce(&Thread) -> R) -> R {
    let thread: *const Thread;
    // SAFETY: the thread's pointer points to itself, and the distance is the linker's.
    unsafe {
        std::arch::asm!(
            "mov {thread}, qword ptr fs:[0]",
            "add {thread}, qword ptr [rip + noiommu_thread@GOTTPOFF]",
            thread = out(reg) thread,
            options(nostack, readonly),
        );
    }
    // SAFETY: the place has the size and more than the alignment of a `Thread`, is there as long as its thread, which alone uses
    // it, and zeroes, which it begins with, are a `Thread`.
    work(unsafe { &*thread })
}

/// Something has changed that all threads may know otherwise, such as the user: each asks again.
pub(crate) fn changed() {
    CHANGES.fetch_add(2, Ordering::SeqCst);
}

/// Something of this thread alone may have changed, such as its signal mask: it asks again.
pub(crate) fn forget() {
    here(|thread| thread.asked.set(0));
}

impl Thread {
    /// What `ask` answers, asked again only after a change.
    #[inline(always)]
    pub(crate) fn known(&self, ask: impl FnOnce() -> bool) -> bool {
        // Loaded before the kernel is asked: a change that comes meanwhile makes the answer an old one.
        let changes = CHANGES.load(Ordering::Acquire);
        let asked = self.asked.get();
        asked == changes || (asked != changes - 1 && self.ask(changes, ask))
    }

    /// Counts an address that it was answered. Told of in lots: telling takes longer than answering.
    #[inline(always)]
    pub(crate) fn count_answer(&self) {
        const LOT: u32 = 64;
        let answered = self.answered.get() + 1;
        if answered < LOT {
            self.answered.set(answered);
        } else {
            self.tell(answered);
        }
    }

    #[cold]
    fn tell(&self, answered: u32) {
        self.answered.set(0);
        noiommu::stats::count_lookups(answered.into());
    }

    #[cold]
    fn ask(&self, changes: u32, ask: impl FnOnce() -> bool) -> bool {
        let answer = ask();
        self.asked.set(changes - u32::from(!answer));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked_once_and_after_each_change() {
        let thread = Thread { depth: Cell::new(0), asked: Cell::new(0), answered: Cell::new(0) };
        // Nothing else in this test process changes the count.
        let asked = Cell::new(0);
        let known = |answer: bool| {
            thread.known(|| {
                asked.set(asked.get() + 1);
                answer
            })
        };
        assert!(known(true) && known(false) && asked.get() == 1);
        changed();
        assert!(!known(false) && !known(true) && asked.get() == 2);
        changed();
        assert!(known(true) && asked.get() == 3);
        // A change while it asks: the answer counts once.
        changed();
        assert!(thread.known(|| {
            changed();
            true
        }));
        assert!(!known(false) && asked.get() == 4);
    }
}
