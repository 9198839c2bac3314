//! Processes that do nothing but trouble: they keep the kernel moving pages. Each checks every byte of its own memory all the time.
//!
//! A storm is told to end by the end of its standard input, and tells then what it has done: a line of JSON.

use std::fs;
use std::io::{Read as _, stdin};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::mm::{Advice, mlock};
use serde_json::{Value, json};

use super::super::cgroup::{RECLAIMED, SQUEEZED};
use super::super::chance::Chance;
use super::super::pattern::{Foreign, HUGE, Pattern};
use super::frames::frames;
use crate::matrix::driver::PAGE;

/// A kind of storm.
struct Kind {
    name: &'static str,
    run: fn(&mut Weather) -> Result<()>,
}

const KINDS: [Kind; 7] = [
    Kind { name: "compact", run: compact },
    Kind { name: "fragment", run: fragment },
    Kind { name: "huge", run: huge },
    Kind { name: "squeezed", run: squeezed },
    Kind { name: "reclaim", run: reclaim },
    Kind { name: "near-oom", run: near_oom },
    Kind { name: "mlocked", run: mlocked },
];

/// Bytes that [`SQUEEZED`] has.
const SQUEEZED_MOST: usize = 24 << 20;

/// A storm as the one who started it sees it.
pub(super) struct Storm {
    name: &'static str,
    child: Child,
    /// Its end is the storm's.
    _hold: ChildStdin,
}

/// Starts one of each kind.
pub(super) fn start(chance: &mut Chance) -> Result<Vec<Storm>> {
    SQUEEZED.make(Some(SQUEEZED_MOST))?;
    KINDS.iter().map(|kind| Storm::start(kind.name, chance.any())).collect()
}

impl Storm {
    fn start(name: &'static str, seed: u64) -> Result<Self> {
        let mut program = Command::new("/proc/self/exe");
        program.args(["soak", "storm", name, &seed.to_string()]);
        let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context(name)?;
        let hold = child.stdin.take().context("no stdin")?;
        Ok(Self { name, child, _hold: hold })
    }

    /// An error when it has ended by itself.
    pub(super) fn is_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the storm {} has ended: {status}", self.name),
        }
    }

    /// Ends it; what it has done.
    pub(super) fn end(self) -> Result<Value> {
        let Self { name, child, _hold: hold } = self;
        drop(hold);
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "the storm {name} ended with {}", output.status);
        serde_json::from_slice(&output.stdout).with_context(|| format!("the storm {name}"))
    }
}

/// What a storm knows of itself.
struct Weather {
    over: &'static AtomicBool,
    chance: Chance,
    rounds: u64,
    /// What the kernel did of what was asked, where it may refuse.
    done: u64,
    foreign: Foreign,
    /// Pages that have moved: of the one that looks.
    moved: u64,
}

impl Weather {
    fn goes_on(&mut self, pause: Duration) -> bool {
        self.rounds += 1;
        sleep(pause);
        !self.over.load(Ordering::Relaxed)
    }
}

/// Runs a storm until the end of standard input. It is another process.
pub(in crate::soak) fn run(name: &str, seed: &str) -> Result<()> {
    static OVER: AtomicBool = AtomicBool::new(false);
    let kind = KINDS.iter().find(|kind| kind.name == name).context("no such storm")?;
    std::thread::spawn(|| {
        let _ = stdin().read_to_end(&mut Vec::new());
        OVER.store(true, Ordering::Relaxed);
    });
    let mut weather = Weather {
        over: &OVER,
        chance: Chance::new(seed.parse().context("the seed")?),
        rounds: 0,
        done: 0,
        foreign: Foreign::default(),
        moved: 0,
    };
    (kind.run)(&mut weather)?;
    println!(
        "{}",
        json!({
            "name": name,
            "rounds": weather.rounds,
            "done": weather.done,
            "foreign": weather.foreign.bytes,
            "first": weather.foreign.first,
            "moved": weather.moved,
        })
    );
    Ok(())
}

/// Has all memory compacted.
fn compact(weather: &mut Weather) -> Result<()> {
    let switch = "/proc/sys/vm/compact_memory";
    while weather.goes_on(Duration::from_millis(30)) {
        fs::write(switch, "1").context(switch)?;
        weather.done += 1;
    }
    Ok(())
}

/// Takes single pages and gives some of them back, so that there are holes everywhere.
fn fragment(weather: &mut Weather) -> Result<()> {
    const PAGES: usize = (48 << 20) / PAGE;
    let pattern = Pattern::of_pages(PAGES, weather.chance.any())?;
    while weather.goes_on(Duration::from_millis(10)) {
        // Runs of 1 to 8 pages stay, and as many go.
        let step = 1 + weather.chance.index(8);
        let holes: Vec<usize> = (step..PAGES - step).step_by(2 * step).collect();
        for hole in &holes {
            pattern.advise(*hole, step, Advice::LinuxDontNeed)?;
        }
        pattern.check(0, step, &mut weather.foreign);
        sleep(Duration::from_millis(50));
        for hole in holes {
            pattern.check(hole + step, step.min(PAGES - hole - step), &mut weather.foreign);
            pattern.fill(hole, step);
            weather.done += 1;
        }
    }
    pattern.check(0, PAGES, &mut weather.foreign);
    Ok(())
}

/// Huge pages that are split in all ways there are, and collapsed again.
fn huge(weather: &mut Weather) -> Result<()> {
    const CHUNK: usize = HUGE / PAGE;
    const CHUNKS: usize = 8;
    let collapse = |pattern: &Pattern, first: usize| {
        let at = pattern.address(first).as_ptr().cast();
        // SAFETY: within the pattern's memory; collapsing changes only where its bytes lie.
        unsafe { libc::madvise(at, HUGE, libc::MADV_COLLAPSE) == 0 }
    };
    let protect = |pattern: &Pattern, first: usize, pages: usize, more: i32| {
        let at = pattern.address(first).as_ptr().cast();
        // SAFETY: within the pattern's memory, which stays readable and writable.
        unsafe { libc::mprotect(at, pages * PAGE, libc::PROT_READ | libc::PROT_WRITE | more) == 0 }
    };
    loop {
        let pattern = Pattern::of_huge_pages(CHUNKS * CHUNK, weather.chance.any())?;
        for _ in 0..32 {
            if !weather.goes_on(Duration::from_millis(5)) {
                return Ok(());
            }
            let chunk = weather.chance.index(CHUNKS) * CHUNK;
            let (skip, pages) = (weather.chance.index(CHUNK / 2), 1 + weather.chance.index(CHUNK / 2));
            match weather.chance.index(4) {
                0 => {
                    pattern.advise(chunk + skip, pages, Advice::LinuxDontNeed)?;
                    pattern.fill(chunk + skip, pages);
                }
                1 => {
                    protect(&pattern, chunk + skip, pages, libc::PROT_EXEC);
                    protect(&pattern, chunk, CHUNK, 0);
                }
                2 => pattern.advise(chunk + skip, pages, Advice::LinuxPageOut)?,
                _ => weather.done += u64::from(collapse(&pattern, chunk)),
            }
            pattern.check(chunk, CHUNK, &mut weather.foreign);
        }
        pattern.check(0, pattern.pages(), &mut weather.foreign);
    }
}

/// Twice as much memory as its cgroup has: it is swapped all the time.
fn squeezed(weather: &mut Weather) -> Result<()> {
    const PAGES: usize = 2 * SQUEEZED_MOST / PAGE;
    const PART: usize = 256;
    SQUEEZED.enter()?;
    let pattern = Pattern::of_pages(PAGES, weather.chance.any())?;
    while weather.goes_on(Duration::from_millis(5)) {
        let (first, other) = (weather.chance.index(PAGES - PART), weather.chance.index(PAGES - PART));
        pattern.check(first, PART, &mut weather.foreign);
        pattern.fill(other, PART);
        weather.done += 1;
    }
    pattern.check(0, PAGES, &mut weather.foreign);
    Ok(())
}

/// Has the kernel take back memory of the process that drives the devices.
fn reclaim(weather: &mut Weather) -> Result<()> {
    while weather.goes_on(Duration::from_millis(100)) {
        weather.done += u64::from(RECLAIMED.reclaim(4 << 20));
    }
    Ok(())
}

/// Takes nearly all memory that there is, and gives it back.
fn near_oom(weather: &mut Weather) -> Result<()> {
    /// What is left for the others.
    const LEFT: u64 = 96 << 20;
    while weather.goes_on(Duration::from_millis(500)) {
        let there = available()?;
        let pages = there.saturating_sub(LEFT) as usize / PAGE;
        let pattern = Pattern::of_pages(pages.max(1), weather.chance.any())?;
        pattern.check(0, pattern.pages(), &mut weather.foreign);
        weather.done += 1;
    }
    Ok(())
}

/// Bytes that can be had without swapping.
fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("MemAvailable")?;
    Ok(kib << 10)
}

/// The control: memory that is only mlocked, as programs have it that know no better. It moves.
fn mlocked(weather: &mut Weather) -> Result<()> {
    const PAGES: usize = (8 << 20) / PAGE;
    let pattern = Pattern::of_pages(PAGES, weather.chance.any())?;
    // SAFETY: locking changes nothing but where the pages may be.
    unsafe { mlock(pattern.address(0).as_ptr().cast(), PAGES * PAGE) }.context("mlock")?;
    let mut places = frames(pattern.address(0).addr().get(), PAGES)?;
    while weather.goes_on(Duration::from_millis(200)) {
        for (place, now) in places.iter_mut().zip(frames(pattern.address(0).addr().get(), PAGES)?) {
            // One on the move is looked at when it is there.
            let Some(frame) = now else { continue };
            weather.moved += u64::from(place.replace(frame).is_some_and(|before| before != frame));
        }
        pattern.check(0, PAGES, &mut weather.foreign);
        weather.done += 1;
    }
    Ok(())
}
