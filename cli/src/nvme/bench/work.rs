//! The threads, each with a queue.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use noiommu_nvme::{Controller, Error, Namespace, Queue, Region};

use super::Options;
use crate::nvme::Trouble;
use crate::ui::PatientBar;

/// The longest latency that is told apart, in nanoseconds: a minute.
const LONGEST: u64 = 60_000_000_000;
/// Digits that are.
const DIGITS: u8 = 3;
/// How often the bar moves.
const PACE: Duration = Duration::from_millis(100);

/// Measures; all latencies, and how long it took.
pub(super) fn run(
    options: &Options,
    controller: &Controller,
    namespace: &Namespace,
    blocks: u32,
    bar: &PatientBar,
) -> Result<(Histogram<u64>, Duration), Trouble> {
    let mut lanes = Vec::new();
    for number in 0..options.queues {
        lanes.push(Lane::new(options, controller, namespace, blocks, number)?);
    }
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let time = Duration::from_secs(options.seconds);
    let mut all = histogram()?;
    let began = Instant::now();
    let failed = std::thread::scope(|scope| {
        let threads: Vec<_> =
            lanes.iter_mut().map(|lane| scope.spawn(|| lane.run(namespace, &stop, &count))).collect();
        while began.elapsed() < time && !threads.iter().any(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::sleep(PACE.min(time.saturating_sub(began.elapsed())));
            let passed = began.elapsed();
            let rate = count.load(Ordering::Relaxed) as f64 / passed.as_secs_f64();
            let (done, total) = (passed.min(time).as_millis() as u64, time.as_millis() as u64);
            bar.step(done, total, &format!("{rate:.0} operations/s"));
        }
        stop.store(true, Ordering::Relaxed);
        let mut failed = None;
        for thread in threads {
            // A thread that panicked has said so.
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(trouble)) => failed = Some(trouble),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        failed
    });
    let took = began.elapsed();
    if let Some(trouble) = failed {
        return Err(trouble);
    }
    for lane in &lanes {
        // Of one kind: it fits.
        let _ = all.add(&lane.latency);
    }
    Ok((all, took))
}

fn histogram() -> Result<Histogram<u64>, Trouble> {
    Histogram::new_with_bounds(1, LONGEST, DIGITS)
        .map_err(|error| Trouble::Asked { cause: format!("no histogram: {error}"), remedy: "report it" })
}

/// A thread's part.
struct Lane {
    queue: Queue,
    region: Region,
    depth: usize,
    blocks: u32,
    write: bool,
    sequential: bool,
    /// The state of the numbers of no order, or the next place.
    state: u64,
    /// Places of so many blocks each.
    places: u64,
    latency: Histogram<u64>,
}

impl Lane {
    fn new(
        options: &Options,
        controller: &Controller,
        namespace: &Namespace,
        blocks: u32,
        number: u16,
    ) -> Result<Self, Trouble> {
        let (queue, depth) = (controller.queue()?, usize::from(options.depth));
        let asked = |cause, remedy| Err(Trouble::Asked { cause, remedy });
        if queue.depth() < depth {
            return asked(
                format!("a depth of {depth}, but the queue takes {}", queue.depth()),
                "a smaller --depth, or more contiguous memory: reserve huge pages",
            );
        }
        let size = blocks as usize * namespace.block_size() as usize;
        if queue.max_transfer() < size {
            return asked(
                format!("{size} bytes, but a command has at most {}", queue.max_transfer()),
                "a smaller --size",
            );
        }
        let region = controller.region(depth * size)?;
        let places = namespace.blocks() / u64::from(blocks);
        // Each thread begins elsewhere.
        let state = match options.sequential {
            true => places / u64::from(options.queues) * u64::from(number),
            false => 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(number) * 2 + 1),
        };
        let (write, sequential) = (options.write, options.sequential);
        Ok(Self { queue, region, depth, blocks, write, sequential, state, places, latency: histogram()? })
    }

    /// Where the next operation is.
    fn next(&mut self) -> u64 {
        if self.sequential {
            self.state = (self.state + 1) % self.places;
            return self.state;
        }
        // xorshift64, Marsaglia 2003.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) % self.places
    }

    fn run(&mut self, namespace: &Namespace, stop: &AtomicBool, count: &AtomicU64) -> Result<(), Trouble> {
        let size = self.region.len() / self.depth;
        let mut free: Vec<usize> = (0..self.depth).collect();
        let begun_at = Instant::now();
        // By the token's index: which part of memory, and when.
        let mut doing = vec![(0, begun_at); self.queue.depth()];
        let mut done = Vec::with_capacity(self.queue.depth());
        loop {
            if !stop.load(Ordering::Relaxed) {
                while let Some(part) = free.pop() {
                    let (first, offset) = (self.next() * u64::from(self.blocks), part * size);
                    let (queue, region, blocks) = (&mut self.queue, &self.region, self.blocks);
                    let token = match self.write {
                        true => queue.submit_write(namespace, first, blocks, region, offset)?,
                        false => queue.submit_read(namespace, first, blocks, region, offset)?,
                    };
                    doing[token.index()] = (part, Instant::now());
                }
                self.queue.ring()?;
            } else if self.queue.outstanding() == 0 {
                return Ok(());
            }
            while self.queue.poll(&mut done) == 0 {
                if self.queue.has_interrupt() {
                    self.queue.wait(PACE)?;
                }
            }
            let now = Instant::now();
            for completion in done.drain(..) {
                let (part, begun) = doing[completion.token.index()];
                completion.outcome.map_err(|failure| Error::of_command("an operation", failure))?;
                // Longer than a minute is a minute.
                self.latency.saturating_record(now.duration_since(begun).as_nanos() as u64);
                free.push(part);
            }
            count.fetch_add((self.depth - self.queue.outstanding()) as u64, Ordering::Relaxed);
        }
    }
}
