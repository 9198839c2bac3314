//! An NVMe controller reads from its drive, several commands at once, each into many pages: of the buffers, and of memory that was
//! mapped a moment ago.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use noiommu::{Contiguity, Device, DmaBuffer, DmaView, Error, Ioas, Mapping};
use serde_json::Value;

use super::super::chance::Chance;
use super::super::nvme::{BLOCK, Nvme};
use super::Shared;
use super::buffers::{DRIVE, SOURCE, memory};
use crate::matrix::driver::{self, PAGE, PATIENCE};

/// Commands at once.
const SLOTS: usize = 8;
/// Pages of a read.
const PAGES: usize = 16;
const LENGTH: usize = PAGES * PAGE;
/// Bytes of the list of a command's pages but the first (4.3 of the specification): in one page all of them.
const LIST: usize = PAGES * 8;

/// Of so many reads, the host looks at one.
const WITNESSED: u64 = 64;

/// Where a read goes.
enum Target {
    /// A part of a buffer.
    Buffer(usize),
    /// Memory of its own.
    Fresh(Mapping),
}

/// A command on its way.
struct Slot {
    target: Target,
    /// Where it begins in the mapping.
    offset: usize,
    /// Where it reads from: bytes of the drive.
    from: usize,
    view: DmaView,
}

/// Reads until the end.
pub(super) fn run(shared: &Shared, device: Device, ioas: &Ioas, mut chance: Chance) -> Result<Value> {
    let mut nvme = Nvme::start(device, ioas, 1)?;
    let lists = driver::Shared::new(nvme.device(), ioas, 1)?;
    let mut slots: Vec<Option<Slot>> = (0..SLOTS).map(|_| None).collect();
    let (mut number, mut last) = (0_u64, Instant::now());
    while !shared.is_over() || slots.iter().any(Option::is_some) {
        for (place, slot) in slots.iter_mut().enumerate() {
            if slot.is_none() && !shared.is_over() {
                *slot = Some(begin(shared, &mut nvme, ioas, &lists, place, &mut chance)?);
            }
        }
        let Some(done) = nvme.next_done(1)? else {
            ensure!(last.elapsed() < PATIENCE, "no read was done for {} s", PATIENCE.as_secs());
            std::thread::sleep(Duration::from_micros(100));
            continue;
        };
        last = Instant::now();
        ensure!(done.status == 0, "a read ended with status {:#x}", done.status);
        let slot = slots.get_mut(usize::from(done.command)).and_then(Option::take);
        finish(shared, slot.context("a command that nobody gave")?, number)?;
        number += 1;
    }
    nvme.device().quiesce()?;
    Ok(Value::Null)
}

/// Gives a command.
fn begin(
    shared: &Shared,
    nvme: &mut Nvme,
    ioas: &Ioas,
    lists: &driver::Shared,
    place: usize,
    chance: &mut Chance,
) -> Result<Slot> {
    let (target, offset) = match chance.index(shared.buffers.len() + 1) {
        buffer if buffer < shared.buffers.len() => (Target::Buffer(buffer), SOURCE + place * LENGTH),
        _ => {
            // In the middle of all that goes on, pages are pinned and their addresses learned.
            let huge = chance.below(8) == 0;
            let (length, contiguity) =
                if huge { (2 << 20, Contiguity::Best) } else { (LENGTH, Contiguity::Pages) };
            let buffer = DmaBuffer::new(length, contiguity)?;
            let offset = chance.index((length - LENGTH) / PAGE + 1) * PAGE;
            (Target::Fresh(ioas.map(buffer).map_err(Error::from)?), offset)
        }
    };
    let mapping = match &target {
        Target::Buffer(index) => &shared.buffers[*index].mapping,
        Target::Fresh(mapping) => mapping,
    };
    // What is there now is nothing that is on the drive.
    memory(mapping)?.fill(offset, LENGTH, chance.any() as u8)?;
    let view = mapping.for_device(nvme.device())?;
    let page = |index: usize| Ok::<_, Error>(view.at((offset + index * PAGE) as u64)?.address.bits());
    for index in 1..PAGES {
        lists.memory()?.store_u64(place * LIST + (index - 1) * 8, page(index)?)?;
    }
    let from = chance.index((DRIVE - LENGTH) / PAGE + 1) * PAGE;
    let prp = [page(0)?, lists.address(place * LIST)?];
    // SAFETY: all pages are those of a mapping in the device's IOAS: a buffer's, which lives until all is over, or one that the slot
    // holds until the command is done.
    unsafe { nvme.read(1, place as u16, from as u64 / BLOCK, (LENGTH as u64 / BLOCK) as u16, prp)? };
    Ok(Slot { target, offset, from, view })
}

/// Verifies what a command did.
fn finish(shared: &Shared, slot: Slot, number: u64) -> Result<()> {
    let Slot { target, offset, from, view } = slot;
    let (mapping, name) = match &target {
        Target::Buffer(index) => (&shared.buffers[*index].mapping, shared.buffers[*index].name),
        Target::Fresh(mapping) => (mapping, "memory just mapped"),
    };
    let mut bytes = vec![0; LENGTH];
    memory(mapping)?.read(offset, &mut bytes)?;
    let what = || format!("a read from {from:#x} of the drive to {offset:#x} of {name}");
    shared.wrong.compare(what, &bytes, &shared.drive[from..from + LENGTH]);
    if number.is_multiple_of(WITNESSED) {
        let first = view.at(offset as u64)?;
        shared.witness(first.address.bits(), PAGE, from as u64)?;
    }
    shared.transfers.nvme.fetch_add(1, Ordering::Relaxed);
    shared.transfers.nvme_bytes.fetch_add(LENGTH as u64, Ordering::Relaxed);
    drop(view);
    if let Target::Fresh(mapping) = target {
        let moved = mapping.moved_pages()?.context("nobody knows where the pages are")?;
        shared.wrong.moved(name, moved);
        shared.transfers.fresh.fetch_add(1, Ordering::Relaxed);
        // The command is done, and no view is left: the memory goes back at once.
        mapping.reclaim().map_err(|_| anyhow::anyhow!("a mapping that somebody still looks at"))?;
    }
    Ok(())
}
