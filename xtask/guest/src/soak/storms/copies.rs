//! An edu device copies from one buffer to another, at any place and of any length: across borders of pages, too.

use std::sync::atomic::Ordering;

use anyhow::Result;
use noiommu::{Device, Ioas};
use noiommu_edu::{BUFFER_SIZE, Edu};
use serde_json::Value;

use super::super::chance::Chance;
use super::Shared;
use super::buffers::{SIZE, SOURCE};
use crate::matrix::driver::PAGE;

/// Where devices write: the last quarter of each buffer, a part for each.
const TARGETS: usize = SIZE / 4 * 3;
const TARGET: usize = 4 * PAGE;

/// Of so many copies, the host looks at one.
const WITNESSED: u64 = 16;

/// Copies until the end.
pub(super) fn run(
    shared: &Shared,
    device: Device,
    ioas: &Ioas,
    lane: usize,
    mut chance: Chance,
) -> Result<Value> {
    let edu = Edu::new(device, ioas)?;
    let views = shared.buffers.iter().map(|buffer| buffer.mapping.for_device(edu.device()));
    let views = views.collect::<Result<Vec<_>, _>>()?;
    for number in 0_u64.. {
        if shared.is_over() {
            break;
        }
        let (from, to) = (chance.index(views.len()), chance.index(views.len()));
        let length = 1 + chance.below(BUFFER_SIZE);
        let at = chance.below(SOURCE as u64 - length);
        let there = (TARGETS + lane * TARGET) as u64 + chance.below(TARGET as u64 - length);
        let (source, target) = (&shared.buffers[from], shared.buffers[to].memory()?);
        target.fill(there as usize, length as usize, number as u8)?;
        edu.load(&views[from], at, length)?;
        edu.store(&views[to], there, length)?;
        let mut bytes = vec![0; length as usize];
        target.read(there as usize, &mut bytes)?;
        let what = || {
            format!("edu's copy from {at:#x} of {} to {there:#x} of {}", source.name, shared.buffers[to].name)
        };
        shared.wrong.compare(what, &bytes, &source.source[at as usize..(at + length) as usize]);
        if number.is_multiple_of(WITNESSED) {
            let first = views[to].at(there)?;
            let length = first.length.min(length) as usize;
            shared.witness(first.address.bits(), length, source.stream(at))?;
        }
        shared.transfers.edu.fetch_add(2, Ordering::Relaxed);
        shared.transfers.edu_bytes.fetch_add(2 * length, Ordering::Relaxed);
    }
    drop(views);
    edu.close()?;
    Ok(Value::Null)
}
