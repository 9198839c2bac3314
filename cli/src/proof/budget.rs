//! How much memory the proof may take: about half of what is available, and never more than 4 GiB.

use std::fs;
use std::path::Path;

use super::Error;

/// Bytes in a MiB.
pub(crate) const MIB: u64 = 1 << 20;

/// The most a pool may take anywhere.
const CAP_MIB: u64 = 4096;

/// What a pool takes when nobody says otherwise: more proves nothing more and takes longer.
const DEFAULT_MIB: u64 = 1024;

/// Below this the holes are too few for the kernel to move anything into.
const LEAST_MIB: u64 = 64;

/// The pool's size in MiB: the one asked for, if it is safe, or the default.
pub(crate) fn pool_mib(asked: Option<u64>) -> Result<u64, Error> {
    choose(asked, available()? / MIB)
}

/// The rule behind [`pool_mib`], for `available` MiB.
fn choose(asked: Option<u64>, available: u64) -> Result<u64, Error> {
    let most = (available / 2).min(CAP_MIB);
    if most < LEAST_MIB {
        return Err(Error::new(
            format!(
                "only {available} MiB of memory are available; half of it may be used, {LEAST_MIB} are needed"
            ),
            "stop other programs, or give the guest more memory",
        ));
    }
    match asked {
        None => Ok(most.min(DEFAULT_MIB)),
        Some(asked) if asked < LEAST_MIB => Err(Error::new(
            format!("a pool of {asked} MiB is too small to fragment"),
            format!("use --pool-mib {LEAST_MIB} or more"),
        )),
        Some(asked) if asked > most => Err(Error::new(
            format!(
                "a pool of {asked} MiB takes more than half of the {available} MiB available, or than {CAP_MIB}"
            ),
            format!("use --pool-mib {most} or less"),
        )),
        Some(asked) => Ok(asked),
    }
}

/// Bytes that can be taken without swapping, here and in the control groups above this process.
fn available() -> Result<u64, Error> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let machine = mem_available(&meminfo).ok_or_else(|| {
        Error::new("/proc/meminfo does not tell MemAvailable", "mount /proc; kernels before 3.14 are too old")
    })?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Ok(group_room(&groups, Path::new("/sys/fs/cgroup")).map_or(machine, |room| room.min(machine)))
}

/// MemAvailable of /proc/meminfo, in bytes.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The least room left in any memory control group that this process is in, version 1 or 2; none when unlimited.
fn group_room(groups: &str, root: &Path) -> Option<u64> {
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let mut least = None;
    for line in groups.lines() {
        // "0::/a/b" is version 2, "4:memory:/a/b" is version 1.
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (base, limit, used) = if controllers.is_empty() {
            (root.to_path_buf(), "memory.max", "memory.current")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes")
        } else {
            continue;
        };
        // A limit further up holds too.
        for above in Path::new(group).ancestors() {
            let folder = base.join(above.strip_prefix("/").unwrap_or(above));
            if let (Some(limit), Some(used)) = (number(&folder.join(limit)), number(&folder.join(used))) {
                let room = limit.saturating_sub(used);
                least = Some(least.map_or(room, |least: u64| least.min(room)));
            }
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_what_is_available_at_most() {
        assert_eq!(choose(None, 400), Ok(200));
        assert_eq!(choose(None, 24_000), Ok(DEFAULT_MIB));
        assert_eq!(choose(Some(4096), 24_000), Ok(4096));
        assert_eq!(choose(Some(200), 400), Ok(200));
        assert!(choose(Some(201), 400).unwrap_err().remedy.contains("200 or less"));
        assert!(choose(Some(4097), 24_000).is_err());
        assert!(choose(Some(LEAST_MIB - 1), 24_000).is_err());
        assert!(choose(None, 2 * LEAST_MIB - 1).is_err());
    }

    #[test]
    fn meminfo_is_read() {
        assert_eq!(mem_available("MemFree: 1 kB\nMemAvailable:    1024 kB\n"), Some(MIB));
        assert_eq!(mem_available("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = std::env::temp_dir().join(format!("noiommu-groups-{}", std::process::id()));
        let inner = root.join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(inner.join("memory.current"), "10\n").unwrap();
        fs::write(root.join("a/memory.max"), "1000\n").unwrap();
        fs::write(root.join("a/memory.current"), "400\n").unwrap();
        let room = group_room("3:cpu:/\n0::/a/b\n", &root);
        let none = group_room("3:cpu:/\n", &root);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(room, Some(600));
        assert_eq!(none, None);
    }
}
