//! The program's memory, reached by addresses that the program names: EFAULT where there is none, and no system call for it.
//!
//! The bytes are moved by one routine of a few instructions. When one of them faults, the handler of SIGSEGV and SIGBUS finds the
//! program counter in it and lets it go on byte by byte, or at its end, where it answers how many bytes are left (see `fault.rs`). A thread that
//! blocks these signals would be killed by the fault instead; so the first access of each call looks whether they are, and has
//! them unblocked until the call ends. (A SIGSEGV that another process sent and that waits is then delivered early.)

use std::cell::Cell;

use noiommu::Errno;
use noiommu_core::UserMemory;

use crate::raw::system;

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    // to: rdi, from: rsi, length: rdx. Words, then bytes; all that moves the counters comes behind the accesses of a step, so that
    // after a fault the step can be done again, byte by byte, up to the byte that faults. (`rep movsb` takes tens of cycles to begin.)
    ".p2align 4",
    ".type noiommu_copy, @function",
    ".globl noiommu_copy",
    ".hidden noiommu_copy",
    "noiommu_copy:",
    ".cfi_startproc",
    "cmp rdx, 8",
    "jb noiommu_copy_bytes",
    ".globl noiommu_copy_begin",
    ".hidden noiommu_copy_begin",
    "noiommu_copy_begin:",
    "2:",
    "mov rax, [rsi]",
    "mov [rdi], rax",
    "add rsi, 8",
    "add rdi, 8",
    "sub rdx, 8",
    "cmp rdx, 8",
    "jae 2b",
    ".globl noiommu_copy_bytes",
    ".hidden noiommu_copy_bytes",
    "noiommu_copy_bytes:",
    "test rdx, rdx",
    "jz noiommu_copy_end",
    "3:",
    "movzx eax, byte ptr [rsi]",
    "mov [rdi], al",
    "inc rsi",
    "inc rdi",
    "dec rdx",
    "jnz 3b",
    ".globl noiommu_copy_end",
    ".hidden noiommu_copy_end",
    "noiommu_copy_end:",
    "mov rax, rdx",
    "ret",
    ".cfi_endproc",
    ".size noiommu_copy, . - noiommu_copy",
    // An entry for no instruction at all, so that there is a list of them where nothing is moved in line.
    ".pushsection noiommu_in_line,\"aR\",@progbits",
    ".p2align 2",
    ".long 0",
    ".long -4",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    // to: x0, from: x1, length: x2. As above.
    ".p2align 4",
    ".type noiommu_copy, %function",
    ".globl noiommu_copy",
    ".hidden noiommu_copy",
    "noiommu_copy:",
    ".cfi_startproc",
    "cmp x2, #8",
    "b.lo noiommu_copy_bytes",
    ".globl noiommu_copy_begin",
    ".hidden noiommu_copy_begin",
    "noiommu_copy_begin:",
    "2:",
    "ldr x3, [x1]",
    "str x3, [x0]",
    "add x1, x1, #8",
    "add x0, x0, #8",
    "sub x2, x2, #8",
    "cmp x2, #8",
    "b.hs 2b",
    ".globl noiommu_copy_bytes",
    ".hidden noiommu_copy_bytes",
    "noiommu_copy_bytes:",
    "cbz x2, noiommu_copy_end",
    "3:",
    "ldrb w3, [x1]",
    "strb w3, [x0]",
    "add x1, x1, #1",
    "add x0, x0, #1",
    "subs x2, x2, #1",
    "b.ne 3b",
    ".globl noiommu_copy_end",
    ".hidden noiommu_copy_end",
    "noiommu_copy_end:",
    "mov x0, x2",
    "ret",
    ".cfi_endproc",
    ".size noiommu_copy, . - noiommu_copy",
);

unsafe extern "C" {
    /// Moves `length` bytes and answers how many are left, 0 unless an access faulted.
    fn noiommu_copy(to: *mut u8, from: *const u8, length: usize) -> usize;
    static noiommu_copy_begin: u8;
    static noiommu_copy_bytes: u8;
    static noiommu_copy_end: u8;
}

/// A place of [`read_words`] or [`write_words`], as the linker has gathered them: distances from each field itself.
#[cfg(target_arch = "x86_64")]
#[repr(C)]
struct InLine {
    /// The first instruction that may fault.
    begin: i32,
    /// Behind the last one: where to go on.
    end: i32,
}

#[cfg(target_arch = "x86_64")]
unsafe extern "C" {
    static __start_noiommu_in_line: InLine;
    static __stop_noiommu_in_line: InLine;
}

#[cfg(target_arch = "x86_64")]
fn recovery_in_line(counter: usize) -> Option<usize> {
    let (mut place, stop) = (&raw const __start_noiommu_in_line, &raw const __stop_noiommu_in_line);
    while place < stop {
        // SAFETY: between the two are whole entries, which nobody writes.
        let (begin, end) = unsafe { (&raw const (*place).begin, &raw const (*place).end) };
        // SAFETY: as above.
        let at = |field: *const i32| field.addr().wrapping_add_signed(unsafe { field.read() } as isize);
        if (at(begin)..at(end)).contains(&counter) {
            return Some(at(end));
        }
        place = place.wrapping_add(1);
    }
    None
}

/// Where to go on when the instruction at `counter` has faulted; `None` when it is none of the copy's.
pub(crate) fn recovery(counter: usize) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    if let Some(end) = recovery_in_line(counter) {
        return Some(end);
    }
    let begin = &raw const noiommu_copy_begin as usize;
    let bytes = &raw const noiommu_copy_bytes as usize;
    let end = &raw const noiommu_copy_end as usize;
    if (begin..bytes).contains(&counter) {
        // The word byte by byte: those before the bad address are moved.
        return Some(bytes);
    }
    (bytes..end).contains(&counter).then_some(end)
}

/// Moves `length` bytes; whether all could be. Only where faults [arrive](faults_arrive).
///
/// # Safety
/// Where there is memory at `to`, it may be written.
#[inline(always)]
pub(crate) unsafe fn bytes(to: *mut u8, from: *const u8, length: usize) -> bool {
    // SAFETY: the caller's promise; where there is no memory, the fault is an answer.
    unsafe { noiommu_copy(to, from, length) == 0 }
}

/// Moves the words of a small structure without a call, where a few nanoseconds count. `$done` is 0 unless all are moved: a fault
/// in between goes on at the end, which is known by an entry among those of its section. ("R": the linker keeps it.)
#[cfg(target_arch = "x86_64")]
macro_rules! in_line {
    ($($move:literal),* ; $($operand:tt)*) => {
        std::arch::asm!(
            "xor {done:e}, {done:e}",
            "2:",
            $($move,)*
            "mov {done:e}, 1",
            "3:",
            ".pushsection noiommu_in_line,\"aR\",@progbits",
            ".p2align 2",
            ".long 2b - .",
            ".long 3b - .",
            ".popsection",
            $($operand)*
            options(nostack),
        )
    };
}

/// The words at `address`; `None` where some of them cannot be read. Only where faults [arrive](faults_arrive).
///
/// # Safety
/// Faults arrive, or there is memory.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn read_words(address: usize) -> Option<[u64; 5]> {
    let (a, b, c, d, e): (u64, u64, u64, u64, u64);
    let done: u32;
    // SAFETY: reading anywhere is no harm, as a fault is an answer.
    unsafe {
        in_line!(
            "mov {a}, [{from}]", "mov {b}, [{from} + 8]", "mov {c}, [{from} + 16]", "mov {d}, [{from} + 24]",
            "mov {e}, [{from} + 32]";
            done = out(reg) done, from = in(reg) address,
            a = out(reg) a, b = out(reg) b, c = out(reg) c, d = out(reg) d, e = out(reg) e,
        );
    }
    (done != 0).then_some([a, b, c, d, e])
}

/// Writes the words to `address`; whether all could be. Only where faults [arrive](faults_arrive).
///
/// # Safety
/// As for [`read_words`]; where there is memory, it may be written.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) unsafe fn write_words(address: usize, [a, b, c, d, e]: [u64; 5]) -> bool {
    let done: u32;
    // SAFETY: the caller's promise; where there is no memory, the fault is an answer.
    unsafe {
        in_line!(
            "mov [{to}], {a}", "mov [{to} + 8], {b}", "mov [{to} + 16], {c}", "mov [{to} + 24], {d}",
            "mov [{to} + 32], {e}";
            done = out(reg) done, to = in(reg) address,
            a = in(reg) a, b = in(reg) b, c = in(reg) c, d = in(reg) d, e = in(reg) e,
        );
    }
    done != 0
}

/// The words at `address`; `None` where some of them cannot be read. Only where faults [arrive](faults_arrive).
///
/// # Safety
/// Faults arrive, or there is memory.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(crate) unsafe fn read_words(address: usize) -> Option<[u64; 5]> {
    let mut words = [0; 5];
    // SAFETY: the array takes that many bytes; the caller's promise.
    unsafe { bytes((&raw mut words).cast(), address as *const u8, size_of_val(&words)) }.then_some(words)
}

/// Writes the words to `address`; whether all could be. Only where faults [arrive](faults_arrive).
///
/// # Safety
/// As for [`read_words`]; where there is memory, it may be written.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(crate) unsafe fn write_words(address: usize, words: [u64; 5]) -> bool {
    // SAFETY: the array has that many bytes; the caller's promise.
    unsafe { bytes(address as *mut u8, (&raw const words).cast(), size_of_val(&words)) }
}

/// Whether faults of this thread arrive at their handler.
pub(crate) fn faults_arrive() -> bool {
    mask() & FAULTS == 0
}

/// The thread's signal mask.
fn mask() -> u64 {
    let mut mask = 0_u64;
    // SAFETY: the set is here and of the kernel's size; a null set asks only.
    unsafe { system!(SYS_rt_sigprocmask, 0, std::ptr::null::<u64>(), &raw mut mask, size_of::<u64>()) };
    mask
}

const FAULTS: u64 = (1 << (libc::SIGSEGV - 1)) | (1 << (libc::SIGBUS - 1));

/// The memory of the calling program, for the time of one call.
pub(crate) struct Memory {
    /// The thread's signal mask before its first access, once there was one.
    mask: Cell<Option<u64>>,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self { mask: Cell::new(None) }
    }

    /// Has the faults of this thread arrive.
    fn unblock_faults(&self) {
        if self.mask.get().is_some() {
            return;
        }
        let mask = mask();
        if mask & FAULTS != 0 {
            let faults = FAULTS;
            // SAFETY: the set is here and of the kernel's size.
            unsafe {
                system!(
                    SYS_rt_sigprocmask,
                    libc::SIG_UNBLOCK,
                    &raw const faults,
                    std::ptr::null_mut::<u64>(),
                    size_of::<u64>()
                )
            };
        }
        self.mask.set(Some(mask));
    }

    /// The string at `address`, without its NUL, in `into`.
    ///
    /// # Errors
    /// EFAULT; ENAMETOOLONG when it does not fit.
    pub(crate) fn string<'a>(&self, address: u64, into: &'a mut [u8]) -> Result<&'a [u8], Errno> {
        self.unblock_faults();
        let length = string(address, into).ok_or(Errno::EFAULT)?;
        if length == into.len() {
            return Err(crate::raw::errno(libc::ENAMETOOLONG));
        }
        Ok(into.get(..length).unwrap_or_default())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(mask) = self.mask.get().filter(|mask| mask & FAULTS != 0) {
            // SAFETY: as in `unblock_faults`.
            unsafe {
                system!(
                    SYS_rt_sigprocmask,
                    libc::SIG_SETMASK,
                    &raw const mask,
                    std::ptr::null_mut::<u64>(),
                    size_of::<u64>()
                )
            };
        }
    }
}

impl UserMemory for Memory {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.unblock_faults();
        // SAFETY: `into` takes that many bytes; reading anywhere is no harm, as a fault is an answer.
        let whole = unsafe { bytes(into.as_mut_ptr(), address as *const u8, into.len()) };
        if whole { Ok(()) } else { Err(Errno::EFAULT) }
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        self.unblock_faults();
        // SAFETY: `from` has that many bytes; the place is the one that the program gave to be written to, and where there is none,
        // the fault is an answer.
        let whole = unsafe { bytes(address as *mut u8, from.as_ptr(), from.len()) };
        if whole { Ok(()) } else { Err(Errno::EFAULT) }
    }
}

/// Copies the string at `address` until its NUL or until `into` is full; its length, `None` for a bad address.
///
/// Read in small pieces that cross no page, so that nothing behind the string is needed. Does not look whether faults are blocked.
pub(crate) fn string(address: u64, into: &mut [u8]) -> Option<usize> {
    const PIECE: usize = 64;
    let mut length = 0;
    while length < into.len() {
        let from = (address as usize).wrapping_add(length);
        let rest = into.get_mut(length..)?;
        let piece = rest.len().min(PIECE - from % PIECE);
        // SAFETY: `rest` takes that many bytes; as above.
        if !unsafe { bytes(rest.as_mut_ptr(), from as *const u8, piece) } {
            return None;
        }
        if let Some(end) = rest.get(..piece)?.iter().position(|&byte| byte == 0) {
            return Some(length + end);
        }
        length += piece;
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_copies() {
        let memory = Memory::new();
        let from: Vec<u8> = (0..200).collect();
        let mut into = vec![0; 200];
        assert_eq!(memory.read(from.as_ptr() as u64, &mut into), Ok(()));
        assert_eq!(from, into);
        into.reverse();
        let mut back = [0_u8; 200];
        assert_eq!(memory.write(back.as_mut_ptr() as u64, &into), Ok(()));
        assert_eq!(back.as_slice(), into);
        assert_eq!(memory.read(1, &mut []), Ok(()), "nothing of nowhere");
    }

    #[test]
    fn words_there_and_back() {
        let words = [1, u64::MAX, 0, 0x0123_4567_89ab_cdef, 5];
        let mut place = [7; 7];
        // SAFETY: the memory is here.
        unsafe {
            assert!(write_words((&raw mut place[1]).addr(), words));
            assert_eq!(read_words((&raw const place[1]).addr()), Some(words));
        }
        assert_eq!((place[0], place[6]), (7, 7));
        assert_eq!(place[1..6], words);
    }

    #[test]
    fn strings_of_all_lengths() {
        let memory = Memory::new();
        let text = [b'x'; 300];
        for length in 0..200 {
            let mut from = text;
            from[length] = 0;
            for begin in [0, length / 2] {
                let mut into = [0xff; 200];
                let found = memory.string(from[begin..].as_ptr() as u64, &mut into);
                assert_eq!(found, Ok(&text[begin..length]), "{begin}..{length}");
            }
        }
        let mut into = [0; 200];
        let too_long = Err(crate::raw::errno(libc::ENAMETOOLONG));
        assert_eq!(memory.string(text.as_ptr() as u64, &mut into), too_long);
    }

    #[test]
    fn only_the_copy_recovers() {
        let begin = &raw const noiommu_copy_begin as usize;
        let bytes = &raw const noiommu_copy_bytes as usize;
        let end = &raw const noiommu_copy_end as usize;
        assert!(begin < bytes && bytes < end);
        assert_eq!((recovery(begin), recovery(bytes - 1)), (Some(bytes), Some(bytes)));
        assert_eq!((recovery(bytes), recovery(end - 1)), (Some(end), Some(end)));
        assert_eq!((recovery(begin - 1), recovery(end), recovery(0)), (None, None, None));
    }
}
