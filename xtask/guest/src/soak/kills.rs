//! Drivers are killed in the middle of DMA, and then all memory that is to be had is churned by others who check every byte.
//!
//! The plan in [`PLAN`] says what is done: a seed, then a line for each row of the host's table, `DEVICE PROVIDER GUARD WAY KILLS`. What came of it is
//! left in [`FOUND`], a line of JSON for each kill; the host judges. Nothing here knows what is right.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::{available_parallelism, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use noiommu::optin;
use serde_json::{Value, json};

use super::busy::Kind;
use super::cgroup::{DOOMED, OOM, OOM_MOST};
use super::chance::Chance;
use super::rescues::{self, Rescues};
use super::{driver, processes, progress};
use crate::matrix::driver::PATIENCE;
use crate::matrix::{addresses, bind};

/// What is to be done.
const PLAN: &str = "/plan";
/// What came of it.
const FOUND: &str = "/output/kills";
/// What drivers and guardians said.
const SAID: &str = "/output/said";

/// The provider that a program is to use.
const PROVIDER: &str = "NOIOMMU_PROVIDER";
/// Who guards a driver: `own`, `service` or `waived`, which is nobody.
const GUARDIAN: &str = "NOIOMMU_GUARDIAN";

/// Pages that each churning process takes in all. More would detect nothing: the pages that a driver gave back have to be among the
/// first that are taken, before its device comes to write.
const PAGES: usize = 1024;

/// A row of the plan.
struct Row {
    kind: &'static Kind,
    provider: String,
    guard: String,
    way: String,
    kills: u32,
}

impl Row {
    fn is_guarded(&self) -> bool {
        self.guard != "waived"
    }
}

/// How memory is churned after the death of a device's driver: first while the device is writing, if nobody stops it, then once more.
struct Pace {
    rounds: [u32; 2],
    pause: Duration,
}

impl Pace {
    fn of(kind: &str) -> Self {
        let (rounds, milliseconds) = match kind {
            // It writes once, 100 ms after the command.
            "edu" => ([6, 2], 25),
            // A read each 10 ms: what is queued takes 1.3 s.
            "nvme" => ([6, 6], 50),
            // Each millisecond.
            _ => ([5, 3], 15),
        };
        Self { rounds, pause: Duration::from_millis(milliseconds) }
    }

    fn pages(&self) -> usize {
        PAGES / self.rounds.iter().sum::<u32>() as usize
    }
}

/// Does all of the plan.
pub(super) fn run() -> Result<()> {
    let plan = fs::read_to_string(PLAN).context(PLAN)?;
    let (seed, rows) = plan.split_once('\n').context("an empty plan")?;
    let rows: Vec<Row> = rows.lines().map(parse).collect::<Result<_>>()?;
    OOM.make(Some(OOM_MOST))?;
    DOOMED.make(None)?;
    optin::enable()?;
    let _service = rows.iter().any(|row| row.guard == "service").then(Service::start).transpose()?;
    let mut soak = Soak::new(seed.parse().context("the seed")?)?;
    let places = prepare(&rows)?;
    let total: u32 = rows.iter().map(|row| row.kills).sum();
    let mut found: Vec<Value> = Vec::new();
    // Written at the end, and nothing is in the meantime: it would be memory that a device might hit.
    for row in &rows {
        for _ in 0..row.kills {
            let (number, place) = (found.len() as u64, &places[row.kind.name]);
            let what = || {
                format!("kill {number}: {} by {}, {} ({})", row.kind.name, row.provider, row.way, row.guard)
            };
            found.push(soak.kill(row, place, number).with_context(what)?);
            progress::tell(found.len() as u64, total.into())?;
        }
    }
    let lines: String = found.iter().map(|value| format!("{value}\n")).collect();
    fs::write(FOUND, lines).context(FOUND)
}

fn parse(line: &str) -> Result<Row> {
    let words: Vec<&str> = line.split(' ').collect();
    let [kind, provider, guard, way, kills] = words[..] else { bail!("the plan says {line:?}") };
    Ok(Row {
        kind: Kind::find(kind)?,
        provider: provider.to_owned(),
        guard: guard.to_owned(),
        way: way.to_owned(),
        kills: kills.parse().context("how many kills")?,
    })
}

/// Gives each device its bytes, and takes it from the kernel's driver. Answers where they are.
fn prepare(rows: &[Row]) -> Result<BTreeMap<&'static str, String>> {
    let mut places = BTreeMap::new();
    for kind in rows.iter().map(|row| row.kind) {
        if places.contains_key(kind.name) {
            continue;
        }
        let place =
            addresses(kind.id)?.into_iter().next().with_context(|| format!("no {} here", kind.name))?;
        (kind.prepare)(&place).with_context(|| format!("preparing {}", kind.name))?;
        bind(&place, "sysfs")?;
        places.insert(kind.name, place);
    }
    Ok(places)
}

/// What goes on through all kills.
struct Soak {
    churners: Vec<Churner>,
    rescues: Rescues,
    chance: Chance,
}

impl Soak {
    fn new(seed: u64) -> Result<Self> {
        let cpus = available_parallelism().context("how many processors")?.get();
        let churners = (0..cpus).map(Churner::start).collect::<Result<_>>()?;
        Ok(Self { churners, rescues: Rescues::follow()?, chance: Chance::new(seed) })
    }

    /// One driver lives and dies.
    fn kill(&mut self, row: &Row, place: &str, number: u64) -> Result<Value> {
        let (began, pace) = (Instant::now(), Pace::of(row.kind.name));
        let before = processes::running()?;
        let mut driver = Driver::start(row, place)?;
        let process = driver.child.id();
        let mut doomed = vec![process];
        if row.way == "both" {
            doomed.extend(processes::running()?.difference(&before).filter(|other| **other != process));
            ensure!(doomed.len() > 1, "there is no guardian to be killed");
            // Either one first.
            doomed.rotate_left((number % 2) as usize);
        }
        // Anywhere in what the device is doing.
        sleep(Duration::from_micros(self.chance.below(15_000)));
        driver.die(&row.way, &doomed)?;

        let mut foreign = Foreign::default();
        let died = Instant::now();
        self.churn(&pace, 0, &mut foreign)?;
        let mut lines = self.rescues.new_lines()?;
        let is_due = row.is_guarded() && row.way != "both" && row.way != "panic";
        while is_due && !lines.iter().any(|line| rescues::is_about(line, place, process)) {
            // That it never comes is for the host to judge.
            if died.elapsed() > PATIENCE {
                break;
            }
            sleep(Duration::from_millis(5));
            lines.extend(self.rescues.new_lines()?);
        }
        let waited = died.elapsed();
        self.churn(&pace, 1, &mut foreign)?;
        driver.end()?;
        if !row.is_guarded() || row.way == "both" {
            // Before what it may be writing to goes to somebody else.
            quiet(row, place)?;
        }
        self.release(&mut foreign)?;
        lines.extend(self.rescues.new_lines()?);
        let (ours, others): (Vec<_>, Vec<_>) =
            lines.into_iter().partition(|line| rescues::is_about(line, place, process));
        Ok(json!({
            "device": row.kind.name,
            "provider": row.provider,
            "guard": row.guard,
            "way": row.way,
            "process": process,
            "foreign": foreign.bytes,
            "first": foreign.first,
            "rescues": ours,
            "others": others,
            "rescued_ms": waited.as_millis() as u64,
            "ms": began.elapsed().as_millis() as u64,
        }))
    }

    /// Rounds of taking memory, and a check of all of it.
    fn churn(&mut self, pace: &Pace, part: usize, foreign: &mut Foreign) -> Result<()> {
        for _ in 0..pace.rounds[part] {
            let salt = self.chance.any() as u32;
            let order = format!("grow {} {salt}", pace.pages());
            self.tell(&order, foreign)?;
            sleep(pace.pause);
        }
        self.tell("check", foreign)
    }

    /// The last check, and the end of all that was taken.
    fn release(&mut self, foreign: &mut Foreign) -> Result<()> {
        self.tell("check", foreign)?;
        self.tell("release", foreign)?;
        foreign.settle();
        Ok(())
    }

    /// Gives an order to all at once, and takes the answers.
    fn tell(&mut self, order: &str, foreign: &mut Foreign) -> Result<()> {
        self.churners.iter_mut().for_each(|churner| churner.order(order));
        for (cpu, churner) in self.churners.iter_mut().enumerate() {
            match churner.answer()? {
                Some(answer) => foreign.take(cpu, &answer)?,
                // Its own code, stack or tables were hit.
                None => {
                    foreign.killed(cpu);
                    *churner = Churner::start(cpu)?;
                }
            }
        }
        Ok(())
    }
}

/// What others found in their memory.
#[derive(Default)]
struct Foreign {
    bytes: u64,
    first: Option<String>,
    /// Of each processor's, by the last check of what it has now.
    now: BTreeMap<usize, u64>,
}

impl Foreign {
    fn take(&mut self, cpu: usize, answer: &str) -> Result<()> {
        let words: Vec<&str> = answer.splitn(3, ' ').collect();
        match words[..] {
            ["ok"] => {}
            ["foreign", bytes, place] => {
                let bytes: u64 = bytes.parse()?;
                // Bytes once foreign stay so, but for those that come to be as they were by chance.
                let most = self.now.entry(cpu).or_default();
                *most = bytes.max(*most);
                if bytes > 0 {
                    self.first.get_or_insert_with(|| place.to_owned());
                }
            }
            _ => bail!("a churning process answers {answer:?}"),
        }
        Ok(())
    }

    /// A process died of it.
    fn killed(&mut self, cpu: usize) {
        *self.now.entry(cpu).or_default() += 1;
        self.first.get_or_insert_with(|| format!("the process that churned on processor {cpu} died"));
    }

    fn settle(&mut self) {
        self.bytes = self.now.values().sum();
    }
}

/// A process that churns.
struct Churner {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Churner {
    fn start(cpu: usize) -> Result<Self> {
        let mut program = Command::new("/proc/self/exe");
        program.args(["soak", "churn", &cpu.to_string()]);
        let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("churning")?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let mut churner = Self {
            child,
            orders: orders.context("no stdin")?,
            answers: BufReader::new(answers.context("no stdout")?),
        };
        // All of the program that it needs is in memory before it matters.
        churner.order("grow 1 0");
        churner.answer()?;
        churner.order("check");
        churner.answer()?;
        churner.order("release");
        churner.answer()?;
        Ok(churner)
    }

    /// One that is dead is found when it has to answer.
    fn order(&mut self, order: &str) {
        let _ = writeln!(self.orders, "{order}");
    }

    /// `None`: it is dead.
    fn answer(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line).context("a churning process")?;
        Ok((read > 0).then(|| line.trim_end().to_owned()))
    }
}

impl Drop for Churner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A driver that is to die.
struct Driver {
    child: Child,
    orders: ChildStdin,
}

impl Driver {
    /// Starts it; its device is writing then.
    fn start(row: &Row, place: &str) -> Result<Self> {
        let mut program = ours(row, &row.guard)?;
        program.args(["soak", "driver", row.kind.name, place, &row.way]);
        let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("the driver")?;
        let (orders, says) = (child.stdin.take(), child.stdout.take());
        let mut driver = Self { child, orders: orders.context("no stdin")? };
        let mut line = String::new();
        BufReader::new(says.context("no stdout")?).read_line(&mut line)?;
        if line.trim() != driver::ARMED {
            let _ = driver.child.kill();
            let status = driver.child.wait()?;
            let said = fs::read_to_string(SAID).unwrap_or_default();
            bail!("the driver did not come so far ({status}): {}", said.lines().last().unwrap_or_default());
        }
        Ok(driver)
    }

    /// Has it die, and waits for that. `doomed`: who is killed, where somebody is.
    fn die(&mut self, way: &str, doomed: &[u32]) -> Result<()> {
        if matches!(way, "kill" | "both") {
            doomed.iter().try_for_each(|process| processes::kill(*process))?;
        } else if way == "cgroup" {
            DOOMED.kill()?;
        } else {
            // One that is dead by now is found below.
            let _ = writeln!(self.orders, "die");
        }
        if way == "exec" {
            // The process lives on as another program.
            let deadline = Instant::now() + PATIENCE;
            while processes::name(self.child.id())? != "sleep" {
                ensure!(Instant::now() < deadline, "the driver did not become another program");
                sleep(Duration::from_millis(1));
            }
            return Ok(());
        }
        let status = self.child.wait()?;
        ensure!(is_as_told(way, status), "the driver ended otherwise: {status}");
        Ok(())
    }

    /// The end of what it has become.
    fn end(&mut self) -> Result<()> {
        self.child.kill().or_else(|error| match error.kind() {
            std::io::ErrorKind::InvalidInput => Ok(()),
            _ => Err(error),
        })?;
        self.child.wait()?;
        Ok(())
    }
}

/// Whether a driver ended as it was told to.
fn is_as_told(way: &str, status: ExitStatus) -> bool {
    match way {
        "kill" | "both" | "cgroup" | "oom" => status.signal() == Some(libc::SIGKILL),
        "abort" => status.signal() == Some(libc::SIGABRT),
        "exit" => status.code() == Some(driver::STATUS),
        // As Rust has it.
        "panic" => status.code() == Some(101),
        _ => false,
    }
}

/// Makes a device quiet that nobody else has.
fn quiet(row: &Row, place: &str) -> Result<()> {
    let ran = ours(row, "waived")?.args(["soak", "quiet", row.kind.name, place]).status()?;
    ensure!(ran.success(), "the device could not be made quiet: {ran}");
    Ok(())
}

/// This program, to drive a device.
fn ours(row: &Row, guard: &str) -> Result<Command> {
    let mut program = Command::new("/proc/self/exe");
    program.env(PROVIDER, &row.provider).env(GUARDIAN, guard).stderr(said()?);
    Ok(program)
}

/// Where it is kept what programs say.
fn said() -> Result<File> {
    OpenOptions::new().create(true).append(true).open(SAID).context(SAID)
}

/// The guardian that is a service, outlasting all drivers.
struct Service {
    child: Child,
}

impl Service {
    fn start() -> Result<Self> {
        let mut program = Command::new("noiommu");
        let child = program.args(["guardian", "--listen"]).stderr(said()?).spawn().context("noiommu")?;
        let mut service = Self { child };
        let deadline = Instant::now() + PATIENCE;
        while !fs::exists(noiommu::guardian::SOCKET)? {
            let ended = service.child.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < deadline, "the service does not listen: {ended:?}");
            sleep(Duration::from_millis(5));
        }
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
