//! System calls without the C library, whose names are ours here.

use std::ffi::{c_int, c_long};

use noiommu::Errno;

/// A call of the kernel, which answers a value or a negative error number.
///
/// # Safety
/// That of the system call.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn call(number: c_long, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let answer;
    // SAFETY: the kernel's calling convention: it changes rax, rcx, r11 and what the call itself is for.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => answer,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    answer
}

/// A call of the kernel, which answers a value or a negative error number.
///
/// # Safety
/// That of the system call.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(crate) unsafe fn call(number: c_long, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let answer;
    // SAFETY: the kernel's calling convention: it changes x0 and what the call itself is for.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a as isize => answer,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack)
        );
    }
    answer
}

/// The arguments of a system call as it wants them: numbers and pointers alike.
pub(crate) trait Argument {
    /// As a register holds it.
    fn register(self) -> usize;
}

macro_rules! numbers {
    ($($type:ty)*) => {$(
        impl Argument for $type {
            #[inline(always)]
            fn register(self) -> usize {
                self as usize
            }
        }
    )*};
}
numbers!(i32 u32 i64 u64 isize usize);

impl<T> Argument for *const T {
    #[inline(always)]
    fn register(self) -> usize {
        self as usize
    }
}

impl<T> Argument for *mut T {
    #[inline(always)]
    fn register(self) -> usize {
        self as usize
    }
}

/// `system!(SYS_name, arguments...)`: the call, in an unsafe context; the value, or a negative error number.
macro_rules! system {
    ($number:ident $(, $argument:expr)*) => {
        crate::raw::call(libc::$number, crate::raw::registers([$(crate::raw::Argument::register($argument)),*]))
    };
}
pub(crate) use system;

/// Up to six registers, the others 0.
#[inline(always)]
pub(crate) fn registers<const N: usize>(given: [usize; N]) -> [usize; 6] {
    let mut all = [0; 6];
    for (register, value) in all.iter_mut().zip(given) {
        *register = value;
    }
    all
}

/// The kernel's answer as a result.
pub(crate) fn result(answer: isize) -> Result<usize, Errno> {
    match i32::try_from(answer.wrapping_neg()).ok().and_then(Errno::from_raw) {
        Some(errno) => Err(errno),
        None => Ok(answer as usize),
    }
}

/// The kernel's answer as the C library gives it: -1 and `errno`.
#[inline(always)]
pub(crate) fn answer(answer: isize) -> c_long {
    if (-4095..0).contains(&answer) {
        set_errno(answer.wrapping_neg() as c_int);
        return -1;
    }
    answer as c_long
}

/// An error number by its number in the C headers.
pub(crate) const fn errno(number: c_int) -> Errno {
    match Errno::from_raw(number) {
        Some(errno) => errno,
        None => Errno::EIO,
    }
}

/// The calling thread's `errno`.
pub(crate) fn last_errno() -> c_int {
    // SAFETY: the place is the thread's own and always there.
    unsafe { *libc::__errno_location() }
}

/// Sets the calling thread's `errno`.
pub(crate) fn set_errno(number: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = number };
}

/// Closes a descriptor of our own.
pub(crate) fn close(fd: c_int) {
    // SAFETY: nobody else uses it.
    unsafe { system!(SYS_close, fd) };
}

/// Runs `work` while no signal is delivered to this thread, so that no handler of the program meets a lock that its own thread
/// holds.
pub(crate) fn without_signals<R>(work: impl FnOnce() -> R) -> R {
    const SIZE: usize = size_of::<u64>();
    let all = u64::MAX;
    let mut before = 0_u64;
    // SAFETY: both sets are here and of the kernel's size.
    let blocked =
        unsafe { system!(SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const all, &raw mut before, SIZE) };
    let result = work();
    if blocked == 0 {
        // SAFETY: as above.
        unsafe {
            system!(
                SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const before,
                std::ptr::null_mut::<u64>(),
                SIZE
            )
        };
    }
    result
}
