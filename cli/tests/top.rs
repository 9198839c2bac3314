//! `noiommu top` beside a process whose areas and pins are known.
//!
//! That process is this program, run again with the name of a test that does what it is told.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::{Child, ChildStdin, Command, Stdio};

use noiommu::{Context, Contiguity, DmaBuffer, PinChoice, stats};
use noiommu_uapi::iommufd::{
    IOMMU_IOAS_ALLOC, IOMMU_IOAS_MAP, IOMMU_IOAS_MAP_READABLE, IOMMU_IOAS_MAP_WRITEABLE,
    IOMMU_IOAS_NOIOMMU_GET_PA,
};
use noiommu_uapi::vfio::device::{VFIO_DEVICE_ATTACH_IOMMUFD_PT, VFIO_DEVICE_BIND_IOMMUFD};
use serde_json::Value;

/// Tells the process what to be: `pinned`, `simulated`, or `served`.
const HOLDER: &str = "NOIOMMU_TEST_HOLDER";
const PAGE: u64 = 4096;

/// Holds what it is told to hold, and changes it with each line that it reads; nothing, where it is run as a test.
#[test]
fn holder() {
    let Some(kind) = std::env::var_os(HOLDER) else { return };
    if kind == "served" {
        return hold_served();
    }
    let context =
        if kind == "pinned" { Context::with_pins(PinChoice::Best).unwrap() } else { Context::simulated() };
    let ioas = context.ioas().unwrap();
    let device = context.sim_edu().unwrap();
    device.attach(&ioas).unwrap();
    let map = |pages: u64| {
        let buffer = DmaBuffer::new((pages * PAGE) as usize, Contiguity::Pages).unwrap();
        ioas.map(buffer).unwrap()
    };
    let mut mappings = vec![map(3), map(5), map(16)];
    let said = |what: &str| {
        println!("\n{what} {}", ioas.usage().table_frames);
        let _ = std::io::stdout().flush();
    };
    said("ready");
    for line in std::io::stdin().lines() {
        match line.unwrap().as_str() {
            "less" => drop(mappings.pop()),
            other => panic!("{other}"),
        }
        said("done");
    }
}

/// How often a program that is served asks for an address.
const LOOKUPS: u64 = 1000;

/// The same by the kernel's own interface, as it is served: eight pages mapped, and addresses asked for.
fn hold_served() {
    let open = |path: &str| File::options().read(true).write(true).open(path).unwrap();
    let (iommu, device) = (open("/dev/iommu"), open("/dev/vfio/devices/noiommu-vfio0"));
    // Arguments are the structures of the interface, as words.
    let call = |file: &File, request: u32, argument: &mut [u64]| {
        // SAFETY: the argument is as long as it says itself, and every address in it is that of memory that is here.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, argument.as_mut_ptr()) };
        assert_eq!(done, 0, "{request:#x}: {}", std::io::Error::last_os_error());
    };
    call(&device, VFIO_DEVICE_BIND_IOMMUFD, &mut [24, iommu.as_raw_fd() as u64, 0]);
    let mut allocated = [12, 0];
    call(&iommu, IOMMU_IOAS_ALLOC, &mut allocated);
    let ioas = allocated[1];
    let buffer = DmaBuffer::new(8 * PAGE as usize, Contiguity::Pages).unwrap();
    let flags = u64::from(IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE);
    let mut mapped = [40 | flags << 32, ioas, buffer.address() as u64, 8 * PAGE, 0];
    call(&iommu, IOMMU_IOAS_MAP, &mut mapped);
    call(&device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &mut [16, ioas]);
    for page in 0..LOOKUPS {
        let mut asked = [40, ioas, mapped[4] + page % 8 * PAGE, PAGE, 0];
        call(&iommu, IOMMU_IOAS_NOIOMMU_GET_PA, &mut asked);
        assert!(asked[4] != 0 && asked[3] == PAGE, "{asked:?}");
    }
    println!("\nready 0");
    let _ = std::io::stdout().flush();
    let _ = std::io::stdin().lines().next();
}

/// A holder that has said that it is ready.
struct Holder {
    child: Child,
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
    table_frames: u64,
}

impl Holder {
    fn start(kind: &str, variables: &[(&str, &str)]) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut command = match kind {
            "served" => Command::new(env!("CARGO_BIN_EXE_noiommu")),
            _ => Command::new(&program),
        };
        if kind == "served" {
            command.args(["serve", "--provider", "sim", "--"]).arg(program);
        }
        let mut child = command
            .args(["--exact", "holder", "--nocapture"])
            .env(HOLDER, kind)
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut holder = Self { child, input, output, table_frames: 0 };
        holder.wait_for("ready");
        holder
    }

    fn wait_for(&mut self, wanted: &str) {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "it has not said {wanted}");
            if let Some(frames) = line.strip_prefix(wanted) {
                self.table_frames = frames.trim().parse().unwrap();
                return;
            }
        }
    }

    fn less(&mut self) {
        writeln!(self.input, "less").unwrap();
        self.wait_for("done");
    }

    /// What `noiommu top` says of it.
    fn seen(&self) -> Option<Value> {
        let all = top();
        let all = all["processes"].as_array().unwrap();
        all.iter().find(|process| process["pid"] == self.child.id()).cloned()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn noiommu(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_noiommu"))
        .args(arguments)
        .env("NO_COLOR", "1")
        .env_remove(HOLDER)
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

fn top() -> Value {
    let (good, text) = noiommu(&["top", "--once", "--json"]);
    assert!(good, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn it_shows_what_a_process_has_and_forgets_it_with_its_end() {
    let can_pin = noiommu::machine::prove_pins(PinChoice::Best);
    let kind = if can_pin.is_ok() { "pinned" } else { "simulated" };
    let mut holder = Holder::start(kind, &[]);
    let seen = holder.seen().expect("a process of this user");
    assert_eq!((&seen["areas"], &seen["bytes"]), (&3.into(), &(24 * PAGE).into()), "{seen}");
    assert_eq!(
        (&seen["maps"], &seen["unmaps"], &seen["devices"]),
        (&3.into(), &0.into(), &1.into()),
        "{seen}"
    );
    assert_eq!(seen["table_frames"], holder.table_frames);
    let contexts = seen["contexts"].as_array().unwrap();
    assert_eq!((contexts.len(), &contexts[0]["ioases"]), (1, &1.into()), "{seen}");
    assert_eq!(contexts[0]["kind"], if kind == "pinned" { "kit" } else { "simulated" });
    let pinned = |pages: u64| if kind == "pinned" { pages * PAGE } else { 0 };
    assert_eq!(seen["pins"]["bytes"], pinned(24), "{seen}");
    if matches!(can_pin, Ok(noiommu::PinKind::IoUring)) {
        assert_eq!(
            (&seen["pins"]["slots"], &seen["pins"]["vmpin"]),
            (&3.into(), &pinned(24).into()),
            "{seen}"
        );
    }
    holder.less();
    let seen = holder.seen().expect("it is still there");
    assert_eq!(
        (&seen["areas"], &seen["bytes"], &seen["unmaps"]),
        (&2.into(), &(8 * PAGE).into(), &1.into()),
        "{seen}"
    );
    assert_eq!(seen["pins"]["bytes"], pinned(8), "{seen}");
    // The same for people.
    let (good, table) = noiommu(&["top", "--once"]);
    assert!(good && table.is_ascii(), "{table}");
    let row =
        table.lines().find(|line| line.split_whitespace().next() == Some(&holder.child.id().to_string()));
    let row = row.unwrap_or_else(|| panic!("no row for it:\n{table}"));
    assert!(row.contains("32 KiB"), "{table}");
    holder.child.kill().unwrap();
    holder.child.wait().unwrap();
    assert_eq!(holder.seen(), None, "it has ended");
}

/// A program by the kernel's interface: what it maps, its device, and the addresses that it was told.
#[test]
fn a_program_that_is_served_is_seen_with_its_lookups() {
    let holder = Holder::start("served", &[]);
    let seen = holder.seen().expect("a process of this user");
    assert_eq!(
        (&seen["areas"], &seen["bytes"], &seen["devices"]),
        (&1.into(), &(8 * PAGE).into(), &1.into()),
        "{seen}"
    );
    assert_eq!(seen["contexts"][0]["kind"], "served", "{seen}");
    // A thread tells of them by the lot.
    let lookups = seen["lookups"].as_u64().unwrap();
    assert!((LOOKUPS - 63..=LOOKUPS).contains(&lookups), "{seen}");
}

#[test]
fn who_does_not_want_to_be_seen_is_not() {
    let holder = Holder::start("simulated", &[("NOIOMMU_STATS", "off")]);
    assert_eq!(holder.seen(), None);
}

/// What `top` says of rescues is what the kit says, and the guardians' tests make some (`noiommu/src/guardian/tests.rs`).
#[test]
fn rescues_are_those_of_the_notes() {
    let count = || {
        stats::rescues().unwrap().iter().filter(|it| it.outcome == stats::RescueOutcome::Quiet).count() as u64
    };
    let (before, seen, after) = (count(), top()["rescues"]["quiet"].as_u64().unwrap(), count());
    assert!((before..=after).contains(&seen), "{before} {seen} {after}");
}

/// A terminal: the end that a person has, and the end that a program has.
fn terminal() -> (File, OwnedFd) {
    let (mut person, mut program) = (-1, -1);
    let size = libc::winsize { ws_row: 30, ws_col: 160, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: places for two descriptors, no name, and a size that is here.
    let made = unsafe {
        libc::openpty(
            &raw mut person,
            &raw mut program,
            std::ptr::null_mut(),
            std::ptr::null(),
            &raw const size,
        )
    };
    assert_eq!(made, 0);
    // SAFETY: both have just been made, for this alone.
    unsafe { (File::from_raw_fd(person), OwnedFd::from_raw_fd(program)) }
}

#[test]
fn keys_are_heard_and_the_terminal_is_given_back() {
    let (mut person, program) = terminal();
    let end = || Stdio::from(program.try_clone().unwrap());
    let mut child = Command::new(env!("CARGO_BIN_EXE_noiommu"))
        .args(["top", "--interval", "0.1"])
        .env_remove(HOLDER)
        .env("TERM", "xterm")
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .unwrap();
    let mut shown = String::new();
    let mut wait_for = |person: &mut File, wanted: &str| {
        let mut bytes = [0; 4096];
        while !shown.contains(wanted) {
            // A program that says nothing any more is ended by whoever runs the tests.
            let read = person.read(&mut bytes).unwrap();
            shown += &String::from_utf8_lossy(&bytes[..read]);
        }
        // What comes next is after that.
        shown.clear();
    };
    for (key, wanted) in
        [("", "by pinned"), ("s", "by mapped"), ("p", "paused"), ("s", "by areas"), ("q", "\x1b[?1049l")]
    {
        person.write_all(key.as_bytes()).unwrap();
        wait_for(&mut person, wanted);
    }
    assert!(child.wait().unwrap().success());
    // It is no more in the mode in which keys come one by one.
    let mode = rustix::termios::tcgetattr(&program).unwrap().local_modes;
    assert!(mode.contains(rustix::termios::LocalModes::ICANON | rustix::termios::LocalModes::ECHO));
}

#[test]
fn wrong_arguments() {
    for arguments in [&["top", "--interval", "0"][..], &["top", "--sort", "luck"], &["top", "17"]] {
        assert!(!noiommu(arguments).0, "{arguments:?}");
    }
}
