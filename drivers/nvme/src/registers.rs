//! The controller's registers (NVM Express Base Specification 1.4, 3.1), which are in BAR 0.

use std::time::Duration;

use noiommu::{ReadOnly, ReadWrite, Register, WriteOnly};

use crate::error::{Error, Result};

/// Which BAR they are in.
pub(crate) const BAR: u8 = 0;

/// 3.1.1, capabilities.
pub(crate) const CAP: Register<u64, ReadOnly> = Register::at(0x00);
/// 3.1.2, version.
pub(crate) const VS: Register<u32, ReadOnly> = Register::at(0x08);
/// 3.1.3, interrupts that are masked. Not to be touched with MSI-X.
pub(crate) const INTMS: Register<u32, ReadWrite> = Register::at(0x0c);
/// 3.1.4, the same bits: what is written is let through.
pub(crate) const INTMC: Register<u32, ReadWrite> = Register::at(0x10);
/// 3.1.5, configuration.
pub(crate) const CC: Register<u32, ReadWrite> = Register::at(0x14);
/// 3.1.6, status.
pub(crate) const CSTS: Register<u32, ReadOnly> = Register::at(0x1c);
/// 3.1.8, entries of the admin queues, less one: completion in the upper half.
pub(crate) const AQA: Register<u32, ReadWrite> = Register::at(0x24);
/// 3.1.9, where the admin submission queue is.
pub(crate) const ASQ: Register<u64, ReadWrite> = Register::at(0x28);
/// 3.1.10, where the admin completion queue is.
pub(crate) const ACQ: Register<u64, ReadWrite> = Register::at(0x30);
/// 3.1.24 and 3.1.25, doorbells: for each queue from 0 on its submission tail, then its completion head.
pub(crate) const DOORBELLS: Register<u32, WriteOnly> = Register::at(0x1000);

/// CC.EN.
pub(crate) const CC_ENABLE: u32 = 1;
/// CC.SHN: shutting down in good order.
pub(crate) const CC_SHUTDOWN_NORMAL: u32 = 1 << 14;
/// CC.SHN, all of it.
pub(crate) const CC_SHUTDOWN: u32 = 3 << 14;
/// CC.IOSQES and CC.IOCQES: entries of 2^6 and 2^4 bytes.
pub(crate) const CC_ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;
/// CC.MPS: pages of 2^(12 + n) bytes.
pub(crate) const CC_PAGE_SHIFT: u32 = 7;
/// CSTS.RDY.
pub(crate) const CSTS_READY: u32 = 1;
/// CSTS.CFS: the controller has failed.
pub(crate) const CSTS_FATAL: u32 = 2;
/// CSTS.SHST.
pub(crate) const CSTS_SHUTDOWN: u32 = 3 << 2;
/// CSTS.SHST: shutting down is done.
pub(crate) const CSTS_SHUTDOWN_DONE: u32 = 2 << 2;
/// What a register of a device reads as that is gone.
pub(crate) const GONE: u32 = u32::MAX;

/// What CAP says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capabilities {
    /// The most entries of an I/O queue.
    pub(crate) entries: u32,
    /// How long the controller may take to start or to stop.
    pub(crate) timeout: Duration,
    /// Bytes from one doorbell to the next.
    stride: u64,
    /// Bytes of the smallest page, as a power of two. It is the unit of PRPs here, and of MDTS.
    pub(crate) page_shift: u32,
}

impl Capabilities {
    /// Reads the value of CAP.
    ///
    /// # Errors
    /// A controller without the NVM command set, or whose queues have no two entries.
    pub(crate) fn new(bits: u64) -> Result<Self> {
        let entries = (bits & 0xffff) as u32 + 1;
        if entries < 2 {
            return Err(Error::nonsense("the controller's queues have one entry at most (CAP.MQES)"));
        }
        if bits >> 37 & 1 == 0 {
            return Err(Error::unsupported("the controller has no NVM command set (CAP.CSS)"));
        }
        Ok(Self {
            entries,
            // In units of 500 ms; 0 is one that has nothing to say.
            timeout: Duration::from_millis(500 * (bits >> 24 & 0xff).max(1)),
            stride: 4 << (bits >> 32 & 0xf),
            page_shift: 12 + (bits >> 48 & 0xf) as u32,
        })
    }

    /// The submission tail doorbell of a queue and its completion head doorbell; `None`: it would lie past all registers.
    pub(crate) fn doorbells(
        &self,
        queue: u16,
    ) -> Option<(Register<u32, WriteOnly>, Register<u32, WriteOnly>)> {
        let first = 2 * u64::from(queue);
        Some((DOORBELLS.nth(first, self.stride)?, DOORBELLS.nth(first + 1, self.stride)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_as_qemu_has_them() {
        // 2048 entries, contiguous, 7.5 s, NVM command set.
        let capabilities = Capabilities::new(0x0000_0020_0f01_07ff | 3 << 52).unwrap();
        assert_eq!((capabilities.entries, capabilities.page_shift), (2048, 12));
        assert_eq!(capabilities.timeout, Duration::from_millis(7500));
        let (tail, head) = capabilities.doorbells(3).unwrap();
        assert_eq!((tail.offset(), head.offset()), (0x1018, 0x101c));
        assert!(Capabilities::new(1 << 37).is_err() && Capabilities::new(0x7ff).is_err());
    }

    #[test]
    fn the_widest_stride_still_counts() {
        let capabilities = Capabilities::new(1 << 37 | 0xff | 0xf << 32).unwrap();
        let (tail, head) = capabilities.doorbells(u16::MAX).unwrap();
        assert_eq!(head.offset() - tail.offset(), 4 << 15);
    }
}
