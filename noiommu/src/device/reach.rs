//! How far a device reaches, and where its bus has memory.

use noiommu_core::{Errno, PhysAddr};

use super::Device;
use crate::{Error, ErrorKind, Result};

/// Where a stretch of memory lies on a device's bus: an entry of `dma-ranges` in a device tree. Some boards have memory
/// elsewhere on the bus than for the processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DmaRange {
    /// The address of its first byte on the bus, a multiple of 4 KiB as all three are.
    pub bus: u64,
    /// The physical address of that byte, for the processor.
    pub memory: PhysAddr,
    /// Bytes, at least 1.
    pub length: u64,
}

impl DmaRange {
    /// The last byte of both, if the range ends within 64 bits.
    fn lasts(&self) -> Option<(u64, u64)> {
        let more = self.length.checked_sub(1)?;
        Some((self.bus.checked_add(more)?, self.memory.0.checked_add(more)?))
    }
}

/// What a device reaches.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    /// The highest address on the bus.
    mask: u64,
    /// Where memory is; `None`: where the processor has it.
    ranges: Option<Box<[DmaRange]>>,
}

impl Default for Reach {
    fn default() -> Self {
        Self { mask: u64::MAX, ranges: None }
    }
}

impl Reach {
    /// Where a physical address is on the bus, and how many of the `length` bytes from there on go on without a break.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`]: the bus does not have it, or the device does not reach that far.
    pub(super) fn place(&self, device: &str, memory: PhysAddr, length: u64) -> Result<(u64, u64)> {
        let (bus, length) = match &self.ranges {
            None => (memory.0, length),
            Some(ranges) => {
                let found = ranges.iter().find_map(|range| {
                    let offset = memory.0.checked_sub(range.memory.0)?;
                    let left = range.length.checked_sub(offset).filter(|left| *left > 0)?;
                    Some((range.bus + offset, left.min(length)))
                });
                found.ok_or_else(|| {
                    unreachable(device, format_args!("memory at {memory} is in none of its bus's DMA ranges"))
                })?
            }
        };
        self.check(device, bus, length)?;
        Ok((bus, length))
    }

    /// Refuses addresses that the device cannot put on the bus.
    pub(super) fn check(&self, device: &str, first: u64, length: u64) -> Result<()> {
        // The last byte: memory may end at the top of 64 bits.
        match first.checked_add(length.saturating_sub(1)) {
            Some(last) if last <= self.mask => Ok(()),
            _ => Err(unreachable(
                device,
                format_args!("it cannot reach {length} bytes at {first:#x} (mask {:#x})", self.mask),
            )),
        }
    }
}

fn unreachable(device: &str, why: std::fmt::Arguments<'_>) -> Error {
    Error::new(ErrorKind::Unsupported, Errno::EOPNOTSUPP, format!("{device}: {why}"))
        .with_remedy("map other memory, which may lie lower, or use a device that reaches further")
}

impl Device {
    /// Tells how far the device reaches: `bits` address bits, 1 to 64 (64 at the start). Without an IOMMU memory beyond is
    /// refused by [`Mapping::for_device`](crate::Mapping::for_device); behind one, IOVAs are.
    ///
    /// # Errors
    /// EINVAL for other numbers.
    pub fn set_dma_bits(&self, bits: u32) -> Result<()> {
        if !(1..=64).contains(&bits) {
            return Err(Error::argument(format!("a DMA mask of {bits} bits")));
        }
        self.inner().state().reach.mask = u64::MAX >> (64 - bits);
        Ok(())
    }

    /// Tells where the device's bus has memory, as `dma-ranges` of a device tree do; none given: where the processor has it,
    /// as at the start. Memory outside of the ranges is refused. Of no meaning behind an IOMMU.
    ///
    /// That the ranges are those of the machine is part of what
    /// [`Device::enable_bus_master`] promises: wrong ones are wrong addresses.
    ///
    /// # Errors
    /// EINVAL: a range that is empty, not made of whole pages of 4 KiB or passes the end of 64 bits, or two that have memory in common. EBUSY: while the device
    /// may be doing DMA, by addresses of before.
    pub fn set_dma_ranges(&self, ranges: &[DmaRange]) -> Result<()> {
        for (at, range) in ranges.iter().enumerate() {
            if (range.bus | range.memory.0 | range.length) % 4096 != 0 {
                return Err(Error::argument(format!(
                    "{range:?} does not begin and end with whole pages of 4 KiB"
                )));
            }
            let Some((_, last)) = range.lasts() else {
                return Err(Error::argument(format!("{range:?} is empty or passes the end of 64 bits")));
            };
            let overlaps = |other: &DmaRange| {
                other.lasts().is_some_and(|(_, end)| range.memory.0 <= end && other.memory.0 <= last)
            };
            if let Some(other) = ranges[..at].iter().find(|other| overlaps(other)) {
                return Err(Error::argument(format!("{range:?} and {other:?} have memory in common")));
            }
        }
        let mut state = self.inner().state();
        if state.master {
            return Err(self.still_mastering("told other DMA ranges"));
        }
        state.reach.ranges = (!ranges.is_empty()).then(|| ranges.into());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(mask: u64, ranges: &[DmaRange]) -> Reach {
        Reach { mask, ranges: (!ranges.is_empty()).then(|| ranges.into()) }
    }

    #[test]
    fn places_on_the_bus() {
        let reach = with(u64::MAX, &[]);
        assert_eq!(reach.place("d", PhysAddr(u64::MAX - 4095), 4096), Ok((u64::MAX - 4095, 4096)));
        // As on a small board: the lower 1 GiB at 0xc000_0000, the next at 4 GiB.
        let gib = 1 << 30;
        let low = DmaRange { bus: 0xc000_0000, memory: PhysAddr(0), length: gib };
        let high = DmaRange { bus: 4 * gib, memory: PhysAddr(gib), length: gib };
        let reach = with(u64::MAX, &[low, high]);
        assert_eq!(reach.place("d", PhysAddr(0x1000), 0x2000), Ok((0xc000_1000, 0x2000)));
        // Contiguous memory need not be so on the bus.
        assert_eq!(reach.place("d", PhysAddr(gib - 0x1000), 0x3000), Ok((0xffff_f000, 0x1000)));
        assert_eq!(reach.place("d", PhysAddr(gib), 0x2000), Ok((4 * gib, 0x2000)));
        assert_eq!(reach.place("d", PhysAddr(2 * gib), 1).unwrap_err().kind(), ErrorKind::Unsupported);
        let short = with(u64::from(u32::MAX), &[low, high]);
        assert_eq!(short.place("d", PhysAddr(gib - 1), 1), Ok((0xffff_ffff, 1)));
        assert_eq!(short.place("d", PhysAddr(gib), 1).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
