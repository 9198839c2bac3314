//! A cgroup whose memory is short: what is pinned stays, what does not fit is an error, and who is killed leaves nothing.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use noiommu::{Context, Contiguity, DmaBuffer, Errno, PinChoice};

use crate::alone::{again, told};
use crate::counts::pinned;
use crate::life::{can_pin, live};

const LIMIT: u64 = 64 << 20;
/// What the driver keeps mapped throughout.
const KEPT: usize = 8 << 20;
const LIVES: u32 = 150;
const NAME: &str = concat!(module_path!(), "::a_cgroup_short_of_memory");

/// A cgroup of our own, gone with this.
struct Group {
    directory: PathBuf,
    usage: &'static str,
}

impl Group {
    /// # Errors
    /// Why there is none to be had.
    fn new() -> std::io::Result<Self> {
        let name = format!("noiommu-faults-{}", std::process::id());
        let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.subtree_control").unwrap_or_default();
        if controllers.split_whitespace().any(|controller| controller == "memory") {
            let directory = Path::new("/sys/fs/cgroup").join(name);
            fs::create_dir(&directory)?;
            let group = Self { directory, usage: "memory.current" };
            fs::write(group.directory.join("memory.max"), LIMIT.to_string())?;
            // Whoever is in it must be able to say that it is not to be killed.
            let before = fs::read_to_string("/proc/self/oom_score_adj")?;
            fs::write("/proc/self/oom_score_adj", "-1000")?;
            fs::write("/proc/self/oom_score_adj", before)?;
            return Ok(group);
        }
        // The first version: below the cgroup that we are in.
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.split_once(":memory:")).map(|(_, path)| path.to_owned());
        let own = own.ok_or_else(|| std::io::Error::other("no cgroup controls memory here"))?;
        let directory = Path::new("/sys/fs/cgroup/memory").join(own.trim_start_matches('/')).join(name);
        fs::create_dir(&directory)?;
        let group = Self { directory, usage: "memory.usage_in_bytes" };
        fs::write(group.directory.join("memory.limit_in_bytes"), LIMIT.to_string())?;
        // Who finds no memory gets an error, or waits for some.
        fs::write(group.directory.join("memory.oom_control"), "1")?;
        Ok(group)
    }

    /// How often there was no memory left in it.
    fn failures(&self) -> u64 {
        let first = fs::read_to_string(self.directory.join("memory.failcnt"));
        let second = fs::read_to_string(self.directory.join("memory.events"));
        let second = second
            .ok()
            .and_then(|text| text.lines().find_map(|line| line.strip_prefix("max ").map(str::to_owned)));
        first.ok().or(second).unwrap().trim().parse().unwrap()
    }

    fn usage(&self) -> u64 {
        fs::read_to_string(self.directory.join(self.usage)).unwrap().trim().parse().unwrap()
    }

    /// A process of this program in it, which is to do `what`.
    fn run(&self, what: &str) -> Child {
        let mut command: Command = again(NAME, &format!("{what} {}", self.directory.display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Empty, but perhaps not noticed to be so yet.
        for _ in 0..500 {
            if fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_cgroup_short_of_memory() {
    if let Some(told) = told() {
        let (what, directory) = told.split_once(' ').unwrap();
        fs::write(Path::new(directory).join("cgroup.procs"), std::process::id().to_string()).unwrap();
        return match what {
            "drive" => drive(),
            "fill" => fill(),
            "hold" => hold(),
            _ => churn(),
        };
    }
    if !can_pin(PinChoice::Best) {
        return;
    }
    let group = match Group::new() {
        Ok(group) => group,
        Err(error) => return eprintln!("not run: no cgroup to be had: {error}"),
    };
    beside_a_churn(&group);
    filled(&group);
    killed(&group);
}

/// A driver lives on beside a process that fills all that is left with what it reads, which the kernel takes back all the time.
fn beside_a_churn(group: &Group) {
    let mut churn = group.run("churn");
    let mut lines = BufReader::new(churn.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("read once")), "it does not read");
    let before = group.failures();
    let driver = group.run("drive").wait_with_output().unwrap();
    churn.kill().unwrap();
    churn.wait().unwrap();
    let said = String::from_utf8_lossy(&driver.stdout);
    assert!(driver.status.success(), "{}: {said}", driver.status);
    let reclaimed = group.failures() - before;
    println!("{LIVES} lives while the cgroup was full {reclaimed} times");
    assert!(reclaimed > 100, "memory was not short");
}

fn drive() {
    let context = Context::new().unwrap();
    let ioas = context.ioas().unwrap();
    let kept = ioas.map(DmaBuffer::new(KEPT, Contiguity::Pages).unwrap()).unwrap();
    kept.buffer().unwrap().fill(0, KEPT, 0x3c).unwrap();
    for _ in 0..LIVES {
        live(PinChoice::Best).unwrap();
    }
    assert_eq!(kept.moved_pages(), Ok(Some(0)), "pages that are pinned have moved");
    let mut bytes = vec![0; KEPT];
    kept.buffer().unwrap().read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0x3c), "wrong bytes");
}

/// Reads a file that is longer than there is memory, again and again.
fn churn() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("churn-{}", std::process::id()));
    let file = fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    fs::remove_file(path).unwrap();
    file.set_len(2 * LIMIT).unwrap();
    let mut part = vec![0; 1 << 20];
    for round in 0.. {
        for at in (0..2 * LIMIT).step_by(part.len()) {
            file.read_exact_at(&mut part, at).unwrap();
        }
        if round == 0 {
            println!("\nread once");
        }
    }
}

/// A driver alone in it maps as much as there is.
fn filled(group: &Group) {
    let driver = group.run("fill").wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&driver.stdout);
    assert!(driver.status.success(), "{}: {said}", driver.status);
    println!("{}", said.lines().find(|line| line.contains("MiB")).unwrap());
}

/// Maps until there is no memory: an error that says so, nothing half done, and as before once it is given back.
fn fill() {
    // Never the one that is killed: want of memory comes to it as errors. Not permitted, nobody is killed (see `Group::new`).
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let context = Context::new().unwrap();
    let ioas = context.ioas().unwrap();
    drop(ioas.map(DmaBuffer::new(1 << 20, Contiguity::Pages).unwrap()).unwrap());
    let mut held = Vec::with_capacity((LIMIT >> 20) as usize + 1);
    let error = loop {
        match DmaBuffer::new(1 << 20, Contiguity::Pages).and_then(|buffer| Ok(ioas.map(buffer)?)) {
            Ok(mapping) => held.push(mapping),
            Err(error) => break error,
        }
        assert!(held.len() as u64 <= LIMIT >> 20, "more than there is");
    };
    let most = held.len();
    let areas = ioas.usage().areas;
    drop(held);
    assert_eq!(error.errno(), Errno::ENOMEM, "{error}");
    assert!(error.remedy().is_some_and(|remedy| remedy.contains("memory.max")), "{error}");
    assert_eq!((areas, ioas.usage().areas, pinned()), (most, 0, 0));
    drop(ioas.map(DmaBuffer::new(1 << 20, Contiguity::Pages).unwrap()).unwrap());
    println!("\n{most} MiB to be had under a limit of {} MiB, then an error", LIMIT >> 20);
}

/// A process that is killed, as OOM kills: its pages are free, pinned as they were.
fn killed(group: &Group) {
    let mut holder = group.run("hold");
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("holding")), "it holds nothing");
    let with = group.usage();
    assert!(with > HELD as u64, "{with} bytes in use");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let mut tries = 0;
    while group.usage() > HELD as u64 / 4 {
        tries += 1;
        assert!(tries < 2000, "{} bytes are still in use", group.usage());
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("killed while it held {} MiB pinned: {} KiB in use after that", HELD >> 20, group.usage() >> 10);
}

const HELD: usize = 24 << 20;

fn hold() {
    let context = Context::new().unwrap();
    let ioas = context.ioas().unwrap();
    let _held = ioas.map(DmaBuffer::new(HELD, Contiguity::Pages).unwrap()).unwrap();
    println!("\nholding");
    // Until it is killed.
    let _ = std::io::stdin().read(&mut [0]);
}
