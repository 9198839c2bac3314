//! Whether this machine and process can do without an IOMMU at all.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use noiommu_core::Errno;
use rustix::thread::CapabilitySet;

use super::pagemap::{Pagemap, hidden_frames};
use crate::error::ErrorKind;
use crate::{Error, Result};

/// The oldest kernel supported: registered buffers that can be replaced one by one, and FOLL_LONGTERM pins of
/// everything mapped, are right from 5.15 on.
const OLDEST: (u32, u32) = (5, 15);

/// The kernel's release, as uname tells.
#[must_use]
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// What this thread may do at present; nothing where that cannot be learned.
pub(crate) fn capabilities() -> CapabilitySet {
    rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective)
}

/// Refuses a kernel or machine on which physical addresses from user space would be wrong.
pub(crate) fn check_machine() -> Result<()> {
    check_release(&kernel_release())?;
    // Not read, it must not pass for one that names no encryption.
    let cpuinfo = read_first_processor().map_err(|error| {
        Error::system("reading /proc/cpuinfo, to see whether memory is encrypted", error)
            .with_remedy("mount /proc; check the open-file limit (ulimit -n)")
    })?;
    check_encryption(&cpuinfo, Path::new("/dev"))
}

/// /proc/cpuinfo up to the flags of the first processor. All have the same, and the kernel takes its time for the text of each.
fn read_first_processor() -> std::io::Result<String> {
    let mut lines = BufReader::new(File::open("/proc/cpuinfo")?);
    let mut text = String::new();
    loop {
        let before = text.len();
        if lines.read_line(&mut text)? == 0 || text[before..].starts_with("flags") {
            return Ok(text);
        }
    }
}

/// Refuses a kernel that is too old.
pub(crate) fn check_release(release: &str) -> Result<()> {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST => Ok(()),
        _ => Err(Error::new(
            ErrorKind::KernelTooOld,
            Errno::ENOSYS,
            format!("kernel {release} is older than {}.{}", OLDEST.0, OLDEST.1),
        )
        .with_remedy("use a newer kernel: long-term pins from user space are not reliable before it")),
    }
}

/// Guests with encrypted memory: what a device writes to the bare physical address is not what the CPU reads there.
pub(crate) fn check_encryption(cpuinfo: &str, dev: &Path) -> Result<()> {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or("");
    let flag = |name| flags.split_ascii_whitespace().any(|flag| flag == name);
    // An SEV flag alone only says that the processor could; with a hypervisor it is what the guest runs under.
    let sev = flag("hypervisor") && ["sev", "sev_es", "sev_snp"].into_iter().any(flag);
    let which = if flag("tdx_guest") || dev.join("tdx_guest").exists() {
        "TDX"
    } else if sev || dev.join("sev-guest").exists() {
        "SEV"
    } else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::EncryptedGuest,
        Errno::EOPNOTSUPP,
        format!("this is a guest with encrypted memory ({which}): a device cannot read or write it"),
    )
    .with_remedy("use the kernel's driver, which goes through shared bounce buffers"))
}

/// Whether the kernel shows physical addresses to this process.
pub(crate) fn check_frames(pagemap: &Pagemap) -> Result<()> {
    let here = 0u8;
    let address = std::ptr::from_ref(std::hint::black_box(&here)) as usize;
    match pagemap.entry(address)?.frame(pagemap.page_size()) {
        Some(_) => Ok(()),
        None => Err(hidden_frames()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        for good in ["5.15.0", "5.15", "6.1.0-56-cloud-amd64", "6.18.44-fc", "7.3.4", "10.0-rc1"] {
            assert!(check_release(good).is_ok(), "{good}");
        }
        for bad in ["5.14.21", "4.19.0-27-amd64", "3.10", "", "x.y"] {
            assert_eq!(check_release(bad).unwrap_err().kind(), ErrorKind::KernelTooOld, "{bad}");
        }
    }

    #[test]
    fn encrypted_guests() {
        let nowhere = Path::new("/nonexistent");
        let check = |flags: &str| check_encryption(&format!("model\t: 1\nflags\t\t: {flags}\n"), nowhere);
        for plain in ["fpu sse", "fpu sev sev_es", "hypervisor fpu", "hypervisor sevx"] {
            assert!(check(plain).is_ok(), "{plain}");
        }
        for encrypted in ["hypervisor sev", "hypervisor fpu sev_snp", "tdx_guest"] {
            let error = check(encrypted).unwrap_err();
            assert_eq!((error.kind(), error.errno()), (ErrorKind::EncryptedGuest, Errno::EOPNOTSUPP));
        }
    }
}
