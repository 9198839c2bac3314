//! What a process holds: pinned pages, descriptors, mappings.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A look at this process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Counts {
    /// KiB that io_uring keeps pinned (VmPin).
    pub(crate) pinned: u64,
    /// Open descriptors, by number and what they are.
    pub(crate) descriptors: BTreeSet<String>,
    /// Address ranges that are mapped, but for the C library's heap.
    pub(crate) mappings: BTreeSet<String>,
}

impl Counts {
    /// As it is now.
    pub(crate) fn now() -> Self {
        let pinned = pinned();
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
        let descriptors = descriptors.filter_map(|entry| {
            let path = entry.unwrap().path();
            // The one that this reads has no target any more.
            let target = std::fs::read_link(&path).ok()?.display().to_string();
            let is_own = target.ends_with(&format!("/{}/fd", std::process::id()));
            (!is_own).then(|| format!("{} {target}", path.display()))
        });
        let descriptors = descriptors.collect();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let maps = maps.lines().filter(|line| !line.ends_with("[heap]"));
        Self { pinned, descriptors, mappings: maps.map(range).collect() }
    }

    /// As it is once the kernel has let go of what was closed, which takes it some milliseconds after a ring's close.
    pub(crate) fn settled(pinned_before: u64) -> Self {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let now = Self::now();
            if now.pinned <= pinned_before || Instant::now() > deadline {
                return now;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether what was there before is all that is there; in words where not. With `may_keep_mappings`, mappings do not matter.
    pub(crate) fn differs(&self, before: &Self, may_keep_mappings: bool) -> Option<String> {
        if self.pinned != before.pinned {
            return Some(format!("{} KiB pinned, {} before", self.pinned, before.pinned));
        }
        if self.descriptors != before.descriptors {
            return Some(difference("descriptors", &before.descriptors, &self.descriptors));
        }
        if !may_keep_mappings && self.mappings != before.mappings {
            return Some(difference("mappings", &before.mappings, &self.mappings));
        }
        None
    }
}

fn range(line: &str) -> String {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    format!("{} {} {}", fields[0], fields[1], fields.get(5).unwrap_or(&""))
}

fn difference(what: &str, before: &BTreeSet<String>, after: &BTreeSet<String>) -> String {
    let (gone, new) = (before.difference(after), after.difference(before));
    format!("{what} gone: {:?}, new: {:?}", gone.collect::<Vec<_>>(), new.collect::<Vec<_>>())
}

/// KiB that io_uring keeps pinned for this process.
pub(crate) fn pinned() -> u64 {
    status("VmPin:")
}

/// A line of /proc/self/status, in KiB. Kept open, so that it can be asked where no descriptor is to be had.
pub(crate) fn status(name: &str) -> u64 {
    static OPEN: Mutex<Option<(u32, File)>> = Mutex::new(None);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let process = std::process::id();
    if open.as_ref().is_none_or(|(of, _)| *of != process) {
        *open = Some((process, File::open("/proc/self/status").unwrap()));
    }
    let mut bytes = [0; 4096];
    let length = open.as_ref().unwrap().1.read_at(&mut bytes, 0).unwrap();
    let status = str::from_utf8(&bytes[..length]).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
