//! System calls without the C library: for code that runs where its names are somebody else's (a program that is served), or
//! where its variables are not there any more (a guardian).

use std::ffi::c_long;

use noiommu_core::Errno;

/// A call of the kernel, which answers a value or a negative error number.
///
/// # Safety
/// That of the system call.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub unsafe fn call(number: c_long, arguments: [usize; 6]) -> isize {
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
pub unsafe fn call(number: c_long, arguments: [usize; 6]) -> isize {
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
pub trait Argument {
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
        $crate::raw::call(libc::$number, $crate::raw::registers([$($crate::raw::Argument::register($argument)),*]))
    };
}
pub(crate) use system;

/// Up to six registers, the others 0.
#[inline(always)]
pub fn registers<const N: usize>(given: [usize; N]) -> [usize; 6] {
    let mut all = [0; 6];
    for (register, value) in all.iter_mut().zip(given) {
        *register = value;
    }
    all
}

/// The kernel's answer as a result.
pub fn result(answer: isize) -> Result<usize, Errno> {
    match i32::try_from(answer.wrapping_neg()).ok().and_then(Errno::from_raw) {
        Some(errno) => Err(errno),
        None => Ok(answer as usize),
    }
}
