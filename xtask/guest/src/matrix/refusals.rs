//! What must not be, tried: each is refused by an error of the right kind, and the device is then as it was.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use noiommu::{Context, Contiguity, Device, DmaBuffer, Error, InterruptKind, optin};
use noiommu_edu::Edu;
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::json;

use super::{Kind, State, bind, unbind};
use crate::stock_edu::DEVICES;
use crate::witness::Witness;

/// Where they go, a line of JSON each.
const REFUSALS: &str = "/output/refusals";

/// What QEMU calls the device that is to leave.
const LEAVING: &str = "leaving";

/// A kernel waits 5 seconds after somebody has asked for a slot, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A user without any capability.
const NOBODY: u32 = 65534;

/// Writes down what each attempt came to; without a file, only prints it.
struct Report(Option<File>);

impl Report {
    /// `answer` has to be an error; the host fails a run that was not refused what it has to be.
    fn refused<T>(&mut self, what: &str, answer: noiommu::Result<T>) -> Result<()> {
        match answer {
            Ok(_) => self.tell(what, "NotRefused", "it was granted"),
            Err(error) => self.tell(what, &format!("{:?}", error.kind()), &error.to_string()),
        }
    }

    fn tell(&mut self, what: &str, kind: &str, text: &str) -> Result<()> {
        self.pass_on(&json!({"what": what, "kind": kind, "text": text}).to_string())
    }

    fn pass_on(&mut self, line: &str) -> Result<()> {
        println!("{line}");
        match &mut self.0 {
            Some(file) => writeln!(file, "{line}").context(REFUSALS),
            None => Ok(()),
        }
    }
}

/// Tries them all, with edu devices: the first stays, the last leaves.
pub(super) fn run() -> Result<()> {
    optin::enable()?;
    let mut report = Report(Some(File::create(REFUSALS).context(REFUSALS)?));
    let context = Context::new()?;
    report.refused("no address", context.open("somewhere"))?;
    report.refused("wrong address", context.open("0000:00:13.7"))?;
    let owned = Kind::find("nvme")?.address()?;
    let before = State::of(&owned)?;
    report.refused("driver bound", context.open(&owned))?;
    ensure!(before == State::of(&owned)?, "a device that was refused is another one");

    let edus = Kind::find("edu")?.addresses()?;
    let [stays, leaves] = &edus[..] else { bail!("there are {} edu devices, not 2", edus.len()) };
    let before = State::of(stays)?;
    bind(stays, "auto")?;
    without_privileges(&mut report, stays)?;
    opened(&mut report, &context, stays)?;
    unbind(stays)?;
    before.restored(&State::of(stays)?)?;
    bind(leaves, "auto")?;
    // In a process of its own, whose end gives up the memory that it could not.
    let ran = Command::new("/proc/self/exe").args(["matrix", "leaving", leaves]).output()?;
    ensure!(ran.status.success(), "a device leaves: {}", String::from_utf8_lossy(&ran.stderr).trim());
    for line in String::from_utf8_lossy(&ran.stdout).lines() {
        report.pass_on(line)?;
    }
    left(&mut report, &context, leaves)
}

/// What is there of a device that left.
fn left(report: &mut Report, context: &Context, address: &str) -> Result<()> {
    until("its directory goes", || Ok(!Path::new(DEVICES).join(address).exists()))?;
    report.refused("opened after it left", context.open(address))?;
    // What was remembered of it is forgotten.
    unbind(address)?;
    let remembered = fs::read_dir("/run/noiommu/bindings").map(Iterator::count).unwrap_or_default();
    ensure!(remembered == 0, "{remembered} devices are still remembered as bound");
    Ok(())
}

/// What a process without capabilities gets: the kind of the error, and the error. It is another process.
pub(super) fn unprivileged(address: &str) -> Result<()> {
    match Context::new().and_then(|context| context.open(address)) {
        Ok(device) => bail!("{device:?} was opened"),
        Err(error) => println!("{:?}\n{error}", error.kind()),
    }
    Ok(())
}

fn without_privileges(report: &mut Report, address: &str) -> Result<()> {
    let mut program = Command::new("/proc/self/exe");
    let ran = program.args(["matrix", "unprivileged", address]).uid(NOBODY).gid(NOBODY).output()?;
    ensure!(ran.status.success(), "no privilege: {}", String::from_utf8_lossy(&ran.stderr).trim());
    let text = String::from_utf8_lossy(&ran.stdout);
    let (kind, error) = text.trim().split_once('\n').context("nothing was said")?;
    report.tell("no privilege", kind, error)
}

/// What an open device refuses.
fn opened(report: &mut Report, context: &Context, address: &str) -> Result<()> {
    let device = context.open(address)?;
    report.refused("opened twice", context.open(address))?;
    report.refused("opened by another engine", Context::new()?.open(address))?;
    report.refused("no such BAR", device.bar(1))?;
    report.refused("BAR out of range", device.bar(6))?;
    let bar = device.bar(0)?;
    report.refused("register past the end", bar.read_u32(bar.size()))?;
    report.refused("register at no place", bar.write_u32(u64::MAX - 3, 0))?;
    report.refused("misaligned register", bar.read_u32(2))?;
    report.refused("oversized register", bar.read_u64(bar.size() - 4))?;
    report.refused("past config space", device.config_read(4094, &mut [0; 4]))?;
    report.refused("no such kind of interrupt", device.enable_interrupts(InterruptKind::Msix, 1))?;
    match InterruptKind::ALL
        .into_iter()
        .find(|kind| device.interrupt_count(*kind).is_ok_and(|count| count > 0))
    {
        Some(kind) => {
            let count = device.interrupt_count(kind)?;
            report.refused("no such vector", device.enable_interrupts(kind, count + 1))?;
            let _held = device.enable_interrupts(kind, count)?;
            report.refused("interrupts enabled twice", device.enable_interrupts(kind, 1))?;
        }
        None => bail!("{address} has no interrupt at all"),
    }
    // SAFETY: the device is told nothing, and this is refused: it is attached to no memory.
    report.refused("bus mastering without memory", unsafe { device.enable_bus_master() })?;
    // After all of that it works as ever.
    let edu = Edu::new(device, &context.ioas()?)?;
    ensure!(edu.is_alive()?, "the device does not answer any more");
    Ok(())
}

/// The device leaves while it is driven. It is another process.
pub(super) fn leaving(address: &str) -> Result<()> {
    let mut report = Report(None);
    let mut witness = Witness::connect("leaving")?;
    let context = Context::new()?;
    let ioas = context.ioas()?;
    let edu = Edu::new(context.open(address)?, &ioas)?;
    let mapping = ioas.map(DmaBuffer::new(4096, Contiguity::Pages)?).map_err(Error::from)?;
    let buffer = mapping.buffer().context("a mapping without a buffer")?;
    let view = mapping.for_device(edu.device())?;
    // First it works, and the host sees what it wrote.
    let pattern = witness.stream(0, 512);
    buffer.write(0, &pattern)?;
    edu.load(&view, 0, 512)?;
    buffer.fill(0, 512, 0)?;
    edu.store(&view, 0, 512)?;
    witness.expect_stream(view.at(0)?.address.bits(), 512, 0)?;

    witness.unplug(LEAVING)?;
    if announced(edu.device())? {
        // The kernel waits for us.
        report.tell("device leaves", "Removal", "its removal was announced")?;
    } else {
        until("it leaves", || Ok(edu.device().is_gone()?))?;
        report.refused("device leaves", edu.device().id())?;
        ensure!(
            edu.device().config_read(0, &mut [0; 4]).is_err(),
            "config space of a device that left is read"
        );
        // Reading registers is no fault, and says nothing.
        ensure!(!edu.is_alive()?, "the device that left answers");
    }
    drop((view, mapping));
    let closed = edu.close();
    let memory = if ioas.quarantined() == 0 { "GivenBack" } else { "Kept" };
    report.tell("memory of a device that left", memory, &format!("{closed:?}"))?;
    // Whatever becomes of the memory: nobody waits for this process to let the device go.
    until("its directory goes", || Ok(!Path::new(DEVICES).join(address).exists()))?;
    witness.done(0)
}

/// Waits for word that the device is to leave; `false`: such word never comes from this provider.
fn announced(device: &Device) -> Result<bool> {
    let Some(removal) = device.removal()? else { return Ok(false) };
    let mut ready = [PollFd::from_borrowed_fd(removal.as_fd(), PollFlags::IN)];
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    ensure!(
        rustix::event::poll(&mut ready, Some(&patience))? == 1,
        "nobody says that the device is to leave"
    );
    Ok(true)
}

fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        ensure!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
