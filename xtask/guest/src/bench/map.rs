//! Mapping 256 MiB of scattered pages and learning every address: the engine and the kernel's iommufd in turn, on the same pages.

use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use noiommu::{Context, Contiguity, DmaBuffer, Error, Ioas, Iova, PageKind, PinChoice};
use serde_json::{Value, json};

use super::bare::Bare;
use super::iommufd::{KernelIoas, Run};
use super::scatter::{Holes, PAGE};

/// Bytes that are mapped.
const SIZE: usize = 256 << 20;

/// Nanoseconds of the parts of one turn.
struct Turn {
    map: u64,
    learn: u64,
    unmap: u64,
}

impl Turn {
    fn json(&self) -> Value {
        json!({"map": self.map, "learn": self.learn, "unmap": self.unmap})
    }
}

/// Takes turns, and tells them as one line of JSON. Every turn learns the same addresses, or it is an error.
pub(super) fn run(address: &str, rounds: usize) -> Result<()> {
    let kernel = KernelIoas::new(address)?;
    // The engine alone, whatever the kernel has.
    let context = Context::with_pins(PinChoice::Best)?;
    let ioas = context.ioas()?;
    let mut bare = Bare::new()?;

    let holes = Holes::new(SIZE)?;
    let buffer = DmaBuffer::new(SIZE, Contiguity::Pages)?;
    ensure!(buffer.pages() == PageKind::Base, "the buffer is of {}", buffer.pages().name());
    let memory = buffer.address();
    let mut buffer = Some(buffer);

    let (mut truth, mut found) = (Vec::new(), Vec::with_capacity(SIZE / PAGE));
    let mut told = Vec::new();
    for round in 0..=rounds {
        let mut turn = |most| {
            found.clear();
            kernel_turn(&kernel, memory, most, &mut found)
        };
        // A page at a time, and as much as there is: whichever is cheaper counts for the kernel.
        let by_page = turn(PAGE as u64)?;
        let by_run = turn(SIZE as u64)?;
        if round == 0 {
            truth.clone_from(&found);
        }
        ensure!(found == truth, "the kernel has told two things about the same pages");

        let mut turn = |way| {
            found.clear();
            let turn = engine_turn(&ioas, &mut buffer, way, &mut found)?;
            if let Some(at) = (0..truth.len().max(found.len())).find(|&at| found.get(at) != truth.get(at)) {
                bail!("run {at}: the engine tells {:x?}, the kernel {:x?}", found.get(at), truth.get(at));
            }
            Ok(turn)
        };
        let (engine_by_page, engine_by_run) = (turn(Way::ByPage)?, turn(Way::ByRun)?);
        let bare = bare_turn(&mut bare, memory)?;
        // The first one warms.
        if round > 0 {
            told.push(json!({
                "kernel_by_page": by_page.json(),
                "kernel_by_run": by_run.json(),
                "engine_by_page": engine_by_page.json(),
                "engine_by_run": engine_by_run.json(),
                "bare": bare.json(),
            }));
        }
    }
    drop(holes);
    println!("{}", json!({"pages": SIZE / PAGE, "runs": truth.len(), "rounds": told}));
    Ok(())
}

/// MAP, GET_PA until all is known, UNMAP.
fn kernel_turn(kernel: &KernelIoas, memory: usize, most: u64, found: &mut Vec<Run>) -> Result<Turn> {
    let began = Instant::now();
    let iova = kernel.map(memory, SIZE)?;
    let map = lap(began);
    let began = Instant::now();
    kernel.runs(iova, SIZE, most, found)?;
    let learn = lap(began);
    let began = Instant::now();
    kernel.unmap(iova, SIZE)?;
    Ok(Turn { map, learn, unmap: lap(began) })
}

/// How the engine is asked.
#[derive(Clone, Copy)]
enum Way {
    /// For the address of each page.
    ByPage,
    /// For all pieces at once.
    ByRun,
}

/// The same by the kit.
fn engine_turn(ioas: &Ioas, buffer: &mut Option<DmaBuffer>, way: Way, found: &mut Vec<Run>) -> Result<Turn> {
    let given = buffer.take().context("the buffer is away")?;
    let began = Instant::now();
    let mapping = ioas.map(given).map_err(Error::from)?;
    let map = lap(began);
    let began = Instant::now();
    match way {
        Way::ByPage => {
            for at in (0..mapping.len()).step_by(PAGE) {
                let address = ioas.address(Iova(mapping.iova().0 + at)).context("a hole in the mapping")?;
                found.push(Run { address: address.0, length: PAGE as u64 });
            }
        }
        Way::ByRun => {
            let pieces = mapping.segments()?;
            found.extend(pieces.iter().map(|piece| Run { address: piece.address.0, length: piece.length }));
        }
    }
    let learn = lap(began);
    let began = Instant::now();
    *buffer = mapping.reclaim().ok().context("somebody uses the mapping")?;
    let unmap = lap(began);
    Ok(Turn { map, learn, unmap })
}

/// The kernel's calls that the engine makes, without the engine.
fn bare_turn(bare: &mut Bare, memory: usize) -> Result<Turn> {
    let began = Instant::now();
    bare.map(memory, SIZE)?;
    let map = lap(began);
    let began = Instant::now();
    bare.unmap()?;
    Ok(Turn { map, learn: 0, unmap: lap(began) })
}

fn lap(began: Instant) -> u64 {
    began.elapsed().as_nanos() as u64
}
