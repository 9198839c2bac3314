//! Which ways to reach a device the machine offers, told before anything is bound.

use noiommu_core::Errno;

use crate::kernel::{self, Module};
use crate::memory::kernel_release;
use crate::pci::{Iommu, PciDevice, Root};
use crate::{Error, ErrorKind, Provider, files};

/// The driver of VFIO for PCI devices.
pub(super) const VFIO_PCI: &str = "vfio-pci";
/// The helper for interrupt lines.
pub(super) const UIO: &str = "uio_pci_generic";

/// Without an IOMMU, the best first.
const UNCONFINED: [Provider; 4] =
    [Provider::CdevNoIommu, Provider::GroupNoIommu, Provider::Uio, Provider::Sysfs];
/// Behind one.
const CONFINED: [Provider; 2] = [Provider::Cdev, Provider::Group];

/// A way to reach a device: there, or why not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    provider: Provider,
    refusal: Option<Error>,
}

impl Offer {
    /// The way.
    #[must_use]
    pub fn provider(&self) -> Provider {
        self.provider
    }

    /// Whether the machine offers it.
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.refusal.is_none()
    }

    /// Why not, and what helps.
    #[must_use]
    pub fn refusal(&self) -> Option<&Error> {
        self.refusal.as_ref()
    }
}

/// What the offers depend on, besides the device.
pub(super) struct Machine {
    vfio: kernel::Vfio,
    /// VFIO itself, which has the parameter.
    vfio_module: Module,
    vfio_pci: Module,
    uio: Module,
    iommufd: Module,
    /// The kernel keeps even root from the registers in sysfs.
    lockdown: bool,
}

impl Machine {
    /// Looks around.
    pub(super) fn look(root: &Root) -> Self {
        Self::of_release(root, &kernel_release())
    }

    pub(super) fn of_release(root: &Root, release: &str) -> Self {
        let path = root.path();
        let mut vfio = kernel::vfio(path, release);
        let iommufd = if files::exists(&root.at("/dev/iommu")) {
            Module::There
        } else {
            Module::find(path, release, "iommufd")
        };
        if vfio.source.starts_with("nodes") {
            // No configuration. From Linux 7.3 on, VFIO's no-IOMMU mode with iommufd means cdevs without an IOMMU; what is bound shows it.
            let new = version(release).is_some_and(|version| version >= (7, 3));
            let mode = vfio.unsafe_mode.is_some();
            vfio.options.cdev_noiommu |= new && mode && iommufd == Module::There;
            vfio.options.group_noiommu |= mode && files::exists(&root.at("/dev/vfio/vfio"));
        }
        let lockdown = files::read_text(&root.at("/sys/kernel/security/lockdown")).unwrap_or_default();
        Self {
            vfio,
            vfio_module: Module::find(path, release, "vfio"),
            vfio_pci: Module::of_driver(path, release, VFIO_PCI),
            uio: Module::of_driver(path, release, UIO),
            iommufd,
            lockdown: lockdown.contains("[integrity]") || lockdown.contains("[confidentiality]"),
        }
    }

    /// Whether the helper's module must be loaded before use.
    pub(super) fn loads(&self, provider: Provider) -> Vec<&'static str> {
        let needed: &[_] = match provider {
            Provider::Sim | Provider::Sysfs => &[],
            Provider::Uio => &[(UIO, self.uio)],
            Provider::Group | Provider::GroupNoIommu => &[(VFIO_PCI, self.vfio_pci)],
            Provider::Cdev | Provider::CdevNoIommu => &[("iommufd", self.iommufd), (VFIO_PCI, self.vfio_pci)],
        };
        needed.iter().filter(|(_, module)| *module == Module::Loadable).map(|(name, _)| *name).collect()
    }

    /// Whether the helper for interrupt lines is loaded.
    pub(super) fn has_uio(&self) -> bool {
        self.uio == Module::There
    }

    /// What it offers a device, the best first.
    pub(super) fn offers(&self, device: &PciDevice) -> Vec<Offer> {
        let order: [&[Provider]; 2] =
            if device.iommu.is_real() { [&CONFINED, &UNCONFINED] } else { [&UNCONFINED, &CONFINED] };
        let offer = |&provider| Offer { provider, refusal: self.refuse(provider, device).err() };
        order.concat().iter().map(offer).collect()
    }

    fn refuse(&self, provider: Provider, device: &PciDevice) -> Result<(), Error> {
        let name = &device.address;
        if device.is_bridge {
            return Err(super::check::bridge(name));
        }
        match (device.iommu, provider.is_confined()) {
            (Iommu::Group(_), false) => {
                return Err(Error::new(
                    ErrorKind::HasIommu,
                    Errno::EOPNOTSUPP,
                    format!("{name} stands behind an IOMMU: physical addresses would be blocked or misread"),
                )
                .with_remedy("use it through VFIO with the IOMMU, which is safe: --provider cdev or group"));
            }
            (Iommu::None | Iommu::Dummy(_), true) => {
                return Err(unsupported(format!("no IOMMU stands before {name}"))
                    .with_remedy("if the machine has one: turn it on in the firmware, and intel_iommu=on on the kernel's command line"));
            }
            _ => {}
        }
        match provider {
            Provider::Sim => Err(unsupported("a simulated device has no address".to_owned())),
            Provider::Sysfs => self.registers(),
            Provider::Uio => self.line(device),
            Provider::Group => self.group(),
            Provider::Cdev => self.cdev(),
            Provider::GroupNoIommu | Provider::CdevNoIommu => self.unconfined(provider),
        }
    }

    fn registers(&self) -> Result<(), Error> {
        if self.lockdown {
            return Err(unsupported(
                "the kernel is in lockdown, which keeps registers from user space".to_owned(),
            )
            .with_remedy("a kernel with VFIO's no-IOMMU mode; or turn off Secure Boot and lockdown="));
        }
        Ok(())
    }

    fn line(&self, device: &PciDevice) -> Result<(), Error> {
        self.registers()?;
        if self.uio == Module::Missing {
            return Err(unsupported(format!("the kernel has no {UIO}"))
                .with_remedy("install the kernel's package of further modules; sysfs does without it"));
        }
        if device.has_line == Some(false) {
            return Err(unsupported(format!(
                "{} has no interrupt line, which is all that {UIO} adds",
                device.address
            ))
            .with_remedy("--provider sysfs"));
        }
        Ok(())
    }

    fn vfio_pci(&self) -> Result<(), Error> {
        if self.vfio_pci == Module::Missing {
            return Err(unsupported(format!("the kernel has no {VFIO_PCI}")).with_remedy(
                "a kernel with CONFIG_VFIO_PCI; sysfs does without it where there is no IOMMU",
            ));
        }
        Ok(())
    }

    fn group(&self) -> Result<(), Error> {
        self.vfio_pci()?;
        let options = self.vfio.options;
        // Without a configuration, what is not loaded is not seen.
        let seen = self.is_configured() || self.vfio_module == Module::There;
        if seen && !(options.group && options.container.is_some()) {
            return Err(unsupported("the kernel has no VFIO groups with containers".to_owned())
                .with_remedy("a kernel with CONFIG_VFIO_GROUP and CONFIG_VFIO_CONTAINER"));
        }
        Ok(())
    }

    fn cdev(&self) -> Result<(), Error> {
        self.vfio_pci()?;
        if self.iommufd == Module::Missing {
            return Err(unsupported("the kernel has no iommufd (/dev/iommu)".to_owned())
                .with_remedy("a kernel with CONFIG_IOMMUFD, Linux 6.6 or newer"));
        }
        if !self.vfio.options.cdev {
            return Err(unsupported(
                "the kernel has no VFIO devices as files (/dev/vfio/devices)".to_owned(),
            )
            .with_remedy("a kernel with CONFIG_VFIO_DEVICE_CDEV, Linux 6.6 or newer"));
        }
        Ok(())
    }

    fn unconfined(&self, provider: Provider) -> Result<(), Error> {
        self.vfio_pci()?;
        let options = self.vfio.options;
        let (there, without) = if provider == Provider::CdevNoIommu {
            (
                options.cdev_noiommu,
                "cdevs without an IOMMU: Linux 7.3 with CONFIG_VFIO_DEVICE_CDEV, CONFIG_IOMMUFD and CONFIG_VFIO_NOIOMMU",
            )
        } else {
            (
                options.group_noiommu,
                "groups without an IOMMU: CONFIG_VFIO_GROUP, CONFIG_VFIO_CONTAINER and CONFIG_VFIO_NOIOMMU",
            )
        };
        // Where nothing is known of a VFIO that is not loaded, its parameter will tell.
        let unknown = !self.is_configured() && self.vfio_module == Module::Loadable;
        if !there && !unknown {
            return Err(unsupported(format!("the kernel has no {without}"))
                .with_remedy("a kernel with these options; uio and sysfs do without them"));
        }
        match self.vfio.unsafe_mode {
            Some(true) => Ok(()),
            _ => Err(Error::new(
                ErrorKind::NotEnabled,
                Errno::EINVAL,
                "the kernel's own no-IOMMU mode is off (vfio.enable_unsafe_noiommu_mode)",
            )
            .with_remedy(
                "`noiommu enable` as root, or vfio.enable_unsafe_noiommu_mode=1 on the kernel's command line",
            )),
        }
    }

    fn is_configured(&self) -> bool {
        !self.vfio.source.starts_with("nodes")
    }
}

fn unsupported(cause: String) -> Error {
    Error::new(ErrorKind::Unsupported, Errno::EOPNOTSUPP, cause)
}

/// Major and minor number of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}
