//! What a device is in use for, as far as the kernel tells.
//!
//! Disks are followed from the device to its block devices and on to what is built of them (partitions, device mapper, RAID),
//! interfaces to bridges, bonds and VLANs on top of them. What has a disk open without mounting it, mounts in other mount
//! namespaces, and interfaces in other network namespaces are not seen.
//!
//! What is not there is not used; what cannot be read is an error, as a disk must not be taken for unused because /proc could
//! not be read just then.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{PciDevice, Root};
use crate::files::{self, if_there};

/// A use of a device that would end if its driver were taken away.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Use {
    /// A file system on one of its disks is mounted.
    Mounted {
        /// The block device.
        disk: String,
        /// Where it is mounted.
        at: String,
    },
    /// One of its disks is swapped to.
    Swap {
        /// The block device.
        disk: String,
    },
    /// The default route goes through one of its interfaces.
    DefaultRoute {
        /// The interface.
        interface: String,
    },
    /// One of its interfaces is up.
    Up {
        /// The interface.
        interface: String,
    },
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { disk, at } => write!(f, "its disk {disk} is mounted at {at}"),
            Self::Swap { disk } => write!(f, "the machine swaps to its disk {disk}"),
            Self::DefaultRoute { interface } => {
                write!(f, "the default route goes through its interface {interface}")
            }
            Self::Up { interface } => write!(f, "its interface {interface} is up"),
        }
    }
}

impl Use {
    /// What ends it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Mounted { at, .. } => format!("umount {at}"),
            Self::Swap { disk } => format!("swapoff /dev/{disk}"),
            Self::DefaultRoute { interface } | Self::Up { interface } => {
                format!("ip link set {interface} down (not over a connection that goes through it)")
            }
        }
    }
}

pub(super) fn of(root: &Root, device: &PciDevice) -> io::Result<Vec<Use>> {
    let Some(directory) = if_there(fs::canonicalize(root.device(&device.address)))? else {
        return Ok(Vec::new());
    };
    let mut uses = Vec::new();
    let disks = disks(root, &directory)?;
    if !disks.is_empty() {
        uses.extend(mounts(root, &disks)?);
        uses.extend(swaps(root, &disks)?);
    }
    uses.extend(routes(root, &interfaces(root, &directory)?)?);
    Ok(uses)
}

/// The names in a directory; none where there is no such directory.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    Ok(if_there(files::names(directory))?.unwrap_or_default())
}

/// The text of a file; nothing where there is no such file.
fn text(path: &Path) -> io::Result<String> {
    Ok(if_there(files::read_text(path))?.unwrap_or_default())
}

/// The entries of a class of sysfs, and where each really is.
fn class(root: &Root, name: &str) -> io::Result<Vec<(String, PathBuf)>> {
    let directory = root.at("/sys/class").join(name);
    let mut entries = Vec::new();
    for name in names(&directory)? {
        if let Some(at) = if_there(fs::canonicalize(directory.join(&name)))? {
            entries.push((name, at));
        }
    }
    Ok(entries)
}

/// The block devices of a device and those built of them.
fn disks(root: &Root, directory: &Path) -> io::Result<BTreeSet<String>> {
    let mut places = vec![directory.to_owned()];
    // With native multipath an NVMe disk belongs to its subsystem, not to a controller.
    for (_, subsystem) in class(root, "nvme-subsystem")? {
        for controller in names(&subsystem)? {
            let end = if_there(fs::canonicalize(subsystem.join(controller)))?;
            if end.is_some_and(|end| end.starts_with(directory)) {
                places.push(subsystem);
                break;
            }
        }
    }
    let blocks = class(root, "block")?;
    let own = |place: &Path| places.iter().any(|it| place.starts_with(it));
    let mut found: BTreeSet<String> =
        blocks.iter().filter(|(_, at)| own(at)).map(|(name, _)| name.clone()).collect();
    let mut next: Vec<String> = found.iter().cloned().collect();
    while let Some(name) = next.pop() {
        let at = root.at("/sys/class/block").join(&name);
        let holders = names(&at.join("holders"))?;
        // Partitions of what is built of others are not among the holders.
        let real = if_there(fs::canonicalize(&at))?.unwrap_or(at);
        let parts = blocks.iter().filter(|(_, at)| at.parent() == Some(&real)).map(|(name, _)| name.clone());
        for other in holders.into_iter().chain(parts) {
            if found.insert(other.clone()) {
                next.push(other);
            }
        }
    }
    Ok(found)
}

/// The number of a block device, as mountinfo writes it.
fn number(root: &Root, disk: &str) -> io::Result<Option<String>> {
    if_there(files::read_text(&root.at("/sys/class/block").join(disk).join("dev")))
}

/// The disk among `disks` that a path names, through links such as /dev/mapper's.
fn named<'a>(root: &Root, disks: &'a BTreeSet<String>, path: &str) -> io::Result<Option<&'a String>> {
    if !path.starts_with("/dev/") {
        return Ok(None);
    }
    let real = if_there(fs::canonicalize(root.at(path)))?.unwrap_or_else(|| root.at(path));
    let name = real.strip_prefix(root.at("/dev")).ok();
    Ok(name.and_then(|name| disks.get(&name.to_string_lossy().replace('/', "!"))))
}

fn mounts(root: &Root, disks: &BTreeSet<String>) -> io::Result<Vec<Use>> {
    let mut numbers = Vec::new();
    for disk in disks {
        numbers.extend(number(root, disk)?.map(|number| (number, disk)));
    }
    let find = |line: &str| {
        // See proc_pid_mountinfo(5): optional fields end with a dash, then type and source.
        let (own, rest) = line.split_once(" - ")?;
        let mut own = own.split(' ');
        let (device, at) = (own.nth(2)?, own.nth(1)?);
        let by_number = numbers.iter().find(|(number, _)| number == device).map(|(_, disk)| *disk);
        // btrfs has a number of its own; the source tells.
        let source = || named(root, disks, &unescape(rest.split(' ').nth(1)?)).transpose();
        let disk = by_number.map(Ok).or_else(source)?;
        Some(disk.map(|disk| Use::Mounted { disk: disk.clone(), at: unescape(at) }))
    };
    text(&root.at("/proc/self/mountinfo"))?.lines().filter_map(find).collect()
}

fn swaps(root: &Root, disks: &BTreeSet<String>) -> io::Result<Vec<Use>> {
    let find = |line: &str| {
        let path = unescape(line.split_ascii_whitespace().next()?);
        let disk = named(root, disks, &path).transpose()?;
        Some(disk.map(|disk| Use::Swap { disk: disk.clone() }))
    };
    text(&root.at("/proc/swaps"))?.lines().skip(1).filter_map(find).collect()
}

/// What /proc writes as `\040` is a space, and so on.
fn unescape(text: &str) -> String {
    let mut plain = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        plain.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// The interfaces of a device and those on top of them.
fn interfaces(root: &Root, directory: &Path) -> io::Result<Vec<String>> {
    let mut found: Vec<String> = class(root, "net")?
        .into_iter()
        .filter(|(_, at)| at.starts_with(directory))
        .map(|(name, _)| name)
        .collect();
    let mut next = 0;
    while let Some(name) = found.get(next) {
        let entries = names(&root.at("/sys/class/net").join(name))?;
        for upper in entries.iter().filter_map(|entry| entry.strip_prefix("upper_")) {
            if !found.iter().any(|name| name == upper) {
                found.push(upper.to_owned());
            }
        }
        next += 1;
    }
    Ok(found)
}

fn routes(root: &Root, interfaces: &[String]) -> io::Result<Vec<Use>> {
    let (ipv4, ipv6) = (text(&root.at("/proc/net/route"))?, text(&root.at("/proc/net/ipv6_route"))?);
    let words = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let is_default = |name: &str| {
        // Destination and mask are zero. A route that rejects (IPv6 flag 0x200) is on lo, and no interface of a device.
        let ipv4 = ipv4.lines().map(words).any(|line| {
            line.first().is_some_and(|it| it == name)
                && line.get(1).is_some_and(|to| to == "00000000")
                && line.get(7).is_some_and(|mask| mask == "00000000")
        });
        let ipv6 = ipv6.lines().map(words).any(|line| {
            line.last().is_some_and(|it| it == name)
                && line.get(1).is_some_and(|length| length == "00")
                && line.first().is_some_and(|to| to.bytes().all(|digit| digit == b'0'))
        });
        ipv4 || ipv6
    };
    let is_up = |name: &str| {
        let flags = text(&root.at("/sys/class/net").join(name).join("flags"))?;
        let flags = flags.strip_prefix("0x").and_then(|flags| u32::from_str_radix(flags, 16).ok());
        Ok::<_, io::Error>(flags.is_some_and(|flags| flags & libc::IFF_UP as u32 != 0))
    };
    let mut uses = Vec::new();
    for name in interfaces {
        if is_default(name) {
            uses.push(Use::DefaultRoute { interface: name.clone() });
        } else if is_up(name)? {
            uses.push(Use::Up { interface: name.clone() });
        }
    }
    Ok(uses)
}
