//! Devices of several kinds on one IOAS: behind an IOMMU, and without one by the kernel's no-IOMMU mode and by sysfs. Each has
//! its own addresses of the same memory, and what one of them stores another one loads.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use noiommu::{Context, Contiguity, DmaBuffer, Error, Ioas, Mapping, Provider, optin};
use noiommu_edu::Edu;

use crate::stock_edu::{check, find_edus};
use crate::witness::Witness;

/// Bytes of each buffer: some pages, and a part of one.
const SIZE: usize = 30_000;

/// Runs it all.
pub(crate) fn run() -> Result<()> {
    let mut witness = Witness::connect("mixed")?;
    // For the device that nobody but sysfs serves.
    optin::enable()?;
    let context = Context::new()?;
    let ioas = context.ioas()?;
    // Mapped before there is any device, and so before any domain.
    let early = map(&ioas)?;
    buffer(&early)?.write(0, &witness.stream(0, SIZE))?;
    let early_constant = map_read_only(&ioas, &mut witness)?;

    let mut edus = Vec::new();
    for address in find_edus()? {
        let device = context.open(&address).with_context(|| format!("opening {address}"))?;
        witness.note(&format!("{address} by {}", device.provider().name()))?;
        edus.push(Edu::new(device, &ioas).with_context(|| format!("driving {address}"))?);
    }
    let providers: BTreeSet<Provider> = edus.iter().map(|edu| edu.device().provider()).collect();
    ensure!(providers.len() == edus.len() && edus.len() >= 2, "not of several kinds: {providers:?}");
    ensure!(providers.iter().any(|provider| provider.is_confined()), "none behind an IOMMU: {providers:?}");

    let late = map(&ioas)?;
    addresses(&edus, &early)?;
    check(&mut witness, &early, 0, SIZE)?;
    relay(&edus, &early, &late, &mut witness)?;
    for constant in [early_constant, map_read_only(&ioas, &mut witness)?] {
        read_only(&ioas, &edus, &constant, &late, &mut witness)?;
        constant.forget();
    }

    // A device leaves; the others go on by the addresses that they have.
    let views: Vec<_> = edus.iter().map(|edu| late.for_device(edu.device())).collect::<Result<_, Error>>()?;
    let first = edus.remove(0);
    let before = views[1].at(0)?.address;
    first.close()?;
    ensure!(late.for_device(edus[0].device())?.at(0)?.address == before, "an address changed");
    drop(views);
    let last = map(&ioas)?;
    addresses(&edus, &last)?;
    relay(&edus, &early, &last, &mut witness)?;
    // Memory that is given up waits for all devices, of whatever kind.
    drop(last);
    ensure!(ioas.quarantined() == 1, "memory given back while devices master the bus");
    while let Some(edu) = edus.pop() {
        ensure!(ioas.quarantined() == 1, "memory given back before the last device was quiet");
        edu.close()?;
    }
    ensure!(ioas.quarantined() == 0, "memory kept for quiet devices");
    drop((early, late));
    ensure!(ioas.usage().areas == 2, "something is left mapped");
    witness.done(0)
}

/// Each device is given the addresses of its kind.
fn addresses(edus: &[Edu], mapping: &Mapping) -> Result<()> {
    let physical = mapping.segments()?;
    for edu in edus {
        let view = mapping.for_device(edu.device())?;
        let here: Vec<(u64, u64)> =
            view.segments().map(|segment| (segment.address.bits(), segment.length)).collect();
        if edu.device().provider().is_confined() {
            ensure!(here == [(mapping.iova().0, mapping.len())], "no IOVA: {here:x?}");
        } else {
            // Pinned by another domain, but the same pages.
            let expected: Vec<(u64, u64)> =
                physical.iter().map(|segment| (segment.address.0, segment.length)).collect();
            ensure!(here == expected, "{here:x?}, but memory is at {expected:x?}");
        }
    }
    Ok(())
}

/// Every device copies a part of `from`, across a page border, to `to`, where the next one takes it from.
fn relay(edus: &[Edu], from: &Mapping, to: &Mapping, witness: &mut Witness) -> Result<()> {
    let (at, length) = (0xf80, 0x111);
    let mut here = from;
    for edu in edus {
        edu.load(&here.for_device(edu.device())?, at, length)?;
        buffer(to)?.write(at as usize, &[0xee; 0x111])?;
        edu.store(&to.for_device(edu.device())?, at, length)?;
        let mut bytes = [0; 0x111];
        buffer(to)?.read(at as usize, &mut bytes)?;
        if bytes[..] != witness.stream(at, length as usize) {
            bail!("{} stored something else", edu.device().name());
        }
        check(witness, to, at, length as usize)?;
        here = to;
    }
    Ok(())
}

/// Every device loads from memory that it may only read. A store to it is stopped by an IOMMU, and by nothing else.
fn read_only(
    ioas: &Ioas,
    edus: &[Edu],
    constant: &Mapping,
    other: &Mapping,
    witness: &mut Witness,
) -> Result<()> {
    let (at, length) = (0x1f80, 0x101);
    let access = ioas.lookup(constant.iova(), 1).context("nobody tells its address")?.access;
    ensure!(access.read && !access.write, "mapped for {access:?}");
    for edu in edus {
        let (there, here) = (constant.for_device(edu.device())?, other.for_device(edu.device())?);
        edu.load(&there, at, length)?;
        edu.store(&here, at, length)?;
        check(witness, other, at, length as usize)?;
        // A buffer in the device that nothing else holds.
        buffer(other)?.write(0, &[0x77; 0x100])?;
        edu.load(&here, 0, 0x100)?;
        edu.store(&there, 0, 0x100)?;
        let mut bytes = [0; 0x100];
        buffer(constant)?.read(0, &mut bytes)?;
        let (name, confined) = (edu.device().name(), edu.device().provider().is_confined());
        if confined {
            ensure!(bytes[..] == witness.stream(0, 0x100), "{name} wrote past the IOMMU to read-only memory");
        } else {
            ensure!(bytes == [0x77; 0x100], "{name} without an IOMMU was stopped by something");
            buffer(constant)?.write(0, &witness.stream(0, 0x100))?;
        }
    }
    Ok(())
}

fn map_read_only(ioas: &Ioas, witness: &mut Witness) -> Result<Mapping> {
    let buffer = DmaBuffer::new(SIZE, Contiguity::Pages)?;
    buffer.write(0, &witness.stream(0, SIZE))?;
    Ok(ioas.map_read_only(buffer).map_err(Error::from)?)
}

fn map(ioas: &Ioas) -> Result<Mapping> {
    Ok(ioas.map(DmaBuffer::new(SIZE, Contiguity::Pages)?).map_err(Error::from)?)
}

fn buffer(mapping: &Mapping) -> Result<&DmaBuffer> {
    mapping.buffer().context("a mapping without a buffer")
}
