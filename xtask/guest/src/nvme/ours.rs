//! The drive as our driver has it, in a process of its own. Tells what it has done as one line of JSON.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use noiommu::{Context, Contiguity, DmaBuffer, InterruptKind};
use noiommu_nvme::{Controller, Failure, Namespace, Queue, Region, Settings, Stopped};
use serde_json::json;

use super::bench;
use crate::disk::pattern;
use crate::matrix::driver::PATIENCE;

/// Queues, each of a thread of its own.
const QUEUES: u64 = 3;
/// Bytes of a thread's memory: longer than a command, and no multiple of what one takes.
const MEMORY: usize = (1 << 20) + 3 * 4096;

/// Runs what `what` asks for.
pub(super) fn run(what: &str, address: &str, words: &[&str]) -> Result<()> {
    match (what, words) {
        ("write", [seed]) => write(address, seed.parse()?),
        ("read", [seed]) => read(address, seed.parse()?),
        ("stamp", []) => bench::ours::stamp(address),
        ("bench", [way, depth, milliseconds]) => {
            bench::ours::run(address, way, depth.parse()?, milliseconds.parse()?)
        }
        _ => bail!("a driver is asked for {what} {words:?}"),
    }
}

/// The controller, started.
pub(super) fn start(address: &str, interrupts: bool) -> Result<(Controller, Namespace)> {
    let context = Context::new()?;
    let ioas = context.ioas()?;
    let device = context.open(address)?;
    let mut settings = Settings::default();
    settings.timeout = PATIENCE;
    settings.queues = 4;
    settings.interrupts = interrupts
        && InterruptKind::ALL.iter().any(|kind| device.interrupt_count(*kind).is_ok_and(|count| count > 0));
    let stopped = Stopped::new(device, &ioas)?;
    // SAFETY: nobody else writes to the device; the driver keeps the rest of the promise.
    unsafe { stopped.device().enable_bus_master()? };
    let controller = stopped.start(&settings)?;
    let (namespaces, _) = controller.namespaces()?;
    let namespace = *namespaces.first().context("no namespace")?;
    Ok((controller, namespace))
}

/// Goes through the whole namespace with several queues at once, each with a part of it; how many bytes.
fn everywhere(
    controller: &Controller,
    namespace: &Namespace,
    part: impl Fn(&mut Queue, &Region, u64, u64) -> Result<()> + Sync,
) -> Result<u64> {
    let share = namespace.blocks().div_ceil(QUEUES);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..QUEUES)
            .map(|thread| {
                let mut queue = controller.queue()?;
                let region = controller.region_of(DmaBuffer::new(MEMORY, Contiguity::Pages)?)?;
                let (first, end) = (thread * share, namespace.blocks().min((thread + 1) * share));
                let part = &part;
                Ok(scope.spawn(move || {
                    let most = region.len() as u64 / u64::from(namespace.block_size());
                    let (mut at, mut turn) = (first, 0);
                    while at < end {
                        // Of every length: of a block, of some, and of many commands.
                        turn += 1;
                        let count = [1, 7, 64, 1000, most][turn % 5].min(most).min(end - at);
                        part(&mut queue, &region, at, count)?;
                        at += count;
                    }
                    Ok((end - first) * u64::from(namespace.block_size()))
                }))
            })
            .collect::<Result<_>>()?;
        let mut bytes = 0;
        for thread in threads {
            let done: Result<u64> = thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            bytes += done?;
        }
        Ok(bytes)
    })
}

/// Writes the pattern everywhere, polling; reads it back; and goes on after a reset in the middle of commands.
fn write(address: &str, seed: u64) -> Result<()> {
    let (controller, namespace) = start(address, false)?;
    let size = u64::from(namespace.block_size());
    let written = everywhere(&controller, &namespace, |queue, region, first, count| {
        let mut bytes = vec![0; (count * size) as usize];
        pattern::fill(seed, first * size, &mut bytes);
        region.write(0, &bytes)?;
        Ok(queue.write(&namespace, first, count, region, 0)?)
    })?;
    let mut queue = controller.queue()?;
    queue.flush(&namespace)?;
    let (done, lost) = reset(&controller, &namespace, &mut queue, seed)?;
    // After the reset, too, everything is as it was written.
    let read = check(&controller, &namespace, seed)?;
    let provider = controller.device().provider().name();
    let identity = controller.identity()?;
    drop(queue);
    let quiet = controller.close()?;
    ensure!(quiet.bus_master_off, "bus mastering stays on");
    println!(
        "{}",
        json!({
            "provider": provider, "serial": identity.serial, "written": written, "read": read,
            "done_before_reset": done, "lost_by_reset": lost,
        })
    );
    Ok(())
}

/// Reads everything and compares it with the pattern, by interrupts where there are any.
fn read(address: &str, seed: u64) -> Result<()> {
    let (controller, namespace) = start(address, true)?;
    let interrupts = controller.interrupts().map(InterruptKind::name);
    let read = check(&controller, &namespace, seed)?;
    let provider = controller.device().provider().name();
    controller.close()?;
    println!("{}", json!({"provider": provider, "interrupts": interrupts, "read": read}));
    Ok(())
}

fn check(controller: &Controller, namespace: &Namespace, seed: u64) -> Result<u64> {
    let size = u64::from(namespace.block_size());
    everywhere(controller, namespace, |queue, region, first, count| {
        let mut bytes = vec![0; (count * size) as usize];
        // What is there now is nothing that is on the drive.
        region.write(0, &bytes)?;
        queue.read(namespace, first, count, region, 0)?;
        region.read(0, &mut bytes)?;
        let wrong = pattern::first_wrong(seed, first * size, &bytes);
        ensure!(wrong.is_none(), "our driver finds another byte at {wrong:?}");
        Ok(())
    })
}

/// Resets the controller while a queue is full of commands: each of them ends, done or not, and the queue goes on. How many were
/// done, and how many were not.
fn reset(
    controller: &Controller,
    namespace: &Namespace,
    queue: &mut Queue,
    seed: u64,
) -> Result<(usize, usize)> {
    // Long ones, all into the same memory, so that some are still to be done.
    let (count, length) = (queue.depth(), queue.max_transfer());
    let blocks = length as u32 / namespace.block_size();
    let region = controller.region_of(DmaBuffer::new(length, Contiguity::Pages)?)?;
    let mut done = Vec::new();
    for _ in 0..count {
        queue.submit_read(namespace, 0, blocks, &region, 0)?;
    }
    queue.ring()?;
    controller.reset()?;
    while queue.outstanding() > 0 {
        queue.poll(&mut done);
    }
    let lost = done.iter().filter(|one| one.outcome == Err(Failure::Reset)).count();
    let right = done.iter().filter(|one| one.outcome.is_ok()).count();
    ensure!(done.len() == count && lost + right == count, "{count} commands, and {done:?}");
    // Nothing of before comes late.
    region.write(0, &vec![0xa5; length])?;
    std::thread::sleep(Duration::from_millis(50));
    let mut bytes = vec![0; length];
    region.read(0, &mut bytes)?;
    ensure!(bytes.iter().all(|byte| *byte == 0xa5), "memory was written after the controller was reset");
    queue.recover(&mut done)?;
    queue.read(namespace, 0, blocks.into(), &region, 0)?;
    region.read(0, &mut bytes)?;
    ensure!(pattern::first_wrong(seed, 0, &bytes).is_none(), "other bytes after a reset");
    Ok((right, lost))
}
