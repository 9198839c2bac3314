//! A device of the kernel's own no-IOMMU groups: the kernel's device answers, and only what it says of groups is turned into
//! what whoever opened the device as a character device expects.
//!
//! System calls are made on the caller's addresses: what is wrong with them the kernel says.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use noiommu_core::vfio::pci::{Address, PhysicalRange, check_hot_reset, hot_reset_info};
use noiommu_core::{Errno, PhysAddr, TryVec};
use noiommu_uapi::vfio::container::{VFIO_NOIOMMU_IOMMU, VFIO_SET_IOMMU};
use noiommu_uapi::vfio::device::{
    VFIO_DEVICE_FLAGS_RESET, VFIO_DEVICE_GET_INFO, VFIO_DEVICE_RESET, VfioDeviceInfo,
};
use noiommu_uapi::vfio::feature::*;
use noiommu_uapi::vfio::group::{VFIO_GROUP_GET_DEVICE_FD, VFIO_GROUP_SET_CONTAINER};
use noiommu_uapi::vfio::pci::*;
use rustix::fs::OFlags;
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use super::buffer::{Exporter, Presence};
use super::served::map_file;
use super::{ServedDevice, Session};
use crate::device::{Remains, Reset, SysfsResource};
use crate::guardian::Ward;
use crate::ioctl::{self, call_with};
use crate::serve::MmapRequest;
use crate::{device, files};

/// The device at a PCI address, alone in the kernel's group of this number.
pub(in crate::serve) fn device(address: &str, group: u32) -> Box<dyn ServedDevice> {
    Box::new(ByGroup { address: address.to_owned(), group, open: Mutex::new(None) })
}

struct ByGroup {
    address: String,
    group: u32,
    open: Mutex<Option<Arc<Open>>>,
}

/// What is open of the kernel's. The guardian is told and the device is closed first, as fields are dropped in order.
struct Open {
    /// For when the program dies; `None`: waived.
    _ward: Option<Ward>,
    device: Arc<OwnedFd>,
    _group: Arc<OwnedFd>,
    _container: OwnedFd,
    presence: Arc<Presence>,
    /// How the device's memory was when it was last looked at: (there, how often it has gone away).
    seen: Mutex<(bool, u64)>,
}

/// The kernel's groups that are open here, by number: a reset of a bus needs those of all its devices.
static GROUPS: Mutex<Vec<(u32, std::sync::Weak<OwnedFd>)>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls a file of the kernel with an address or a number of the caller's.
fn call(file: &impl AsFd, request: u32, argument: u64) -> Result<i64, Errno> {
    // SAFETY: the argument is the caller's own address, which it has asked to be read or written there, or a number.
    unsafe { ioctl::call(file, request, argument) }
}

fn open_node(path: &str) -> Result<OwnedFd, Errno> {
    files::open(&PathBuf::from(path), OFlags::RDWR).map_err(|error| crate::error::errno_of(&error))
}

/// Opens the kernel's group. One that the guardian of a process that has just died still has is waited for: to whoever saw that death
/// it is free.
fn open_group(number: u32) -> Result<OwnedFd, Errno> {
    /// How many milliseconds.
    const GUARDIAN: u32 = 500;
    let path = format!("/dev/vfio/noiommu-{number}");
    for _ in 0..GUARDIAN {
        match open_node(&path) {
            Err(Errno::EBUSY) => std::thread::sleep(Duration::from_millis(1)),
            opened => return opened,
        }
    }
    open_node(&path)
}

/// The kernel's group of this number, opened here already or for a moment.
fn group_file(number: u32) -> Result<Arc<OwnedFd>, Errno> {
    let mut groups = lock(&GROUPS);
    groups.retain(|(_, file)| file.strong_count() > 0);
    let known = groups.iter().find(|(known, _)| *known == number).and_then(|(_, file)| file.upgrade());
    if let Some(file) = known {
        return Ok(file);
    }
    let file = Arc::new(open_group(number)?);
    groups.push((number, Arc::downgrade(&file)));
    Ok(file)
}

impl Open {
    fn new(address: &str, number: u32) -> Result<Self, Errno> {
        let group = group_file(number)?;
        let container = open_node("/dev/vfio/vfio")?;
        call_with(&group, VFIO_GROUP_SET_CONTAINER, &mut container.as_raw_fd())?;
        call(&container, VFIO_SET_IOMMU, VFIO_NOIOMMU_IOMMU.into())?;
        let mut name = format!("{address}\0").into_bytes();
        let device = call_with(&group, VFIO_GROUP_GET_DEVICE_FD, name.as_mut_slice())?;
        let device = i32::try_from(device).map_err(|_| Errno::EBADF)?;
        // SAFETY: the kernel has just made it for us.
        let device: Arc<OwnedFd> = Arc::new(unsafe { rustix::fd::FromRawFd::from_raw_fd(device) });
        let ward = Self::guard(address, &device).map_err(|error| {
            tracing::warn!(%error, "a device cannot be served");
            error.errno()
        })?;
        Ok(Self {
            _ward: ward,
            device,
            _group: group,
            _container: container,
            presence: Arc::default(),
            seen: Mutex::new((true, 0)),
        })
    }

    /// Has the device guarded: the kernel stops it at the last close, which the guardian delays until memory can be let go.
    fn guard(address: &str, device: &Arc<OwnedFd>) -> crate::Result<Option<Ward>> {
        let mut info =
            VfioDeviceInfo { argsz: size_of::<VfioDeviceInfo>() as u32, ..VfioDeviceInfo::new_zeroed() };
        call_with(device, VFIO_DEVICE_GET_INFO, &mut info)?;
        let reset = info.flags & VFIO_DEVICE_FLAGS_RESET != 0;
        let remains = Remains {
            config: device.clone(),
            config_offset: u64::from(VFIO_PCI_CONFIG_REGION_INDEX) << 40,
            express_status: 0,
            reset: reset.then(|| Reset::Vfio(device.clone())),
        };
        let ward = Ward::by_environment(address, remains)?;
        // What the program writes to config space is not looked at: it may always be doing DMA.
        ward.as_ref().map_or(Ok(()), Ward::let_loose)?;
        Ok(ward)
    }

    /// What a reset of the bus hits, as the kernel tells: the functions with their groups.
    fn dependents(&self) -> Result<Vec<VfioPciDependentDevice>, Errno> {
        const FIXED: usize = size_of::<VfioPciHotResetInfo>();
        const EACH: usize = size_of::<VfioPciDependentDevice>();
        // As many as a bus can have.
        let mut memory = vec![0; FIXED + 256 * EACH];
        let argsz = memory.len() as u32;
        memory[..4].copy_from_slice(&argsz.to_ne_bytes());
        call_with(&self.device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, memory.as_mut_slice())?;
        let (info, devices) = memory.split_at(FIXED);
        let info = VfioPciHotResetInfo::read_from_bytes(info).map_err(|_| Errno::EIO)?;
        let devices = devices.chunks_exact(EACH).take(info.count as usize);
        Ok(devices.filter_map(|device| VfioPciDependentDevice::read_from_bytes(device).ok()).collect())
    }

    fn scope(&self, functions: &mut TryVec<Address>) -> Result<(), Errno> {
        self.dependents()?.iter().try_for_each(|device| {
            functions.try_push(Address { segment: device.segment, bus: device.bus, devfn: device.devfn })
        })
    }

    /// A reset that has been found to hit only what is the caller's.
    fn reset_bus(&self) -> Result<i64, Errno> {
        let mut numbers = self.dependents()?.iter().map(|device| device.group_id).collect::<Vec<_>>();
        numbers.sort_unstable();
        numbers.dedup();
        let groups = numbers.into_iter().map(group_file).collect::<Result<Vec<_>, _>>()?;
        let count = groups.len() as u32;
        let argsz = size_of::<VfioPciHotReset>() as u32 + 4 * count;
        let mut memory = VfioPciHotReset { argsz, flags: 0, count }.as_bytes().to_vec();
        for group in &groups {
            memory.extend(group.as_raw_fd().to_ne_bytes());
        }
        call_with(&self.device, VFIO_DEVICE_PCI_HOT_RESET, memory.as_mut_slice())
    }

    /// A dma-buf of the kernel's would mean nothing to an iommufd that is served: the kernel checks the call, and the caller
    /// gets a file of ours.
    fn dma_buf(&self, session: Session<'_>, address: &str, argument: u64) -> Result<i64, Errno> {
        const FIXED: u64 = size_of::<VfioDeviceFeature>() as u64;
        let made = call(&self.device, VFIO_DEVICE_FEATURE, argument)?;
        let mut head = VfioDeviceFeature::new_zeroed();
        session.caller.user.read(argument, head.as_mut_bytes())?;
        if head.flags & VFIO_DEVICE_FEATURE_PROBE != 0 {
            return Ok(made);
        }
        // SAFETY: the kernel has just made it, and nobody else knows of it.
        let _theirs: OwnedFd = unsafe { rustix::fd::FromRawFd::from_raw_fd(made as i32) };
        let mut wanted = VfioDeviceFeatureDmaBuf::new_zeroed();
        let at = argument.wrapping_add(FIXED);
        session.caller.user.read(at, wanted.as_mut_bytes())?;
        let table = files::read_text(&PathBuf::from(device::sysfs::DEVICES).join(address).join("resource"));
        let table = SysfsResource::table(&table.map_err(|error| crate::error::errno_of(&error))?);
        let bar = table.get(wanted.region_index as usize).ok_or(Errno::ENODEV)?;
        let mut ranges = Vec::new();
        let mut next = at.wrapping_add(size_of::<VfioDeviceFeatureDmaBuf>() as u64);
        for _ in 0..wanted.nr_ranges {
            let mut range = VfioRegionDmaRange::new_zeroed();
            session.caller.user.read(next, range.as_mut_bytes())?;
            next = next.wrapping_add(size_of::<VfioRegionDmaRange>() as u64);
            let start = PhysAddr(bar.start.wrapping_add(range.offset));
            ranges.push(PhysicalRange { start, length: range.length });
        }
        self.look_at_memory(false);
        let export = Exporter { caller: session.caller, presence: &self.presence };
        noiommu_core::vfio::pci::Export::export(&export, &ranges, wanted.open_flags).map(i64::from)
    }

    /// After anything that may have turned the device's memory on or off; of meaning only while a part of it is exported.
    fn memory_changed(&self) {
        if Arc::strong_count(&self.presence) > 1 {
            self.look_at_memory(false);
        }
    }

    /// Whether the memory is on, by the command register; `lost`: it was not for a moment.
    fn look_at_memory(&self, lost: bool) {
        const COMMAND: u64 = ((VFIO_PCI_CONFIG_REGION_INDEX as u64) << 40) + 4;
        let mut command = [0; 2];
        let there = rustix::io::pread(&self.device, &mut command, COMMAND) == Ok(2) && command[0] & 2 != 0;
        let mut seen = lock(&self.seen);
        if seen.0 && (lost || !there) {
            seen.1 += 1;
        }
        seen.0 = there;
        self.presence.set(there, seen.1);
    }
}

impl ByGroup {
    /// The open device; calls do not keep each other waiting here.
    fn opened(&self) -> Result<Arc<Open>, Errno> {
        lock(&self.open).clone().ok_or(Errno::EINVAL)
    }
}

/// `pread64` or `pwrite64` at the caller's own address.
fn transfer(number: i64, file: BorrowedFd<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno> {
    // SAFETY: the caller has asked for these bytes of its own memory to be read or written; the kernel checks the address.
    let answer = unsafe { libc::syscall(number, file.as_raw_fd(), address, length, offset) };
    u64::try_from(answer).map_err(|_| crate::error::errno_of(&std::io::Error::last_os_error()))
}

impl ServedDevice for ByGroup {
    fn open_first(&self) -> Result<(), Errno> {
        let open = Open::new(&self.address, self.group)?;
        *lock(&self.open) = Some(Arc::new(open));
        Ok(())
    }

    fn close_last(&self) {
        let open = lock(&self.open).take();
        if let Some(open) = open {
            let gone = lock(&open.seen).1 + 1;
            open.presence.set(false, gone);
        }
    }

    fn ioctl(&self, session: Session<'_>, request: u32, argument: u64) -> Result<i64, Errno> {
        let open = self.opened()?;
        let user = session.caller.user;
        match request {
            VFIO_DEVICE_GET_PCI_HOT_RESET_INFO => {
                hot_reset_info(user, session.neighbours, argument, |all| open.scope(all))
            }
            VFIO_DEVICE_PCI_HOT_RESET => {
                check_hot_reset(user, session.neighbours, argument, |all| open.scope(all))?;
                let outcome = open.reset_bus();
                open.look_at_memory(true);
                outcome
            }
            VFIO_DEVICE_FEATURE => {
                let mut head = VfioDeviceFeature::new_zeroed();
                user.read(argument, head.as_mut_bytes())?;
                match head.flags & VFIO_DEVICE_FEATURE_MASK {
                    VFIO_DEVICE_FEATURE_DMA_BUF => open.dma_buf(session, &self.address, argument),
                    _ => call(&open.device, request, argument),
                }
            }
            _ => {
                let outcome = call(&open.device, request, argument);
                if request == VFIO_DEVICE_RESET {
                    open.look_at_memory(true);
                }
                outcome
            }
        }
    }

    fn read(&self, _: Session<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno> {
        transfer(libc::SYS_pread64, self.opened()?.device.as_fd(), address, length, offset)
    }

    fn write(&self, _: Session<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno> {
        let open = self.opened()?;
        let written = transfer(libc::SYS_pwrite64, open.device.as_fd(), address, length, offset);
        if offset >> 40 == u64::from(VFIO_PCI_CONFIG_REGION_INDEX) {
            open.memory_changed();
        }
        written
    }

    unsafe fn mmap(&self, request: MmapRequest) -> Result<u64, Errno> {
        // SAFETY: passed on from the caller.
        unsafe { map_file(&self.opened()?.device, request.offset, request) }
    }
}
