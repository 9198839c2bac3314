//! One run of a guest: what it is made of, booting it, hearing it to its end, and the verdict.

use std::env;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt as _};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use sha2::{Digest, Sha256};

use super::kernel::Kernel;
use super::pack::{self, Tree};
use super::qemu::{self, Console, Machine, Vm};
use super::witness::Ledger;
use crate::command;
use crate::project::Project;
use crate::ui::{self, Work};

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

/// Bytes of each drive. Its file is sparse.
const DRIVE: u64 = 16 << 20;

/// The one sector of a drive that is not empty: no partition table and no file system looks there.
const STAMPED: u64 = 3;

/// What a drive has in that sector: bytes that follow from its name, and that nobody comes upon by chance.
pub(super) fn stamp(drive: &str) -> Vec<u8> {
    (0..16_u8).flat_map(|part| Sha256::digest([drive.as_bytes(), &[part]].concat())).collect()
}

/// How a guest is run.
#[derive(Args, Debug, Clone)]
pub(crate) struct Options {
    /// Seconds until a guest that has not ended is killed
    #[arg(long, default_value_t = TIMEOUT)]
    timeout: u64,

    /// Keep the working directory and print the QEMU command
    #[arg(long)]
    keep: bool,

    /// Show the guest's console on stderr
    #[arg(long, short)]
    verbose: bool,

    /// Nothing but what the task itself prints goes to stdout
    #[arg(skip)]
    pub(super) apart: bool,
}

impl Options {
    /// Gives it that many seconds if it has less.
    pub(super) fn at_least(&mut self, seconds: u64) {
        self.timeout = self.timeout.max(seconds);
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { timeout: TIMEOUT, keep: false, verbose: false, apart: false }
    }
}

/// What a guest is for.
pub(super) struct Scenario {
    /// The name of its script in `xtask/guest/scenarios`.
    pub(super) name: &'static str,
    /// Words for the script.
    pub(super) arguments: Vec<&'static str>,
    /// Values of QEMU's `-device`.
    pub(super) devices: &'static [&'static str],
    /// Names of drives, fresh at each run and empty but for their [`stamp`], for devices to have as `drive=NAME`. Behind a comma,
    /// more of QEMU's options for it.
    pub(super) drives: &'static [&'static str],
    /// Names of network ends that lead nowhere, for devices to have as `netdev=NAME`; those called `hub:NAME` lead to each other.
    pub(super) nets: &'static [&'static str],
    /// Words for the kernel's command line.
    pub(super) append: &'static [&'static str],
    /// Whether its programs have the witness check memory. If so, a run without a check fails.
    pub(super) witnessed: bool,
}

/// Boots `kernel`, lets the scenario's script run, and judges.
///
/// `files` are what the guest has besides its scenario; the answer is the directory with what it left in `/output`.
pub(super) fn run(
    project: &Project,
    scenario: &Scenario,
    kernel: &Kernel,
    files: Tree,
    options: &Options,
) -> Result<PathBuf> {
    run_with(project, scenario, kernel, files, options, &[])
}

/// The same with further arguments for QEMU: a disk that outlives the run, say.
pub(super) fn run_with(
    project: &Project,
    scenario: &Scenario,
    kernel: &Kernel,
    files: Tree,
    options: &Options,
    more: &[String],
) -> Result<PathBuf> {
    let room = Room::new(options.keep)?;
    let initramfs = room.path.join("initramfs");
    pack::write(project, scenario.name, files, &initramfs)?;

    let name =
        [&[scenario.name], scenario.arguments.as_slice(), &[kernel.release.as_str()]].concat().join("-");
    let logs = project.run_dir(&name);
    fs::create_dir_all(&logs).with_context(|| format!("{}", logs.display()))?;
    let mut machine = machine(scenario, kernel, initramfs, &room.path)?;
    machine.arguments.extend_from_slice(more);
    if options.keep {
        eprintln!("working directory: {}", room.path.display());
        eprintln!("command: {}", command::describe(&machine.command(&room.path)?));
    }

    let mut boots = 1;
    let (mut ledger, time) = loop {
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

    let output = logs.join("output");
    if let Err(error) = unpack(&room.path.join(qemu::OUTPUT), &output) {
        ledger.fault(format!("{error:#}"));
    }
    let mut report = ledger.report();
    report["scenario"] = scenario.name.into();
    report["arguments"] = scenario.arguments.clone().into();
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
    let checked = match ledger.checks() {
        0 => "its script ended well".to_owned(),
        checks => {
            format!("the witness checked {checks} places ({} bytes), all the same", ledger.bytes_checked())
        }
    };
    let told = format!("{name}: {checked}; guest ran {}", ui::seconds(time));
    if options.apart {
        eprintln!("{told}");
    } else {
        println!("{told}");
    }
    Ok(output)
}

/// The machine of a scenario, with its drives in `room`.
fn machine(scenario: &Scenario, kernel: &Kernel, initramfs: PathBuf, room: &Path) -> Result<Machine> {
    let mut arguments = Vec::new();
    for drive in scenario.drives {
        let (name, more) = drive.split_at(drive.find(',').unwrap_or(drive.len()));
        let file = room.join(format!("{name}.drive"));
        let contents = File::create_new(&file)?;
        contents.set_len(DRIVE)?;
        contents.write_all_at(&stamp(name), STAMPED * 512)?;
        arguments.push("-drive".to_owned());
        arguments.push(format!("if=none,id={name},format=raw,file={}{more}", qemu::value(&file)?));
    }
    for name in scenario.nets {
        arguments.push("-netdev".to_owned());
        arguments.push(match name.strip_prefix("hub:") {
            Some(name) => format!("hubport,hubid=0,id={name}"),
            None => format!("user,restrict=on,id={name}"),
        });
    }
    let words = scenario.arguments.iter().map(|word| format!("noiommu.argument={word}"));
    Ok(Machine {
        kernel: kernel.image.clone(),
        initramfs,
        append: scenario
            .append
            .iter()
            .map(ToString::to_string)
            .chain([format!("noiommu.scenario={}", scenario.name)])
            .chain(words)
            .collect(),
        devices: scenario.devices.iter().map(ToString::to_string).collect(),
        arguments,
        memory: 1024,
        cpus: 2,
    })
}

/// Unpacks what came over the guest's port for files, in place of what an earlier run left there.
fn unpack(archive: &Path, to: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to)?;
    // A guest with an empty /output sends nothing at all.
    if fs::metadata(archive)?.len() == 0 {
        return Ok(());
    }
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--gzip", "--no-same-owner", "--file"]).arg(archive).arg("--directory").arg(to);
    command::output(&mut tar).context("what the guest handed over is not whole")?;
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
    let mut ledger = Ledger::new(seed()?, scenario.witnessed);
    let mut vm = Vm::start(machine, room, Console { log: logs.join(CONSOLE), show: options.verbose })?;
    let timeout = Duration::from_secs(options.timeout);
    let heard = listen(&mut vm, &mut ledger, &mut transcript, timeout, |ledger| {
        work.set_message(match ledger.progress() {
            Some((done, total)) => format!("{}: {done} of {total}", scenario.name),
            None => format!("{}: {} checks", scenario.name, ledger.checks()),
        });
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
        // Guests may run side by side.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // With the time, since process ids come again and kept rooms stay.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
        let path = env::temp_dir().join(format!("noiommu-{}-{:x}-{count}", process::id(), now));
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
