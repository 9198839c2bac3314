//! Processes that do nothing but trouble: they keep the kernel moving pages. Each checks every byte of its own memory all the time.
//!
//! A storm is told to end by the end of its standard input, and tells then what it has done: a line of JSON.

use std::fs;
use std::io::{Read as _, stdin};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::mm::{Advice, mlock};
use serde_json::{Value, json};

use super::super::cgroup::{RECLAIMED, SQUEEZED, TOP};
use super::super::chance::Chance;
use super::super::memory;
use super::super::pattern::{Foreign, HUGE, Pattern};
use super::frames::frames;
use crate::matrix::driver::PAGE;

/// A kind of storm.
struct Kind {
    name: &'static str,
    run: fn(&mut Weather) -> Result<()>,
    /// It may be killed for want of memory, and is started again.
    is_mortal: bool,
}

impl Kind {
    const fn of(name: &'static str, run: fn(&mut Weather) -> Result<()>) -> Self {
        Self { name, run, is_mortal: false }
    }

    const fn mortal(mut self) -> Self {
        self.is_mortal = true;
        self
    }
}

static KINDS: [Kind; 7] = [
    Kind::of("compact", compact),
    Kind::of("fragment", fragment),
    Kind::of("huge", huge),
    Kind::of("squeezed", squeezed),
    Kind::of("reclaim", reclaim),
    Kind::of("near-oom", near_oom).mortal(),
    Kind::of("mlocked", mlocked),
];

/// Bytes that [`SQUEEZED`] has.
const SQUEEZED_MOST: usize = 12 << 20;

/// How much less than others a storm has of the processors.
const NICE: i32 = 5;

/// A storm as the one who started it sees it.
pub(super) struct Storm {
    kind: &'static Kind,
    seed: u64,
    child: Child,
    /// Its end is the storm's.
    hold: Option<ChildStdin>,
    /// How often it was started again.
    deaths: u64,
}

/// Starts one of each kind.
pub(super) fn start(chance: &mut Chance) -> Result<Vec<Storm>> {
    SQUEEZED.make(Some(SQUEEZED_MOST))?;
    KINDS.iter().map(|kind| Storm::start(kind, chance.any())).collect()
}

/// Ends them all; what they have done.
pub(super) fn end(mut storms: Vec<Storm>) -> Result<Vec<Value>> {
    storms.iter_mut().try_for_each(Storm::go_on)?;
    // All at once, as some take their time.
    storms.iter_mut().for_each(|storm| storm.hold = None);
    storms.into_iter().map(Storm::end).collect()
}

impl Storm {
    fn start(kind: &'static Kind, seed: u64) -> Result<Self> {
        let mut program = Command::new("/proc/self/exe");
        program.args(["soak", "storm", kind.name, &seed.to_string()]);
        let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context(kind.name)?;
        let hold = child.stdin.take();
        Ok(Self { kind, seed, child, hold, deaths: 0 })
    }

    /// Starts it again when it was killed for want of memory and may be; an error when it has ended otherwise.
    pub(super) fn go_on(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let killed = status.signal() == Some(libc::SIGKILL);
        ensure!(killed && self.kind.is_mortal, "the storm {} has ended: {status}", self.kind.name);
        let deaths = self.deaths + 1;
        *self = Self::start(self.kind, self.seed.wrapping_add(deaths))?;
        self.deaths = deaths;
        Ok(())
    }

    /// Ends it, once it has been told to; what it has done.
    fn end(self) -> Result<Value> {
        let Self { kind, child, deaths, .. } = self;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "the storm {} ended with {}", kind.name, output.status);
        let mut told: Value =
            serde_json::from_slice(&output.stdout).with_context(|| format!("the storm {}", kind.name))?;
        told["deaths"] = deaths.into();
        Ok(told)
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
        !self.is_over()
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
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
    // Out of the cgroup of the one that drives the devices, whose own memory is to be taken back.
    TOP.enter()?;
    // Those whose transfers are verified come first.
    // SAFETY: changes nothing but when this process runs.
    unsafe { libc::nice(NICE) };
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

/// Pages of a huge one.
const CHUNK: usize = HUGE / PAGE;

/// Has all memory compacted.
fn compact(weather: &mut Weather) -> Result<()> {
    let switch = "/proc/sys/vm/compact_memory";
    while weather.goes_on(Duration::from_millis(100)) {
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
    const CHUNKS: usize = 8;
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
                _ => weather.done += u64::from(pattern.collapse(chunk)),
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
    while weather.goes_on(Duration::from_millis(300)) {
        weather.done += u64::from(RECLAIMED.reclaim(4 << 20));
    }
    Ok(())
}

/// Takes nearly all memory that there is, and gives it back.
fn near_oom(weather: &mut Weather) -> Result<()> {
    /// What is left for the others, and what is taken at once.
    const LEFT: u64 = 32 << 20;
    const PART: usize = (8 << 20) / PAGE;
    // The first to be killed when there is none left.
    fs::write("/proc/self/oom_score_adj", "1000").context("/proc/self/oom_score_adj")?;
    while weather.goes_on(Duration::from_millis(2000)) {
        let mut taken = Vec::new();
        while memory::available()? > LEFT && !weather.is_over() {
            taken.push(Pattern::of_pages(PART, weather.chance.any())?);
        }
        for pattern in taken {
            if !weather.is_over() {
                pattern.check(0, PART, &mut weather.foreign);
            }
        }
        weather.done += 1;
    }
    Ok(())
}

/// The control: memory that is only mlocked, as programs have it that know no better. It moves: by compaction, if it is in the way,
/// and when it is made a huge page of, as one half of it is.
fn mlocked(weather: &mut Weather) -> Result<()> {
    const PAGES: usize = (8 << 20) / PAGE;
    /// Rounds that go by before a part is made a huge page of.
    const PATIENCE: u64 = 3;
    let pattern = Pattern::of_pages(PAGES, weather.chance.any())?;
    // SAFETY: locking changes nothing but where the pages may be.
    unsafe { mlock(pattern.address(0).as_ptr().cast(), PAGES * PAGE) }.context("mlock")?;
    pattern.advise(0, PAGES / 2, Advice::LinuxHugepage)?;
    let mut places = frames(pattern.address(0).addr().get(), PAGES)?;
    while weather.goes_on(Duration::from_millis(100)) {
        for (place, now) in places.iter_mut().zip(frames(pattern.address(0).addr().get(), PAGES)?) {
            // One on the move is looked at when it is there.
            let Some(frame) = now else { continue };
            weather.moved += u64::from(place.replace(frame).is_some_and(|before| before != frame));
        }
        pattern.check(0, PAGES, &mut weather.foreign);
        // One part after the other, from some time on.
        let part = (weather.rounds / PATIENCE) as usize;
        if part > 0 && part * CHUNK <= PAGES / 2 {
            weather.done += u64::from(pattern.collapse((part - 1) * CHUNK));
        }
    }
    Ok(())
}
