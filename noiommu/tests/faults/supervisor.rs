//! Makes system calls fail: the n-th one that a thread makes, with an error number of choice.
//!
//! By seccomp's user notifications: a filter hands every call of the thread, and of the threads that it starts, to another
//! thread of this process, which lets it go on or answers in the kernel's place. Unlike ptrace this takes one stop a call, needs
//! no second process to share counters with, and the supervisor can make a call itself where the kernel does the work and
//! reports an error all the same (`close`). It makes no allocation, as the thread that waits for it may be in the allocator.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, Ordering::SeqCst};

use libc::{c_long, sock_filter, sock_fprog};

/// What a call is answered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// An error number.
    Errno(i32),
    /// 0: the end of a file.
    Nothing,
}

/// Which calls fail, and how: the variants for a call of this number; none: it is not to fail.
pub(crate) type Plan = fn(nr: c_long, of_device: bool) -> &'static [Fault];

/// What happened to the call that was made to fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Failed {
    /// Its number.
    pub(crate) nr: c_long,
    /// How it failed.
    pub(crate) fault: Fault,
    /// It was made by another thread than the first.
    pub(crate) of_device: bool,
}

static LISTENER: AtomicI32 = AtomicI32::new(-1);
static THREAD: AtomicU32 = AtomicU32::new(0);
static ARMED: AtomicBool = AtomicBool::new(false);
/// Calls since the supervisor was armed that could have failed, of those whose calls are to.
static COUNT: AtomicU64 = AtomicU64::new(0);
static TARGET: AtomicU64 = AtomicU64::new(0);
/// Whose calls fail.
static OF_DEVICE: AtomicBool = AtomicBool::new(false);
static VARIANT: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicI64 = AtomicI64::new(-1);
static PLAN: std::sync::OnceLock<Plan> = std::sync::OnceLock::new();
/// Numbers of calls that were seen, and of those that were not to fail.
static SPARED: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

/// Puts the calling thread, and those that it will start, under supervision: for the rest of its life.
pub(crate) fn supervise(plan: Plan) {
    PLAN.set(plan).unwrap();
    // SAFETY: asks for the thread's number.
    THREAD.store(unsafe { libc::gettid() } as u32, SeqCst);
    std::thread::spawn(watch);
    // Exempt are those whose failure is none (they end a thread), and what may wait for the supervisor itself.
    let exempt = [libc::SYS_exit, libc::SYS_exit_group, libc::SYS_rt_sigreturn];
    let load = sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: 0 };
    let answer = |k| sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k };
    let mut program = vec![load];
    for (at, nr) in exempt.iter().enumerate() {
        let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        program.push(sock_filter { code, jt: (exempt.len() - at) as u8, jf: 0, k: *nr as u32 });
    }
    program.push(answer(libc::SECCOMP_RET_USER_NOTIF));
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    let filter = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: no pointer is handed over.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the filter lives through the call.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const filter,
        )
    };
    // The next call waits for the supervisor to have got this.
    LISTENER.store(listener as i32, SeqCst);
    assert!(listener >= 0, "{}", std::io::Error::last_os_error());
}

/// From now on the `target`-th call (from 0) fails, by the `variant`-th way of its plan: of the first thread, or of the
/// device's.
pub(crate) fn arm(target: u64, variant: u32, of_device: bool) {
    OF_DEVICE.store(of_device, SeqCst);
    COUNT.store(0, SeqCst);
    TARGET.store(target, SeqCst);
    VARIANT.store(variant, SeqCst);
    FAILED.store(-1, SeqCst);
    ARMED.store(true, SeqCst);
}

/// No call fails any more; answers the one that has.
pub(crate) fn disarm() -> Option<Failed> {
    ARMED.store(false, SeqCst);
    failed()
}

fn failed() -> Option<Failed> {
    let nr = FAILED.load(SeqCst) as c_long;
    let of_device = OF_DEVICE.load(SeqCst);
    let variants = PLAN.get().filter(|_| nr >= 0)?(nr, of_device);
    Some(Failed { nr, fault: variants[VARIANT.load(SeqCst) as usize], of_device })
}

/// Calls since the supervisor was armed that could have failed, of those whose calls were to.
pub(crate) fn count() -> u64 {
    COUNT.load(SeqCst)
}

/// Whether a call has failed.
pub(crate) fn was_disturbed() -> bool {
    failed().is_some()
}

/// Whether a call of the simulated device has failed, or may have.
pub(crate) fn device_was_disturbed() -> bool {
    EXPECTED.load(SeqCst) || failed().is_some_and(|failed| failed.of_device)
}

static EXPECTED: AtomicBool = AtomicBool::new(false);

/// Something else than the supervisor makes calls of the simulated device fail from now on.
pub(crate) fn expect_disturbed_device() {
    EXPECTED.store(true, SeqCst);
}

/// Does what the test alone does, whose calls and allocations do not fail.
pub(crate) fn undisturbed<R>(work: impl FnOnce() -> R) -> R {
    let armed = ARMED.swap(false, SeqCst);
    let result = crate::allocation::spared(work);
    ARMED.store(armed, SeqCst);
    result
}

/// The numbers of calls that came and were not to fail.
pub(crate) fn spared() -> Vec<c_long> {
    (0..512).filter(|nr| SPARED[(nr / 64) as usize].load(SeqCst) >> (nr % 64) & 1 != 0).collect()
}

fn watch() {
    let listener = loop {
        match LISTENER.load(SeqCst) {
            -1 => std::thread::yield_now(),
            listener => break listener,
        }
    };
    loop {
        // SAFETY: plain numbers, for which zeros are fine, as the kernel asks for.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the structure lives through the call and is as long as the kernel takes it.
        if unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) } != 0 {
            continue;
        }
        let mut response = libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags: 0 };
        match decide(&call) {
            None => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            Some(fault) => (response.val, response.error) = answer(&call, fault),
        }
        // SAFETY: as above. A thread that a signal has called away makes its call once more.
        unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) };
    }
}

/// How this call is to fail, if at all.
fn decide(call: &libc::seccomp_notif) -> Option<Fault> {
    if !ARMED.load(SeqCst) {
        return None;
    }
    let (nr, of_device) = (c_long::from(call.data.nr), call.pid != THREAD.load(SeqCst));
    let variants = PLAN.get()?(nr, of_device);
    if variants.is_empty() {
        if !of_device && let Some(word) = SPARED.get(nr as usize / 64) {
            word.fetch_or(1 << (nr % 64), SeqCst);
        }
        return None;
    }
    if of_device != OF_DEVICE.load(SeqCst) || COUNT.fetch_add(1, SeqCst) != TARGET.load(SeqCst) {
        return None;
    }
    let fault = variants.get(VARIANT.load(SeqCst) as usize)?;
    FAILED.store(nr, SeqCst);
    Some(*fault)
}

/// The answer of a call that fails: its value, or its error number, negative.
fn answer(call: &libc::seccomp_notif, fault: Fault) -> (i64, i32) {
    match c_long::from(call.data.nr) {
        // The kernel closes first, whatever it reports.
        // SAFETY: the descriptor that its owner is closing; the table is shared.
        libc::SYS_close => drop(unsafe { libc::syscall(libc::SYS_close, call.data.args[0]) }),
        // It reports failure by the old end of the heap.
        // SAFETY: asks for the end, which changes nothing.
        libc::SYS_brk => return (unsafe { libc::syscall(libc::SYS_brk, 0) }, 0),
        _ => {}
    }
    match fault {
        Fault::Errno(errno) => (0, -errno),
        Fault::Nothing => (0, 0),
    }
}
