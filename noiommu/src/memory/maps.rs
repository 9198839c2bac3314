//! What /proc/self/maps says of an address range, to explain why it cannot be pinned and to refuse DAX memory.

use crate::error::ErrorKind;
use crate::{Error, Result};

/// One line of /proc/self/maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Vma {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) shared: bool,
    pub(crate) path: String,
}

/// The mappings of this process, lowest first; none where they cannot be read.
pub(crate) fn read() -> Vec<Vma> {
    read_of(None).unwrap_or_default()
}

/// The mappings of a process; `None`: of this one.
///
/// # Errors
/// What the system answers.
pub(crate) fn read_of(process: Option<u32>) -> std::io::Result<Vec<Vma>> {
    let path = match process {
        Some(process) => format!("/proc/{process}/maps"),
        None => "/proc/self/maps".to_owned(),
    };
    // Names of files may be any bytes.
    let text = std::fs::read(path)?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(parse).collect())
}

/// `start-end perms offset dev inode   path`
fn parse(line: &str) -> Option<Vma> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?.as_bytes();
    Some(Vma {
        start: usize::from_str_radix(start, 16).ok()?,
        end: usize::from_str_radix(end, 16).ok()?,
        readable: permissions.first() == Some(&b'r'),
        writable: permissions.get(1) == Some(&b'w'),
        shared: permissions.get(3) == Some(&b's'),
        path: fields.nth(3).unwrap_or("").trim_start().to_owned(),
    })
}

/// A reason why a range cannot be pinned: what kind of trouble, in words, and what helps.
pub(crate) type Reason = (ErrorKind, &'static str, &'static str);

/// Why the range cannot be pinned, if the list of mappings tells.
pub(crate) fn why_not_pinned(address: usize, length: usize) -> Option<Reason> {
    explain(&read(), address, length)
}

fn explain(vmas: &[Vma], address: usize, length: usize) -> Option<Reason> {
    let mut at = address;
    for vma in vmas.iter().filter(|vma| vma.end > address && vma.start < address.saturating_add(length)) {
        if vma.start > at {
            break;
        }
        if is_dax(vma) {
            return Some((
                ErrorKind::Dax,
                "memory of a DAX device has no ordinary pages",
                "use anonymous memory, a memfd or hugetlb pages",
            ));
        }
        if !vma.writable {
            return Some((
                ErrorKind::ReadOnlyMemory,
                "read-only memory cannot be pinned",
                "map it writable (mprotect), or copy it into a DmaBuffer",
            ));
        }
        if vma.shared && vma.path.starts_with('/') && !vma.path.starts_with("/memfd:") {
            return Some((
                ErrorKind::BadMemory,
                "shared memory of a file on a disk, of a device, or DAX cannot be pinned for long",
                "use anonymous memory, a memfd or hugetlb pages",
            ));
        }
        at = vma.end;
    }
    if at < address.saturating_add(length) {
        return Some((ErrorKind::BadMemory, "not all of it is mapped", "pass memory that exists"));
    }
    None
}

/// Whether a range has memory of a device DAX file: such mappings can be pinned, but belong to persistent memory.
///
/// # Errors
/// Those of reading the list: what is not known must not pass for ordinary memory.
pub(crate) fn has_dax(address: usize, length: usize) -> Result<bool> {
    let vmas = read_of(None).map_err(|error| {
        Error::system("reading /proc/self/maps, to see whether the memory is DAX", error)
            .with_remedy("mount /proc; check the open-file limit (ulimit -n)")
    })?;
    let within = |vma: &&Vma| vma.end > address && vma.start < address.saturating_add(length);
    Ok(vmas.iter().filter(within).any(is_dax))
}

fn is_dax(vma: &Vma) -> bool {
    vma.path.starts_with("/dev/dax")
}

/// Bytes that huge pages map in the mappings that begin in the range, by /proc/self/smaps.
pub(crate) fn huge_bytes(address: usize, length: usize) -> usize {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let mut inside = false;
    let mut bytes = 0;
    for line in smaps.lines() {
        if let Some(vma) = parse(line) {
            // A mapping larger than the range counts wholly, which would say too much.
            inside = vma.start >= address && vma.end <= address + length;
        } else if let Some(kib) = line.strip_prefix("AnonHugePages:").filter(|_| inside) {
            bytes += kib.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) * 1024;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "\
00010000-00012000 rw-p 00000000 00:00 0
00012000-00013000 r--p 00000000 fe:00 17                                 /usr/lib/x y.so
00020000-00021000 rw-s 00000000 00:06 5                                  /dev/dax0.0
00030000-00031000 rw-s 00000000 00:01 6                                  /memfd:a (deleted)
00031000-00032000 rw-s 00000000 fe:00 7                                  /data/file
";

    #[test]
    fn explains() {
        let vmas: Vec<_> = LINES.lines().filter_map(parse).collect();
        assert_eq!((vmas.len(), vmas[1].path.as_str()), (5, "/usr/lib/x y.so"));
        for (address, length, kind) in [
            (0x10000, 0x3000, ErrorKind::ReadOnlyMemory),
            (0x12000, 0x1000, ErrorKind::ReadOnlyMemory),
            (0x11000, 0x3000, ErrorKind::ReadOnlyMemory),
            (0x20000, 0x1000, ErrorKind::Dax),
            (0x30000, 0x2000, ErrorKind::BadMemory),
            (0xf000, 0x2000, ErrorKind::BadMemory),
            (0x50000, 0x1000, ErrorKind::BadMemory),
        ] {
            assert_eq!(explain(&vmas, address, length).unwrap().0, kind, "{address:#x}");
        }
        assert!(explain(&vmas, 0xf000, 0x2000).unwrap().1.contains("not all"));
        assert!(explain(&vmas, 0x30000, 0x2000).unwrap().1.contains("file on a disk"));
        assert_eq!(explain(&vmas, 0x10000, 0x2000), None);
        assert!(is_dax(&vmas[2]) && !is_dax(&vmas[3]));
    }

    #[test]
    fn reads_its_own() {
        let here = std::ptr::from_ref(&LINES) as usize;
        assert!(read().iter().any(|vma| vma.start <= here && here < vma.end));
    }
}
