//! Opening a device by the best way that there is to it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use noiommu_core::Errno;

use super::sysfs::{self, DEVICES, SysfsDevice};
use super::uio::UioDevice;
use super::{Backend, Provider, vfio};
use crate::{Error, ErrorKind, Result, files};

/// Names the providers that may serve, best first by this list's reader: none given, any may.
const VARIABLE: &str = "NOIOMMU_PROVIDER";

/// The driver that hands devices to VFIO.
const VFIO: &str = "vfio-pci";

/// What may serve.
pub(crate) struct Choice(Option<Vec<Provider>>);

impl Choice {
    /// This provider alone.
    pub(crate) fn only(provider: Provider) -> Self {
        Self(Some(vec![provider]))
    }

    /// What the environment says: the names of providers, separated by commas.
    ///
    /// # Errors
    /// EINVAL: a word that is no such name.
    pub(crate) fn of_environment() -> Result<Self> {
        Self::parse(std::env::var(VARIABLE).ok().as_deref())
    }

    fn parse(text: Option<&str>) -> Result<Self> {
        let Some(text) = text.filter(|text| !text.trim().is_empty()) else { return Ok(Self(None)) };
        let provider = |name: &str| {
            Provider::ALL.into_iter().find(|provider| provider.name() == name).ok_or_else(|| {
                let names = Provider::ALL.map(Provider::name).join(", ");
                Error::argument(format!("{VARIABLE} names {name:?}, which is no provider"))
                    .with_remedy(format!("the providers are {names}"))
            })
        };
        Ok(Self(Some(text.split(',').map(|name| provider(name.trim())).collect::<Result<_>>()?)))
    }

    fn takes(&self, provider: Provider) -> bool {
        self.0.as_ref().is_none_or(|wanted| wanted.contains(&provider))
    }
}

/// Opens the device at a PCI address through what is bound to it: vfio-pci's nodes, or, where no driver is, sysfs with the
/// helper uio_pci_generic or without.
///
/// # Errors
/// [`ErrorKind::NoDevice`]; [`ErrorKind::Busy`]: another driver or another process has it; [`ErrorKind::Unsupported`]: not to be
/// had by what `choice` says; [`ErrorKind::NotEnabled`], [`ErrorKind::HasIommu`]: of sysfs alone. The device is as before then.
pub(crate) fn open(
    address: &str,
    choice: &Choice,
    iommufd: impl FnOnce() -> Result<Arc<OwnedFd>>,
) -> Result<Box<dyn Backend>> {
    let name = sysfs::normalize(address).ok_or_else(|| sysfs::no_address(address))?;
    let directory = Path::new(DEVICES).join(&name);
    if !files::exists(&directory) {
        return Err(sysfs::no_device(&name));
    }
    let device: Box<dyn Backend> = if files::link_name(&directory.join("driver")).as_deref() == Some(VFIO) {
        Box::new(vfio::open(&name, &directory, &|provider| choice.takes(provider), iommufd)?)
    } else {
        driverless(&name, choice)?
    };
    tracing::info!(device = name, provider = device.provider().name(), "opened");
    Ok(device)
}

fn driverless(name: &str, choice: &Choice) -> Result<Box<dyn Backend>> {
    let (sysfs, uio) = (choice.takes(Provider::Sysfs), choice.takes(Provider::Uio));
    if !sysfs && !uio {
        return Err(Error::new(
            ErrorKind::Unsupported,
            Errno::ENODEV,
            format!("{name} is not bound to {VFIO}: it can be had by uio or sysfs alone"),
        )
        .with_remedy(format!("noiommu bind {name}")));
    }
    let device = sysfs::open(name)?;
    let device = match if uio { UioDevice::new(device) } else { Err(device) } {
        Ok(device) => return Ok(Box::new(device)),
        Err(device) => device,
    };
    if !sysfs {
        return Err(no_helper(device));
    }
    Ok(Box::new(device))
}

fn no_helper(device: SysfsDevice) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        Errno::ENODEV,
        format!(
            "uio_pci_generic is not there, or does not take {}: it wants an interrupt line",
            device.name()
        ),
    )
    .with_remedy("modprobe uio_pci_generic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_chooses() {
        for none in [None, Some(""), Some("  ")] {
            assert!(Provider::ALL.into_iter().all(|provider| Choice::parse(none).unwrap().takes(provider)));
        }
        let two = Choice::parse(Some("sysfs, cdev-noiommu")).unwrap();
        let taken: Vec<_> = Provider::ALL.into_iter().filter(|provider| two.takes(*provider)).collect();
        assert_eq!(taken, [Provider::Sysfs, Provider::CdevNoIommu]);
        let error = Choice::parse(Some("sysfs,vfio")).err().unwrap();
        assert!(error.cause().contains("vfio") && error.remedy().unwrap().contains("group-noiommu"));
        assert!(Choice::only(Provider::Uio).takes(Provider::Uio));
        assert!(!Choice::only(Provider::Uio).takes(Provider::Sysfs));
    }
}
