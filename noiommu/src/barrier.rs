//! DMA barriers: order between ordinary memory that a device reads or writes and the accesses that tell it to.
//!
//! | | x86-64 | AArch64 |
//! |---|---|---|
//! | [`dma_write`] | stores are ordered; a compiler barrier | `dmb oshst` |
//! | [`dma_read`] | loads are ordered; a compiler barrier | `dmb oshld` |
//! | [`dma_full`] | `mfence` | `dmb osh` |
//! | [`doorbell`] | `sfence`: drains write-combining buffers too | `dsb st` |
//!
//! On x86-64 stores to ordinary memory and to uncached registers appear in program order, loads too; only a store
//! followed by a load may pass (Intel SDM volume 3, 10.2.2 "Memory Ordering in P6 and More Recent Processor Families").
//! A device counts as an observer in the outer shareable domain on ARM (ARM ARM B2.3, "Memory barriers"), and memory it
//! shares with the processor is coherent: non-coherent devices are not supported.

use std::sync::atomic::{Ordering, compiler_fence};

/// Between filling a descriptor or buffer and publishing it in memory that the device polls (an owner bit, an index).
#[inline]
pub fn dma_write() {
    compiler_fence(Ordering::Release);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier changes nothing but the order of accesses.
    unsafe {
        std::arch::asm!("dmb oshst", options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// Between seeing that the device has handed something over (an owner bit, a completion) and reading what it wrote.
#[inline]
pub fn dma_read() {
    compiler_fence(Ordering::Acquire);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier changes nothing but the order of accesses.
    unsafe {
        std::arch::asm!("dmb oshld", options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// Between a store and a later load that must not be served before the device can see the store.
#[inline]
pub fn dma_full() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier changes nothing but the order of accesses.
    unsafe {
        std::arch::asm!("dmb osh", options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "aarch64"))]
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// Between filling memory and the register write that makes the device look at it. [`Bar`](crate::Bar) writes do this
/// by themselves.
#[inline]
pub fn doorbell() {
    compiler_fence(Ordering::Release);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64; a fence changes nothing but the order of accesses.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier changes nothing but the order of accesses.
    unsafe {
        std::arch::asm!("dsb st", options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    std::sync::atomic::fence(Ordering::SeqCst);
}
