//! A real device through its files in sysfs, on any kernel.
//!
//! No interrupt arrives without the kernel's help. Where it has uio_pci_generic, the line does; messages never do, and the
//! device shows what there is, as under a kernel that gives it no more.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use noiommu_core::vfio::pci::{Address, Backend, Messages, Resource, Space};
use noiommu_core::{Errno, TryVec};
use rustix::fs::OFlags;

use super::event::{Event, Line, Watch, Watcher, errno};
use super::served::{Mappable, Served, Way};
use super::{ServedDevice, parse_address};
use crate::device::{
    Backend as _, COMMAND, COMMAND_BUS_MASTER, MappedBar, Registers as _, SysfsDevice, SysfsResource,
};
use crate::error::errno_of;
use crate::guardian::Ward;
use crate::{device, files};

/// The device at a PCI address, claimed while it is open.
pub(in crate::serve) fn device(address: &str) -> Box<dyn ServedDevice> {
    Box::new(Served::new(BySysfs { address: address.to_owned() }))
}

struct BySysfs {
    address: String,
}

impl Way for BySysfs {
    type Backend = Claimed;

    fn open(&self, watcher: Watcher) -> Result<Claimed, Errno> {
        let device = device::sysfs::open(&self.address).map_err(told)?;
        Claimed::new(device, watcher).map_err(told)
    }
}

/// The number of an error, its sentence going to the log.
fn told(error: crate::Error) -> Errno {
    tracing::warn!(%error, "a device cannot be served");
    error.errno()
}

/// A claimed device. Fields are dropped in order: the guardian is told, and the line closed, before the helper is unbound.
struct Claimed {
    /// For when the program dies; `None`: waived.
    ward: Option<Ward>,
    /// The line, where it arrives here.
    line: Option<(Watch, Arc<Line>)>,
    device: SysfsDevice,
    watcher: Watcher,
    config_size: u16,
    resources: [Resource; 7],
    bars: [OnceLock<Option<Bar>>; 6],
    /// The expansion ROM's images.
    rom: OnceLock<Option<Vec<u8>>>,
}

/// How registers of a BAR are reached.
enum Bar {
    Memory(MappedBar),
    Ports(OwnedFd),
}

impl Claimed {
    fn new(mut device: SysfsDevice, watcher: Watcher) -> crate::Result<Self> {
        let line = device.bind_helper().and_then(|file| {
            let line = Arc::new(Line::new(file));
            Some((watcher.watch_line(&line).ok()?, line))
        });
        let ward = match device.remains()? {
            Some(remains) => Ward::by_environment(device.name(), remains)?,
            None => None,
        };
        let table = device.resources()?;
        let mut resources = [Resource::default(); 7];
        for (resource, found) in resources.iter_mut().zip(&table) {
            *resource = Resource {
                start: found.start,
                size: found.size,
                space: if found.flags & SysfsResource::PORTS != 0 { Space::Ports } else { Space::Memory },
                wide: found.flags & SysfsResource::WIDE != 0,
                prefetchable: found.flags & SysfsResource::PREFETCHABLE != 0,
                mappable: found.flags & SysfsResource::MEMORY != 0 && has_its_pages(*found),
            };
        }
        // The file is as large as the config space that the kernel can reach.
        let config_size = if device.config_read(256, &mut [0; 4]).is_ok() { 4096 } else { 256 };
        Ok(Self {
            ward,
            line,
            device,
            watcher,
            config_size,
            resources,
            bars: Default::default(),
            rom: OnceLock::new(),
        })
    }

    fn bar(&self, index: u8) -> Result<&Bar, Errno> {
        let bar = self.bars.get(usize::from(index)).ok_or(Errno::EINVAL)?;
        let made = bar.get_or_init(|| {
            let path = self.path(index);
            let resource = self.device.resources().ok()?.get(usize::from(index)).copied()?;
            if self.resource(index).space == Space::Ports {
                files::open(&path, OFlags::RDWR).ok().map(Bar::Ports)
            } else {
                MappedBar::new(&path, resource).map_err(told).ok().map(Bar::Memory)
            }
        });
        made.as_ref().ok_or(Errno::EIO)
    }

    fn path(&self, bar: u8) -> PathBuf {
        self.device.directory().join(format!("resource{bar}"))
    }

    fn rom(&self) -> Option<&[u8]> {
        self.rom.get_or_init(|| self.read_rom().filter(|rom| !rom.is_empty())).as_deref()
    }

    /// The kernel maps the ROM and finds out how much of it is valid; it needs the device's memory on.
    fn read_rom(&self) -> Option<Vec<u8>> {
        const MEMORY: u32 = 2;
        let path = self.device.directory().join("rom");
        let command = self.config_read(COMMAND, 2).ok()?;
        if command & MEMORY == 0 {
            self.config_write(COMMAND, 2, command | MEMORY).ok()?;
        }
        let enabled = files::write_line(&path, "1").is_ok();
        let rom = files::read(&path).ok().filter(|_| enabled);
        let _ = files::write_line(&path, "0");
        if command & MEMORY == 0 {
            let _ = self.config_write(COMMAND, 2, command);
        }
        rom
    }

    /// The bridge above, where the device is not at the root.
    fn bridge(&self) -> Option<PathBuf> {
        let real = rustix::fs::readlinkat(rustix::fs::CWD, self.device.directory(), Vec::new()).ok()?;
        // A link from the bus's directory to the one below the bridge's.
        let real = self.device.directory().parent()?.join(real.to_str().ok()?);
        let bridge = real.parent()?.to_owned();
        files::exists(&bridge.join("config")).then_some(bridge)
    }
}

/// Whether a BAR shares no page with anything else: larger than a page, or at the start of one that nothing else is in.
fn has_its_pages(bar: SysfsResource) -> bool {
    let page = rustix::param::page_size() as u64;
    if bar.size == 0 || !bar.start.is_multiple_of(page) {
        return bar.size >= page;
    }
    let (first, last) = (bar.start + bar.size, (bar.start + bar.size - 1) | (page - 1));
    let crowded = |other: &SysfsResource| {
        other.size != 0 && other.start <= last && other.start + (other.size - 1) >= first
    };
    bar.size >= page || !every_resource().iter().any(crowded)
}

fn every_resource() -> Vec<SysfsResource> {
    let devices = Path::new(device::sysfs::DEVICES);
    let names = files::names(devices).unwrap_or_default();
    let tables = names.iter().filter_map(|name| files::read_text(&devices.join(name).join("resource")).ok());
    tables.flat_map(|table| SysfsResource::table(&table)).collect()
}

/// The functions below a bridge, in the order in which the kernel walks them.
fn functions_below(bridge: &Path, functions: &mut TryVec<Address>) -> Result<(), Errno> {
    for name in files::names(bridge).unwrap_or_default() {
        if let Some(address) = parse_address(&name) {
            functions.try_push(address)?;
            functions_below(&bridge.join(&name), functions)?;
        }
    }
    Ok(())
}

impl Mappable for Claimed {
    fn file(&self, bar: u8) -> Result<Option<OwnedFd>, Errno> {
        files::open(&self.path(bar), OFlags::RDWR).map(Some).map_err(|error| errno_of(&error))
    }
}

impl Backend for Claimed {
    type Event = Event;
    type Watch = Watch;

    fn page_size(&self) -> u64 {
        rustix::param::page_size() as u64
    }

    fn config_size(&self) -> u16 {
        self.config_size
    }

    fn config_read(&self, offset: u16, width: u8) -> Result<u32, Errno> {
        let mut bytes = [0; 4];
        // In one access: the kernel takes a read of this file apart by its alignment alone.
        let part = bytes.get_mut(..width.into()).ok_or(Errno::EINVAL)?;
        self.device.config_read(offset, part).map_err(|error| error.errno())?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn config_write(&self, offset: u16, width: u8, value: u32) -> Result<(), Errno> {
        let bytes = value.to_le_bytes();
        let part = bytes.get(..width.into()).ok_or(Errno::EINVAL)?;
        // Before it can do anything: what it does after a death is stopped then.
        let command = COMMAND.checked_sub(offset).and_then(|at| part.get(usize::from(at)));
        if let (Some(ward), Some(command)) = (&self.ward, command)
            && command & COMMAND_BUS_MASTER as u8 != 0
        {
            ward.let_loose().map_err(told)?;
        }
        self.device.config_write(offset, part).map_err(|error| error.errno())
    }

    fn resource(&self, index: u8) -> Resource {
        self.resources.get(usize::from(index)).copied().unwrap_or_default()
    }

    fn register_read(&self, bar: u8, offset: u64, width: u8) -> Result<u64, Errno> {
        match self.bar(bar)? {
            Bar::Memory(bar) => bar.read(offset, width).map_err(|error| error.errno()),
            Bar::Ports(file) => {
                let mut bytes = [0; 8];
                // Ports are 4 bytes wide at most.
                for part in
                    bytes.chunks_mut(width.min(4).into()).take(usize::from(width).div_ceil(4)).enumerate()
                {
                    let (index, part) = part;
                    rustix::io::pread(file, part, offset + index as u64 * 4).map_err(errno)?;
                }
                Ok(u64::from_le_bytes(bytes))
            }
        }
    }

    fn register_write(&self, bar: u8, offset: u64, width: u8, value: u64) -> Result<(), Errno> {
        match self.bar(bar)? {
            Bar::Memory(bar) => bar.write(offset, width, value).map_err(|error| error.errno()),
            Bar::Ports(file) => {
                let bytes = value.to_le_bytes();
                let parts = bytes.chunks(width.min(4).into()).take(usize::from(width).div_ceil(4));
                for (index, part) in parts.enumerate() {
                    rustix::io::pwrite(file, part, offset + index as u64 * 4).map_err(errno)?;
                }
                Ok(())
            }
        }
    }

    fn rom_size(&self) -> Option<u64> {
        self.rom().map(|rom| rom.len() as u64)
    }

    fn rom_read(&self, offset: u64, width: u8) -> Result<u32, Errno> {
        let rom = self.rom().ok_or(Errno::EIO)?;
        let mut bytes = [0; 4];
        let from = rom.get(offset as usize..).and_then(|rest| rest.get(..width.into())).ok_or(Errno::EIO)?;
        bytes[..from.len()].copy_from_slice(from);
        Ok(u32::from_le_bytes(bytes))
    }

    fn vpd_read(&self, address: u16) -> Result<u32, Errno> {
        let mut bytes = [0; 4];
        let file = self.open("vpd", OFlags::RDONLY)?;
        rustix::io::pread(&file, &mut bytes, address.into()).map_err(errno)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn vpd_write(&self, address: u16, value: u32) -> Result<(), Errno> {
        let file = self.open("vpd", OFlags::WRONLY)?;
        match rustix::io::pwrite(&file, &value.to_le_bytes(), address.into()).map_err(errno)? {
            4 => Ok(()),
            _ => Err(Errno::EIO),
        }
    }

    fn reset(&self) -> Result<(), Errno> {
        match self.device.reset() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Errno::ENOTTY),
            Err(error) => Err(error.errno()),
        }
    }

    fn reset_scope(&self, functions: &mut TryVec<Address>) -> Result<(), Errno> {
        let bridge = self.bridge().ok_or(Errno::ENODEV)?;
        functions_below(&bridge, functions)?;
        // The kernel's file for it is of 6.13; alone on its bus, a device can be reset that way by itself.
        let alone = functions.len() == 1
            && files::read_text(&self.device.directory().join("reset_method"))
                .is_ok_and(|methods| methods.split(' ').any(|method| method == "bus"));
        if alone || files::exists(&bridge.join(RESET_BELOW)) { Ok(()) } else { Err(Errno::ENODEV) }
    }

    fn reset_bus(&self) -> Result<(), Errno> {
        let below = self.bridge().ok_or(Errno::ENODEV)?.join(RESET_BELOW);
        if files::exists(&below) {
            return files::write_line(&below, "1").map_err(|error| errno_of(&error));
        }
        let methods = files::read_text(&self.device.directory().join("reset_method")).unwrap_or_default();
        self.device.write("reset_method", "bus").map_err(|error| error.errno())?;
        let outcome = self.device.write("reset", "1").map_err(|error| error.errno());
        let _ = self.device.write("reset_method", &methods);
        outcome
    }

    fn pause(&self, milliseconds: u32) {
        std::thread::sleep(Duration::from_millis(milliseconds.into()));
    }

    fn atomic_operations(&self) -> u32 {
        0
    }

    fn is_physical_function(&self) -> bool {
        files::exists(&self.device.directory().join("sriov_totalvfs"))
    }

    fn event(&self, descriptor: i32) -> Result<Event, Errno> {
        Event::new(descriptor)
    }

    fn signal(&self, event: &Event) {
        event.signal();
    }

    fn watch(&self, descriptor: i32, token: u64) -> Result<Watch, Errno> {
        self.watcher.watch(descriptor, token)
    }

    fn has_line(&self) -> bool {
        self.line.is_some()
    }

    fn line_connect(&self, event: Option<&Event>) -> Result<(), Errno> {
        let (_, line) = self.line.as_ref().ok_or(Errno::ENODEV)?;
        line.connect(event.cloned());
        Ok(())
    }

    fn line_disconnect(&self) {
        if let Some((_, line)) = &self.line {
            line.connect(None);
        }
    }

    fn has_messages(&self, _: Messages) -> bool {
        false
    }

    fn has_dynamic_vectors(&self) -> bool {
        false
    }

    fn messages_enable(&self, _: Messages, _: u32) -> Result<u32, Errno> {
        Err(Errno::ENOSPC)
    }

    fn messages_connect(&self, _: Messages, _: u32, _: Option<&Event>) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }

    fn messages_disable(&self, _: Messages) {}
}

impl Drop for Claimed {
    fn drop(&mut self) {
        // One that still masters the bus is left to the guardian, for when the process ends.
        let off = |command: u32| command & u32::from(COMMAND_BUS_MASTER) == 0 || command == 0xffff;
        if !self.config_read(COMMAND, 2).is_ok_and(off) {
            std::mem::forget(self.ward.take());
        }
    }
}

/// In a bridge's directory: resets all below it.
const RESET_BELOW: &str = "reset_subordinate";

impl Claimed {
    fn open(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        files::open(&self.device.directory().join(name), flags).map_err(|error| errno_of(&error))
    }
}
