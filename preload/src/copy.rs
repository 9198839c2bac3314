//! The program's memory, reached by addresses that the program names: EFAULT where there is none, and no system call for it.
//!
//! The bytes are moved by one routine of a few instructions. When one of them faults, the handler of SIGSEGV and SIGBUS finds the
//! program counter in it and lets it go on at its end, where it answers how many bytes are left (see `fault.rs`). A thread that
//! blocks these signals would be killed by the fault instead; so the first access of each call looks whether they are, and has
//! them unblocked until the call ends. (A SIGSEGV that another process sent and that waits is then delivered early.)

use std::cell::Cell;

use noiommu::Errno;
use noiommu_core::UserMemory;

use crate::raw::system;

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    // to: rdi, from: rsi, length: rdx. An interrupted `rep movsb` has what is left in rcx.
    ".p2align 4",
    ".type noiommu_copy, @function",
    ".globl noiommu_copy",
    ".hidden noiommu_copy",
    "noiommu_copy:",
    ".cfi_startproc",
    "mov rcx, rdx",
    ".globl noiommu_copy_begin",
    ".hidden noiommu_copy_begin",
    "noiommu_copy_begin:",
    "rep movsb",
    ".globl noiommu_copy_end",
    ".hidden noiommu_copy_end",
    "noiommu_copy_end:",
    "mov rax, rcx",
    "ret",
    ".cfi_endproc",
    ".size noiommu_copy, . - noiommu_copy",
);

#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    // to: x0, from: x1, length: x2, which counts down behind each byte that has arrived.
    ".p2align 4",
    ".type noiommu_copy, %function",
    ".globl noiommu_copy",
    ".hidden noiommu_copy",
    "noiommu_copy:",
    ".cfi_startproc",
    "cbz x2, noiommu_copy_end",
    ".globl noiommu_copy_begin",
    ".hidden noiommu_copy_begin",
    "noiommu_copy_begin:",
    "ldrb w3, [x1], #1",
    "strb w3, [x0], #1",
    "subs x2, x2, #1",
    "b.ne noiommu_copy_begin",
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
    static noiommu_copy_end: u8;
}

/// Where to go on when the instruction at `counter` has faulted; `None` when it is none of the copy's.
pub(crate) fn recovery(counter: usize) -> Option<usize> {
    let begin = &raw const noiommu_copy_begin as usize;
    let end = &raw const noiommu_copy_end as usize;
    (begin..end).contains(&counter).then_some(end)
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
        let mut mask = 0_u64;
        // SAFETY: the sets are here and of the kernel's size; a null set asks only.
        unsafe {
            system!(SYS_rt_sigprocmask, 0, std::ptr::null::<u64>(), &raw mut mask, size_of::<u64>());
            if mask & FAULTS != 0 {
                let faults = FAULTS;
                system!(
                    SYS_rt_sigprocmask,
                    libc::SIG_UNBLOCK,
                    &raw const faults,
                    std::ptr::null_mut::<u64>(),
                    size_of::<u64>()
                );
            }
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
        let left = unsafe { noiommu_copy(into.as_mut_ptr(), address as *const u8, into.len()) };
        if left == 0 { Ok(()) } else { Err(Errno::EFAULT) }
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        self.unblock_faults();
        // SAFETY: `from` has that many bytes; the place is the one that the program gave to be written to, and where there is none,
        // the fault is an answer.
        let left = unsafe { noiommu_copy(address as *mut u8, from.as_ptr(), from.len()) };
        if left == 0 { Ok(()) } else { Err(Errno::EFAULT) }
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
        if unsafe { noiommu_copy(rest.as_mut_ptr(), from as *const u8, piece) } != 0 {
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
        let end = &raw const noiommu_copy_end as usize;
        assert!(begin < end);
        assert_eq!(recovery(begin), Some(end));
        assert_eq!((recovery(begin - 1), recovery(end), recovery(0)), (None, None, None));
    }
}
