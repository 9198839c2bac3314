//! SIGSEGV and SIGBUS: those of our copies are answered here, all others go to the program as if we were not there.
//!
//! The kernel knows our handler with the flags and the mask of the program's, so that the program's runs on the stack and under
//! the mask that it asked for. The entry jumps to it instead of calling it, and leaves no frame behind.

use std::ffi::{c_int, c_void};
use std::mem::zeroed;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use libc::{SA_RESETHAND, SA_SIGINFO, SIG_DFL, SIG_IGN, SIGBUS, SIGSEGV, sigaction, siginfo_t, ucontext_t};

use crate::raw::system;
#[cfg(target_arch = "x86_64")]
use crate::touch;
use crate::{copy, real, thread};

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".p2align 4",
    ".type noiommu_fault, @function",
    ".globl noiommu_fault",
    ".hidden noiommu_fault",
    "noiommu_fault:",
    ".cfi_startproc",
    "push rdi",
    ".cfi_adjust_cfa_offset 8",
    "push rsi",
    ".cfi_adjust_cfa_offset 8",
    "push rdx",
    ".cfi_adjust_cfa_offset 8",
    "call {decide}",
    "pop rdx",
    ".cfi_adjust_cfa_offset -8",
    "pop rsi",
    ".cfi_adjust_cfa_offset -8",
    "pop rdi",
    ".cfi_adjust_cfa_offset -8",
    "test rax, rax",
    "jz 2f",
    "jmp rax",
    "2:",
    "ret",
    ".cfi_endproc",
    ".size noiommu_fault, . - noiommu_fault",
    decide = sym decide,
);

#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    ".p2align 4",
    ".type noiommu_fault, %function",
    ".globl noiommu_fault",
    ".hidden noiommu_fault",
    "noiommu_fault:",
    ".cfi_startproc",
    "stp x29, x30, [sp, #-48]!",
    ".cfi_def_cfa_offset 48",
    ".cfi_offset x29, -48",
    ".cfi_offset x30, -40",
    "stp x0, x1, [sp, #16]",
    "str x2, [sp, #32]",
    "bl {decide}",
    "mov x16, x0",
    "ldp x0, x1, [sp, #16]",
    "ldr x2, [sp, #32]",
    "ldp x29, x30, [sp], #48",
    ".cfi_def_cfa_offset 0",
    "cbz x16, 2f",
    "br x16",
    "2:",
    "ret",
    ".cfi_endproc",
    ".size noiommu_fault, . - noiommu_fault",
    decide = sym decide,
);

unsafe extern "C" {
    fn noiommu_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void);
}

/// What the program has asked for: the address of its handler (or SIG_DFL, SIG_IGN), and in the two upper bits, which no address
/// of a program has, the flags that we do not hand to the kernel.
struct Wish(AtomicU64);

const WANTS_INFO: u64 = 1 << 62;
const ONLY_ONCE: u64 = 1 << 63;

static WISHES: [Wish; 2] = [Wish(AtomicU64::new(0)), Wish(AtomicU64::new(0))];

impl Wish {
    /// The one for a signal; `None` when the signal is none of ours.
    fn of(signal: c_int) -> Option<&'static Self> {
        match signal {
            SIGSEGV => WISHES.first(),
            SIGBUS => WISHES.get(1),
            _ => None,
        }
    }

    fn pack(handler: usize, flags: c_int) -> u64 {
        let mut wish = handler as u64 & !(WANTS_INFO | ONLY_ONCE);
        if flags & SA_SIGINFO != 0 {
            wish |= WANTS_INFO;
        }
        if flags & SA_RESETHAND != 0 {
            wish |= ONLY_ONCE;
        }
        wish
    }

    fn handler(wish: u64) -> usize {
        (wish & !(WANTS_INFO | ONLY_ONCE)) as usize
    }

    fn flags(wish: u64) -> c_int {
        let info = if wish & WANTS_INFO != 0 { SA_SIGINFO } else { 0 };
        let once = if wish & ONLY_ONCE != 0 { SA_RESETHAND } else { 0 };
        info | once
    }
}

/// Puts the handler in place, before the program has a handler of its own.
pub(crate) fn install() {
    for signal in [SIGSEGV, SIGBUS] {
        // SAFETY: all zeros is an action; both are here.
        unsafe {
            let mut now: sigaction = zeroed();
            if real::sigaction()(signal, ptr::null(), &raw mut now) == 0 {
                change(signal, &raw const now, ptr::null_mut());
            }
        }
    }
}

/// Whether `sigaction` of this signal is for [`change`].
pub(crate) fn is_ours(signal: c_int) -> bool {
    Wish::of(signal).is_some()
}

/// `sigaction` of one of the two signals.
///
/// # Safety
/// That of `sigaction`: both pointers are null or the program's.
pub(crate) unsafe fn change(signal: c_int, new: *const sigaction, old: *mut sigaction) -> c_int {
    let Some(wish) = Wish::of(signal) else { return -1 };
    let before = wish.0.load(Ordering::SeqCst);
    // SAFETY: all zeros is an action; the program's pointers are as good as the C library needs them.
    unsafe {
        let mut kept: sigaction = zeroed();
        let answer = if new.is_null() {
            real::sigaction()(signal, ptr::null(), &raw mut kept)
        } else {
            let mut action = *new;
            wish.0.store(Wish::pack(action.sa_sigaction, action.sa_flags), Ordering::SeqCst);
            action.sa_sigaction = noiommu_fault as *const () as usize;
            action.sa_flags = action.sa_flags & !SA_RESETHAND | SA_SIGINFO;
            real::sigaction()(signal, &raw const action, &raw mut kept)
        };
        if answer == 0 && !old.is_null() {
            if kept.sa_sigaction == noiommu_fault as *const () as usize {
                kept.sa_sigaction = Wish::handler(before);
                kept.sa_flags = kept.sa_flags & !SA_SIGINFO | Wish::flags(before);
            }
            *old = kept;
        }
        answer
    }
}

/// `signal` and its old form, which differ in their flags, of one of the two signals: the old handler, SIG_ERR as -1.
pub(crate) fn change_handler(signal: c_int, handler: usize, flags: c_int) -> usize {
    // SAFETY: all zeros is an action; both are here.
    unsafe {
        let mut new: sigaction = zeroed();
        let mut old: sigaction = zeroed();
        new.sa_sigaction = handler;
        new.sa_flags = flags;
        if change(signal, &raw const new, &raw mut old) == 0 { old.sa_sigaction } else { libc::SIG_ERR }
    }
}

/// What to do about a fault: 0 for going on, or the program's handler. Runs in the signal handler: only atomics
/// and system calls, but for an access of the program's own code that is served, which holds none of our locks.
extern "C" fn decide(signal: c_int, info: *mut siginfo_t, context: *mut c_void) -> usize {
    // SAFETY: the kernel gives both to a handler with SA_SIGINFO, and the context has a place for the program counter.
    let (code, counter, at) = unsafe {
        let counter = counter(context.cast());
        ((*info).si_code, counter, *counter)
    };
    // What is sent has no place; a fault of ours goes on behind the copy.
    if let Some(end) = copy::recovery(at).filter(|_| code > 0) {
        // SAFETY: as above.
        unsafe { *counter = end };
        return 0;
    }
    // SAFETY: a fault has an address.
    #[cfg(target_arch = "x86_64")]
    if signal == SIGBUS && code > 0 && touch::serve(unsafe { (*info).si_addr() } as u64, context.cast()) {
        return 0;
    }
    let Some(wish) = Wish::of(signal) else { return 0 };
    let wanted = wish.0.load(Ordering::SeqCst);
    match Wish::handler(wanted) {
        SIG_DFL => {}
        // The kernel ignores what was sent, never a fault.
        SIG_IGN if code <= 0 => return 0,
        SIG_IGN => {}
        handler => {
            if wanted & ONLY_ONCE != 0 {
                wish.0.store(Wish::pack(SIG_DFL, 0), Ordering::SeqCst);
            }
            // The program's handler runs under a mask that blocks this signal, and need not come back.
            thread::forget();
            return handler;
        }
    }
    // The default: the same signal once more, without a handler. It comes when this one returns and the mask is the old one.
    // SAFETY: an action that is here; the kernel's own siginfo.
    unsafe {
        let default: sigaction = zeroed();
        real::sigaction()(signal, &raw const default, ptr::null_mut());
        let process = system!(SYS_getpid);
        let thread = system!(SYS_gettid);
        system!(SYS_rt_tgsigqueueinfo, process, thread, signal, info);
    }
    0
}

/// Where the context of a signal keeps the program counter.
///
/// # Safety
/// `context` is the one that the kernel gave to a signal handler.
#[cfg(target_arch = "x86_64")]
unsafe fn counter(context: *mut ucontext_t) -> *mut usize {
    // SAFETY: the caller's promise.
    unsafe { (&raw mut (*context).uc_mcontext.gregs[libc::REG_RIP as usize]).cast() }
}

/// Where the context of a signal keeps the program counter.
///
/// # Safety
/// `context` is the one that the kernel gave to a signal handler.
#[cfg(target_arch = "aarch64")]
unsafe fn counter(context: *mut ucontext_t) -> *mut usize {
    // SAFETY: the caller's promise.
    unsafe { (&raw mut (*context).uc_mcontext.pc).cast() }
}
