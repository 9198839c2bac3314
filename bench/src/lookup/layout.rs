//! The same loop at several places of the code.
//!
//! Where a loop of a few instructions lies in relation to the lines that the processor fetches moves its speed by 15 percent, and
//! each build puts it somewhere else. So each loop is compiled several times, at different distances from such a line, and rounds go
//! through them: the median is one over layouts, and not the luck of one build.

/// Distances from the beginning of a line of 64 bytes.
const DISTANCES: [usize; 4] = [0, 16, 32, 48];

/// Copies of a loop, and which one is next.
pub(super) struct Copies<F> {
    copies: [F; DISTANCES.len()],
    runs: usize,
    /// How many runs go by one copy.
    stay: usize,
}

impl<F: Copy> Copies<F> {
    /// Copies that change with every run.
    pub(super) fn quick(copies: [F; 4]) -> Self {
        Self { copies, runs: 0, stay: 1 }
    }

    /// Copies that change when the quick ones have been through: beside those, every pair of copies meets.
    pub(super) fn slow(copies: [F; 4]) -> Self {
        Self { copies, runs: 0, stay: DISTANCES.len() }
    }

    /// The copy whose turn it is.
    pub(super) fn take(&mut self) -> F {
        let copy = self.copies[self.runs / self.stay % DISTANCES.len()];
        self.runs += 1;
        copy
    }
}

/// The rounds in which every pair of copies meets.
pub(super) const PAIRS: usize = DISTANCES.len() * DISTANCES.len();

/// Puts what follows it `16 * PLACE` bytes behind the beginning of a line.
#[inline(always)]
pub(super) fn place<const PLACE: usize>() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: instructions that do nothing.
    unsafe {
        std::arch::asm!(".balign 64", ".fill {}, 1, 0x90", const PLACE * 16, options(nomem, nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: instructions that do nothing.
    unsafe {
        std::arch::asm!(".balign 64", ".rept {}", "nop", ".endr", const PLACE * 4, options(nomem, nostack, preserves_flags));
    }
}

/// A number of which the compiler knows nothing any more. Costs no instruction: `black_box` goes through memory, which takes as long
/// as the lookup.
#[inline(always)]
pub(super) fn opaque(number: u64) -> u64 {
    let mut number = number;
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {} */", inout(reg) number, options(nomem, nostack, preserves_flags)) };
    number
}

/// Four instances of a function that is generic over its place.
macro_rules! copies {
    ($kind:ident, $($name:ident)::+ $(, $kept:ty)*) => {
        crate::lookup::layout::Copies::$kind([
            $($name)::+::<0 $(, $kept)*>,
            $($name)::+::<1 $(, $kept)*>,
            $($name)::+::<2 $(, $kept)*>,
            $($name)::+::<3 $(, $kept)*>,
        ])
    };
}

pub(super) use copies;
