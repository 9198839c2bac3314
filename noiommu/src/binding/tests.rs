//! Binding on made-up machines, with a made-up kernel that can be killed between any two steps.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;

use rustix::fs::{FlockOperation, OFlags};

use super::act::{Act, Actor, Kernel};
use super::*;
use crate::kernel;
use crate::memory::kernel_release;
use crate::pci::tests::{ETHERNET, ISA_BRIDGE, NVME, Tree};

const NVME_AT: &str = "0000:00:04.0";
const NIC_AT: &str = "0000:00:05.0";
/// Linux 7.3 with everything.
const FULL: &str = "CONFIG_IOMMUFD=y\nCONFIG_IOMMUFD_NOIOMMU=y\nCONFIG_VFIO=y\nCONFIG_VFIO_DEVICE_CDEV=y\n\
    CONFIG_VFIO_GROUP=y\nCONFIG_VFIO_CONTAINER=y\nCONFIG_VFIO_NOIOMMU=y\n";
/// Groups without an IOMMU alone.
const LEGACY: &str = "CONFIG_VFIO=y\nCONFIG_VFIO_GROUP=y\nCONFIG_VFIO_CONTAINER=y\nCONFIG_VFIO_NOIOMMU=y\n";

/// What sysfs would do.
struct Made {
    /// Steps that are still done before it is killed.
    left: Cell<usize>,
    done: Cell<usize>,
    /// What vfio-pci answers in place of taking a device.
    refuses: Option<i32>,
    /// The driver that the kernel finds for a device without an override, once it is loaded.
    finds: Option<&'static str>,
}

impl Made {
    fn alive() -> Self {
        Self::killed_after(usize::MAX)
    }

    fn killed_after(left: usize) -> Self {
        Self { left: Cell::new(left), done: Cell::new(0), refuses: None, finds: None }
    }

    /// A driver takes a device.
    fn take(&self, tree: &Root, address: &str, driver: &str) -> io::Result<()> {
        let device = tree.device(address);
        if let Some(errno) = self.refuses.filter(|_| driver == VFIO_PCI) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        std::os::unix::fs::symlink(tree.driver(driver), device.join("driver"))?;
        if driver == VFIO_PCI {
            let confined = pci::device_of(tree, address).unwrap().iommu.is_real();
            let prefix = if confined { "" } else { "noiommu-" };
            let options = kernel::vfio(tree.path(), &kernel_release()).options;
            if if confined { options.cdev } else { options.cdev_noiommu } {
                fs::create_dir_all(device.join("vfio-dev").join(format!("{prefix}vfio0")).join("dev"))?;
                fs::create_dir_all(tree.at("/dev/vfio/devices"))?;
                fs::write(tree.at("/dev/vfio/devices").join(format!("{prefix}vfio0")), "")?;
            }
            if !confined {
                let group = tree.at("/sys/kernel/iommu_groups/7");
                fs::create_dir_all(&group)?;
                fs::write(group.join("name"), "vfio-noiommu\n")?;
                std::os::unix::fs::symlink(group, device.join("iommu_group"))?;
            }
            let group = files::link_name(&device.join("iommu_group")).unwrap();
            fs::create_dir_all(tree.at("/dev/vfio"))?;
            fs::write(tree.at("/dev/vfio").join(format!("{prefix}{group}")), "")?;
        }
        Ok(())
    }
}

impl Actor for Made {
    fn act(&self, tree: &Root, address: &str, act: &Act) -> io::Result<()> {
        let Some(left) = self.left.get().checked_sub(1) else {
            return Err(io::Error::other("killed"));
        };
        self.left.set(left);
        self.done.set(self.done.get() + 1);
        let device = tree.device(address);
        let overridden = pci::driver_override(&device)?;
        match act {
            Act::Load(module) if !module.starts_with("pci:") => fs::create_dir_all(tree.driver(module)),
            Act::Remember(_) | Act::Forget => Kernel.act(tree, address, act),
            Act::Override(driver) => {
                fs::write(device.join("driver_override"), driver.as_deref().unwrap_or("(null)"))
            }
            Act::Release => {
                fs::remove_file(device.join("driver"))?;
                let _ = fs::remove_dir_all(device.join("vfio-dev"));
                if matches!(pci::device_of(tree, address).unwrap().iommu, Iommu::Dummy(_)) {
                    fs::remove_file(device.join("iommu_group"))?;
                }
                Ok(())
            }
            // A name by which many modules may be found.
            Act::Load(_) => match self.finds {
                Some(driver) => fs::create_dir_all(tree.driver(driver)),
                None => Err(io::Error::other("no such module")),
            },
            // The kernel asks the drivers in turn; here the override says which, or what it finds.
            Act::Probe => match overridden
                .or(self.finds.map(str::to_owned))
                .filter(|driver| files::exists(&tree.driver(driver)))
            {
                Some(driver) => self.take(tree, address, &driver),
                None => Ok(()),
            },
            Act::Attach(driver) => {
                if overridden.is_some_and(|only| only != *driver) || !files::exists(&tree.driver(driver)) {
                    return Err(io::Error::from_raw_os_error(libc::ENODEV));
                }
                self.take(tree, address, driver)
            }
        }
    }
}

/// An NVMe device and a network card with their drivers, and a kernel.
fn machine(name: &str, configuration: &str, mode: Option<&str>) -> Tree {
    let tree = Tree::new(&format!("bind-{name}"));
    for driver in ["nvme", "e1000e"] {
        tree.driver(driver);
    }
    tree.device(NVME_AT, NVME, Some("nvme"));
    tree.device(NIC_AT, ETHERNET, Some("e1000e"));
    tree.write(format!("boot/config-{}", kernel_release()), configuration);
    if configuration.contains("CONFIG_VFIO=") {
        tree.driver(VFIO_PCI);
        fs::create_dir_all(tree.at("sys/module/vfio")).unwrap();
    }
    if configuration.contains("CONFIG_IOMMUFD=y") {
        tree.write("dev/iommu", "");
    }
    if let Some(mode) = mode {
        tree.write(&kernel::UNSAFE_MODE[1..], mode);
    }
    tree
}

/// Driver and override.
fn state(tree: &Tree, address: &str) -> (Option<String>, Option<String>) {
    let device = pci::device_of(&tree.root(), address).unwrap();
    (device.driver, device.driver_override)
}

fn named(driver: &str, only: &str) -> (Option<String>, Option<String>) {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    (some(driver), some(only))
}

fn by(provider: Provider) -> Options {
    Options { provider: Some(provider), ..Options::default() }
}

fn available(tree: &Tree, address: &str) -> Vec<Provider> {
    let root = tree.root();
    let offers = Machine::look(&root).offers(&pci::device_of(&root, address).unwrap());
    for offer in &offers {
        assert!(offer.refusal().is_none_or(|refusal| refusal.remedy().is_some()), "{offer:?}");
    }
    offers.iter().filter(|offer| offer.is_available()).map(Offer::provider).collect()
}

fn records(tree: &Tree) -> Vec<String> {
    record::addresses(&tree.root()).unwrap()
}

#[test]
fn what_a_machine_offers() {
    use Provider::{Cdev, CdevNoIommu, Group, GroupNoIommu, Sysfs, Uio};
    let tree = machine("offers", FULL, Some("Y\n"));
    assert_eq!(available(&tree, NVME_AT), [CdevNoIommu, GroupNoIommu, Sysfs]);
    tree.driver(UIO);
    assert_eq!(available(&tree, NVME_AT), [CdevNoIommu, GroupNoIommu, Uio, Sysfs]);
    tree.config(NVME_AT, 0, 0);
    assert_eq!(available(&tree, NVME_AT), [CdevNoIommu, GroupNoIommu, Sysfs], "no line");
    tree.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n");
    assert_eq!(available(&tree, NIC_AT), [CdevNoIommu, GroupNoIommu]);
    // Behind an IOMMU nothing goes by physical addresses.
    tree.group(NVME_AT, 3, "");
    assert_eq!(available(&tree, NVME_AT), [Cdev, Group]);

    let tree = machine("offers-off", FULL, Some("N\n"));
    assert_eq!(available(&tree, NVME_AT), [Sysfs]);
    let root = tree.root();
    let error = plan_in(&root, &Machine::look(&root), NVME_AT, &by(CdevNoIommu)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotEnabled);

    let tree = machine("offers-legacy", LEGACY, Some("Y\n"));
    assert_eq!(available(&tree, NVME_AT), [GroupNoIommu, Sysfs]);
    tree.group(NVME_AT, 3, "");
    assert_eq!(available(&tree, NVME_AT), [Group]);

    let tree = machine("offers-none", "# CONFIG_VFIO is not set\n", None);
    assert_eq!(available(&tree, NVME_AT), [Sysfs]);
    tree.write(
        format!("lib/modules/{}/modules.dep", kernel_release()),
        "kernel/drivers/uio/uio_pci_generic.ko.xz: kernel/drivers/uio/uio.ko.xz\n",
    );
    assert_eq!(available(&tree, NVME_AT), [Uio, Sysfs]);
    assert_eq!(Machine::look(&tree.root()).loads(Uio), [UIO]);
    assert_eq!(available(&tree, NIC_AT), [Uio, Sysfs]);
}

/// Bound before the kernel's driver was loaded, as at boot: what was there is no driver, what the kernel wants is one.
#[test]
fn the_kernel_gets_what_it_had_not_yet() {
    const LATE_AT: &str = "0000:00:06.0";
    const MODALIAS: &str = "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02\n";
    let tree = machine("early", FULL, Some("Y\n"));
    let root = tree.root();
    tree.device(LATE_AT, NVME, None);
    tree.write(format!("sys/bus/pci/devices/{LATE_AT}/modalias"), MODALIAS);
    let made = Made { finds: Some("late"), ..Made::alive() };
    bind_in(&root, &made, LATE_AT, &by(Provider::Sysfs)).unwrap();
    assert_eq!(unbind_in(&root, &made, LATE_AT).unwrap().driver, None);
    assert_eq!(hand_to_kernel_in(&root, &made, LATE_AT).unwrap().as_deref(), Some("late"));
    assert_eq!(state(&tree, LATE_AT), named("late", ""));
    // Once more: nothing is done. One that no driver wants: that is no error.
    let done = made.done.get();
    assert_eq!(hand_to_kernel_in(&root, &made, LATE_AT).unwrap().as_deref(), Some("late"));
    assert_eq!(made.done.get(), done);
    let alone = "0000:00:07.0";
    tree.device(alone, NVME, None);
    assert_eq!(hand_to_kernel_in(&root, &Made::alive(), alone).unwrap(), None);
    assert_eq!(hand_to_kernel_in(&root, &made, "0000:00:1f.0").unwrap_err().kind(), ErrorKind::NoDevice);
}

#[test]
fn there_and_back() {
    let tree = machine("back", FULL, Some("Y\n"));
    let (root, made) = (tree.root(), Made::alive());
    let bound = bind_in(&root, &made, "00:04.0", &Options::default()).unwrap();
    assert_eq!((bound.provider, bound.address.as_str()), (Provider::CdevNoIommu, NVME_AT));
    assert_eq!((bound.driver_before.as_deref(), bound.driver.as_deref()), (Some("nvme"), Some(VFIO_PCI)));
    let nodes: Vec<_> = bound.nodes.iter().map(|node| node.display().to_string()).collect();
    assert_eq!(nodes, ["/dev/vfio/noiommu-7", "/dev/vfio/devices/noiommu-vfio0"]);
    assert!(bound.missed.is_empty());
    assert_eq!(records(&tree), [NVME_AT]);
    let directory = fs::metadata(tree.at("run/noiommu/bindings")).unwrap();
    assert_eq!(directory.permissions().mode() & 0o777, 0o700);

    // Again: nothing to do. Another provider of the same driver: the fact that its node is there.
    let done = made.done.get();
    assert_eq!(
        bind_in(&root, &made, NVME_AT, &Options::default()).unwrap().driver_before.as_deref(),
        Some(VFIO_PCI)
    );
    assert_eq!(
        bind_in(&root, &made, NVME_AT, &by(Provider::GroupNoIommu)).unwrap().provider,
        Provider::GroupNoIommu
    );
    assert_eq!(made.done.get(), done);

    let restored = unbind_in(&root, &made, NVME_AT).unwrap();
    assert_eq!(restored.driver.as_deref(), Some("nvme"));
    assert_eq!((state(&tree, NVME_AT), records(&tree).len()), (named("nvme", ""), 0));
    let error = unbind_in(&root, &made, NVME_AT).unwrap_err();
    assert!(error.kind() == ErrorKind::NoDevice && error.remedy().is_some_and(|it| it.contains("nvme")));
}

#[test]
fn the_first_memory_is_kept() {
    let tree = machine("first", FULL, Some("Y\n"));
    tree.write(tree.real(NVME_AT).join("driver_override"), "nvme\n");
    let (root, made) = (tree.root(), Made::alive());
    for (provider, driver, only) in [
        (Provider::Sysfs, "", "noiommu"),
        (Provider::CdevNoIommu, VFIO_PCI, VFIO_PCI),
        (Provider::Sysfs, "", "noiommu"),
        (Provider::GroupNoIommu, VFIO_PCI, VFIO_PCI),
    ] {
        assert_eq!(bind_in(&root, &made, NVME_AT, &by(provider)).unwrap().provider, provider);
        assert_eq!(state(&tree, NVME_AT), named(driver, only));
    }
    unbind_in(&root, &made, NVME_AT).unwrap();
    assert_eq!(state(&tree, NVME_AT), named("nvme", "nvme"));
}

/// A bind that is killed after each of its steps, and then an unbind that is killed after each of its own.
#[test]
fn killed_between_any_two_steps() {
    for (name, provider, first) in [
        ("kill-sysfs", Provider::Sysfs, None),
        ("kill-vfio", Provider::CdevNoIommu, None),
        ("kill-chain", Provider::CdevNoIommu, Some(Provider::Sysfs)),
        ("kill-chain-back", Provider::Sysfs, Some(Provider::CdevNoIommu)),
    ] {
        let mut kills = 0;
        for bind_steps in 0.. {
            let mut finished = false;
            for unbind_steps in 0.. {
                let tree = machine(name, FULL, Some("Y\n"));
                let root = tree.root();
                if let Some(first) = first {
                    bind_in(&root, &Made::alive(), NVME_AT, &by(first)).unwrap();
                }
                let killed = Made::killed_after(bind_steps);
                finished = bind_in(&root, &killed, NVME_AT, &by(provider)).is_ok();
                // Killed before it had remembered anything: then it has changed nothing either.
                if records(&tree).is_empty() {
                    assert_eq!(state(&tree, NVME_AT), named("nvme", ""), "{name}: after {bind_steps}");
                    break;
                }
                let unbound = unbind_in(&root, &Made::killed_after(unbind_steps), NVME_AT).is_ok();
                if !unbound {
                    kills += 1;
                    unbind_in(&root, &Made::alive(), NVME_AT).unwrap();
                }
                assert_eq!(
                    (state(&tree, NVME_AT), records(&tree).len()),
                    (named("nvme", ""), 0),
                    "{name}: after {bind_steps} and {unbind_steps}"
                );
                if unbound {
                    break;
                }
            }
            if finished {
                break;
            }
        }
        assert!(kills >= 6, "{name}: {kills}");
    }
}

#[test]
fn what_the_kernel_refuses_is_undone() {
    let tree = machine("refuses", LEGACY, Some("Y\n"));
    let root = tree.root();
    let made = Made { refuses: Some(libc::EINVAL), ..Made::alive() };
    let error = bind_in(&root, &made, NVME_AT, &Options::default()).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (ErrorKind::Unsupported, Errno::EINVAL));
    assert!(error.cause().contains("vfio-pci refused it: Invalid argument"), "{error}");
    assert!(error.remedy().is_some_and(|it| it.contains("noiommu enable")), "{error}");
    assert_eq!((state(&tree, NVME_AT), records(&tree).len()), (named("nvme", ""), 0));

    // From a binding that was: back to that one, and the first memory stays.
    bind_in(&root, &made, NVME_AT, &by(Provider::Sysfs)).unwrap();
    bind_in(&root, &made, NVME_AT, &by(Provider::GroupNoIommu)).unwrap_err();
    assert_eq!((state(&tree, NVME_AT), records(&tree).len()), (named("", "noiommu"), 1));
    unbind_in(&root, &made, NVME_AT).unwrap();
    assert_eq!(state(&tree, NVME_AT), named("nvme", ""));

    // The driver is no longer there when it is to come back: what is remembered stays, for the next try.
    bind_in(&root, &Made::alive(), NVME_AT, &Options::default()).unwrap();
    fs::remove_dir(root.driver("nvme")).unwrap();
    let gone = Made { refuses: None, ..Made::killed_after(2) };
    let error = unbind_in(&root, &gone, NVME_AT).unwrap_err();
    assert!(error.remedy().is_some_and(|it| it.contains("modprobe nvme")), "{error}");
    assert_eq!(records(&tree).len(), 1);
    unbind_in(&root, &Made::alive(), NVME_AT).unwrap();
    assert_eq!(state(&tree, NVME_AT), named("nvme", ""));
}

#[test]
fn in_use() {
    let tree = machine("use", FULL, Some("Y\n"));
    let (root, made) = (tree.root(), Made::alive());
    tree.disk(&format!("pci0000:00/{NVME_AT}/nvme/nvme0/nvme0n1"), "259:0");
    tree.write("proc/self/mountinfo", "22 1 259:0 / /data rw - ext4 /dev/nvme0n1 rw\n");
    tree.interface(&format!("pci0000:00/{NIC_AT}/net/eth0"), true);
    for (address, told) in [(NVME_AT, "mounted at /data"), (NIC_AT, "eth0 is up")] {
        let before = state(&tree, address);
        let error = bind_in(&root, &made, address, &Options::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.cause().contains(told), "{error}");
        assert!(error.remedy().is_some_and(|it| it.contains("--force")), "{error}");
        assert_eq!((state(&tree, address), made.done.get()), (before, 0));
    }
    let forced = Options { force: true, ..Options::default() };
    assert_eq!(bind_in(&root, &made, NVME_AT, &forced).unwrap().driver.as_deref(), Some(VFIO_PCI));

    // Bridges, and devices that somebody drives, even with force.
    tree.device("0000:00:1f.0", ISA_BRIDGE, None);
    assert_eq!(bind_in(&root, &made, "00:1f.0", &forced).unwrap_err().kind(), ErrorKind::Unsupported);
    let config = files::open(&tree.real(NIC_AT).join("config"), OFlags::RDONLY).unwrap();
    rustix::fs::flock(&config, FlockOperation::NonBlockingLockExclusive).unwrap();
    let error = bind_in(&root, &made, NIC_AT, &forced).unwrap_err();
    assert!(error.kind() == ErrorKind::Busy && error.cause().contains("another process of noiommu"));
    assert_eq!(state(&tree, NIC_AT), named("e1000e", ""));
    drop(config);
    bind_in(&root, &made, NIC_AT, &forced).unwrap();

    // The kernel would wait for the one that has the node open.
    tree.write("proc/4711/comm", "driver\n");
    fs::create_dir_all(tree.at("proc/4711/fd")).unwrap();
    std::os::unix::fs::symlink("/dev/vfio/noiommu-7", tree.at("proc/4711/fd/5")).unwrap();
    let error = unbind_in(&root, &made, NVME_AT).unwrap_err();
    assert!(error.kind() == ErrorKind::Busy && error.cause().contains("4711 (driver)"), "{error}");
    assert_eq!(bind_in(&root, &made, NVME_AT, &by(Provider::Sysfs)).unwrap_err().kind(), ErrorKind::Busy);
    fs::remove_file(tree.at("proc/4711/fd/5")).unwrap();
    unbind_in(&root, &made, NVME_AT).unwrap();
}

#[test]
fn neighbours() {
    let second = "0000:00:04.1";
    let tree = machine("neighbours", FULL, Some("Y\n"));
    let (root, made) = (tree.root(), Made::alive());
    tree.device(second, NVME, Some("nvme"));
    let error = bind_in(&root, &made, NVME_AT, &Options::default()).unwrap_err();
    assert!(error.kind() == ErrorKind::Busy && error.cause().contains(second), "{error}");
    let together = Options { together: vec!["00:04.0".into(), "00:04.1".into()], ..Options::default() };
    bind_in(&root, &made, NVME_AT, &together).unwrap();
    // The other one is no obstacle once it is bound, too.
    assert!(bind_in(&root, &made, second, &Options::default()).is_ok());

    // An IOMMU group is opened as a whole; a bridge in it does no harm.
    let tree = machine("group", FULL, Some("Y\n"));
    let root = tree.root();
    tree.device("0000:00:03.0", 0x06_0400, Some("pcieport"));
    for address in [NVME_AT, NIC_AT, "0000:00:03.0"] {
        let directory = "sys/kernel/iommu_groups/3";
        tree.write(format!("{directory}/name"), "");
        tree.link(tree.real(address).join("iommu_group"), directory);
        tree.link(format!("{directory}/devices/{address}"), tree.real(address));
    }
    let error = bind_in(&root, &made, NVME_AT, &Options::default()).unwrap_err();
    assert!(error.kind() == ErrorKind::Busy && error.cause().contains("IOMMU group 3"), "{error}");
    assert!(error.cause().ends_with(&format!(": {NIC_AT}")), "{error}");
    let forced = Options { force: true, ..Options::default() };
    assert_eq!(bind_in(&root, &made, NVME_AT, &forced).unwrap().provider, Provider::Cdev);
}

#[test]
fn memories_that_cannot_be_trusted() {
    let tree = machine("trust", FULL, Some("Y\n"));
    let (root, made) = (tree.root(), Made::alive());
    let directory = tree.at("run/noiommu/bindings");
    bind_in(&root, &made, NVME_AT, &Options::default()).unwrap();
    let text = fs::read_to_string(directory.join(NVME_AT)).unwrap();

    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    let error = unbind_in(&root, &made, NVME_AT).unwrap_err();
    assert!(error.errno() == Errno::EPERM && error.remedy().is_some(), "{error}");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
    for damaged in ["", "id=1b36:0010\n", "id=1b36:0010\ndriver=../x\ndriver_override=\n"] {
        fs::write(directory.join(NVME_AT), damaged).unwrap();
        assert!(unbind_in(&root, &made, NVME_AT).unwrap_err().cause().contains("damaged"), "{damaged:?}");
    }
    assert_eq!(state(&tree, NVME_AT), named(VFIO_PCI, VFIO_PCI));
    // What a crash leaves half written is nobody's memory.
    fs::write(directory.join(format!(".{NIC_AT}.new")), "id=").unwrap();
    fs::write(directory.join(NVME_AT), text).unwrap();
    assert_eq!(records(&tree), [NVME_AT]);

    // Another device in the same place gets nothing of it; neither does an empty place.
    tree.write(tree.real(NVME_AT).join("device"), "0x0011\n");
    assert!(unbind_in(&root, &made, NVME_AT).unwrap().is_gone);
    assert_eq!((state(&tree, NVME_AT), records(&tree).len()), (named(VFIO_PCI, VFIO_PCI), 0));
    bind_in(&root, &made, NIC_AT, &Options::default()).unwrap();
    fs::remove_file(root.device(NIC_AT)).unwrap();
    assert!(unbind_in(&root, &made, NIC_AT).unwrap().is_gone);
    assert_eq!(records(&tree).len(), 0);
}
