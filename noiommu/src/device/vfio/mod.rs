//! A device that the kernel's vfio-pci has, by whichever of its interfaces it was opened.
//!
//! See *Documentation/driver-api/vfio.rst* of the kernel. The kernel turns bus mastering off and resets the device when the
//! last descriptor of it is closed, however the process ends.

mod cdev;
mod group;
mod hot_reset;
mod interrupts;
mod region;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use noiommu_core::Errno;
use noiommu_uapi::vfio::device::*;
use noiommu_uapi::vfio::pci::*;
use rustix::io::retry_on_intr;
use zerocopy::FromZeros as _;

use self::region::{Region, RegionBar};
use super::bar::Registers;
use super::config::ConfigSpace;
use super::interrupt::{InterruptKind, Source};
use super::{Addressing, Backend, Provider, Remains, Reset, Window};
use crate::ioctl::{call, call_with};
use crate::{Error, ErrorKind, Result, files};

/// An open device. Fields are dropped in order: the device is closed before what it was opened through.
pub(super) struct VfioDevice {
    name: String,
    directory: PathBuf,
    device: Arc<OwnedFd>,
    config: Region,
    link: Link,
}

/// What a device was opened through.
enum Link {
    Group { member: group::Member, confined: bool },
    Cdev { _iommufd: Arc<OwnedFd>, id: u32, confined: bool },
}

/// Opens the device as the interface that is there has it, the cdev first. `directory`: of the device in sysfs.
///
/// # Errors
/// [`ErrorKind::Busy`]: somebody else has it; [`ErrorKind::Unsupported`]: vfio-pci offers no way to open it, or none that
/// `wanted` accepts; what the kernel answers, and `engine`, where memory is that one's to pin.
pub(super) fn open(
    name: &str,
    directory: &Path,
    wanted: &dyn Fn(Provider) -> bool,
    engine: &dyn Fn() -> Result<()>,
    iommufd: impl FnOnce() -> Result<Arc<OwnedFd>>,
) -> Result<VfioDevice> {
    let mut there = Vec::new();
    if let Some(node) = cdev::find(directory) {
        let provider = if node.confined { Provider::Cdev } else { Provider::CdevNoIommu };
        if wanted(provider) {
            return cdev::open(name, &node, &iommufd()?)
                .and_then(|(device, link)| VfioDevice::new(name, directory, device, link));
        }
        there.push(provider.name());
    }
    if let Some(node) = group::find(directory) {
        let provider = if node.confined { Provider::Group } else { Provider::GroupNoIommu };
        if wanted(provider) {
            if !node.confined {
                engine()?;
            }
            return group::open(name, directory, &node)
                .and_then(|(device, link)| VfioDevice::new(name, directory, device, link));
        }
        there.push(provider.name());
    }
    Err(match there.as_slice() {
        [] => Error::new(
            ErrorKind::Unsupported,
            Errno::ENODEV,
            format!("vfio-pci has {name}, but there is no node of it in /dev/vfio"),
        )
        .with_remedy("mount devtmpfs on /dev, or pass /dev/vfio into the container"),
        there => Error::new(
            ErrorKind::Unsupported,
            Errno::ENODEV,
            format!("{name} can be had by {}, which is not what was asked for", there.join(" or ")),
        )
        .with_remedy("ask for that (NOIOMMU_PROVIDER), or bind the device in another way: noiommu bind"),
    })
}

/// A failed call on a device.
fn failed(what: &str, name: &str, errno: Errno) -> Error {
    if errno == Errno::ENODEV {
        return Error::new(ErrorKind::NoDevice, errno, format!("{what} {name}: it is gone"))
            .with_remedy("it was removed or lost power: open it again when it is back");
    }
    let system = std::io::Error::from_raw_os_error(errno.raw());
    Error::system(format_args!("{what} {name}"), system)
}

/// A node that may not or cannot be opened.
fn not_opened(path: &Path, name: &str, error: &std::io::Error) -> Error {
    let told = Error::system(
        format_args!("opening {}", path.display()),
        std::io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO)),
    );
    match told.errno() {
        Errno::EPERM => told.with_remedy("run it with CAP_SYS_RAWIO, as root for one"),
        Errno::EACCES => told.with_remedy(format!("run it as root, or let the user open {}", path.display())),
        Errno::EBUSY => busy(name),
        _ => told,
    }
}

fn busy(name: &str) -> Error {
    Error::new(
        ErrorKind::Busy,
        Errno::EBUSY,
        format!("{name} is in use by another process, or by another interface of VFIO"),
    )
    .with_remedy("end the program that drives it")
}

impl VfioDevice {
    fn new(name: &str, directory: &Path, device: OwnedFd, link: Link) -> Result<Self> {
        let device = Arc::new(device);
        let config = Region::of(&device, VFIO_PCI_CONFIG_REGION_INDEX)
            .map_err(|errno| failed("asking for config space of", name, errno))?;
        Ok(Self { name: name.to_owned(), directory: directory.to_owned(), device, config, link })
    }

    /// VFIO_DEVICE_GET_INFO's flags.
    fn flags(&self) -> Result<u32> {
        let mut info =
            VfioDeviceInfo { argsz: size_of::<VfioDeviceInfo>() as u32, ..VfioDeviceInfo::new_zeroed() };
        call_with(&self.device, VFIO_DEVICE_GET_INFO, &mut info)
            .map_err(|errno| failed("asking about", &self.name, errno))?;
        Ok(info.flags)
    }

    /// The region of a memory BAR.
    fn memory_bar(&self, index: u8) -> Result<Region> {
        let none = || {
            Error::new(
                ErrorKind::Unsupported,
                Errno::EINVAL,
                format!("{} has no memory BAR {index}", self.name),
            )
        };
        if u32::from(index) > VFIO_PCI_BAR5_REGION_INDEX || !ConfigSpace(self).is_memory_bar(index)? {
            return Err(none());
        }
        let region = Region::of(&self.device, index.into())
            .map_err(|errno| failed(&format!("asking for BAR {index} of"), &self.name, errno))?;
        if region.size == 0 { Err(none()) } else { Ok(region) }
    }

    fn transfer_failed(&self, doing: &str, outcome: rustix::io::Result<usize>) -> Error {
        match outcome {
            // A device that is gone answers so, and one that is being taken away.
            Ok(_) | Err(rustix::io::Errno::NODEV | rustix::io::Errno::IO)
                if !files::exists(&self.directory) =>
            {
                ConfigSpace(self).gone()
            }
            Ok(_) => Error::system(
                format_args!("{doing} {}", self.name),
                std::io::Error::from(std::io::ErrorKind::UnexpectedEof),
            ),
            Err(error) => Error::system(format_args!("{doing} {}", self.name), error),
        }
    }
}

impl Backend for VfioDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn provider(&self) -> Provider {
        match self.link {
            Link::Group { confined: false, .. } => Provider::GroupNoIommu,
            Link::Group { confined: true, .. } => Provider::Group,
            Link::Cdev { confined: false, .. } => Provider::CdevNoIommu,
            Link::Cdev { confined: true, .. } => Provider::Cdev,
        }
    }

    fn directory(&self) -> Option<&Path> {
        Some(&self.directory)
    }

    fn config_read(&self, offset: u16, into: &mut [u8]) -> Result<()> {
        // A conventional device has fewer bytes than PCI Express; what is not there reads as ones, as on the bus.
        if u64::from(offset) + into.len() as u64 > self.config.size {
            into.fill(0xff);
            return Ok(());
        }
        let place = self.config.offset + u64::from(offset);
        match retry_on_intr(|| rustix::io::pread(&*self.device, &mut *into, place)) {
            Ok(length) if length == into.len() => Ok(()),
            outcome => Err(self.transfer_failed("reading config space of", outcome)),
        }
    }

    fn config_write(&self, offset: u16, from: &[u8]) -> Result<()> {
        let place = self.config.offset + u64::from(offset);
        match retry_on_intr(|| rustix::io::pwrite(&*self.device, from, place)) {
            Ok(length) if length == from.len() => Ok(()),
            outcome => Err(self.transfer_failed("writing config space of", outcome)),
        }
    }

    fn bar(&self, index: u8) -> Result<Arc<dyn Registers>> {
        let region = self.memory_bar(index)?;
        Ok(Arc::new(RegionBar::new(&self.device, &region, &format!("BAR {index} of {}", self.name))))
    }

    fn reset(&self) -> Result<bool> {
        if self.flags()? & VFIO_DEVICE_FLAGS_RESET == 0 {
            return Ok(false);
        }
        // EAGAIN: somebody else has the device's lock for a moment, sysfs for one.
        for _ in 0..100 {
            // SAFETY: no argument.
            match unsafe { call(&self.device, VFIO_DEVICE_RESET, 0) } {
                Ok(_) => return Ok(true),
                Err(Errno::EAGAIN | Errno::EINTR) => std::thread::sleep(Duration::from_millis(10)),
                Err(errno) => return Err(failed("resetting", &self.name, errno)),
            }
        }
        Err(failed("resetting", &self.name, Errno::EAGAIN))
    }

    fn is_quieted_by_close(&self) -> bool {
        true
    }

    fn hot_reset(&self) -> Result<()> {
        hot_reset::reset(&self.device, &self.name)
    }

    fn addressing(&self) -> Addressing {
        match &self.link {
            Link::Group { confined: false, .. } => Addressing::Engine,
            Link::Group { member, .. } => Addressing::Container(member.group().container().clone()),
            Link::Cdev { id, .. } => Addressing::Iommufd { device: *id },
        }
    }

    fn attach_pt(&self, id: u32) -> Result<()> {
        cdev::attach(&self.device, &self.name, id)
    }

    fn detach_pt(&self) {
        cdev::detach(&self.device, &self.name);
    }

    fn interrupt_count(&self, kind: InterruptKind) -> Result<u32> {
        interrupts::count(&self.device, &self.name, kind)
    }

    fn enable_interrupts(&self, kind: InterruptKind, count: u32) -> Result<Vec<Source>> {
        interrupts::enable(&self.device, &self.name, kind, count)
    }

    fn disable_interrupts(&self, kind: InterruptKind) {
        interrupts::disable(&self.device, &self.name, kind);
    }

    fn mask_interrupt(&self, kind: InterruptKind, index: u32, masked: bool) -> Result<()> {
        interrupts::mask(&self.device, &self.name, kind, index, masked)
    }

    fn remains(&self) -> Result<Option<Remains>> {
        // Where the kernel pins, an iommufd or a container lives on as long as a device is in it.
        if !matches!(self.addressing(), Addressing::Engine) {
            return Ok(None);
        }
        let has_reset = self.flags()? & VFIO_DEVICE_FLAGS_RESET != 0;
        Ok(Some(Remains {
            config: self.device.clone(),
            config_offset: self.config.offset,
            express_status: ConfigSpace(self).express_status_offset()?.unwrap_or(0),
            reset: has_reset.then(|| Reset::Vfio(self.device.clone())),
        }))
    }

    fn window(&self, index: u8) -> Result<Window> {
        let region = self.memory_bar(index)?;
        let (offset, length) = (region.offset, region.size);
        Ok(Window { file: self.device.clone(), offset, length, shift: 0, mapped: false })
    }

    fn removal(&self) -> Result<Option<OwnedFd>> {
        interrupts::removal(&self.device, &self.name).map(Some)
    }
}
