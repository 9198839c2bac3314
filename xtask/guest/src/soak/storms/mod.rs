//! DMA goes on while all of memory is in motion: pages are compacted, reclaimed, swapped, split, collapsed, merged and copied by
//! forks, around the buffers and in them. Every transfer is verified.
//!
//! The process that drives the devices has a thread for each edu device ([`copies`]), one for an NVMe controller ([`reads`]), one
//! that gives the kernel advice about the buffers' own addresses and forks ([`own`]), and one that watches. Around it are processes
//! that do nothing but trouble ([`others`]). What came of it all is one JSON value in [`FOUND`]; the host judges.

mod buffers;
mod copies;
mod frames;
mod others;
mod own;
mod reads;
mod vmstat;
mod wrong;

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use noiommu::{Context, Provider, optin};
use serde_json::{Value, json};

use self::buffers::{Buffer, DRIVE};
use self::others::Storm;
use self::wrong::Wrong;
use super::cgroup::RECLAIMED;
use super::chance::Chance;
use super::{drive, nvme, progress};
use crate::matrix::{addresses, bind};
use crate::witness::Witness;

pub(super) use self::others::run as other;

/// What came of it.
const FOUND: &str = "/output/storms";

/// How often the buffers are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// What all threads have in common.
struct Shared {
    stop: AtomicBool,
    buffers: Vec<Buffer>,
    /// What is on the drive.
    drive: Vec<u8>,
    witness: Mutex<Witness>,
    transfers: Transfers,
    wrong: Wrong,
    looks: AtomicU64,
}

/// What was moved, and verified.
#[derive(Default)]
struct Transfers {
    edu: AtomicU64,
    edu_bytes: AtomicU64,
    nvme: AtomicU64,
    nvme_bytes: AtomicU64,
    /// Of the latter, into memory that was mapped in the middle of the storms.
    fresh: AtomicU64,
}

impl Shared {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Has the host look at bytes of the stream by their physical address.
    fn witness(&self, address: u64, length: usize, stream: u64) -> Result<()> {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner).expect_stream(address, length, stream)
    }

    /// Whether pinned pages are where they were, and hold what they did.
    fn look(&self, chance: &mut Chance) -> Result<()> {
        for buffer in &self.buffers {
            let moved = buffer.mapping.moved_pages()?.context("nobody knows where the pages are")?;
            self.wrong.moved(buffer.name, moved);
            let what = || format!("what the program wrote to {}", buffer.name);
            self.wrong.compare(what, &buffer.still()?, &buffer.source);
            let (address, length, stream) = buffer.piece(chance)?;
            self.witness(address, length, stream)?;
        }
        self.looks.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Storms for so many seconds.
pub(super) fn run(seconds: &str) -> Result<()> {
    let time = Duration::from_secs(seconds.parse().context("how many seconds")?);
    let witness = Witness::connect("storms")?;
    let seed = u64::from_le_bytes(witness.stream(0, 8).try_into().unwrap_or_default());
    let mut chance = Chance::new(seed);
    optin::enable()?;
    RECLAIMED.make(None)?;
    RECLAIMED.enter()?;
    let controller = addresses(nvme::ID)?.into_iter().next().context("no NVMe controller here")?;
    let drive = witness.stream(0, DRIVE);
    drive::write(&controller, &drive)?;
    bind(&controller, "sysfs")?;

    let context = Context::new()?;
    let ioas = context.ioas()?;
    let buffers = buffers::all(&ioas, &witness)?;
    let shared = Shared {
        stop: AtomicBool::new(false),
        buffers,
        drive,
        witness: Mutex::new(witness),
        transfers: Transfers::default(),
        wrong: Wrong::default(),
        looks: AtomicU64::new(0),
    };
    let edus = addresses(noiommu_edu::ID)?;
    ensure!(!edus.is_empty(), "no edu device here");
    let open = |address: &str| {
        let device = context.open_with(address, Provider::Sysfs);
        device.with_context(|| format!("opening {address}"))
    };
    let controller = open(&controller)?;
    let devices = edus.iter().map(|edu| open(edu)).collect::<Result<Vec<_>>>()?;

    let before = vmstat::read()?;
    let mut storms = others::start(&mut chance)?;
    let mut lanes: Vec<(&str, Lane<'_>)> = Vec::new();
    let (here, there) = (&shared, &ioas);
    for (lane, device) in devices.into_iter().enumerate() {
        let chance = Chance::new(chance.any());
        lanes.push(("edu", Box::new(move || copies::run(here, device, there, lane, chance))));
    }
    let [one, other] = [(); 2].map(|()| Chance::new(chance.any()));
    lanes.push(("nvme", Box::new(move || reads::run(here, controller, there, one))));
    lanes.push(("own", Box::new(move || own::run(here, other))));
    let began = Instant::now();
    let told = go(&shared, lanes, &mut chance, began + time, &mut storms)?;
    let seconds = began.elapsed().as_secs_f64();
    let others = others::end(storms)?;
    shared.look(&mut chance)?;
    let after = vmstat::read()?;

    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let transfers = &shared.transfers;
    let found = json!({
        "seconds": seconds,
        "edu": {"transfers": count(&transfers.edu), "bytes": count(&transfers.edu_bytes)},
        "nvme": {"transfers": count(&transfers.nvme), "bytes": count(&transfers.nvme_bytes), "fresh": count(&transfers.fresh)},
        "buffers": shared.buffers.iter().map(Buffer::tell).collect::<Vec<_>>(),
        "wrong_bytes": shared.wrong.bytes(),
        "wrong": shared.wrong.places(),
        "moved_pages": shared.wrong.moved_pages(),
        "looks": count(&shared.looks),
        "own": told.last(),
        "others": others,
        "kernel": vmstat::grown(&before, &after),
    });
    fs::write(FOUND, format!("{found}\n")).context(FOUND)?;
    let Shared { witness, .. } = shared;
    witness.into_inner().unwrap_or_else(PoisonError::into_inner).done(0)
}

/// What a thread does until the end, and tells then.
type Lane<'a> = Box<dyn FnOnce() -> Result<Value> + Send + 'a>;

/// Has all threads go on until the time is over; answers what they tell.
fn go(
    shared: &Shared,
    lanes: Vec<(&str, Lane<'_>)>,
    chance: &mut Chance,
    end: Instant,
    storms: &mut [Storm],
) -> Result<Vec<Value>> {
    let over = || shared.stop.store(true, Ordering::Relaxed);
    thread::scope(|scope| {
        let over = &over;
        let mut threads = Vec::new();
        for (name, lane) in lanes {
            let thread = scope.spawn(move || {
                let told = lane();
                // The others are not to go on for minutes when one is at its end.
                over();
                told
            });
            threads.push((name, thread));
        }
        let watched = watch(shared, chance, end, storms);
        over();
        let mut told = Vec::new();
        for (name, thread) in threads {
            let done = thread.join().map_err(|_| anyhow!("the thread {name} panicked"))?;
            told.push(done.with_context(|| format!("the thread {name}"))?);
        }
        watched.map(|()| told)
    })
}

/// Looks at the buffers until the time is over, or a thread is at its end.
fn watch(shared: &Shared, chance: &mut Chance, end: Instant, storms: &mut [Storm]) -> Result<()> {
    let began = Instant::now();
    let total = (end - began).as_secs();
    while Instant::now() < end && !shared.is_over() {
        shared.look(chance)?;
        storms.iter_mut().try_for_each(Storm::go_on)?;
        progress::tell(began.elapsed().as_secs().min(total), total)?;
        thread::sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}
