//! Our side: one queue, polled.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::super::ours::start;
use super::{Clock, Places, READ};

/// Writes its number into each block of 4 KiB of the drive.
pub(in crate::nvme) fn stamp(address: &str) -> Result<()> {
    let (controller, namespace) = start(address, false)?;
    let blocks = READ as u64 / u64::from(namespace.block_size());
    let (region, mut queue) = (controller.region(64 * READ)?, controller.queue()?);
    let count = namespace.bytes() / READ as u64;
    for first in (0..count).step_by(64) {
        let here = (count - first).min(64);
        for index in 0..here {
            region.write(index as usize * READ, &(first + index).to_le_bytes())?;
        }
        queue.write(&namespace, first * blocks, here * blocks, &region, 0)?;
    }
    queue.flush(&namespace)?;
    let (provider, identity) = (controller.device().provider().name(), controller.identity()?);
    let shadow = identity.shadow_doorbells;
    println!("{}", json!({"blocks": count, "provider": provider, "shadow_doorbells": shadow}));
    Ok(())
}

/// The ways. "batched": some reads are waited for, not one.
/// "slept": between two looks the processor is let go, which an emulated one shares with those who emulate the device.
pub(super) const WAYS: [&str; 3] = ["polled", "polled-batched", "slept-batched"];

/// How long it is let go.
const NAP: Duration = Duration::from_micros(30);

/// Reads at a depth for some time. What has been done is given anew at once: rung for once, however many.
pub(in crate::nvme) fn run(address: &str, way: &str, depth: usize, milliseconds: u64) -> Result<()> {
    let naps = way.starts_with("slept");
    let wait = if way.ends_with("-batched") { super::BATCH } else { 1 };
    let (controller, namespace) = start(address, false)?;
    let blocks = READ as u64 / u64::from(namespace.block_size());
    let mut queue = controller.queue()?;
    ensure!(queue.depth() >= depth, "a queue of {} commands", queue.depth());
    // A command's place in memory is that of its token.
    let region = controller.region(queue.depth() * READ)?;
    let buffer = region.buffer()?;
    let mut places = Places::new(namespace.bytes());
    let mut wanted = vec![0; queue.depth()];
    let mut free: Vec<usize> = (0..depth).collect();
    let mut of_token = vec![0; queue.depth()];
    let mut done = Vec::with_capacity(queue.depth());
    let (mut reads, mut polls) = (0_u64, 0_u64);
    let clock = Clock::new(milliseconds);
    loop {
        if !clock.is_over() {
            while let Some(place) = free.pop() {
                let block = places.next();
                let token =
                    queue.submit_read(&namespace, block * blocks, blocks as u32, &region, place * READ)?;
                wanted[place] = block;
                of_token[token.index()] = place;
            }
            queue.ring()?;
        } else if queue.outstanding() == 0 {
            break;
        }
        loop {
            polls += 1;
            queue.poll(&mut done);
            if done.len() >= wait.min(queue.outstanding() + done.len()) {
                break;
            }
            if naps {
                std::thread::sleep(NAP);
            }
            // No hint that the processor waits (`spin_loop`): an emulated one lets go of all it has then, which makes it up to
            // twice as fast for some seconds, and five times as slow for others.
        }
        for completion in done.drain(..) {
            ensure!(completion.outcome.is_ok(), "a read failed: {completion:?}");
            let place = of_token[completion.token.index()];
            let found = u64::from_le(buffer.load_u64(place * READ)?);
            ensure!(found == wanted[place], "block {} was read for {}", found, wanted[place]);
            free.push(place);
            reads += 1;
        }
    }
    let rate = clock.rate(reads);
    println!("{}", json!({"rate": rate, "reads": reads, "polls": polls}));
    Ok(())
}
