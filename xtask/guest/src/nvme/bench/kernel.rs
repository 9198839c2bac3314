//! The kernel's side: its block device, by pread and by io_uring.

use std::fs;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::{BATCH, Clock, Places, READ};
use crate::disk::kernel::{Aligned, open_direct, size};

/// The ways. "polled": the driver's completion queue is polled, without interrupts (its poll_queues). "batched": a call waits for
/// some reads, not for one.
pub(super) const WAYS: [&str; 6] =
    ["pread", "pread-polled", "io_uring", "io_uring-polled", "io_uring-batched", "io_uring-polled-batched"];

/// Spares the kernel what a benchmark has no use for. What this kernel does not have stays as it is.
pub(super) fn prepare(name: &str) {
    for (file, value) in [("iostats", "0"), ("nomerges", "2"), ("add_random", "0"), ("scheduler", "none")] {
        let _ = fs::write(format!("/sys/block/{name}/queue/{file}"), value);
    }
}

/// Reads in a second; or why that way is not possible.
pub(super) fn run(name: &str, way: &str, depth: usize, milliseconds: u64) -> Result<Result<f64, String>> {
    let polled = way.contains("-polled");
    let polls = fs::read_to_string(format!("/sys/block/{name}/queue/io_poll")).unwrap_or_default();
    if polled && polls.trim() != "1" {
        return Ok(Err("the kernel's driver has no queue for polling".to_owned()));
    }
    if way.starts_with("pread") {
        if depth > 1 {
            return Ok(Err("a call is a read".to_owned()));
        }
        return pread(name, polled, milliseconds).map(Ok);
    }
    let wait = if way.ends_with("-batched") { BATCH } else { 1 };
    if wait > depth {
        return Ok(Err(format!("there are never {BATCH} reads at once")));
    }
    uring(name, polled, depth, wait, milliseconds).map(Ok)
}

/// A read is a call.
fn pread(name: &str, polled: bool, milliseconds: u64) -> Result<f64> {
    let file = open_direct(name, false)?;
    let mut places = Places::new(size(name)?);
    let mut memory = Aligned::new(READ);
    let memory = memory.get();
    let mut reads = 0;
    let clock = Clock::new(milliseconds);
    while !clock.is_over() {
        let block = places.next();
        let vector = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: READ };
        let flags = if polled { libc::RWF_HIPRI } else { 0 };
        // SAFETY: one vector, of memory that is borrowed for as long as the call takes.
        let read = unsafe {
            libc::preadv2(file.as_raw_fd(), &raw const vector, 1, (block * READ as u64) as i64, flags)
        };
        ensure!(read == READ as isize, "pread: {read}, {}", std::io::Error::last_os_error());
        check(memory, block)?;
        reads += 1;
    }
    Ok(clock.rate(reads))
}

/// Several at once, given and waited for in one call, of a registered file into registered memory.
fn uring(name: &str, polled: bool, depth: usize, wait: usize, milliseconds: u64) -> Result<f64> {
    let file = open_direct(name, false)?;
    let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
    // Completions are handled by this thread when it asks for them, not by signals in between (6.1 and later).
    builder.setup_single_issuer().setup_defer_taskrun();
    if polled {
        builder.setup_iopoll();
    }
    let mut ring = builder.build(depth as u32).context("io_uring")?;
    ring.submitter().register_files(&[file.as_raw_fd()]).context("registering a file")?;
    let mut memory = Aligned::new(depth * READ);
    let memory = memory.get();
    let vector = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
    // SAFETY: the memory outlives the ring, which is dropped first.
    unsafe { ring.submitter().register_buffers(&[vector]).context("registering memory")? };
    let mut places = Places::new(size(name)?);
    let mut wanted = vec![0; depth];
    let mut free: Vec<usize> = (0..depth).collect();
    let mut reads = 0;
    let clock = Clock::new(milliseconds);
    loop {
        let over = clock.is_over();
        if over && free.len() == depth {
            break;
        }
        while !over && let Some(place) = free.pop() {
            let block = places.next();
            wanted[place] = block;
            let to = memory[place * READ..].as_mut_ptr();
            let entry = opcode::ReadFixed::new(types::Fixed(0), to, READ as u32, 0)
                .offset(block * READ as u64)
                .build()
                .user_data(place as u64);
            // SAFETY: the memory is registered, is this command's alone until it completes, and lives until the ring is gone.
            unsafe { ring.submission().push(&entry).context("a full ring")? };
        }
        ring.submit_and_wait(wait.min(depth - free.len())).context("io_uring_enter")?;
        let mut done = 0;
        for completion in ring.completion() {
            ensure!(completion.result() == READ as i32, "a read answers {}", completion.result());
            let place = completion.user_data() as usize;
            check(&memory[place * READ..(place + 1) * READ], wanted[place])?;
            free.push(place);
            done += 1;
        }
        reads += done;
    }
    Ok(clock.rate(reads))
}

/// It is the block that was asked for.
fn check(memory: &[u8], block: u64) -> Result<()> {
    let found = memory.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    ensure!(found == Some(block), "block {found:?} was read for {block}");
    Ok(())
}
