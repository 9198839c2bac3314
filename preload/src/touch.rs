//! Registers of simulated devices that the program has mapped: it touches them, which faults, and we do what the instruction
//! would have done.
//!
//! Only plain moves between a register of the processor and memory are understood (what compilers make of a volatile access, or
//! of an atomic one without a read in it); any other instruction there ends in SIGBUS.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, chapters 2 and 4.

use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::ucontext_t;
use noiommu::serve::Touch;

use crate::raw::{result, system};
use crate::{gate, maps};

/// An instruction that moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Move {
    /// Bytes of the instruction.
    length: usize,
    /// Bytes that are moved.
    width: u8,
    to: To,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum To {
    /// To memory: this value.
    Memory(u64),
    /// To a register.
    Register {
        number: u8,
        /// Bytes of the register that change; 4 clear the upper half.
        width: u8,
        /// The value is extended with its sign to that width.
        signed: bool,
        /// The second byte of the register, not the first.
        second: bool,
    },
}

/// Does what the program's instruction wanted to do at `address`; tells whether it is done.
pub(crate) fn serve(address: u64, context: *mut ucontext_t) -> bool {
    if !maps::may_be_in(address, 1) || gate::is_inside() {
        return false;
    }
    let Some((registers, counter)) = registers(context) else { return false };
    // SAFETY: the instruction that is being executed is there, byte by byte up to its end.
    let byte = |at: usize| unsafe { (*counter as *const u8).add(at).read() };
    let Some(found) = decode(byte, |number| registers.get(number)) else { return false };
    let value = match found.to {
        To::Memory(value) => Some(value),
        To::Register { .. } => None,
    };
    let mut call = Call { touch: Touch { address, width: found.width, value }, touched: None };
    on_own_stack(&mut call);
    let Some(value) = call.touched else { return false };
    if let To::Register { number, width, signed, second } = found.to {
        let before = registers.get(number);
        registers.set(number, merged(before, value, found.width, width, signed, second));
    }
    // SAFETY: the place of the program counter in the context.
    unsafe { *counter += found.length };
    true
}

/// What is to be done on another stack.
struct Call {
    touch: Touch,
    touched: Option<u64>,
}

extern "C" fn carry_out(call: *mut c_void) {
    // SAFETY: `on_own_stack` hands over its own call.
    let call = unsafe { &mut *call.cast::<Call>() };
    call.touched = gate::engine(|| {
        let mapped = maps::change(|maps| maps.at(call.touch.address).cloned());
        mapped.as_ref().and_then(|kept| kept.file()).and_then(|file| file.touch(call.touch))
    });
}

std::arch::global_asm!(
    ".p2align 4",
    ".type noiommu_on_stack, @function",
    ".globl noiommu_on_stack",
    ".hidden noiommu_on_stack",
    "noiommu_on_stack:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_offset rbp, -16",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "mov rsp, rdi",
    "mov rdi, rsi",
    "call rdx",
    "mov rsp, rbp",
    "pop rbp",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_endproc",
    ".size noiommu_on_stack, . - noiommu_on_stack",
);

unsafe extern "C" {
    /// Calls `work(argument)` on the stack that ends at `top`.
    fn noiommu_on_stack(top: usize, argument: *mut c_void, work: extern "C" fn(*mut c_void));
}

/// Bytes of a stack of ours.
const STACK: usize = 256 << 10;
/// A stack that nobody is on, or 0.
static SPARE: AtomicUsize = AtomicUsize::new(0);

/// Carries a call out on a stack of ours: the program's handlers may have a small one, and the engine is not made for that.
fn on_own_stack(call: &mut Call) {
    let spare = SPARE.swap(0, Ordering::AcqRel);
    let stack = if spare != 0 {
        spare
    } else {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        match result(unsafe { system!(SYS_mmap, 0, STACK, protection, flags, -1, 0) }) {
            Ok(stack) => stack,
            Err(_) => return,
        }
    };
    // SAFETY: the stack is this thread's alone while it is out of `SPARE`, and its end is aligned; the call is here.
    unsafe { noiommu_on_stack(stack + STACK, (&raw mut *call).cast(), carry_out) };
    if SPARE.compare_exchange(0, stack, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        // SAFETY: made above or before, and nobody is on it.
        unsafe { system!(SYS_munmap, stack, STACK) };
    }
}

/// A register after `from` bytes of `value` have been moved to it.
fn merged(before: u64, value: u64, from: u8, width: u8, signed: bool, second: bool) -> u64 {
    let mask = |bytes: u8| if bytes == 8 { u64::MAX } else { (1 << (bytes * 8)) - 1 };
    let value = value & mask(from);
    let extended = if signed {
        let unused = 64 - u32::from(from) * 8;
        ((value << unused).cast_signed() >> unused).cast_unsigned()
    } else {
        value
    };
    match (width, second) {
        (8, _) => extended,
        (4, _) => extended & mask(4),
        (1, true) => before & !0xff00 | (extended & 0xff) << 8,
        _ => before & !mask(width) | extended & mask(width),
    }
}

/// Understands an instruction.
fn decode(byte: impl Fn(usize) -> u8, register: impl Fn(u8) -> u64) -> Option<Move> {
    let mut at = 0;
    let mut short = false;
    if byte(at) == 0x66 {
        short = true;
        at += 1;
    }
    let mut rex = None;
    if byte(at) & 0xf0 == 0x40 {
        rex = Some(byte(at));
        at += 1;
    }
    let has = |bit: u8| rex.is_some_and(|rex| rex & bit != 0);
    let wide = match (has(8), short) {
        (true, _) => 8,
        (false, true) => 2,
        (false, false) => 4,
    };
    let mut opcode = u16::from(byte(at));
    at += 1;
    if opcode == 0x0f {
        opcode = 0x0f00 | u16::from(byte(at));
        at += 1;
    }
    // The register, and how memory is addressed: only its length matters, the address is known.
    let modes = byte(at);
    at += 1;
    if modes >> 6 == 3 {
        return None;
    }
    let number = modes >> 3 & 7 | if has(4) { 8 } else { 0 };
    let mut base = modes & 7;
    if base == 4 {
        base = byte(at) & 7;
        at += 1;
    }
    at += match modes >> 6 {
        0 if base == 5 => 4,
        0 => 0,
        1 => 1,
        _ => 4,
    };
    // Without a REX prefix, the numbers 4 to 7 of a byte are the second bytes of the first four registers.
    let second = rex.is_none() && (4..8).contains(&number);
    let (byte_number, byte_second) = if second { (number - 4, true) } else { (number, false) };
    let load = |width, to, signed| {
        let to = To::Register { number, width: to, signed, second: false };
        Some(Move { length: at, width, to })
    };
    match opcode {
        0x88 => {
            let value = register(byte_number) >> if byte_second { 8 } else { 0 };
            Some(Move { length: at, width: 1, to: To::Memory(value & 0xff) })
        }
        0x89 => {
            let value = register(number);
            Some(Move { length: at, width: wide, to: To::Memory(cut(value, wide)) })
        }
        0x8a => {
            let to = To::Register { number: byte_number, width: 1, signed: false, second: byte_second };
            Some(Move { length: at, width: 1, to })
        }
        0x8b => load(wide, wide, false),
        0xc6 if number & 7 == 0 => {
            let value = byte(at).into();
            Some(Move { length: at + 1, width: 1, to: To::Memory(value) })
        }
        0xc7 if number & 7 == 0 => {
            // Of 4 bytes for 8, extended with its sign.
            let bytes = wide.min(4);
            let immediate =
                (0..usize::from(bytes)).rev().fold(0u64, |value, i| value << 8 | u64::from(byte(at + i)));
            let value = if wide == 8 { (immediate as u32).cast_signed() as i64 as u64 } else { immediate };
            Some(Move { length: at + usize::from(bytes), width: wide, to: To::Memory(value) })
        }
        0x63 if wide == 8 => load(4, 8, true),
        0x0fb6 => load(1, wide, false),
        0x0fb7 => load(2, wide, false),
        0x0fbe => load(1, wide, true),
        0x0fbf => load(2, wide, true),
        _ => None,
    }
}

fn cut(value: u64, width: u8) -> u64 {
    if width == 8 { value } else { value & ((1 << (width * 8)) - 1) }
}

/// The processor's registers in the context of a signal, by their numbers in instructions.
#[derive(Clone, Copy)]
struct Registers(*mut libc::greg_t);

const ORDER: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

impl Registers {
    fn place(self, number: u8) -> Option<*mut libc::greg_t> {
        let index = *ORDER.get(usize::from(number))?;
        // SAFETY: the array of registers has all of these.
        Some(unsafe { self.0.add(index as usize) })
    }

    fn get(self, number: u8) -> u64 {
        // SAFETY: a place in the context, which is there while its signal is handled.
        self.place(number).map_or(0, |place| unsafe { place.read() }.cast_unsigned())
    }

    fn set(self, number: u8, value: u64) {
        if let Some(place) = self.place(number) {
            // SAFETY: as above.
            unsafe { place.write(value.cast_signed()) };
        }
    }
}

/// The registers and the place of the program counter.
fn registers(context: *mut ucontext_t) -> Option<(Registers, *mut usize)> {
    if context.is_null() {
        return None;
    }
    // SAFETY: the kernel gave it to a signal handler.
    let all = unsafe { (&raw mut (*context).uc_mcontext.gregs).cast::<libc::greg_t>() };
    // SAFETY: the array has the program counter.
    Some((Registers(all), unsafe { all.add(libc::REG_RIP as usize) }.cast()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(code: &[u8]) -> Option<Move> {
        decode(|at| code.get(at).copied().unwrap_or(0xcc), |number| 0x1122_3344_5566_7700 + u64::from(number))
    }

    fn store(length: usize, width: u8, value: u64) -> Option<Move> {
        Some(Move { length, width, to: To::Memory(value) })
    }

    fn load(length: usize, width: u8, number: u8, to: u8, signed: bool) -> Option<Move> {
        Some(Move { length, width, to: To::Register { number, width: to, signed, second: false } })
    }

    #[test]
    fn stores() {
        // mov [rdi], eax; mov [rdi+0x98], r9d; mov [rax+rcx*8+0x10], rdx; mov [rip+...], cx
        assert_eq!(decoded(&[0x89, 0x07]), store(2, 4, 0x5566_7700));
        assert_eq!(decoded(&[0x44, 0x89, 0x8f, 0x98, 0, 0, 0]), store(7, 4, 0x5566_7709));
        assert_eq!(decoded(&[0x48, 0x89, 0x54, 0xc8, 0x10]), store(5, 8, 0x1122_3344_5566_7702));
        assert_eq!(decoded(&[0x66, 0x89, 0x0d, 1, 2, 3, 4]), store(7, 2, 0x7701));
        // mov [rdi], sil; mov [rdi], dh; mov [r12], r8b; mov [rbp+0], al
        assert_eq!(decoded(&[0x40, 0x88, 0x37]), store(3, 1, 0x06));
        assert_eq!(decoded(&[0x88, 0x37]), store(2, 1, 0x77));
        assert_eq!(decoded(&[0x45, 0x88, 0x04, 0x24]), store(4, 1, 0x08));
        assert_eq!(decoded(&[0x88, 0x45, 0x00]), store(3, 1, 0x00));
        // Immediates: byte, word, dword, and one extended to a qword.
        assert_eq!(decoded(&[0xc6, 0x07, 0x5a]), store(3, 1, 0x5a));
        assert_eq!(decoded(&[0x66, 0xc7, 0x07, 0x34, 0x12]), store(5, 2, 0x1234));
        assert_eq!(decoded(&[0xc7, 0x47, 0x08, 0x78, 0x56, 0x34, 0x12]), store(7, 4, 0x1234_5678));
        assert_eq!(decoded(&[0x48, 0xc7, 0x07, 0xff, 0xff, 0xff, 0xff]), store(7, 8, u64::MAX));
    }

    #[test]
    fn loads() {
        // mov eax, [rdi]; mov r10, [rsp+rbx]; mov si, [rbp*4+disp32]; mov bh, [rdi]; mov bpl, [rdi]
        assert_eq!(decoded(&[0x8b, 0x07]), load(2, 4, 0, 4, false));
        assert_eq!(decoded(&[0x4c, 0x8b, 0x14, 0x1c]), load(4, 8, 10, 8, false));
        assert_eq!(decoded(&[0x66, 0x8b, 0x34, 0xad, 0, 0, 0, 0]), load(8, 2, 6, 2, false));
        let second = To::Register { number: 3, width: 1, signed: false, second: true };
        assert_eq!(decoded(&[0x8a, 0x3f]), Some(Move { length: 2, width: 1, to: second }));
        assert_eq!(decoded(&[0x40, 0x8a, 0x2f]), load(3, 1, 5, 1, false));
        // movzx eax, byte; movzx r8, word; movsx cx, byte; movsx rdx, word; movsxd rax, dword
        assert_eq!(decoded(&[0x0f, 0xb6, 0x07]), load(3, 1, 0, 4, false));
        assert_eq!(decoded(&[0x4c, 0x0f, 0xb7, 0x07]), load(4, 2, 8, 8, false));
        assert_eq!(decoded(&[0x66, 0x0f, 0xbe, 0x0f]), load(4, 1, 1, 2, true));
        assert_eq!(decoded(&[0x48, 0x0f, 0xbf, 0x17]), load(4, 2, 2, 8, true));
        assert_eq!(decoded(&[0x48, 0x63, 0x07]), load(3, 4, 0, 8, true));
    }

    #[test]
    fn others_are_not_understood() {
        // Between registers; add, cmp, xchg, lock, vector moves, string moves, push.
        for code in [
            &[0x89, 0xc7][..],
            &[0x01, 0x07],
            &[0x83, 0x3f, 0x01],
            &[0x87, 0x07],
            &[0xf0, 0x89, 0x07],
            &[0x0f, 0x10, 0x07],
            &[0xf3, 0xa4],
            &[0xff, 0x37],
            &[0xc7, 0x7f, 0x08, 0, 0, 0, 0],
        ] {
            assert_eq!(decoded(code), None, "{code:02x?}");
        }
    }

    #[test]
    fn registers_after_loads() {
        let before = 0xaaaa_bbbb_cccc_dddd;
        assert_eq!(merged(before, 0x1_8765_4321, 4, 4, false, false), 0x8765_4321);
        assert_eq!(merged(before, 0x8765_4321, 4, 8, true, false), 0xffff_ffff_8765_4321);
        assert_eq!(merged(before, 0x1234, 2, 2, false, false), 0xaaaa_bbbb_cccc_1234);
        assert_eq!(merged(before, 0x80, 1, 2, true, false), 0xaaaa_bbbb_cccc_ff80);
        assert_eq!(merged(before, 0x12, 1, 1, false, false), 0xaaaa_bbbb_cccc_dd12);
        assert_eq!(merged(before, 0x12, 1, 1, false, true), 0xaaaa_bbbb_cccc_12dd);
        assert_eq!(merged(before, u64::MAX, 8, 8, false, false), u64::MAX);
    }
}
