//! A real PCI device without a driver, through its files in sysfs: works on any kernel.
//!
//! See *Documentation/PCI/sysfs-pci.rst* of the kernel for the files. A kernel in lockdown refuses them.

use std::io::ErrorKind as Io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use noiommu_core::Errno;
use rustix::fs::{FlockOperation, OFlags};
use rustix::mm::{self, MapFlags, ProtFlags};

use super::bar::Registers;
use super::config::{COMMAND_BUS_MASTER, COMMAND_MEMORY, ConfigSpace};
use super::interrupt::InterruptKind;
use super::{Backend, Provider, Remains, Reset, Window, uio};
use crate::{Error, ErrorKind, Result, binding, files, optin};

pub(crate) const DEVICES: &str = "/sys/bus/pci/devices";
/// A name that no driver has: with it as override, no driver binds to the device while it is claimed.
pub(crate) const CLAIM: &str = "noiommu";

/// Why messages are for vfio-pci alone.
pub(super) const NO_MESSAGES: &str =
    "for which the kernel must allocate vectors and remap them: vfio-pci does, sysfs and uio do not";

/// A claimed device. Bus mastering is off by the time this is dropped, as the kit sees to it.
pub(crate) struct SysfsDevice {
    name: String,
    directory: PathBuf,
    /// Locked for this process as long as it is open.
    config: Arc<OwnedFd>,
    /// Its own reset, opened while that is certainly allowed; `None`: it has none.
    reset: Option<Arc<OwnedFd>>,
    /// What was there before, to be put back.
    override_before: Option<String>,
    enabled: bool,
    /// uio_pci_generic is bound to it.
    pub(super) helper: bool,
}

/// Claims and enables the device at a PCI address.
pub(crate) fn open(address: &str) -> Result<SysfsDevice> {
    optin::require()?;
    let device = SysfsDevice::claim(Path::new(DEVICES), address)?;
    optin::taint(&device.name);
    Ok(device)
}

/// `domain:bus:device.function` in hexadecimal, as sysfs has it; the domain may be left out.
pub(crate) fn normalize(address: &str) -> Option<String> {
    let full = if address.matches(':').count() == 1 { format!("0000:{address}") } else { address.to_owned() };
    let (rest, function) = full.split_once('.')?;
    let mut parts = rest.split(':');
    let mut hex = |digits: usize| {
        let part = parts.next()?;
        let valid = part.len() == digits && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        valid.then(|| u32::from_str_radix(part, 16).ok())?
    };
    let (domain, bus, device) = (hex(4)?, hex(2)?, hex(2)?);
    let function: u32 = function.parse().ok()?;
    (parts.next().is_none() && device < 32 && function < 8)
        .then(|| format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"))
}

/// What to say of an address that is none.
pub(crate) fn no_address(address: &str) -> Error {
    Error::argument(format!("{address:?} is no PCI address"))
        .with_remedy("write it as lspci does: 0000:00:04.0")
}

/// What to say where there is nothing.
pub(crate) fn no_device(name: &str) -> Error {
    Error::new(ErrorKind::NoDevice, Errno::ENODEV, format!("there is no PCI device {name}"))
        .with_remedy(format!("ls {DEVICES} shows those there are"))
}

impl SysfsDevice {
    pub(crate) fn claim(devices: &Path, address: &str) -> Result<Self> {
        let name = normalize(address).ok_or_else(|| no_address(address))?;
        let directory = devices.join(&name);
        if !files::exists(&directory) {
            return Err(no_device(&name));
        }
        refuse_iommu(&name, &directory)?;
        refuse_driver(&name, &directory)?;
        let config = files::open(&directory.join("config"), OFlags::RDWR).map_err(|error| {
            Error::system(format_args!("opening {}", directory.join("config").display()), error)
                .with_remedy("run it as root; a kernel in lockdown mode refuses it to everyone")
        })?;
        lock(&config, &name)?;
        let reset = files::open(&directory.join("reset"), OFlags::WRONLY).ok().map(Arc::new);
        let mut device = Self {
            name,
            directory,
            config: Arc::new(config),
            reset,
            override_before: None,
            enabled: false,
            helper: false,
        };
        // From here on, dropping `device` puts back what has been changed.
        if ConfigSpace(&device).is_bridge()? {
            return Err(Error::new(
                ErrorKind::Unsupported,
                Errno::EOPNOTSUPP,
                format!(
                    "{} is a bridge: with its bus mastering off, what lies behind it is cut off",
                    device.name
                ),
            ));
        }
        if uio::is_left_behind(&device.directory) {
            uio::unbind(&device.name);
        }
        let path = device.directory.join("driver_override");
        // What cannot be read could not be put back.
        let before = files::if_there(files::read_text(&path)).map_err(|error| {
            Error::system(format_args!("reading {}", path.display()), error).with_remedy("run it as root")
        })?;
        let before = before.unwrap_or_default();
        device.write("driver_override", CLAIM)?;
        // sysfs shows "(null)" for none; an empty line takes it away. Our own is one that a killed process has left, unless the
        // device is bound for us.
        device.override_before = Some(match before.as_str() {
            "(null)" => String::new(),
            CLAIM if !binding::is_bound(&device.name) => String::new(),
            _ => before,
        });
        // A driver may have come between the look and the override.
        refuse_driver(&device.name, &device.directory)?;
        let _ = device.write("power/control", "on");
        device.write("enable", "1")?;
        device.enabled = true;
        let config = ConfigSpace(&device);
        config.power_up()?;
        config.change_command(COMMAND_BUS_MASTER, COMMAND_MEMORY)?;
        if config.is_gone()? {
            return Err(config.gone());
        }
        Ok(device)
    }

    /// Its directory in sysfs.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its address ranges: the BARs, the ROM, and what else the system knows.
    pub(crate) fn resources(&self) -> Result<Vec<SysfsResource>> {
        let text = files::read_text(&self.directory.join("resource"))
            .map_err(|error| self.gone(error, "reading the resources of"))?;
        Ok(SysfsResource::table(&text))
    }

    /// Where a memory BAR is.
    fn memory_bar(&self, index: u8) -> Result<SysfsResource> {
        match self.resources()?.get(usize::from(index)) {
            Some(resource) if index < 6 && resource.is_memory() && resource.size > 0 => Ok(*resource),
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                Errno::EINVAL,
                format!("{} has no memory BAR {index}", self.name),
            )),
        }
    }

    /// Writes one of its files.
    pub(crate) fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.directory.join(file);
        files::write_line(&path, text).map_err(|error| {
            Error::system(format_args!("writing {}", path.display()), error).with_remedy("run it as root")
        })
    }

    fn gone(&self, error: std::io::Error, doing: &str) -> Error {
        if error.raw_os_error() == Some(libc::ENODEV) || error.kind() == Io::UnexpectedEof {
            ConfigSpace(self).gone()
        } else {
            Error::system(format_args!("{doing} {}", self.name), error)
        }
    }
}

/// Claims a device, by a lock on its config space. The guardian of a process that has died, which holds a shared one, is waited
/// for.
fn lock(config: &OwnedFd, name: &str) -> Result<()> {
    /// How many milliseconds a guardian may take: longer than the longest step of a quiet-recipe.
    const GUARDIAN: u32 = 90_000;
    /// How many milliseconds pass between a death and the guardian's taking over.
    const TAKING_OVER: u32 = 200;
    /// How many milliseconds pass between two tries.
    const STEP: u32 = 5;
    let try_lock = |how| rustix::io::retry_on_intr(|| rustix::fs::flock(config, how)).is_ok();
    // Milliseconds with a guardian, and with somebody else, who may be dead already.
    let (mut with_guardian, mut with_other) = (0, 0);
    while !try_lock(FlockOperation::NonBlockingLockExclusive) {
        if try_lock(FlockOperation::NonBlockingLockShared) {
            // Given back, so that somebody gets the exclusive one.
            try_lock(FlockOperation::Unlock);
            with_guardian += STEP;
        } else {
            with_other += STEP;
        }
        let busy = |by: &str, remedy: &str| {
            let cause = format!("{name} is in use by {by}");
            Err(Error::new(ErrorKind::Busy, Errno::EBUSY, cause).with_remedy(remedy))
        };
        if with_guardian > GUARDIAN {
            return busy(
                "the guardian of a process that died, and is not quiet",
                "see what it says in the kernel's log (dmesg)",
            );
        }
        if with_other > TAKING_OVER {
            return busy("another process", "end the program that drives it");
        }
        std::thread::sleep(Duration::from_millis(STEP.into()));
    }
    Ok(())
}

/// Refuses a device that an IOMMU serves. Its group may be the dummy of the kernel's own no-IOMMU mode; the link `iommu`
/// tells a real one, and so does a group of another name.
pub(crate) fn refuse_iommu(name: &str, directory: &Path) -> Result<()> {
    let group = directory.join("iommu_group");
    if files::exists(&directory.join("iommu")) || files::exists(&group) && !is_dummy_group(&group) {
        return Err(Error::new(
            ErrorKind::HasIommu,
            Errno::EOPNOTSUPP,
            format!("{name} stands behind an IOMMU: physical addresses would be blocked or misread"),
        )
        .with_remedy("use it through VFIO with the IOMMU, which is safe"));
    }
    Ok(())
}

/// Whether a group is one that the kernel's no-IOMMU mode has made up.
pub(crate) fn is_dummy_group(group: &Path) -> bool {
    files::read_text(&group.join("name")).is_ok_and(|name| name == "vfio-noiommu")
}

pub(crate) fn refuse_driver(name: &str, directory: &Path) -> Result<()> {
    let driver = files::link(&directory.join("driver"))
        .map_err(|error| Error::system(format_args!("looking for the driver of {name}"), error))?;
    let Some(driver) = driver else { return Ok(()) };
    if uio::is_left_behind(directory) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Busy, Errno::EBUSY, format!("the kernel's driver {driver} has {name}"))
        .with_remedy(format!("if nothing uses the device: noiommu bind {name}")))
}

impl Drop for SysfsDevice {
    fn drop(&mut self) {
        self.unbind_helper();
        if self.enabled {
            let _ = self.write("enable", "0");
        }
        if let Some(before) = &self.override_before {
            let _ = self.write("driver_override", before);
        }
    }
}

impl Backend for SysfsDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn provider(&self) -> Provider {
        Provider::Sysfs
    }

    fn directory(&self) -> Option<&Path> {
        Some(&self.directory)
    }

    fn config_read(&self, offset: u16, into: &mut [u8]) -> Result<()> {
        let length = rustix::io::retry_on_intr(|| rustix::io::pread(&self.config, &mut *into, offset.into()));
        match length {
            Ok(length) if length == into.len() => Ok(()),
            // Where the kernel reaches the conventional part alone, what is behind reads as ones, as on the bus.
            Ok(length) if usize::from(offset) + length >= 256 => {
                into[length..].fill(0xff);
                Ok(())
            }
            Ok(_) => Err(self.gone(Io::UnexpectedEof.into(), "reading config space of")),
            Err(error) => Err(self.gone(error.into(), "reading config space of")),
        }
    }

    fn config_write(&self, offset: u16, from: &[u8]) -> Result<()> {
        let length = rustix::io::retry_on_intr(|| rustix::io::pwrite(&self.config, from, offset.into()));
        match length {
            Ok(length) if length == from.len() => Ok(()),
            Ok(_) => Err(self.gone(Io::UnexpectedEof.into(), "writing config space of")),
            Err(error) => Err(self.gone(error.into(), "writing config space of")),
        }
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn Registers>> {
        let resource = self.memory_bar(index)?;
        Ok(Arc::new(MappedBar::new(&self.directory.join(format!("resource{index}")), resource)?))
    }

    fn bar_write_combining(&self, index: u8) -> Result<Arc<dyn Registers>> {
        let path = self.directory.join(format!("resource{index}_wc"));
        match self.resources()?.get(usize::from(index)) {
            Some(resource) if files::exists(&path) => Ok(Arc::new(MappedBar::new(&path, *resource)?)),
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                Errno::EOPNOTSUPP,
                format!(
                    "BAR {index} of {} is not prefetchable, so its writes may not be combined",
                    self.name
                ),
            )),
        }
    }

    fn why_no_interrupts(&self, kind: InterruptKind) -> String {
        match kind {
            InterruptKind::Intx => "which sysfs does not hand on: uio_pci_generic does",
            InterruptKind::Msi | InterruptKind::Msix => NO_MESSAGES,
        }
        .to_owned()
    }

    fn reset(&self) -> Result<bool> {
        if !files::exists(&self.directory.join("reset")) {
            return Ok(false);
        }
        self.write("reset", "1")?;
        Ok(true)
    }

    fn remains(&self) -> Result<Option<Remains>> {
        Ok(Some(Remains {
            config: self.config.clone(),
            config_offset: 0,
            express_status: ConfigSpace(self).express_status_offset()?.unwrap_or(0),
            reset: self.reset.clone().map(Reset::File),
        }))
    }

    fn window(&self, index: u8) -> Result<Window> {
        let resource = self.memory_bar(index)?;
        let path = self.directory.join(format!("resource{index}"));
        let file = files::open(&path, OFlags::RDWR)
            .map_err(|error| Error::system(format_args!("opening {}", path.display()), error))?;
        let shift = resource.start as usize % rustix::param::page_size();
        Ok(Window { file: Arc::new(file), offset: 0, length: resource.size, shift, mapped: true })
    }
}

/// A line of the table in `resource`: an address range of the device; of size 0 where there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct SysfsResource {
    /// The first physical address, or port.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// IORESOURCE_*, of *include/linux/ioport.h*.
    pub(crate) flags: u64,
}

impl SysfsResource {
    pub(crate) const PORTS: u64 = 0x100;
    pub(crate) const MEMORY: u64 = 0x200;
    pub(crate) const PREFETCHABLE: u64 = 0x2000;
    pub(crate) const WIDE: u64 = 0x10_0000;

    fn is_memory(&self) -> bool {
        self.flags & Self::MEMORY != 0
    }

    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line
            .split_ascii_whitespace()
            .map(|number| u64::from_str_radix(number.strip_prefix("0x")?, 16).ok());
        let (start, end, flags) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let size = if end > start { end - start + 1 } else { 0 };
        Some(Self { start, size, flags })
    }

    /// All of a table.
    pub(crate) fn table(text: &str) -> Vec<Self> {
        text.lines().map(|line| Self::parse(line).unwrap_or_default()).collect()
    }
}

/// A BAR mapped into this process.
pub(crate) struct MappedBar {
    /// Where the mapping begins.
    base: NonNull<u8>,
    /// Where the BAR begins in it: one that is smaller than a page may lie anywhere in a page.
    shift: usize,
    size: u64,
    mapped: usize,
}

// SAFETY: the mapping belongs to this value; accesses to it are single volatile loads and stores of registers.
unsafe impl Send for MappedBar {}
// SAFETY: as above.
unsafe impl Sync for MappedBar {}

impl MappedBar {
    pub(crate) fn new(path: &Path, resource: SysfsResource) -> Result<Self> {
        let failed = |error: std::io::Error| {
            let lockdown = error.kind() == Io::PermissionDenied;
            let error = Error::system(format_args!("mapping {}", path.display()), error);
            if lockdown {
                error.with_remedy(
                    "run it as root; a kernel in lockdown mode (Secure Boot) refuses it to everyone",
                )
            } else {
                error
            }
        };
        let file = files::open(path, OFlags::RDWR).map_err(failed)?;
        let shift = resource.start as usize % rustix::param::page_size();
        Self::of_file(&file, 0, shift, resource.size).map_err(failed)
    }

    /// Maps `size` bytes of registers that begin `shift` bytes behind `offset`, which is that of a page, in a file.
    pub(super) fn of_file(file: &OwnedFd, offset: u64, shift: usize, size: u64) -> std::io::Result<Self> {
        let mapped = usize::try_from(size)
            .ok()
            .and_then(|size| size.checked_add(shift)?.checked_next_multiple_of(rustix::param::page_size()))
            .ok_or(Io::OutOfMemory)?;
        // SAFETY: a new mapping of device registers at a place of the kernel's choice.
        let base = unsafe {
            mm::mmap(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                offset,
            )
        };
        let base = NonNull::new(base?.cast()).ok_or(Io::AddrNotAvailable)?;
        Ok(Self { base, shift, size, mapped })
    }
}

impl Drop for MappedBar {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody holds a pointer into it.
        let _ = unsafe { mm::munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

impl Registers for MappedBar {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, width: u8) -> Result<u64> {
        // SAFETY: the caller has checked that the access lies in the BAR and is aligned to its width.
        unsafe {
            let at = self.base.as_ptr().add(self.shift + offset as usize);
            Ok(match width {
                1 => at.read_volatile().into(),
                2 => u16::from_le(at.cast::<u16>().read_volatile()).into(),
                4 => u32::from_le(at.cast::<u32>().read_volatile()).into(),
                _ => u64::from_le(at.cast::<u64>().read_volatile()),
            })
        }
    }

    fn write(&self, offset: u64, width: u8, value: u64) -> Result<()> {
        // SAFETY: as for `read`.
        unsafe {
            let at = self.base.as_ptr().add(self.shift + offset as usize);
            match width {
                1 => at.write_volatile(value as u8),
                2 => at.cast::<u16>().write_volatile((value as u16).to_le()),
                4 => at.cast::<u32>().write_volatile((value as u32).to_le()),
                _ => at.cast::<u64>().write_volatile(value.to_le()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(normalize("0000:00:04.0").as_deref(), Some("0000:00:04.0"));
        assert_eq!(normalize("00:1F.7").as_deref(), Some("0000:00:1f.7"));
        for bad in
            ["", "4", "00:20.0", "00:04.8", "../../x", "0000:00:04.0/..", "0:0:0:0.0", "00:04.", "+1:04.0"]
        {
            assert_eq!(normalize(bad), None, "{bad}");
        }
    }

    #[test]
    fn resources() {
        let table = "0x00000000febf0000 0x00000000febfffff 0x0000000000040200\n\
                     0x000000000000c000 0x000000000000c03f 0x0000000000040101\n\
                     0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
        let resources = SysfsResource::table(table);
        assert_eq!(
            resources.iter().map(|resource| (resource.size, resource.is_memory())).collect::<Vec<_>>(),
            [(0x10000, true), (0x40, false), (0, false)]
        );
    }

    /// A tree of files that looks like sysfs.
    fn device(links: &[&str]) -> (PathBuf, Result<SysfsDevice>) {
        device_of_type(links, 0)
    }

    fn device_of_type(links: &[&str], header: u8) -> (PathBuf, Result<SysfsDevice>) {
        let root = std::env::temp_dir().join(format!(
            "noiommu-sysfs-{}-{}-{header}",
            std::process::id(),
            links.join("-")
        ));
        let directory = root.join("0000:00:04.0");
        fs::create_dir_all(directory.join("power")).unwrap();
        let mut config = [0u8; 256];
        config[..6].copy_from_slice(&[0x34, 0x12, 0xe8, 0x11, 4, 0]);
        config[0x0e] = header;
        fs::write(directory.join("config"), config).unwrap();
        fs::write(directory.join("driver_override"), "(null)\n").unwrap();
        for file in ["enable", "power/control"] {
            fs::write(directory.join(file), "").unwrap();
        }
        for link in links {
            let target = root.join(format!("target-{link}"));
            fs::create_dir_all(&target).unwrap();
            let _ = fs::remove_file(directory.join(link));
            std::os::unix::fs::symlink(&target, directory.join(link)).unwrap();
        }
        let device = SysfsDevice::claim(&root, "0000:00:04.0");
        (root, device)
    }

    fn text(root: &Path, file: &str) -> String {
        // Files of sysfs take what is written last; these are appended to nowhere, so the first line counts.
        fs::read_to_string(root.join("0000:00:04.0").join(file))
            .unwrap()
            .lines()
            .next()
            .unwrap_or("")
            .to_owned()
    }

    #[test]
    fn claims_with_bus_mastering_off_and_puts_back() {
        let (root, device) = device(&[]);
        let device = device.unwrap();
        assert_eq!(
            (text(&root, "driver_override").as_str(), text(&root, "enable").as_str()),
            ("noiommu", "1")
        );
        let mut command = [0; 2];
        device.config_read(4, &mut command).unwrap();
        assert_eq!(command, [2, 0], "memory on, bus mastering off");
        assert_eq!(SysfsDevice::claim(&root, "00:04.0").err().unwrap().kind(), ErrorKind::Busy);
        drop(device);
        assert_eq!((text(&root, "driver_override").as_str(), text(&root, "enable").as_str()), ("", "0"));
        assert_eq!(SysfsDevice::claim(&root, "00:05.0").err().unwrap().kind(), ErrorKind::NoDevice);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn refuses_devices_that_others_serve() {
        for (links, kind) in [
            (&["iommu"][..], ErrorKind::HasIommu),
            (&["iommu_group"], ErrorKind::HasIommu),
            (&["driver"], ErrorKind::Busy),
        ] {
            let (root, device) = device(links);
            let error = device.err().unwrap();
            assert_eq!(error.kind(), kind);
            assert!(error.remedy().is_some());
            assert_eq!(text(&root, "driver_override"), "(null)", "untouched");
            fs::remove_dir_all(root).unwrap();
        }
        let (root, bridge) = device_of_type(&[], 1);
        assert_eq!(bridge.err().unwrap().kind(), ErrorKind::Unsupported);
        assert_eq!(fs::read(root.join("0000:00:04.0/config")).unwrap()[4], 4, "its bus mastering stays on");
        fs::remove_dir_all(root).unwrap();
        // The kernel's own no-IOMMU group is none.
        let (root, refused) = device(&["iommu_group"]);
        drop(refused);
        fs::write(root.join("target-iommu_group/name"), "vfio-noiommu\n").unwrap();
        assert!(SysfsDevice::claim(&root, "00:04.0").is_ok());
        fs::remove_dir_all(root).unwrap();
    }
}
