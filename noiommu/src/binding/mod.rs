//! Taking PCI devices from the kernel's drivers, for programs of one's own, and giving them back.
//!
//! What was there before is written down before anything is changed, so [`unbind`] restores it whatever happened in between:
//! several binds in a row, or a bind that was killed half-way.
//!
//! ```no_run
//! # fn main() -> noiommu::Result<()> {
//! use noiommu::binding::{self, Options};
//!
//! let bound = binding::bind("0000:00:04.0", &Options::default())?;
//! println!("{} is ready for {}", bound.address, bound.provider.name());
//! binding::unbind("0000:00:04.0")?;
//! # Ok(())
//! # }
//! ```

mod act;
mod check;
mod offers;
mod record;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use noiommu_core::Errno;

use self::act::{Act, Actor, Kernel};
pub use self::offers::Offer;
use self::offers::{Machine, UIO, VFIO_PCI};
use self::record::Record;
use crate::device::sysfs;
use crate::pci::{self, Iommu, PciDevice, Root};
use crate::{Error, ErrorKind, Provider, Result, files};

/// How a device is bound.
#[derive(Clone, Default, Debug)]
pub struct Options {
    /// For this way to reach it, not the best.
    pub provider: Option<Provider>,
    /// In spite of its being in use, and of its neighbours.
    pub force: bool,
    /// Addresses that are about to be bound as well, and so are no neighbours that stand in the way.
    pub together: Vec<String>,
}

/// What [`bind`] would do.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// The device as it is.
    pub device: PciDevice,
    /// How it would be reached.
    pub provider: Provider,
    /// What the machine offers, the best first.
    pub offers: Vec<Offer>,
    acts: Vec<Act>,
}

impl Plan {
    /// The steps, for people. None: it is bound so already.
    #[must_use]
    pub fn steps(&self) -> Vec<String> {
        self.acts.iter().map(Act::to_string).collect()
    }
}

/// A device that is bound.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Bound {
    /// Where it is.
    pub address: String,
    /// How it is reached.
    pub provider: Provider,
    /// The driver that had it when the call was made.
    pub driver_before: Option<String>,
    /// The driver that has it.
    pub driver: Option<String>,
    /// The nodes in /dev that it is reached through.
    pub nodes: Vec<PathBuf>,
    /// Better ways that the machine does not offer, and why.
    pub missed: Vec<Offer>,
}

/// A device that is as it was.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Restored {
    /// Where it is.
    pub address: String,
    /// The driver that has it again.
    pub driver: Option<String>,
    /// It is no longer there, or another one is in its place: what was remembered is forgotten.
    pub is_gone: bool,
}

/// The ways to reach the device at an address, the best first, each with the reason where it is not to be had.
///
/// # Errors
/// EINVAL when it is no address; [`ErrorKind::NoDevice`] when nothing is there.
pub fn offers(address: &str) -> Result<Vec<Offer>> {
    let root = Root::real();
    Ok(Machine::look(&root).offers(&pci::device_of(&root, address)?))
}

/// The ways for each of many devices, looking at the machine once.
#[must_use]
pub fn offers_for(devices: &[PciDevice]) -> Vec<Vec<Offer>> {
    let machine = Machine::look(&Root::real());
    devices.iter().map(|device| machine.offers(device)).collect()
}

/// How a device is reached as it is now; `None` while a driver of the kernel has it, or nobody could reach it.
#[must_use]
pub fn provider_of(device: &PciDevice) -> Option<Provider> {
    let root = Root::real();
    current(&root, &Machine::look(&root), device)
}

/// The addresses of the devices that are bound, or were half bound by a call that was killed. Only root can ask.
///
/// # Errors
/// What the file system answers.
pub fn bound() -> Result<Vec<String>> {
    record::addresses(&Root::real())
}

/// Whether a device is bound, or was half bound.
pub(crate) fn is_bound(address: &str) -> bool {
    record::read(&Root::real(), address).is_ok_and(|record| record.is_some())
}

/// What [`bind`] would do. Nothing is changed.
///
/// # Errors
/// As for [`bind`], as far as it can be told beforehand.
pub fn plan(address: &str, options: &Options) -> Result<Plan> {
    let root = Root::real();
    plan_in(&root, &Machine::look(&root), address, options)
}

/// Takes a device from its driver, for the best way to reach it that the machine offers.
///
/// # Errors
/// EINVAL when it is no address; [`ErrorKind::NoDevice`]; [`ErrorKind::Busy`] when it is in use, when other functions of it or
/// other devices of its IOMMU group are in the way (`force` passes over both), or when a process drives it;
/// [`ErrorKind::Unsupported`] for bridges and where nothing can reach it; [`ErrorKind::NotEnabled`],
/// [`ErrorKind::HasIommu`] and others as [`Offer::refusal`] for the way asked for. Whatever the kernel refuses on the way is
/// undone first.
pub fn bind(address: &str, options: &Options) -> Result<Bound> {
    bind_in(&Root::real(), &Kernel, address, options)
}

/// Restores what a device was before it was bound first.
///
/// # Errors
/// [`ErrorKind::NoDevice`] when it was not bound; [`ErrorKind::Busy`] while a process drives it; what the kernel answers.
pub fn unbind(address: &str) -> Result<Restored> {
    unbind_in(&Root::real(), &Kernel, address)
}

/// Has the kernel look for a driver of its own for a device that has none, as it does when one is plugged in: loads the module that
/// is made for it, where there is one. Answers the driver that took it.
///
/// A device that was bound before the kernel's driver was loaded had no driver then; [`unbind`] restores that, and this goes on.
///
/// # Errors
/// EINVAL when it is no address; [`ErrorKind::NoDevice`]; what the kernel answers. That no driver wants it is no error.
pub fn hand_to_kernel(address: &str) -> Result<Option<String>> {
    hand_to_kernel_in(&Root::real(), &Kernel, address)
}

fn hand_to_kernel_in(root: &Root, actor: &dyn Actor, address: &str) -> Result<Option<String>> {
    let device = pci::device_of(root, address)?;
    if device.driver.is_some() {
        return Ok(device.driver);
    }
    let name = device.address;
    // The text by which modules are found. That there is none for it, or that it is built in, shows in what the probe brings.
    if let Ok(modalias) = files::read_text(&root.device(&name).join("modalias")) {
        let _ = actor.act(root, &name, &Act::Load(modalias));
    }
    actor.act(root, &name, &Act::Probe).map_err(|error| {
        Error::system(format_args!("{name}: failed to {}", Act::Probe), error).with_remedy("run it as root")
    })?;
    Ok(pci::device_of(root, &name)?.driver)
}

fn bind_in(root: &Root, actor: &dyn Actor, address: &str, options: &Options) -> Result<Bound> {
    let machine = Machine::look(root);
    bind_on(root, &machine, actor, address, options)
}

fn plan_in(root: &Root, machine: &Machine, address: &str, options: &Options) -> Result<Plan> {
    let device = pci::device_of(root, address)?;
    if device.is_bridge {
        return Err(check::bridge(&device.address));
    }
    let offers = machine.offers(&device);
    let provider = choose(&device, &offers, options.provider)?;
    if !options.force {
        let together = options.together.iter().map(|it| sysfs::normalize(it).unwrap_or_else(|| it.clone()));
        check::in_use(root, &device)?;
        check::neighbours(root, &device, &together.collect::<Vec<_>>())?;
    }
    let acts = acts(root, machine, &device, provider)?;
    if !acts.is_empty() {
        check::open_nodes(root, &device)?;
        drop(check::lock(root, &device)?);
    }
    Ok(Plan { device, provider, offers, acts })
}

/// The way asked for, or the best.
fn choose(device: &PciDevice, offers: &[Offer], wanted: Option<Provider>) -> Result<Provider> {
    let refusal = match wanted {
        Some(wanted) => match offers.iter().find(|offer| offer.provider() == wanted) {
            Some(offer) => match offer.refusal() {
                None => return Ok(wanted),
                Some(refusal) => refusal.clone(),
            },
            None => Error::argument(format!("{} is nothing that a PCI device is bound for", wanted.name())),
        },
        None => match offers.iter().find(|offer| offer.is_available()) {
            Some(offer) => return Ok(offer.provider()),
            // The reason that the best one is not there is the one to be mended.
            None => offers.first().and_then(|offer| offer.refusal().cloned()).unwrap_or_else(|| {
                Error::new(
                    ErrorKind::Unsupported,
                    Errno::EOPNOTSUPP,
                    format!("nothing reaches {}", device.address),
                )
            }),
        },
    };
    Err(refusal)
}

/// The driver and the override that a way to reach a device wants.
fn wanted(provider: Provider) -> (Option<&'static str>, &'static str) {
    match provider {
        Provider::Sim | Provider::Sysfs | Provider::Uio => (None, sysfs::CLAIM),
        Provider::GroupNoIommu | Provider::Group | Provider::CdevNoIommu | Provider::Cdev => {
            (Some(VFIO_PCI), VFIO_PCI)
        }
    }
}

/// The steps from the device as it is to the device as it is wanted.
fn acts(root: &Root, machine: &Machine, device: &PciDevice, provider: Provider) -> Result<Vec<Act>> {
    let (driver, driver_override) = wanted(provider);
    let mut acts: Vec<_> =
        machine.loads(provider).into_iter().map(|name| Act::Load(name.to_owned())).collect();
    let ready =
        device.driver.as_deref() == driver && device.driver_override.as_deref() == Some(driver_override);
    if ready {
        return Ok(acts);
    }
    // The first memory stays, unless it is of another device.
    let known =
        record::read(root, &device.address)?.is_some_and(|known| known.id == (device.vendor, device.device));
    if !known {
        acts.push(Act::Remember(Record::of(device)));
    }
    acts.push(Act::Override(Some(driver_override.to_owned())));
    if device.driver.as_deref() != driver {
        if device.driver.is_some() {
            acts.push(Act::Release);
        }
        if driver.is_some() {
            acts.push(Act::Probe);
        }
    }
    Ok(acts)
}

fn bind_on(
    root: &Root,
    machine: &Machine,
    actor: &dyn Actor,
    address: &str,
    options: &Options,
) -> Result<Bound> {
    let plan = plan_in(root, machine, address, options)?;
    let Plan { device, provider, offers, acts } = plan;
    let name = device.address.clone();
    let _lock = check::lock(root, &device)?;
    // Another one may have bound it between the plan and the lock.
    if pci::device_of(root, &name)? != device {
        return Err(Error::new(
            ErrorKind::Busy,
            Errno::EBUSY,
            format!("{name} was changed by somebody else just now"),
        )
        .with_remedy("try again"));
    }
    let remembers = acts.iter().any(|act| matches!(act, Act::Remember(_)));
    let mut probe = None;
    for act in &acts {
        match (actor.act(root, &name, act), act) {
            (Ok(()), _) => {}
            // Whether the driver took the device is asked below; the number says why not.
            (Err(error), Act::Probe) => probe = Some(error),
            (Err(error), _) => {
                let error = Error::system(format_args!("{name}: failed to {act}"), error);
                let error =
                    if error.errno() == Errno::EACCES { error.with_remedy("run it as root") } else { error };
                return Err(roll_back(root, actor, &device, remembers, error));
            }
        }
    }
    let look =
        || pci::device_of(root, &name).map_err(|error| roll_back(root, actor, &device, remembers, error));
    let mut now = look()?;
    let (driver, _) = wanted(provider);
    if let (Some(driver), None, None) = (driver, &now.driver, &probe) {
        // A probe tells the kernel's log alone why it failed; asking for the driver by name tells us.
        probe = actor.act(root, &name, &Act::Attach(driver.to_owned())).err();
        now = look()?;
    }
    if now.driver.as_deref() != driver {
        let error = not_taken(&now, provider, probe);
        return Err(roll_back(root, actor, &device, remembers, error));
    }
    let provider = match (options.provider, fact(root, &now)) {
        (None, Some(fact)) => fact,
        (Some(wanted), Some(_)) if has_node(root, &now, wanted) => wanted,
        (Some(wanted), Some(_)) => {
            let error = Error::new(
                ErrorKind::Unsupported,
                Errno::EOPNOTSUPP,
                format!("{name}: {VFIO_PCI} has it, but the kernel made no node for {}", wanted.name()),
            )
            .with_remedy("without --provider the best that there is is taken");
            return Err(roll_back(root, actor, &device, remembers, error));
        }
        (_, None) if now.driver.as_deref() == Some(VFIO_PCI) => {
            let error = Error::new(
                ErrorKind::Unsupported,
                Errno::ENODEV,
                format!("{name}: {VFIO_PCI} has it, but the kernel made no node for it"),
            )
            .with_remedy("`dmesg` may say more; --provider sysfs does without");
            return Err(roll_back(root, actor, &device, remembers, error));
        }
        (_, None) => provider,
    };
    let missed =
        offers.into_iter().take_while(|offer| offer.provider() != provider).filter(|it| !it.is_available());
    Ok(Bound {
        provider,
        driver_before: device.driver,
        nodes: check::nodes(root, &now),
        driver: now.driver,
        missed: missed.collect(),
        address: name,
    })
}

/// What vfio-pci has made of a device, the best first: facts where the offers were expectations.
fn fact(root: &Root, device: &PciDevice) -> Option<Provider> {
    let ways = [Provider::Cdev, Provider::CdevNoIommu, Provider::Group, Provider::GroupNoIommu];
    ways.into_iter().find(|way| has_node(root, device, *way))
}

fn has_node(root: &Root, device: &PciDevice, provider: Provider) -> bool {
    if device.driver.as_deref() != Some(VFIO_PCI) {
        return !matches!(wanted(provider), (Some(_), _));
    }
    let directory = root.device(&device.address).join("vfio-dev");
    let cdev = |prefix: &str| {
        let names = files::names(&directory).unwrap_or_default();
        // Without cdevs the kernel has the entry all the same, but no number for a node.
        names.iter().any(|name| {
            name.strip_prefix(prefix).is_some_and(|number| number.bytes().all(|digit| digit.is_ascii_digit()))
                && files::exists(&directory.join(name).join("dev"))
        })
    };
    match provider {
        Provider::Cdev => device.iommu.is_real() && cdev("vfio"),
        Provider::CdevNoIommu => !device.iommu.is_real() && cdev("noiommu-vfio"),
        Provider::Group => match device.iommu {
            Iommu::Group(group) => files::exists(&root.at("/dev/vfio").join(group.to_string())),
            _ => false,
        },
        Provider::GroupNoIommu => match device.iommu {
            Iommu::Dummy(group) => files::exists(&root.at("/dev/vfio").join(format!("noiommu-{group}"))),
            _ => false,
        },
        Provider::Sim | Provider::Sysfs | Provider::Uio => false,
    }
}

fn current(root: &Root, machine: &Machine, device: &PciDevice) -> Option<Provider> {
    let claimed = device.driver_override.as_deref() == Some(sysfs::CLAIM);
    match device.driver.as_deref() {
        _ if device.is_bridge => None,
        Some(VFIO_PCI) => fact(root, device),
        Some(UIO) if claimed => Some(Provider::Uio),
        Some(_) => None,
        None if device.iommu.is_real() => None,
        None if machine.has_uio() && device.has_line != Some(false) => Some(Provider::Uio),
        None => Some(Provider::Sysfs),
    }
}

/// Why the driver did not take the device.
fn not_taken(now: &PciDevice, provider: Provider, probe: Option<std::io::Error>) -> Error {
    let name = &now.address;
    if let Some(other) = &now.driver {
        return Error::new(
            ErrorKind::Busy,
            Errno::EBUSY,
            format!("{name}: the driver {other} took it instead"),
        )
        .with_remedy("try again; another tool binds devices on this machine");
    }
    let reason = probe.map_or_else(|| "it did not say why".to_owned(), |error| error.to_string());
    let error =
        Error::new(ErrorKind::Unsupported, Errno::EINVAL, format!("{name}: {VFIO_PCI} refused it: {reason}"));
    if provider.is_confined() {
        error.with_remedy("`dmesg` may say more")
    } else {
        error.with_remedy("`noiommu enable` if the no-IOMMU mode is off; `dmesg` may say more; --provider sysfs does without")
    }
}

/// Makes the device what it was when the call was made, and adds to `error` what cannot be undone.
fn roll_back(root: &Root, actor: &dyn Actor, before: &PciDevice, remembers: bool, error: Error) -> Error {
    let record = Record::of(before);
    match restore(root, actor, &record) {
        Ok(_) if remembers => {
            let _ = actor.act(root, &before.address, &Act::Forget);
            error
        }
        Ok(_) => error,
        Err(restoring) => {
            let cause = format!("{}; and it could not be put back: {}", error.cause(), restoring.cause());
            Error::new(error.kind(), error.errno(), cause)
                .with_remedy(format!("noiommu unbind {}", before.address))
        }
    }
}

fn unbind_in(root: &Root, actor: &dyn Actor, address: &str) -> Result<Restored> {
    let name = sysfs::normalize(address).ok_or_else(|| sysfs::no_address(address))?;
    let Some(record) = record::read(root, &name)? else {
        let device = pci::device_of(root, &name)?;
        let error =
            Error::new(ErrorKind::NoDevice, Errno::ENOENT, format!("{name} was not bound by noiommu"));
        return Err(match device.driver {
            Some(driver) => error.with_remedy(format!("nothing has to be done: the driver {driver} has it")),
            None => error.with_remedy(format!(
                "echo {name} > /sys/bus/pci/drivers_probe has the kernel look for a driver"
            )),
        });
    };
    let is_gone = match pci::device_of(root, &name) {
        Ok(device) => record.id != (device.vendor, device.device),
        Err(error) if error.kind() == ErrorKind::NoDevice => true,
        Err(error) => return Err(error),
    };
    let driver = if is_gone {
        None
    } else {
        let device = pci::device_of(root, &name)?;
        check::open_nodes(root, &device)?;
        let _lock = check::lock(root, &device)?;
        restore(root, actor, &record)?
    };
    actor.act(root, &name, &Act::Forget).map_err(|error| {
        Error::system(format_args!("{name}: forgetting it"), error).with_remedy("run it as root")
    })?;
    Ok(Restored { address: name, driver, is_gone })
}

/// Makes a device what the record says, from whatever it is. Can be called again at any point of itself.
fn restore(root: &Root, actor: &dyn Actor, record: &Record) -> Result<Option<String>> {
    let name = &record.address;
    let act = |act: Act| {
        actor.act(root, name, &act).map_err(|error| {
            let error = Error::system(format_args!("{name}: failed to {act}"), error);
            if error.errno() == Errno::EACCES { error.with_remedy("run it as root") } else { error }
        })
    };
    let now = pci::device_of(root, name)?;
    let (mut driver_override, mut driver) = (now.driver_override, now.driver);
    let mut attached = Ok(());
    if driver != record.driver {
        // First the driver that is to have it as override: with the one of the binding, or one from before that names another
        // driver than had it, it would not be taken back.
        if let Some(wanted) = &record.driver
            && driver_override.as_ref() != Some(wanted)
        {
            act(Act::Override(Some(wanted.clone())))?;
            driver_override = Some(wanted.clone());
        }
        if driver.is_some() {
            act(Act::Release)?;
        }
        if let Some(wanted) = &record.driver {
            if !files::exists(&root.driver(wanted)) {
                // Gone meanwhile; what its module is called is the usual guess.
                let _ = act(Act::Load(wanted.clone()));
            }
            attached = act(Act::Attach(wanted.clone()));
        }
        driver = pci::device_of(root, name)?.driver;
    }
    // Loading a module may have done it.
    if driver == record.driver {
        if driver_override != record.driver_override {
            act(Act::Override(record.driver_override.clone()))?;
        }
        return Ok(driver);
    }
    // It stays the override, so that the driver takes the device when it comes.
    let driver = record.driver.as_deref().unwrap_or("nobody");
    match attached {
        Err(error) => Err(error.with_remedy(format!(
            "modprobe {driver}, then noiommu unbind {name} again; `dmesg` may say more"
        ))),
        Ok(()) => Err(Error::new(
            ErrorKind::System,
            Errno::EIO,
            format!("{name}: the driver {driver} did not take it back"),
        )
        .with_remedy("`dmesg` may say more; then noiommu unbind again")),
    }
}
