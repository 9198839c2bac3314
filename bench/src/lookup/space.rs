//! IOASes with more memory than the machine has: addresses are made up, everything else is the engine's.

use std::ptr::NonNull;

use noiommu::{Context, DmaView, Error, Ioas, Mapping, PhysAddr};

/// Where the memory of a space begins in this process, as the engine is told. Nothing is there, and nobody looks.
const HERE: usize = 1 << 44;

/// An IOAS with one mapping, whose memory a [`Plan`] makes up.
pub(super) struct Space {
    /// Where to look up.
    pub(super) ioas: Ioas,
    /// What is mapped.
    mapping: Mapping,
    plan: Plan,
    context: Context,
}

/// Pieces of memory in the order of their IOVAs: physical address and bytes.
pub(super) type Plan = Vec<(u64, u64)>;

impl Space {
    /// Maps what is planned.
    ///
    /// # Errors
    /// Want of memory for the tables.
    pub(super) fn new(plan: Plan) -> Result<Self, Error> {
        let bytes: u64 = plan.iter().map(|piece| piece.1).sum();
        let pieces = plan.clone();
        let context = Context::with_frames(move |address, length| {
            part(&pieces, (address - HERE) as u64, length as u64)
        });
        let ioas = context.ioas()?;
        let memory = NonNull::new(HERE as *mut u8).ok_or(noiommu::Errno::EINVAL)?;
        // SAFETY: the memory is told by the plan; nobody looks at this address.
        let mapping = unsafe { ioas.map_borrowed(memory, bytes as usize)? };
        Ok(Self { ioas, mapping, plan, context })
    }

    /// The same for a plan that depends on the IOVAs, which are the same for all spaces of so many bytes.
    ///
    /// # Errors
    /// Want of memory for the tables.
    pub(super) fn planned(bytes: u64, plan: impl Fn(u64, u64) -> Plan) -> Result<Self, Error> {
        let first = Self::new(plan(0, bytes))?.first();
        Self::new(plan(first, bytes))
    }

    /// What a device has of it.
    ///
    /// # Errors
    /// Those of a simulated device.
    pub(super) fn view(&self) -> Result<DmaView, Error> {
        let device = self.context.sim_edu()?;
        device.attach(&self.ioas)?;
        self.mapping.for_device(&device)
    }

    /// Maps a page more, and unmaps it.
    ///
    /// # Errors
    /// Those of mapping.
    pub(super) fn map_and_unmap_a_page(&self) -> Result<(), Error> {
        let memory = NonNull::new(HERE as *mut u8).ok_or(noiommu::Errno::EINVAL)?;
        // SAFETY: as for the mapping.
        unsafe { self.ioas.map_borrowed(memory, 4096) }.map(drop)
    }

    /// Its first IOVA.
    pub(super) fn first(&self) -> u64 {
        self.mapping.iova().0
    }

    /// Its bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.mapping.len()
    }

    /// Its pieces: IOVA, physical address, bytes.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.plan.iter().scan(self.first(), |iova, &(address, bytes)| {
            let here = *iova;
            *iova += bytes;
            Some((here, address, bytes))
        })
    }
}

/// The pieces of `length` bytes from `offset` on.
fn part(plan: &Plan, offset: u64, length: u64) -> Vec<(PhysAddr, u64)> {
    let end = offset + length;
    let mut begin = 0;
    let mut pieces = Vec::new();
    for &(address, bytes) in plan {
        let (from, to) = (offset.max(begin), end.min(begin + bytes));
        if from < to {
            pieces.push((PhysAddr(address + (from - begin)), to - from));
        }
        begin += bytes;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_planned_is_mapped() {
        let space = Space::new(vec![(3 << 21, 1 << 21), (0x5000, 0x2000), (1 << 40, 1 << 21)]).unwrap();
        for (iova, address, bytes) in space.pieces() {
            for offset in [0, bytes - 1] {
                assert_eq!(
                    space.ioas.address(noiommu::Iova(iova + offset)).map(|it| it.0),
                    Some(address + offset)
                );
            }
        }
    }
}
