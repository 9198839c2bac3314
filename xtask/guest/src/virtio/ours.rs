//! The devices as our drivers have them, in a process of its own. Each tells what it has done as a line of JSON.

use anyhow::{Result, bail, ensure};
use noiommu::Context;
use noiommu_virtio::{Block, SECTOR, VirtioDevice};
use serde_json::json;

use super::host;
use crate::disk::pattern;
use crate::matrix::driver::PATIENCE;

/// Bytes of the longest transfer: many pieces and a rest.
const MOST: usize = (1 << 20) + 3 * SECTOR;

/// Runs what `what` asks for.
pub(super) fn run(what: &str, address: &str, seed: u64) -> Result<()> {
    match what {
        "write" => write(address, seed),
        "read" => read(address, seed),
        "serve" => host::serve(open(address)?.net()?, seed),
        _ => bail!("a driver is asked for {what}"),
    }
}

fn open(address: &str) -> Result<VirtioDevice> {
    let context = Context::new()?;
    let mut device = VirtioDevice::open(context.open(address)?, &context.ioas()?)?;
    device.set_timeout(PATIENCE);
    Ok(device)
}

/// Goes through the whole disk in transfers of every length: of a sector, of some, and of many pieces. How many bytes.
fn everywhere(
    block: &mut Block,
    mut part: impl FnMut(&mut Block, u64, &mut [u8]) -> Result<()>,
) -> Result<u64> {
    let (end, mut at, mut turn) = (block.sectors(), 0, 0);
    let mut memory = vec![0; MOST];
    while at < end {
        turn += 1;
        let count = [1, 7, 64, 1000, (MOST / SECTOR) as u64][turn % 5].min(end - at);
        part(block, at, &mut memory[..count as usize * SECTOR])?;
        at += count;
    }
    Ok(end * SECTOR as u64)
}

/// Writes the pattern everywhere, and reads it back.
fn write(address: &str, seed: u64) -> Result<()> {
    let mut block = open(address)?.block()?;
    let serial = block.serial()?;
    let written = everywhere(&mut block, |block, sector, memory| {
        pattern::fill(seed, sector * SECTOR as u64, memory);
        Ok(block.write(sector, memory)?)
    })?;
    block.flush()?;
    let read = check(&mut block, seed)?;
    let (provider, piece) = (block.device().provider().name(), block.piece());
    let quiet = block.close()?;
    ensure!(quiet.bus_master_off && quiet.recipe == Some(true), "it is not quiet by its reset: {quiet:?}");
    println!(
        "{}",
        json!({"provider": provider, "serial": serial, "piece": piece, "written": written, "read": read})
    );
    Ok(())
}

/// Reads everything and compares it with the pattern.
fn read(address: &str, seed: u64) -> Result<()> {
    let mut block = open(address)?.block()?;
    let read = check(&mut block, seed)?;
    let provider = block.device().provider().name();
    block.close()?;
    println!("{}", json!({"provider": provider, "read": read}));
    Ok(())
}

fn check(block: &mut Block, seed: u64) -> Result<u64> {
    everywhere(block, |block, sector, memory| {
        // What is there now is nothing that is on the disk.
        memory.fill(0);
        block.read(sector, memory)?;
        let wrong = pattern::first_wrong(seed, sector * SECTOR as u64, memory);
        ensure!(wrong.is_none(), "our driver finds another byte at {wrong:?}");
        Ok(())
    })
}
