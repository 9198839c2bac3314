//! Random reads of 4 KiB, by the kernel's driver and by ours, on the same device in the same guest, in turns.
//!
//! The drive has its number in each of its blocks, so that whoever reads knows that it was this one that was read: both sides look.
//! The kernel is given what it does best: reads past the page cache, of a registered file into registered buffers; statistics and
//! merging off; by interrupt and, where its driver has a queue for that, by polling. The figure of each side is that of its best
//! way.

mod kernel;
pub(super) mod ours;

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use noiommu::optin;
use serde_json::{Value, json};

use super::{ACCOUNTS, address, drive, kernel as block};
use crate::matrix::{bind, unbind};

/// Bytes of a read.
const READ: usize = 4096;
/// How many reads the ways wait for that do not take them one by one.
const BATCH: usize = 8;
/// The depths.
const DEPTHS: [usize; 2] = [1, 32];

/// Places of no order.
struct Places {
    state: u64,
    /// How many there are.
    count: u64,
}

impl Places {
    fn new(bytes: u64) -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15, count: bytes / READ as u64 }
    }

    /// The number of a block of 4 KiB.
    fn next(&mut self) -> u64 {
        // xorshift64, Marsaglia 2003; the upper half of the product is a number below `count`.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        ((self.state >> 32) * self.count) >> 32
    }
}

/// Counts reads for as long as it is said.
struct Clock {
    began: Instant,
    time: Duration,
}

impl Clock {
    fn new(milliseconds: u64) -> Self {
        Self { began: Instant::now(), time: Duration::from_millis(milliseconds) }
    }

    fn is_over(&self) -> bool {
        self.began.elapsed() >= self.time
    }

    /// Reads in a second.
    fn rate(&self, reads: u64) -> f64 {
        reads as f64 / self.began.elapsed().as_secs_f64()
    }
}

/// Rounds of both, and their figures: reads in a second, for each way and depth, one for each round.
pub(super) fn run(rounds: u64, milliseconds: u64) -> Result<()> {
    optin::enable()?;
    let address = address()?;
    let mut accounts = File::create(ACCOUNTS).context(ACCOUNTS)?;
    bind(&address, "auto")?;
    let stamped = drive("auto", "stamp", &address, &[])?;
    let mut tell = |account: Value| {
        println!("{account}");
        writeln!(accounts, "{account}").context(ACCOUNTS)
    };
    tell(json!({"stamped": stamped}))?;
    for round in 0..rounds {
        for depth in DEPTHS {
            // As for the kernel: there are never so many reads at once that some could be waited for.
            for way in ours::WAYS.into_iter().filter(|way| depth > BATCH || !way.ends_with("-batched")) {
                let words = [way, &depth.to_string(), &milliseconds.to_string()];
                let figure = drive("auto", "bench", &address, &words)?;
                tell(json!({"round": round, "who": "ours", "way": way, "depth": depth, "figure": figure}))?;
            }
        }
        unbind(&address)?;
        let name = block::block_device(&address)?;
        kernel::prepare(&name);
        for depth in DEPTHS {
            for way in kernel::WAYS {
                match kernel::run(&name, way, depth, milliseconds)? {
                    Ok(rate) => tell(json!({
                        "round": round, "who": "kernel", "way": way, "depth": depth, "figure": {"rate": rate},
                    }))?,
                    Err(why) if round == 0 => {
                        tell(json!({"who": "kernel", "way": way, "depth": depth, "impossible": why}))?
                    }
                    Err(_) => {}
                }
            }
        }
        bind(&address, "auto")?;
    }
    unbind(&address)?;
    ensure!(rounds > 0, "no round");
    Ok(())
}
