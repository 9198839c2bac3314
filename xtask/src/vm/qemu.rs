//! One QEMU: what it is made of, starting it, and making sure that it ends.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::clock;
use super::qmp::Qmp;
use crate::command;

/// The program.
const QEMU: &str = "qemu-system-x86_64";

/// The processor: all that TCG can do, but for one instruction.
///
/// In QEMU 7.2 the flags that `cmpxchg16b` leaves can be mixed up with what a later instruction computes when that one
/// faults: EFLAGS then holds an address. Linux 6.12's allocator uses it all the time, and 12 of 30 boots on a busy machine
/// ended in an oops with such flags; none of 88 did without it. (6.1 booted either way.)
const PROCESSOR: &str = "max,-cx16";

/// All processors in one thread.
///
/// With a thread for each, QEMU 7.2 crashes now and then when one processor moves a BAR or turns memory space off or on while
/// another one is at the registers of whatever device: it looks for them in the map of before. A loop of both crashed it in one
/// of two runs of 40 seconds; in one thread, in none of four of a minute. Nor is one thread slower on a busy machine.
const ACCELERATOR: &str = "tcg,thread=single";

/// Devices come and go by the slots of PCI Express ports, for which any kernel has a driver, not by ACPI.
const HOTPLUG: &str = "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off";

/// How long QEMU may take to connect its sockets, which it does before anything else.
const CONNECT: Duration = Duration::from_secs(30);

/// What a machine is made of.
pub(crate) struct Machine {
    /// The kernel's image.
    pub(crate) kernel: PathBuf,
    /// Its initramfs.
    pub(crate) initramfs: PathBuf,
    /// Words for the kernel's command line, besides those that every guest gets.
    pub(crate) append: Vec<String>,
    /// Values of `-device`.
    pub(crate) devices: Vec<String>,
    /// Any further arguments of QEMU.
    pub(crate) arguments: Vec<String>,
    /// MiB of memory.
    pub(crate) memory: u32,
    /// Processors.
    pub(crate) cpus: u32,
}

/// The kernel's command line of every guest.
///
/// `panic=-1` with `-no-reboot` ends QEMU when the guest dies; the rest saves time that an emulated machine has little of.
const APPEND: [&str; 7] =
    ["console=ttyS0", "quiet", "panic=-1", "tsc=reliable", "mitigations=off", "nokaslr", "no_timer_check"];

impl Machine {
    /// The command that starts it, with its sockets in `dir`.
    pub(crate) fn command(&self, dir: &Path) -> Result<Command> {
        let qemu = command::which(QEMU)
            .with_context(|| format!("{QEMU} is not installed: apt-get install qemu-system-x86"))?;
        // Should this process be killed, QEMU must not stay behind. The signal is bound to the thread that starts it.
        let mut command = match command::which("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL"]).arg(qemu);
                command
            }
            None => Command::new(qemu),
        };
        command
            .args(["-machine", "q35", "-accel", ACCELERATOR, "-cpu", PROCESSOR])
            .args(["-m", &format!("{}M", self.memory), "-smp", &self.cpus.to_string()])
            .args(["-global", HOTPLUG])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"])
            .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
            .args(["-chardev", &format!("socket,id=witness,path={}", value(&dir.join(WITNESS_SOCKET))?)])
            .args(["-serial", "chardev:witness"])
            .args(["-chardev", &format!("socket,id=monitor,path={}", value(&dir.join(MONITOR_SOCKET))?)])
            .args(["-mon", "chardev=monitor,mode=control"])
            .args(["-chardev", &format!("file,id=output,path={}", value(&dir.join(OUTPUT))?)])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs);
        let frequency = clock::counter_khz().map(|khz| format!("tsc_early_khz={khz}"));
        let own = self.append.iter().chain(&frequency).map(String::as_str);
        let append = APPEND.into_iter().chain(own).collect::<Vec<_>>();
        command.args(["-append", &append.join(" ")]);
        for device in &self.devices {
            command.args(["-device", device]);
        }
        // Out of the way of the devices, which get the slots from 1 on.
        command.args(["-device", "pci-serial,chardev=output,bus=pcie.0,addr=1e.0"]);
        command.args(&self.arguments);
        Ok(command)
    }
}

/// `path` as the value of an option: QEMU reads a comma as the end of it, unless doubled.
pub(super) fn value(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.replace(',', ",,"))
}

/// The file that takes what the guest says on its serial port on the PCI bus: the archive of what it leaves behind.
///
/// Stock kernels have the driver of such a port built in, which cannot be said of any of virtio's.
pub(super) const OUTPUT: &str = "output";

const WITNESS_SOCKET: &str = "witness.sock";
const MONITOR_SOCKET: &str = "monitor.sock";

/// A machine that runs; dropping it kills it.
pub(crate) struct Vm {
    child: Child,
    /// The monitor.
    pub(crate) qmp: Qmp,
    /// The other end of the guest's ttyS1.
    pub(crate) witness: UnixStream,
    console: Option<JoinHandle<()>>,
    errors: PathBuf,
}

impl Vm {
    /// Starts `machine` and lets its processors run.
    ///
    /// `dir` takes sockets and so must have a short path; `console` takes what the guest says on ttyS0.
    pub(crate) fn start(machine: &Machine, dir: &Path, console: Console) -> Result<Self> {
        // We listen and QEMU connects: nothing has to be polled for, and nothing the guest says can be lost.
        let listen = |name: &str| {
            let path = dir.join(name);
            // That of an earlier boot in the same directory may still be there.
            let _ = fs::remove_file(&path);
            UnixListener::bind(&path).with_context(|| {
                format!(
                    "no socket at {} (a shorter TMPDIR may help: 108 characters are the limit)",
                    path.display()
                )
            })
        };
        let (witness, monitor) = (listen(WITNESS_SOCKET)?, listen(MONITOR_SOCKET)?);
        let errors = dir.join("qemu.stderr");
        let mut command = machine.command(dir)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors)?)
            .spawn()
            .context("QEMU does not start")?;
        let connected = (|| {
            let witness = accept(&witness, &mut child, &errors)?;
            let monitor = accept(&monitor, &mut child, &errors)?;
            let stdout = child.stdout.take().context("QEMU has no stdout")?;
            Ok::<_, anyhow::Error>((witness, Qmp::new(monitor, dir)?, console.follow(stdout)?))
        })();
        let (witness, qmp, console) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let mut vm = Self { child, qmp, witness, console: Some(console), errors };
        // It was started with its processors stopped, so that every end is connected first.
        vm.qmp.execute("cont", json!({}))?;
        Ok(vm)
    }

    /// How QEMU ended, if it did.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Kills QEMU and waits until it is gone and the console is written.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(console) = self.console.take() {
            let _ = console.join();
        }
    }

    /// What QEMU itself complained about.
    pub(crate) fn complaints(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for QEMU to connect, but not for one that is gone.
fn accept(listener: &UnixListener, child: &mut Child, errors: &Path) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let late = Instant::now() + CONNECT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("waiting for QEMU"),
        }
        if let Some(status) = child.try_wait()? {
            bail!("QEMU ended at once ({status}): {}", fs::read_to_string(errors).unwrap_or_default().trim());
        }
        if Instant::now() > late {
            bail!("QEMU did not connect within {} s", CONNECT.as_secs());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Where the guest's console goes.
pub(crate) struct Console {
    /// The file that keeps it.
    pub(crate) log: PathBuf,
    /// Whether stderr shows it too.
    pub(crate) show: bool,
}

impl Console {
    /// Copies until QEMU closes its end.
    fn follow(self, mut from: impl Read + Send + 'static) -> Result<JoinHandle<()>> {
        let mut log = File::create(&self.log).with_context(|| format!("{}", self.log.display()))?;
        Ok(thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut bytes) {
                // A full disk shall not stop the guest, whose verdict does not depend on this file.
                let _ = log.write_all(&bytes[..read]);
                if self.show {
                    let _ = io::stderr().write_all(&bytes[..read]);
                }
            }
        }))
    }
}
