//! Real guardians of real processes, on a device that is a directory of files: what is done to it is read from them.
//!
//! The process that is to die is this test's own program, run again with the name of a test that does what it is told.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::device::SysfsDevice;
use crate::{Context, Contiguity, Device, DmaBuffer};

const NAME: &str = "0000:00:04.0";
/// Tells the victim where its device is, and how it is to end.
const DEVICE: &str = "NOIOMMU_TEST_DEVICE";
const END: &str = "NOIOMMU_TEST_END";

/// A directory that looks like a device's in sysfs, removed in the end.
struct Tree(PathBuf);

impl Tree {
    /// `resets`: it has a reset.
    fn new(name: &str, resets: bool) -> Self {
        let root = std::env::temp_dir().join(format!("noiommu-guardian-{}-{name}", std::process::id()));
        let directory = root.join(NAME);
        fs::create_dir_all(directory.join("power")).unwrap();
        let mut config = [0u8; 256];
        config[..6].copy_from_slice(&[0x34, 0x12, 0xe8, 0x11, 2, 0]);
        fs::write(directory.join("config"), config).unwrap();
        fs::write(directory.join("driver_override"), "(null)\n").unwrap();
        fs::write(directory.join("resource"), "0x0 0xfff 0x40200\n").unwrap();
        fs::write(directory.join("resource0"), vec![0; 4096]).unwrap();
        for file in ["enable", "power/control"] {
            fs::write(directory.join(file), "").unwrap();
        }
        if resets {
            fs::write(directory.join("reset"), "").unwrap();
        }
        Self(root)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(NAME).join(name)
    }

    fn masters_the_bus(&self) -> bool {
        fs::read(self.file("config")).unwrap()[4] & 4 != 0
    }

    /// The register at an offset of BAR 0.
    fn register(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        File::open(self.file("resource0")).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn set_register(&self, offset: u64, value: u32) {
        let file = File::options().write(true).open(self.file("resource0")).unwrap();
        file.write_all_at(&value.to_le_bytes(), offset).unwrap();
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn open(root: &Path) -> (Context, Device) {
    let context = Context::simulated();
    let backend = SysfsDevice::claim(root, NAME).unwrap();
    let device = Device::new(context.ioas().unwrap().inner().context(), Box::new(backend)).unwrap();
    (context, device)
}

/// What the process that is to die does; nothing, where it is run as a test.
#[test]
fn victim() {
    let Some(root) = std::env::var_os(DEVICE) else { return };
    let (context, device) = open(Path::new(&root));
    let (bar, width) = (0, 4);
    let steps = [
        QuietStep::Write { bar, offset: 0x10, width, value: 0x5555 },
        QuietStep::Update { bar, offset: 0x14, width, clear: 0xf, set: 0x2 },
        QuietStep::Wait { bar, offset: 0x18, width, mask: 1, value: 0, timeout: Duration::from_millis(50) },
    ];
    device.set_quiet_recipe(&steps).unwrap();
    let ioas = context.ioas().unwrap();
    device.attach(&ioas).unwrap();
    // SAFETY: there is no device that could reach memory.
    unsafe { device.enable_bus_master() }.unwrap();
    let Status::Own { process, .. } = status() else { panic!("{:?}", status()) };
    println!("\nready {process}");
    let _ = std::io::stdout().flush();
    match std::env::var(END).unwrap().as_str() {
        "wait" => loop {
            std::thread::park();
        },
        // SAFETY: ends the process at once.
        "exit" => unsafe { libc::_exit(0) },
        "abort" => std::process::abort(),
        "exec" => {
            let error = std::os::unix::process::CommandExt::exec(Command::new("sleep").arg("60"));
            panic!("{error}");
        }
        "close" => {
            // The driver closes everything that it does not know: the pidfd is among it, and its own device.
            // SAFETY: what is closed is not used any more.
            unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
            loop {
                std::thread::park();
            }
        }
        "orphaned" => {
            // The guardian dies first: no map, no device let loose.
            // SAFETY: a signal to our own guardian.
            unsafe { libc::kill(process.cast_signed(), libc::SIGKILL) };
            let deadline = Instant::now() + Duration::from_secs(20);
            while status() != Status::Dead && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            device.quiesce().unwrap();
            // SAFETY: it is refused.
            let refused = unsafe { device.enable_bus_master() }.unwrap_err();
            assert_eq!(
                (refused.kind(), check().unwrap_err().kind()),
                (ErrorKind::NoGuardian, ErrorKind::NoGuardian)
            );
            match Context::new().map(|context| (context.ioas(), context)) {
                Ok((Ok(ioas), context)) if context.pin_kind().is_ok() => {
                    let buffer = DmaBuffer::new(4096, Contiguity::Pages).unwrap();
                    let mapped = ioas
                        .map(buffer)
                        .map_err(crate::Error::from)
                        .and_then(|_| ioas.segments(crate::IovaRange::ALL));
                    assert_eq!(mapped.unwrap_err().kind(), ErrorKind::NoGuardian);
                }
                // No ring without a guardian either, or no privilege to have one at all.
                other => println!("not mapped: {:?}", other.err()),
            }
            restart().unwrap();
            // SAFETY: there is no device.
            unsafe { device.enable_bus_master() }.unwrap();
            println!("\nrestarted {:?}", status());
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(0) };
        }
        "drop" => drop(device),
        other => panic!("{other}"),
    }
}

/// A victim that has said that it is ready, and its guardian.
struct Victim {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    guardian: u32,
}

fn start(tree: &Tree, end: &str) -> Victim {
    let program = std::env::current_exe().unwrap();
    let mut child = Command::new(program)
        .args(["--exact", "guardian::tests::victim", "--nocapture"])
        .env(DEVICE, &tree.0)
        .env(END, end)
        .env_remove(VARIABLE)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    let guardian = loop {
        line.clear();
        if output.read_line(&mut line).unwrap() == 0 {
            let mut text = String::new();
            child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            panic!("the victim has not become ready: {text}");
        }
        if let Some(guardian) = line.strip_prefix("ready ") {
            break guardian.trim().parse().unwrap();
        }
    };
    Victim { child, output, guardian }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_running(process: u32) -> bool {
    // One that has ended and was not waited for is a zombie.
    fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|text| !text.contains(") Z "))
}

impl Victim {
    /// What it and its guardian have said, when both have ended.
    fn last_words(mut self) -> String {
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        let _ = self.child.wait();
        eventually("the guardian's end", || !is_running(self.guardian));
        text
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
    }
}

/// Everything that the recipe of the victim does.
fn assert_stopped(tree: &Tree, text: &str, how: &str) {
    assert!(!tree.masters_the_bus(), "{how}: {text}");
    assert_eq!((tree.register(0x10), tree.register(0x14)), (0x5555, 0xfff2), "{how}: {text}");
    assert_eq!(text.matches("noiommu-guardian: ").count(), 1, "{how}: one line for one rescue: {text}");
    assert!(text.contains("made quiet: stopped by its driver's recipe"), "{how}: {text}");
}

#[test]
fn whatever_the_death_the_device_is_made_quiet() {
    for end in ["wait", "exit", "abort", "exec", "close"] {
        let tree = Tree::new(end, true);
        tree.set_register(0x14, 0xffff);
        let mut victim = start(&tree, end);
        assert!(victim.guardian != victim.child.id());
        if matches!(end, "wait" | "close") {
            assert!(tree.masters_the_bus(), "so far it goes on");
            victim.kill();
        }
        if end == "exec" {
            // The process lives on as another program, but its device is nobody's.
            eventually("the rescue", || {
                !tree.masters_the_bus() && fs::read(tree.file("reset")).unwrap() == b"1\n"
            });
            assert!(is_running(victim.child.id()));
            victim.kill();
        }
        let text = victim.last_words();
        if end == "close" {
            // The device's descriptors too, under the guardian's feet: all that it can do is to tell.
            assert!(text.contains("NOT QUIET: its driver has closed"), "{text}");
            continue;
        }
        assert_stopped(&tree, &text, end);
        assert_eq!(fs::read(tree.file("reset")).unwrap(), b"1\n", "{end}");
        assert!(text.contains("reset, bus mastering off"), "{end}: {text}");
        // And it can be had again.
        drop(SysfsDevice::claim(&tree.0, NAME).unwrap());
    }
}

#[test]
fn a_guardian_that_has_died_is_missed() {
    let tree = Tree::new("orphaned", true);
    let text = start(&tree, "orphaned").last_words();
    assert!(text.contains("restarted Own"), "{text}");
    eventually("the rescue by the second guardian", || !tree.masters_the_bus());
}

#[test]
fn a_driver_that_ends_in_order_needs_no_rescue() {
    let tree = Tree::new("drop", false);
    let text = start(&tree, "drop").last_words();
    assert!(!tree.masters_the_bus());
    assert!(!text.contains("noiommu-guardian: "), "{text}");
}

/// A device that does not stop: nothing is let go, until it does.
#[test]
fn what_is_not_quiet_is_tried_again() {
    let tree = Tree::new("stubborn", false);
    tree.set_register(0x18, 1);
    let mut victim = start(&tree, "wait");
    let guardian = victim.guardian;
    victim.kill();
    let mut text = String::new();
    // Whoever waits for the end of standard error is not kept waiting by the guardian.
    victim.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("NOT QUIET: not stopped by its driver's recipe, bus mastering off"), "{text}");
    let _ = victim.child.wait();
    assert!(is_running(guardian), "it holds on");
    tree.set_register(0x18, 0);
    eventually("the guardian's end", || !is_running(guardian));
}

/// The guardian keeps nothing of the driver's memory: what the driver frees is free.
#[test]
fn it_is_small() {
    let tree = Tree::new("small", false);
    let mut victim = start(&tree, "wait");
    let status = fs::read_to_string(format!("/proc/{}/status", victim.guardian)).unwrap();
    let kib = |key: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    assert!(kib("RssAnon:") < 1024, "{status}");
    // The driver's table has what the guardian has.
    let names = |process: u32| {
        let mut names: Vec<_> = fs::read_dir(format!("/proc/{process}/fd"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(victim.child.id()), names(victim.guardian));
    victim.kill();
    victim.last_words();
}
