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
    let (process, apart) = match status() {
        Status::Own { process, apart } => (process, apart),
        Status::Service => (0, true),
        other => panic!("{other:?}"),
    };
    println!("\nready {process} {apart}");
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
            println!("\nclosed");
            loop {
                std::thread::park();
            }
        }
        "orphaned" => {
            // The guardian dies first: no map, no device let loose. A service is killed by the test.
            if process != 0 {
                // SAFETY: a signal to our own guardian.
                unsafe { libc::kill(process.cast_signed(), libc::SIGKILL) };
            }
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
            println!("\nwithout");
            eventually("another guardian", || restart().is_ok());
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
    /// Its process; 0: a service.
    guardian: u32,
    /// It has left the cgroup.
    apart: bool,
}

fn start(tree: &Tree, end: &str) -> Victim {
    start_with(tree, end, "own")
}

/// This program again, to run one test by itself.
fn again(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("guardian::tests::{test}"), "--nocapture"]);
    command
}

fn start_with(tree: &Tree, end: &str, guardian: &str) -> Victim {
    let mut child = again("victim")
        .env(DEVICE, &tree.0)
        .env(END, end)
        .env(VARIABLE, guardian)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    let (guardian, apart) = loop {
        line.clear();
        if output.read_line(&mut line).unwrap() == 0 {
            let mut text = String::new();
            child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            panic!("the victim has not become ready: {text}");
        }
        if let Some(guardian) = line.strip_prefix("ready ") {
            let (process, apart) = guardian.trim().split_once(' ').unwrap();
            break (process.parse().unwrap(), apart == "true");
        }
    };
    Victim { child, output, guardian, apart }
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
        eventually("the guardian's end", || self.guardian == 0 || !is_running(self.guardian));
        text
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// Returns when it has said a line.
    fn wait_for(&mut self, wanted: &str) {
        let mut line = String::new();
        while line.trim() != wanted {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "it has not said {wanted}");
        }
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
        if end == "close" {
            victim.wait_for("closed");
        }
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
    // A session of its own, and a cgroup where it could have one, which it says.
    let stat = fs::read_to_string(format!("/proc/{}/stat", victim.guardian)).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    assert_eq!(
        fields.split(' ').nth(3).unwrap(),
        victim.guardian.to_string(),
        "state, parent, group, session"
    );
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", victim.guardian)).unwrap();
    assert_eq!(cgroup.contains("/noiommu-guardians"), victim.apart, "{cgroup}");
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

#[test]
fn the_environment_chooses() {
    for (text, choice) in [
        (None, Choice::Best),
        (Some(" "), Choice::Best),
        (Some("own"), Choice::Own),
        (Some("waived"), Choice::Waived),
        (Some("service"), Choice::Service(SOCKET.into())),
        (Some("service:/a b"), Choice::Service("/a b".into())),
    ] {
        assert_eq!(Choice::parse(text), Ok(choice), "{text:?}");
    }
    for bad in ["service:", "none", "0"] {
        assert_eq!(Choice::parse(Some(bad)).unwrap_err().kind(), ErrorKind::Argument);
    }
}

/// Tells the service where to listen.
const LISTEN: &str = "NOIOMMU_TEST_LISTEN";

/// The service; nothing, where it is run as a test.
#[test]
fn server() {
    let Some(path) = std::env::var_os(LISTEN) else { return };
    let mut service = Service::listen(Path::new(&path), 0o600).unwrap();
    service.any_file = true;
    println!("\nlistening");
    service.run().unwrap();
}

/// A service in a process of its own, killed in the end.
struct Server(Child);

impl Server {
    fn start(socket: &Path) -> Self {
        let mut command = again("server");
        let mut child =
            command.env(LISTEN, socket).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while line.trim() != "listening" {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "the service does not listen");
        }
        Self(child)
    }

    /// What it says of a rescue.
    fn rescue(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_service_guards_as_well() {
    for end in ["wait", "exit", "abort", "exec", "drop"] {
        let tree = Tree::new(&format!("service-{end}"), true);
        tree.set_register(0x14, 0xffff);
        let socket = tree.0.join("socket");
        let mut server = Server::start(&socket);
        let second = Service::listen(&socket, 0o600).unwrap_err();
        assert_eq!(second.kind(), ErrorKind::Busy, "one is enough");
        let mut victim = start_with(&tree, end, &format!("service:{}", socket.display()));
        if end == "wait" {
            victim.kill();
        }
        if end == "drop" {
            let text = victim.last_words();
            assert!(!text.contains("noiommu-guardian: ") && !tree.masters_the_bus(), "{text}");
            continue;
        }
        let line = server.rescue();
        assert_stopped(&tree, &line, end);
        assert_eq!(fs::read(tree.file("reset")).unwrap(), b"1\n", "{end}");
        victim.kill();
        victim.last_words();
        eventually("the claim", || SysfsDevice::claim(&tree.0, NAME).is_ok());
    }
}

#[test]
fn a_service_that_has_died_is_missed() {
    let tree = Tree::new("service-orphaned", true);
    let socket = tree.0.join("socket");
    let server = Server::start(&socket);
    let mut victim = start_with(&tree, "orphaned", &format!("service:{}", socket.display()));
    drop(server);
    victim.wait_for("without");
    let mut server = Server::start(&socket);
    let line = server.rescue();
    assert!(line.contains("made quiet") && !tree.masters_the_bus(), "{line}");
    assert!(victim.last_words().contains("restarted Service"));
}

/// No service, no guardian: the device is not opened, and is as before.
#[test]
fn where_there_is_no_guardian_there_is_no_device() {
    let tree = Tree::new("none", true);
    let error = Ward::new(
        NAME,
        crate::device::Backend::remains(&SysfsDevice::claim(&tree.0, NAME).unwrap()).unwrap().unwrap(),
        &Choice::Service(tree.0.join("nobody")),
    )
    .err()
    .unwrap();
    assert_eq!(error.kind(), ErrorKind::NoGuardian);
    assert!(error.remedy().unwrap().contains("noiommu guardian --listen"));
}

/// What a driver would say, in bytes for [`play_service`], with something wrong here and there.
#[test]
fn the_service_takes_any_bytes() {
    let mut seed = 1u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let steps = [QuietStep::Update { bar: 0, offset: 8, width: 4, clear: 1, set: 2 }];
    let mut rescued = 0;
    for _ in 0..2000 {
        let mut data = Vec::new();
        let mut say = |files: u8, request: &wire::Request, wrong: Option<u64>| {
            let mut bytes = request.encode();
            if let Some(wrong) = wrong {
                let at = (wrong % (bytes.len() as u64 * 8)) as usize;
                bytes[at / 8] ^= 1 << (at % 8);
            }
            data.push(files);
            data.extend((bytes.len() as u16).to_le_bytes());
            data.extend(bytes);
        };
        say(0, &wire::Request::Hello { version: wire::VERSION }, (random() % 50 == 0).then(&mut random));
        for _ in 0..random() % 12 {
            let wrong = (random() % 3 == 0).then(&mut random);
            let (number, slot) = (random() as u32, random() as u32 % 300);
            match random() % 3 {
                0 => say(0, &wire::Request::Hold { file: number as i32 }, wrong),
                1 => say(0, &wire::Request::Release { number: number % 8 }, wrong),
                _ => {
                    let mut record = Box::new(board::blank());
                    record.set_recipe(&steps, &[]);
                    rescued += 1;
                    say(random() as u8 & 15, &wire::Request::Set { slot, state: number % 4, record }, wrong);
                }
            }
        }
        data.truncate(data.len() - (random() % 4) as usize);
        play_service(&data);
    }
    assert!(rescued > 1000);
}

/// From here on this process makes no other that shares its descriptors.
fn refuse_guardians() {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let (load, equal, bits, answer) = (0x20, 0x15, 0x45, 0x06);
    // The number of the call is at 0, the lower half of its first argument at 16 (*linux/seccomp.h*, little-endian).
    let mut program = [
        step(load, 0, 0, 0),
        step(equal, 0, 4, libc::SYS_clone as u32),
        step(load, 0, 0, 16),
        step(bits, 2, 0, libc::CLONE_VM as u32),
        step(bits, 0, 1, libc::CLONE_FILES as u32),
        step(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the filter is here for both calls, and refuses nothing but what the test is about.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
    }
}

/// What a process finds that cannot have a guardian; nothing, where it is run as a test.
#[test]
fn refused() {
    let Some(root) =
        std::env::var_os(DEVICE).filter(|_| std::env::var(END).is_ok_and(|end| end == "refused"))
    else {
        return;
    };
    refuse_guardians();
    let context = Context::simulated();
    let ioas = context.ioas().unwrap();
    let open = || {
        let backend = SysfsDevice::claim(Path::new(&root), NAME)?;
        Device::new(ioas.inner().context(), Box::new(backend))
    };
    let error = open().unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::NoGuardian, Errno::EPERM), "{error}");
    assert!(error.remedy().unwrap().contains("waive_guardian"));
    assert_eq!(status(), Status::None);
    context.waive_guardian();
    let device = open().unwrap();
    device.attach(&ioas).unwrap();
    // SAFETY: there is no device.
    unsafe { device.enable_bus_master() }.unwrap();
    println!("\nwaived");
}

#[test]
fn without_a_guardian_a_device_wants_a_waiver() {
    let tree = Tree::new("refused", false);
    let output =
        again("refused").env(DEVICE, &tree.0).env(END, "refused").env(VARIABLE, "own").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("waived"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!tree.masters_the_bus(), "dropped in the end");
    let claim = fs::read_to_string(tree.file("driver_override")).unwrap();
    assert!(!claim.starts_with("noiommu"), "given back: {claim}");
}

/// What `noiommu top` shows of a driver, its guardian and its rescue.
#[test]
fn others_see_it() {
    use crate::stats::{self, RescueOutcome};
    let tree = Tree::new("seen", false);
    tree.set_register(0x18, 1);
    let mut victim = start(&tree, "wait");
    let (driver, guardian) = (victim.child.id(), victim.guardian);
    let driver_seen = || stats::processes().unwrap().processes.into_iter().find(|it| it.process == driver);
    let guardian_seen =
        || stats::processes().unwrap().guardians.into_iter().find(|it| it.process == guardian);
    let seen = driver_seen().expect("a process of this user");
    assert_eq!(seen.guardian, Status::Own { process: guardian, apart: victim.apart });
    assert_eq!((seen.devices, seen.contexts.len()), (1, 1), "{seen:?}");
    let watching = guardian_seen().expect("a process of this user");
    assert_eq!((watching.driver, watching.rescuing, watching.loose), (driver, false, 1));
    victim.kill();
    let _ = victim.child.wait();
    eventually("the rescue", || guardian_seen().is_some_and(|it| it.rescuing));
    assert_eq!(driver_seen(), None, "it has ended");
    let outcomes = || -> Vec<_> {
        let of_driver = |it: &stats::Rescue| it.process == Some(driver) && it.device.as_deref() == Some(NAME);
        stats::rescues().unwrap().into_iter().filter(of_driver).map(|it| it.outcome).collect()
    };
    // Who may not write to /run is not counted.
    let counted = rustix::process::geteuid().is_root();
    if counted {
        eventually("the first try's end", || outcomes() == [RescueOutcome::NotQuiet]);
    }
    tree.set_register(0x18, 0);
    eventually("the guardian's end", || !is_running(guardian));
    assert_eq!(guardian_seen(), None, "it has ended");
    if counted {
        assert_eq!(outcomes(), [RescueOutcome::NotQuiet, RescueOutcome::Quiet]);
    } else {
        assert_eq!(outcomes(), []);
    }
}

/// A guardian that has died is told as dead.
#[test]
fn others_see_its_death() {
    let tree = Tree::new("unguarded", false);
    let mut victim = start(&tree, "wait");
    let driver = victim.child.id();
    // SAFETY: a signal to a guardian that this test has started.
    unsafe { libc::kill(victim.guardian.cast_signed(), libc::SIGKILL) };
    let status = || {
        let seen = crate::stats::processes().unwrap().processes;
        seen.into_iter().find(|it| it.process == driver).map(|it| it.guardian)
    };
    eventually("the news", || status() == Some(Status::Dead));
    victim.kill();
    let _ = victim.child.wait();
}
