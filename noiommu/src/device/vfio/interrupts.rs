//! Interrupts of a device, signalled through eventfds.

use std::os::fd::{AsRawFd as _, OwnedFd};

use noiommu_core::Errno;
use noiommu_uapi::vfio::device::*;
use noiommu_uapi::vfio::pci::*;
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::super::interrupt::{InterruptKind, Source};
use super::failed;
use crate::ioctl::call_with;
use crate::{Error, ErrorKind, Result};

fn index_of(kind: InterruptKind) -> u32 {
    match kind {
        InterruptKind::Intx => VFIO_PCI_INTX_IRQ_INDEX,
        InterruptKind::Msi => VFIO_PCI_MSI_IRQ_INDEX,
        InterruptKind::Msix => VFIO_PCI_MSIX_IRQ_INDEX,
    }
}

/// How many vectors of a kind the device has.
pub(super) fn count(device: &OwnedFd, name: &str, kind: InterruptKind) -> Result<u32> {
    let mut info = VfioIrqInfo {
        argsz: size_of::<VfioIrqInfo>() as u32,
        index: index_of(kind),
        ..VfioIrqInfo::new_zeroed()
    };
    call_with(device, VFIO_DEVICE_GET_IRQ_INFO, &mut info)
        .map_err(|errno| failed("asking for the interrupts of", name, errno))?;
    Ok(info.count)
}

/// VFIO_DEVICE_SET_IRQS.
fn set(device: &OwnedFd, index: u32, flags: u32, start: u32, count: u32, data: &[i32]) -> Result<(), Errno> {
    let argsz = (size_of::<VfioIrqSet>() + size_of_val(data)) as u32;
    let mut memory = VfioIrqSet { argsz, flags, index, start, count }.as_bytes().to_vec();
    memory.extend_from_slice(data.as_bytes());
    call_with(device, VFIO_DEVICE_SET_IRQS, memory.as_mut_slice())?;
    Ok(())
}

fn event() -> Result<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|error| Error::system("eventfd", error))
}

/// Has the first `count` vectors signal an eventfd each.
pub(super) fn enable(device: &OwnedFd, name: &str, kind: InterruptKind, count: u32) -> Result<Vec<Source>> {
    let events = (0..count).map(|_| event()).collect::<Result<Vec<_>>>()?;
    let descriptors: Vec<i32> = events.iter().map(|event| event.as_raw_fd()).collect();
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    set(device, index_of(kind), flags, 0, count, &descriptors).map_err(|errno| {
        let error = failed(&format!("enabling {count} {} interrupts of", kind.name()), name, errno);
        match errno {
            Errno::EINVAL | Errno::EBUSY => {
                error.with_remedy("one kind of interrupts at a time: drop those that are enabled first")
            }
            Errno::ENOSPC => error.with_remedy("enable fewer: the processors have no vectors left"),
            _ => error,
        }
    })?;
    Ok(events.into_iter().map(Source::eventfd).collect())
}

/// Turns all vectors of a kind off.
pub(super) fn disable(device: &OwnedFd, name: &str, kind: InterruptKind) {
    let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    if let Err(errno) = set(device, index_of(kind), flags, 0, 0, &[]) {
        tracing::warn!(device = name, %errno, "interrupts stay enabled");
    }
}

pub(super) fn mask(
    device: &OwnedFd,
    name: &str,
    kind: InterruptKind,
    index: u32,
    masked: bool,
) -> Result<()> {
    let action = if masked { VFIO_IRQ_SET_ACTION_MASK } else { VFIO_IRQ_SET_ACTION_UNMASK };
    set(device, index_of(kind), VFIO_IRQ_SET_DATA_NONE | action, index, 1, &[]).map_err(|errno| match errno {
        Errno::ENOTTY => Error::new(
            ErrorKind::Unsupported,
            errno,
            format!("{name}: the kernel masks no {} interrupts for others", kind.name()),
        )
        .with_remedy("mask them in the device's own registers"),
        _ => failed("masking an interrupt of", name, errno),
    })
}

/// An eventfd that is signalled when the kernel wants the device back, because it is being unplugged for one.
pub(super) fn removal(device: &OwnedFd, name: &str) -> Result<OwnedFd> {
    let event = event()?;
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    set(device, VFIO_PCI_REQ_IRQ_INDEX, flags, 0, 1, &[event.as_raw_fd()])
        .map_err(|errno| failed("asking to be told of the removal of", name, errno))?;
    Ok(event)
}
