//! A made-up machine: a mount namespace of this process's own, in which other PCI devices are in /sys than the real ones.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// A disk from which the root file system is mounted; it has a driver.
pub(crate) const USED: &str = "0000:00:10.0";
/// A device behind an IOMMU; it has a driver.
pub(crate) const CONFINED: &str = "0000:00:11.0";
/// A device that nothing has.
pub(crate) const FREE: &str = "0000:00:12.0";

/// Directories that are other ones there, empty at first.
const COVERED: [&str; 6] =
    ["/sys/bus/pci", "/sys/class", "/sys/kernel/iommu_groups", "/run", "/boot", "/lib/modules"];

const DEVICES: &str = "/sys/bus/pci/devices";

/// Moves the calling thread to that machine; answers false, and says why, where it may not.
pub(crate) fn enter() -> bool {
    // SAFETY: this thread alone gets other mounts; no other one of this process looks at files then.
    let entered = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0
        && mount("none", "/", "", libc::MS_PRIVATE | libc::MS_REC)
        && COVERED.into_iter().all(cover);
    if !entered {
        eprintln!("not run: no mount namespace of one's own: {}", std::io::Error::last_os_error());
        return false;
    }
    // What tells the kernel of an opened device is not for this one.
    fs::write("/run/tainted", "64\n").unwrap();
    fs::write("/run/kmsg", "").unwrap();
    // Nor is its configuration of interest, which takes hundreds of calls to read.
    for (file, place) in [
        ("/run/tainted", "/proc/sys/kernel/tainted"),
        ("/run/kmsg", "/dev/kmsg"),
        ("/run/kmsg", "/proc/config.gz"),
    ] {
        assert!(!Path::new(place).exists() || mount(file, place, "", libc::MS_BIND));
    }
    fs::create_dir_all("/run/noiommu").unwrap();
    fs::set_permissions("/run/noiommu", fs::Permissions::from_mode(0o755)).unwrap();
    // The opt-in.
    fs::write("/run/noiommu/enable_unsafe_noiommu_mode", "Y\n").unwrap();
    furnish();
    true
}

fn cover(place: &str) -> bool {
    !Path::new(place).exists() || mount("none", place, "tmpfs", 0)
}

fn mount(source: &str, place: &str, kind: &str, flags: libc::c_ulong) -> bool {
    let [source, place, kind] = [source, place, kind].map(|text| CString::new(text).unwrap());
    // SAFETY: three texts that live through the call; changes this thread's mounts alone.
    unsafe { libc::mount(source.as_ptr(), place.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) == 0 }
}

fn furnish() {
    for driver in ["nvme", "e1000e"] {
        write(&format!("/sys/bus/pci/drivers/{driver}/unbind"), "");
    }
    for (address, class, driver) in
        [(USED, "0x010802", Some("nvme")), (CONFINED, "0x020000", Some("e1000e")), (FREE, "0x00ff00", None)]
    {
        let file = |name: &str| format!("{DEVICES}/{address}/{name}");
        for (name, text) in [
            ("vendor", "0x1234\n"),
            ("device", "0x11e8\n"),
            ("class", class),
            ("enable", "0\n"),
            ("numa_node", "-1\n"),
        ] {
            write(&file(name), text);
        }
        // BAR 0 of a page.
        write(&file("resource"), "0x00000000fea00000 0x00000000fea00fff 0x0000000000040200\n");
        fs::write(file("resource0"), [0; 4096]).unwrap();
        fs::create_dir_all(file("power")).unwrap();
        if let Some(driver) = driver {
            symlink(format!("/sys/bus/pci/drivers/{driver}"), file("driver")).unwrap();
        }
        reset(address);
    }
    fs::create_dir_all("/sys/kernel/iommu_groups/3").unwrap();
    symlink("/sys/kernel/iommu_groups/3", format!("{DEVICES}/{CONFINED}/iommu_group")).unwrap();
    symlink("/sys/kernel/iommu_groups", format!("{DEVICES}/{CONFINED}/iommu")).unwrap();
    // The disk has the number of what is mounted at "/" here.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    write(&format!("{DEVICES}/{USED}/block/nvme9n1/dev"), root.split(' ').nth(2).unwrap());
    fs::create_dir_all("/sys/class/block").unwrap();
    symlink(format!("{DEVICES}/{USED}/block/nvme9n1"), "/sys/class/block/nvme9n1").unwrap();
}

/// Makes a device what it was at the beginning.
pub(crate) fn reset(address: &str) {
    let mut config = [0; 256];
    config[..4].copy_from_slice(&[0x34, 0x12, 0xe8, 0x11]);
    config[0x3d] = 1;
    fs::write(format!("{DEVICES}/{address}/config"), config).unwrap();
    write(&format!("{DEVICES}/{address}/driver_override"), "(null)\n");
    write(&format!("{DEVICES}/{address}/enable"), "0\n");
    let _ = fs::remove_dir_all("/run/noiommu/bindings");
}

/// The driver that alone may have a device; "": any.
pub(crate) fn driver_override(address: &str) -> String {
    let text = fs::read_to_string(format!("{DEVICES}/{address}/driver_override")).unwrap();
    // Files here are longer than what was last written to them; sysfs's are not.
    let text = text.lines().next().unwrap_or("").to_owned();
    if text == "(null)" { String::new() } else { text }
}

/// Whether a device decodes and masters: its command register.
pub(crate) fn command(address: &str) -> u8 {
    fs::read(format!("{DEVICES}/{address}/config")).unwrap()[4]
}

fn write(path: &str, text: &str) {
    let path = Path::new(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}
