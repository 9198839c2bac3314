//! The drivers that are to die, as the one sees them who sees to it: see [`super::driver`].

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::super::cgroup::DOOMED;
use super::driver;
use super::plan::{Row, WAIVED};
use super::processes;
use crate::matrix::driver::PATIENCE;

/// What drivers and guardians said.
const SAID: &str = "/output/said";

/// The provider that a program is to use.
const PROVIDER: &str = "NOIOMMU_PROVIDER";
/// Who guards a driver.
const GUARDIAN: &str = "NOIOMMU_GUARDIAN";

/// A driver that is to die.
pub(super) struct Victim {
    child: Child,
    orders: ChildStdin,
}

impl Victim {
    /// Starts one; its device is writing then.
    pub(super) fn start(row: &Row, place: &str) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (mut driver, says) = Self::try_start(row, place)?;
            match says.as_str() {
                driver::ARMED => return Ok(driver),
                // It goes by itself, in order.
                driver::LATE if Instant::now() < deadline => drop(driver.child.wait()?),
                _ => {
                    let _ = driver.child.kill();
                    let status = driver.child.wait()?;
                    let said = fs::read_to_string(SAID).unwrap_or_default();
                    let last = said.lines().last().unwrap_or_default();
                    bail!("the driver did not come so far ({status}, {says:?}): {last}");
                }
            }
        }
    }

    /// Starts one, and answers what it says first.
    fn try_start(row: &Row, place: &str) -> Result<(Self, String)> {
        let mut program = ours(row, &row.guard)?;
        program.args(["soak", "driver", row.kind.name, place, &row.way]);
        let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("the driver")?;
        let (orders, says) = (child.stdin.take(), child.stdout.take());
        let driver = Self { child, orders: orders.context("no stdin")? };
        let mut line = String::new();
        BufReader::new(says.context("no stdout")?).read_line(&mut line)?;
        Ok((driver, line.trim().to_owned()))
    }

    /// The number of its process.
    pub(super) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Has it die, and waits for that. `doomed`: who is killed, where somebody is.
    pub(super) fn die(&mut self, way: &str, doomed: &[u32]) -> Result<()> {
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
    pub(super) fn end(&mut self) -> Result<()> {
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
pub(super) fn quiet(row: &Row, place: &str) -> Result<()> {
    let ran = ours(row, WAIVED)?.args(["soak", "quiet", row.kind.name, place]).status()?;
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
pub(super) struct Service {
    child: Child,
}

impl Service {
    pub(super) fn start() -> Result<Self> {
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
