//! What an IOAS is mapped in: the engine, and what of the kernel's serves its devices.
//!
//! IOVAs are always given out by the engine, so that a mapping has the same one for every device. A domain is added when the
//! first device attaches that needs it (or, the engine's, when somebody asks for physical addresses), and then holds all that
//! the IOAS maps; what is mapped later is mapped in every domain, or in none.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use noiommu_core::platform::Caller;
use noiommu_core::{Errno, Iova, IovaRange, MapRequest, ObjectId};

use super::Inner;
use super::kernel::{Container, KernelAddresses, KernelDomain, KernelIoas};
use crate::device::{Addressing, Backend};
use crate::memory::Backing;
use crate::{Error, ErrorKind, Result};

/// The engine's domain: a manual HWPT, which stays for the IOAS's life, so that attaching and detaching devices changes no
/// address.
#[derive(Clone, Copy)]
pub(super) struct EngineDomain {
    pub(super) hwpt: ObjectId,
    /// The binding that HWPT_ALLOC asks for: the kit's own.
    pub(super) keeper: ObjectId,
}

/// All domains of an IOAS.
#[derive(Default)]
pub(super) struct Domains {
    pub(super) engine: Option<EngineDomain>,
    /// The kernel's, for devices without an IOMMU: it tells physical addresses.
    physical: Option<KernelIoas>,
    /// The kernel's, for devices behind an IOMMU.
    translated: Option<KernelIoas>,
    containers: Vec<Container>,
    /// Where IOVAs may be, if not anywhere: what the IOMMUs of all domains can map.
    usable: Option<Vec<IovaRange>>,
}

impl Domains {
    fn kernel(&mut self) -> impl Iterator<Item = &mut dyn KernelDomain> {
        let ioases = self.physical.iter_mut().chain(&mut self.translated);
        let ioases = ioases.map(|ioas| ioas as &mut dyn KernelDomain);
        ioases.chain(self.containers.iter_mut().map(|container| container as &mut dyn KernelDomain))
    }

    /// Whether the kernel pins for some device.
    pub(super) fn has_kernel(&self) -> bool {
        self.physical.is_some() || self.translated.is_some() || !self.containers.is_empty()
    }

    /// The physical addresses that the kernel tells, if a device made it do so.
    pub(super) fn kernel_addresses(&self) -> Option<&KernelAddresses> {
        self.physical.as_ref().map(KernelIoas::addresses)
    }

    /// Maps in every domain, or in none.
    pub(super) fn map(&mut self, ioas: &Inner, request: MapRequest<Backing>) -> Result<IovaRange> {
        let (length, access) = (request.length, request.access);
        let backing = self.has_kernel().then(|| request.backing.clone());
        // What the caller may do matters to nobody here: the kernel charges what is pinned by the privileges of whoever
        // opened the source. And asking the kernel for them would be a call more for each mapping.
        let iova = ioas.context.engine().map(ioas.id, Caller::default(), request)?;
        let range = IovaRange::with_length(iova, length)?;
        let Some(backing) = backing else { return Ok(range) };
        let mut done = 0;
        let mapped = self.kernel().try_for_each(|domain| {
            domain.map(range, &backing, 0, access)?;
            done += 1;
            Ok(())
        });
        if mapped.is_err() {
            self.kernel().take(done).for_each(|domain| domain.unmap(range));
            ioas.unmap_engine(range);
        }
        mapped.map(|()| range)
    }

    /// Unmaps everywhere; the IOVAs are free after that.
    pub(super) fn unmap(&mut self, ioas: &Inner, range: IovaRange) {
        self.kernel().for_each(|domain| domain.unmap(range));
        ioas.unmap_engine(range);
    }

    /// The engine's domain, made now if there is none: pins all that is mapped.
    pub(super) fn engine(&mut self, ioas: &Inner) -> Result<EngineDomain> {
        if let Some(domain) = self.engine {
            return Ok(domain);
        }
        let mut engine = ioas.context.engine();
        engine.platform().pin_kind()?;
        let keeper = engine.bind()?;
        let hwpt = engine.hwpt_alloc(keeper, ioas.id, None).inspect_err(|_| {
            let _ = engine.unbind(keeper);
        })?;
        Ok(*self.engine.insert(EngineDomain { hwpt, keeper }))
    }

    /// Lets a device have what is mapped, in the domain that it needs. `id`: of the device in the engine.
    pub(super) fn attach(&mut self, ioas: &Inner, device: &dyn Backend, id: ObjectId) -> Result<()> {
        match device.addressing() {
            Addressing::Engine => {
                let domain = self.engine(ioas)?;
                ioas.context.engine().attach(id, domain.hwpt)?;
                device.attached(Some(ioas.id.0));
                Ok(())
            }
            Addressing::Iommufd { device: id } => self.attach_iommufd(ioas, device, id),
            Addressing::Container(file) => self.attach_container(ioas, file),
        }
    }

    fn attach_iommufd(&mut self, ioas: &Inner, device: &dyn Backend, id: u32) -> Result<()> {
        let confined = device.provider().is_confined();
        let place = if confined { &mut self.translated } else { &mut self.physical };
        if let Some(domain) = place {
            domain.attach(device, id)?;
            let restricted = if confined { self.restrict(ioas) } else { Ok(()) };
            return restricted.inspect_err(|_| device.detach_pt());
        }
        let mut domain = KernelIoas::new(ioas.context.iommufd()?)?;
        // The device first, so that what it cannot have is refused mapping by mapping.
        domain.attach(device, id)?;
        let filled = fill(ioas, &mut domain);
        let filled = filled.and_then(|()| if confined { self.restrict_to(ioas, &domain) } else { Ok(()) });
        if let Err(error) = filled {
            device.detach_pt();
            return Err(error);
        }
        if confined {
            self.translated = Some(domain);
        } else {
            ioas.tell_physical(domain.addresses());
            self.physical = Some(domain);
        }
        Ok(())
    }

    fn attach_container(&mut self, ioas: &Inner, file: Arc<OwnedFd>) -> Result<()> {
        if let Some(container) = self.containers.iter_mut().find(|container| container.is(&file)) {
            container.devices += 1;
            return Ok(());
        }
        let mut container = Container::new(file);
        fill(ioas, &mut container)?;
        if let Err(error) = self.restrict_to(ioas, &container) {
            empty(ioas, &mut container);
            return Err(error);
        }
        self.containers.push(container);
        Ok(())
    }

    /// The contrary of [`Domains::attach`]. Domains that tell physical addresses stay.
    pub(super) fn detach(&mut self, ioas: &Inner, device: &dyn Backend, id: ObjectId) {
        match device.addressing() {
            Addressing::Engine => {
                let _ = ioas.context.engine().detach(id);
                device.attached(None);
            }
            Addressing::Iommufd { .. } => device.detach_pt(),
            Addressing::Container(file) => {
                let Some(at) = self.containers.iter().position(|container| container.is(&file)) else {
                    return;
                };
                self.containers[at].devices -= 1;
                if self.containers[at].devices == 0 {
                    empty(ioas, &mut self.containers.remove(at));
                }
            }
        }
    }

    /// Narrows where IOVAs are given out to what the IOMMU behind `domain` can map.
    fn restrict_to(&mut self, ioas: &Inner, domain: &dyn KernelDomain) -> Result<()> {
        let usable = common(self.usable.as_deref().unwrap_or(&[IovaRange::ALL]), &domain.usable()?);
        if usable.is_empty() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                Errno::EINVAL,
                "the IOMMUs of the devices of this IOAS have no IOVAs in common",
            )
            .with_remedy("attach them to an IOAS each"));
        }
        ioas.context.engine().allow_iovas(ioas.id, usable.iter().copied().map(Ok))?;
        self.usable = Some(usable);
        Ok(())
    }

    /// The same for the domain that has got another device.
    fn restrict(&mut self, ioas: &Inner) -> Result<()> {
        let Some(domain) = self.translated.take() else { return Ok(()) };
        let restricted = self.restrict_to(ioas, &domain);
        self.translated = Some(domain);
        restricted
    }
}

/// Maps all that the IOAS maps in a domain that is new to it; all or nothing.
fn fill(ioas: &Inner, domain: &mut dyn KernelDomain) -> Result<()> {
    let mut done = Vec::new();
    let filled = ioas.context.engine().areas(ioas.id, |range, backing, offset, access| {
        domain.map(range, backing, offset, access)?;
        done.push(range);
        Ok(())
    });
    if filled.is_err() {
        done.into_iter().for_each(|range| domain.unmap(range));
    }
    filled
}

fn empty(ioas: &Inner, domain: &mut dyn KernelDomain) {
    let _ = ioas.context.engine().areas(ioas.id, |range, _, _, _| {
        domain.unmap(range);
        Ok(())
    });
}

/// What lies in a range of both; the ranges of each are in order and do not overlap.
fn common(one: &[IovaRange], other: &[IovaRange]) -> Vec<IovaRange> {
    let mut both = Vec::new();
    for one in one {
        for other in other {
            let (first, last) = (one.first().max(other.first()), one.last().min(other.last()));
            both.extend(IovaRange::new(Iova(first.0), Iova(last.0)));
        }
    }
    both
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &[(u64, u64)]) -> Vec<IovaRange> {
        list.iter().filter_map(|(first, last)| IovaRange::new(Iova(*first), Iova(*last))).collect()
    }

    #[test]
    fn what_two_iommus_have_in_common() {
        let holes = ranges(&[(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)]);
        assert_eq!(common(&[IovaRange::ALL], &holes), holes);
        assert_eq!(
            common(&holes, &ranges(&[(0x1000, 0xfeff_ffff)])),
            ranges(&[(0x1000, 0xfedf_ffff), (0xfef0_0000, 0xfeff_ffff)])
        );
        assert!(common(&ranges(&[(0, 1)]), &ranges(&[(2, u64::MAX)])).is_empty());
        assert_eq!(common(&[IovaRange::ALL], &[IovaRange::ALL]), [IovaRange::ALL]);
    }
}
