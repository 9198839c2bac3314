//! Guests: an emulated machine with a kernel of choice runs our programs, and the host bears witness.
//!
//! Data flows one way: [`kernel`] finds what to boot (through [`apt`]), [`initramfs`] packs what runs in it, [`qemu`] starts
//! the machine, [`witness`] listens to the guest and looks into its memory through [`qmp`].

mod apt;
mod initramfs;
mod kernel;
mod qemu;
mod qmp;
mod witness;

use std::env;
use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use self::initramfs::Archive;
use self::kernel::Kernel;
use self::qemu::{Console, Machine, Vm};
use self::witness::Ledger;
use crate::command;
use crate::project::Project;
use crate::ui::{self, Work};

/// What every guest needs of the host, as Debian's packages. libc6-dev has the libc.a that static programs link.
const HOST_PACKAGES: [&str; 3] = ["qemu-system-x86", "busybox-static", "libc6-dev"];

/// The target of the guest's programs.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The longest line that the witness listens to.
const LONGEST_LINE: usize = 64 * 1024;

/// What Linux says on its console, even a quiet one, when it is no longer sound.
const KERNEL_FAULTS: [&str; 4] = ["BUG: ", "Oops: ", "Kernel panic", "general protection fault"];

/// Seconds that a guest gets: one takes about ten, but emulation on a busy machine may be many times slower.
const TIMEOUT: u64 = 240;

/// How long a guest may take to its init.
const BOOT: Duration = Duration::from_secs(90);

/// How often a guest is booted that does not reach its init.
///
/// One of some 200 emulated boots was seen to hang before anything of ours runs, without a word. From init on there is no
/// second try: what fails there has failed. The report tells the number of boots.
const MOST_BOOTS: u32 = 3;

/// The file that keeps the guest's console.
const CONSOLE: &str = "console.log";

/// Options of every guest.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Boot the kernel of this suite of the machine's mirror, such as `backports`
    #[arg(long)]
    suite: Option<String>,

    /// Seconds until a guest that has not ended is killed
    #[arg(long, default_value_t = TIMEOUT)]
    timeout: u64,

    /// Keep the working directory and print the QEMU command
    #[arg(long)]
    keep: bool,

    /// Show the guest's console on stderr
    #[arg(long, short)]
    verbose: bool,
}

impl Options {
    /// The defaults, with the kernel of a suite.
    pub(crate) fn of_suite(suite: &str) -> Self {
        Self { suite: Some(suite.to_owned()), ..Self::default() }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { suite: None, timeout: TIMEOUT, keep: false, verbose: false }
    }
}

/// What a guest is for.
struct Scenario {
    /// The name of its script in `xtask/guest/scenarios`.
    name: &'static str,
    /// Values of QEMU's `-device`.
    devices: &'static [&'static str],
    /// Words for the kernel's command line.
    append: &'static [&'static str],
    /// Our programs that it runs: package and binary.
    programs: &'static [(&'static str, &'static str)],
}

/// A stock kernel and an edu device, with the whole 48-bit range of addresses (its default is 28 bits).
const STOCK_EDU: Scenario = Scenario {
    name: "stock-edu",
    devices: &["edu,dma_mask=0xffffffffffff"],
    append: &[],
    programs: &[("noiommu-guest", "noiommu-guest"), ("noiommu-cli", "noiommu")],
};

/// The same behind a real IOMMU, where physical addresses are no use.
const STOCK_IOMMU: Scenario = Scenario {
    name: "stock-iommu",
    devices: &["intel-iommu", "edu,dma_mask=0xffffffffffff"],
    append: &["intel_iommu=on"],
    programs: &[("noiommu-guest", "noiommu-guest"), ("noiommu-cli", "noiommu")],
};

/// Runs the scenario `stock-edu`.
pub(crate) fn stock_edu(project: &Project, options: &Options) -> Result<()> {
    on_stock_kernel(project, &STOCK_EDU, options)
}

/// Runs the scenario `stock-iommu`.
pub(crate) fn stock_iommu(project: &Project, options: &Options) -> Result<()> {
    on_stock_kernel(project, &STOCK_IOMMU, options)
}

fn on_stock_kernel(project: &Project, scenario: &Scenario, options: &Options) -> Result<()> {
    apt::install(&HOST_PACKAGES)?;
    let kernel = kernel::stock(project, options.suite.as_deref())?;
    run(project, scenario, &kernel, options)
}

/// Boots `kernel`, lets the scenario's script run, and judges.
fn run(project: &Project, scenario: &Scenario, kernel: &Kernel, options: &Options) -> Result<()> {
    let programs = build_guest(project, scenario.programs)?;
    let room = Room::new(options.keep)?;
    let initramfs = room.path.join("initramfs");
    pack(project, scenario, &programs, &initramfs)?;

    let logs = project.run_dir(&format!("{}-{}", scenario.name, kernel.release));
    fs::create_dir_all(&logs).with_context(|| format!("{}", logs.display()))?;
    let machine = Machine {
        kernel: kernel.image.clone(),
        initramfs,
        append: scenario
            .append
            .iter()
            .map(ToString::to_string)
            .chain([format!("noiommu.scenario={}", scenario.name)])
            .collect(),
        devices: scenario.devices.iter().map(ToString::to_string).collect(),
        arguments: Vec::new(),
        memory: 1024,
        cpus: 2,
    };
    if options.keep {
        eprintln!("working directory: {}", room.path.display());
        eprintln!("command: {}", command::describe(&machine.command(&room.path)?));
    }

    let mut boots = 1;
    let (ledger, time) = loop {
        let began = Instant::now();
        let ledger = attempt(&machine, &room.path, &logs, scenario, kernel, options)?;
        let time = began.elapsed();
        if ledger.is_up() || boots == MOST_BOOTS {
            break (ledger, time);
        }
        eprintln!(
            "boot {boots} did not reach the guest's init, once more:\n  - {}",
            ledger.verdict().join("\n  - ")
        );
        boots += 1;
    };

    let mut report = ledger.report();
    report["scenario"] = scenario.name.into();
    report["kernel"] = kernel.origin.clone().into();
    report["boots"] = boots.into();
    report["seconds"] = time.as_secs_f64().into();
    fs::write(logs.join("report.json"), format!("{report:#}\n"))?;
    let faults = ledger.verdict();
    if !faults.is_empty() {
        let console = fs::read(logs.join(CONSOLE)).unwrap_or_default();
        eprintln!("end of the guest's console:");
        for line in command::tail(&String::from_utf8_lossy(&console), 20).lines() {
            eprintln!("  | {}", line.trim_end());
        }
        bail!("{} did not pass:\n  - {}\nlogs: {}", scenario.name, faults.join("\n  - "), logs.display());
    }
    println!(
        "{}: the witness checked {} places ({} bytes), all the same; guest ran {}",
        scenario.name,
        ledger.checks(),
        ledger.bytes_checked(),
        ui::seconds(time)
    );
    Ok(())
}

/// Boots once and hears the guest to its end. What goes wrong in the guest or with QEMU is in the ledger.
fn attempt(
    machine: &Machine,
    room: &Path,
    logs: &Path,
    scenario: &Scenario,
    kernel: &Kernel,
    options: &Options,
) -> Result<Ledger> {
    let work = Work::start(format!("{} on {}", scenario.name, kernel.origin));
    let mut transcript = Transcript::new(&logs.join("transcript.log"))?;
    let mut ledger = Ledger::new(seed()?);
    let mut vm = Vm::start(machine, room, Console { log: logs.join(CONSOLE), show: options.verbose })?;
    let timeout = Duration::from_secs(options.timeout);
    let heard = listen(&mut vm, &mut ledger, &mut transcript, timeout, |ledger| {
        work.set_message(format!("{}: {} checks", scenario.name, ledger.checks()));
    });
    vm.kill();
    if let Err(error) = heard {
        ledger.fault(format!("{error:#}"));
    }
    // A guest may well go on after its kernel went wrong, and even check everything; such a run shows nothing.
    let console = fs::read(logs.join(CONSOLE)).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    if let Some(line) = console.lines().find(|line| KERNEL_FAULTS.iter().any(|fault| line.contains(fault))) {
        ledger.fault(format!("the guest's kernel says: {}", line.trim_end()));
    }
    // QEMU warns about harmless things too, so what it says decides nothing; but it explains.
    let complaints = vm.complaints();
    if !complaints.trim().is_empty() {
        transcript.line("qemu", complaints.trim())?;
        work.print(format_args!("QEMU says: {}", command::tail(&complaints, 5)));
    }
    for note in ledger.notes() {
        work.print(format_args!("  guest: {note}"));
    }
    work.finish();
    Ok(ledger)
}

/// Answers the guest until QEMU ends.
fn listen(
    vm: &mut Vm,
    ledger: &mut Ledger,
    transcript: &mut Transcript,
    timeout: Duration,
    mut progress: impl FnMut(&Ledger),
) -> Result<()> {
    let began = Instant::now();
    vm.witness.set_read_timeout(Some(Duration::from_millis(200)))?;
    // Should the guest not take its answer, the deadline must still come.
    vm.witness.set_write_timeout(Some(Duration::from_secs(20)))?;
    let mut pending = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        // Asked before reading: what the guest said last is still there to be read when QEMU is gone.
        let ended = vm.ended()?;
        let read = match vm.witness.read(&mut bytes) {
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => 0,
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionReset) => 0,
            Err(error) => return Err(error).context("listening to the guest"),
        };
        pending.extend_from_slice(&bytes[..read]);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end();
            transcript.line("guest", line)?;
            if let Some(answer) = ledger.hear(line, &mut vm.qmp)? {
                transcript.line("host", &answer)?;
                vm.witness.write_all(format!("{answer}\n").as_bytes()).context("answering the guest")?;
            }
            progress(ledger);
        }
        for event in vm.qmp.take_events() {
            transcript.line("event", &event.to_string())?;
        }
        ensure!(pending.len() <= LONGEST_LINE, "the guest says a line of more than {LONGEST_LINE} bytes");
        if read == 0
            && let Some(status) = ended
        {
            ensure!(status.success(), "QEMU ended with {status}");
            ensure!(pending.is_empty(), "the guest ended in the middle of a line");
            return Ok(());
        }
        let (limit, what) = if ledger.is_up() { (timeout, "end") } else { (timeout.min(BOOT), "boot") };
        ensure!(began.elapsed() < limit, "the guest did not {what} within {} s", limit.as_secs());
        if read == 0 && ended.is_none() {
            // A hung-up socket reads 0 at once until the process is gone.
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Builds the guest's programs, static since the guest has no libraries, and answers where they are.
fn build_guest(project: &Project, programs: &[(&str, &str)]) -> Result<Vec<PathBuf>> {
    let work = Work::start("building the guest's programs");
    // A directory of its own: other flags in the same one would rebuild everything at every turn.
    let target = project.target.join("guest");
    let mut cargo = project.cargo();
    cargo.args(["build", "--release", "--target", GUEST_TARGET, "--target-dir"]).arg(&target);
    for (package, _) in programs {
        cargo.args(["--package", package]);
    }
    // The encoded form wins over every other place where flags may be set.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    command::output(&mut cargo)?;
    work.finish();
    let built = target.join(GUEST_TARGET).join("release");
    Ok(programs.iter().map(|(_, binary)| built.join(binary)).collect())
}

/// Writes the initramfs: busybox, init, the scenario, our programs.
fn pack(project: &Project, scenario: &Scenario, programs: &[PathBuf], to: &Path) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("{}", path.display()));
    let guest = project.root.join("xtask/guest");
    let busybox = command::which("busybox").context("no busybox: apt-get install busybox-static")?;

    let mut archive = Archive::new(BufWriter::new(File::create(to)?));
    for directory in ["bin", "dev", "proc", "run", "scenarios", "sys", "tmp"] {
        archive.directory(directory)?;
    }
    // The kernel opens the console for init before anything mounts /dev.
    archive.character_device("dev/console", 5, 1)?;
    archive.file("bin/busybox", 0o755, &read(&busybox)?)?;
    archive.symlink("bin/sh", "busybox")?;
    archive.file("init", 0o755, &read(&guest.join("init"))?)?;
    let script = Path::new("scenarios").join(scenario.name);
    archive.file(&script.to_string_lossy(), 0o644, &read(&guest.join(&script))?)?;
    for program in programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("bin/{name}"), 0o755, &read(program)?)?;
    }
    archive.finish()?;
    Ok(())
}

/// A number that no earlier run had.
fn seed() -> Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes).context("/dev/urandom")?;
    Ok(u64::from_le_bytes(bytes))
}

/// What was said between guest and host, with the time.
struct Transcript {
    file: File,
    began: Instant,
}

impl Transcript {
    fn new(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("{}", path.display()))?;
        Ok(Self { file, began: Instant::now() })
    }

    fn line(&mut self, who: &str, text: &str) -> Result<()> {
        let at = self.began.elapsed().as_secs_f64();
        writeln!(self.file, "{at:9.3} {who}: {text}").context("writing the transcript")
    }
}

/// A working directory with a path short enough for sockets, gone when dropped.
struct Room {
    path: PathBuf,
    keep: bool,
}

impl Room {
    fn new(keep: bool) -> Result<Self> {
        // With the time, since process ids come again and kept rooms stay.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
        let path = env::temp_dir().join(format!("noiommu-{}-{:x}", process::id(), now));
        // Only for us: whoever reaches the monitor's socket commands QEMU. Fails if it is there already.
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("{}", path.display()))?;
        Ok(Self { path, keep })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
