//! What the running kernel has: its configuration where it can be read, else the traces that it leaves; and its modules.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::read::GzDecoder;
use noiommu_core::vfio::config::{Container, Options};

/// The parameter that a loaded VFIO has, if it can do without an IOMMU.
pub const UNSAFE_MODE: &str = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";

/// What a kernel offers of VFIO.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Vfio {
    /// The options that make a difference.
    pub options: Options,
    /// Where they were learned.
    pub source: String,
    /// The parameter `enable_unsafe_noiommu_mode`; `None`: VFIO is not loaded, or needs an IOMMU.
    pub unsafe_mode: Option<bool>,
}

/// Looks at the machine whose files are below `root` and whose kernel is `release`.
#[must_use]
pub fn vfio(root: &Path, release: &str) -> Vfio {
    let unsafe_mode = unsafe_mode(root);
    let (options, source) = match configuration(root, release) {
        Some((text, path)) => (options(&text), path),
        None => (traces(root, unsafe_mode.is_some()), "nodes in /dev and /sys, no configuration".to_owned()),
    };
    Vfio { options, source, unsafe_mode }
}

/// The parameter of the machine whose files are below `root`.
pub(crate) fn unsafe_mode(root: &Path) -> Option<bool> {
    let text = fs::read_to_string(root.join(UNSAFE_MODE.trim_start_matches('/'))).ok()?;
    Some(matches!(text.trim(), "Y" | "y" | "1"))
}

/// The text of the kernel's configuration, and where it was.
fn configuration(root: &Path, release: &str) -> Option<(String, String)> {
    let read = |path: &str| -> io::Result<String> {
        let mut text = String::new();
        let mut file = File::open(root.join(path))?;
        if path.ends_with(".gz") {
            GzDecoder::new(file).read_to_string(&mut text)?;
        } else {
            file.read_to_string(&mut text)?;
        }
        Ok(text)
    };
    // The kernel's own word first: a file in /boot may be another build's.
    let paths = [
        "proc/config.gz".to_owned(),
        format!("boot/config-{release}"),
        format!("lib/modules/{release}/config"),
        format!("usr/lib/modules/{release}/config"),
    ];
    paths.into_iter().find_map(|path| Some((read(&path).ok()?, format!("/{path}"))))
}

/// The options that a kernel's configuration amounts to, whatever the kernel's age.
fn options(text: &str) -> Options {
    let on = |name: &str| {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
        text.lines().find_map(value).is_some_and(|value| matches!(&*value, "y" | "m"))
    };
    // An option that is off is mentioned too; one that is not mentioned is not known to that kernel, or hidden by another.
    let known = |name: &str| on(name) || text.contains(&format!("# {name} is not set"));
    if !on("CONFIG_VFIO") {
        return Options { generic_atomic64: on("CONFIG_GENERIC_ATOMIC64"), ..Options::NONE };
    }
    // Until Linux 6.5 there were always groups, until 6.1 always containers.
    let group = on("CONFIG_VFIO_GROUP") || !known("CONFIG_VFIO_GROUP");
    let container = if on("CONFIG_VFIO_CONTAINER") || group && !known("CONFIG_VFIO_CONTAINER") {
        Some(Container::Vfio)
    } else {
        on("CONFIG_IOMMUFD_VFIO_CONTAINER").then_some(Container::Iommufd)
    };
    let cdev = on("CONFIG_VFIO_DEVICE_CDEV");
    // Before Linux 7.3 it was for groups only; 7.3 tells by the hidden option whether cdevs have it too.
    let noiommu = on("CONFIG_VFIO_NOIOMMU");
    Options {
        group,
        group_noiommu: on("CONFIG_VFIO_GROUP_NOIOMMU") || noiommu && group,
        cdev,
        cdev_noiommu: on("CONFIG_VFIO_CDEV_NOIOMMU") || noiommu && cdev && on("CONFIG_IOMMUFD_NOIOMMU"),
        container,
        generic_atomic64: on("CONFIG_GENERIC_ATOMIC64"),
    }
}

/// The options as far as nodes and names tell them: what is not loaded is not seen.
fn traces(root: &Path, has_mode: bool) -> Options {
    let there = |path: &str| root.join(path).exists();
    let begins = |directory: &str, name: &str| {
        let entries = fs::read_dir(root.join(directory)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).any(|entry| entry.to_string_lossy().starts_with(name))
    };
    let container = there("dev/vfio/vfio");
    let group = container || there("sys/class/vfio");
    let cdev = there("dev/vfio/devices") || there("sys/class/vfio-dev") && there("dev/iommu");
    Options {
        group,
        group_noiommu: has_mode && group && container,
        cdev,
        // Only a device that has one shows whether the kernel is new enough.
        cdev_noiommu: begins("dev/vfio/devices", "noiommu-vfio"),
        container: container.then_some(Container::Vfio),
        generic_atomic64: false,
    }
}

/// A module of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Module {
    /// Loaded or built in.
    There,
    /// Among the modules of this kernel.
    Loadable,
    /// Nowhere.
    Missing,
}

impl Module {
    /// Looks for the module of a driver of PCI devices.
    pub(crate) fn of_driver(root: &Path, release: &str, name: &str) -> Self {
        if root.join("sys/bus/pci/drivers").join(name).exists() {
            Self::There
        } else {
            Self::find(root, release, name)
        }
    }

    /// Looks for a module; one that is built in and has no parameters may be told as missing.
    pub(crate) fn find(root: &Path, release: &str, name: &str) -> Self {
        let same = |other: &str| other.replace('-', "_") == name.replace('-', "_");
        if root.join("sys/module").join(name.replace('-', "_")).exists() {
            return Self::There;
        }
        // See modules.dep(5): a path, compressed or not, a colon, and what it needs.
        let text = fs::read_to_string(root.join("lib/modules").join(release).join("modules.dep"))
            .unwrap_or_default();
        let stem = |line: &str| {
            let path = line.split(':').next()?;
            Some(path.rsplit('/').next()?.split(".ko").next()?.to_owned())
        };
        if text.lines().filter_map(stem).any(|stem| same(&stem)) { Self::Loadable } else { Self::Missing }
    }
}

/// Loads a module with the machine's modprobe.
pub(crate) fn modprobe(name: &str) -> io::Result<()> {
    let places = ["/sbin/modprobe", "/usr/sbin/modprobe", "/bin/modprobe", "/usr/bin/modprobe"];
    let program = places.iter().map(PathBuf::from).find(|path| path.exists());
    let program = program.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no modprobe"))?;
    let output = Command::new(program).arg("--").arg(name).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("modprobe {name}: {}", said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: &str = "CONFIG_IOMMUFD=y\nCONFIG_IOMMUFD_NOIOMMU=y\nCONFIG_VFIO=y\nCONFIG_VFIO_DEVICE_CDEV=y\n\
        CONFIG_VFIO_GROUP=y\nCONFIG_VFIO_CONTAINER=y\nCONFIG_VFIO_IOMMU_TYPE1=y\nCONFIG_VFIO_NOIOMMU=y\n";

    const GROUP: Options = Options { group: true, container: Some(Container::Vfio), ..Options::NONE };

    #[test]
    fn configurations_of_many_kernels() {
        let with = |changes: Options| changes;
        for (text, options) in [
            ("# CONFIG_VFIO is not set\n# CONFIG_IOMMUFD is not set\n", Options::NONE),
            ("CONFIG_GENERIC_ATOMIC64=y\n", Options { generic_atomic64: true, ..Options::NONE }),
            (REFERENCE, Options::merged(true, Some(Container::Vfio), true, false)),
            // Linux 5.15: groups and containers are no options.
            ("CONFIG_VFIO=m\nCONFIG_VFIO_NOIOMMU=y\n", with(Options { group_noiommu: true, ..GROUP })),
            ("CONFIG_VFIO=m\n# CONFIG_VFIO_NOIOMMU is not set\n", GROUP),
            // Linux 6.12 as Ubuntu has it: cdevs, and no-IOMMU for groups.
            (
                "CONFIG_VFIO=y\nCONFIG_VFIO_GROUP=y\nCONFIG_VFIO_CONTAINER=y\nCONFIG_VFIO_NOIOMMU=y\n\
                 CONFIG_VFIO_DEVICE_CDEV=y\nCONFIG_IOMMUFD=m\n",
                with(Options { group_noiommu: true, cdev: true, ..GROUP }),
            ),
            // iommufd's container.
            (
                "CONFIG_VFIO=y\nCONFIG_VFIO_GROUP=y\n# CONFIG_VFIO_CONTAINER is not set\n\
                 CONFIG_IOMMUFD_VFIO_CONTAINER=y\n",
                with(Options { container: Some(Container::Iommufd), ..GROUP }),
            ),
            // cdevs only: there is no container to be mentioned.
            (
                "CONFIG_VFIO=y\n# CONFIG_VFIO_GROUP is not set\nCONFIG_VFIO_DEVICE_CDEV=y\n\
                 CONFIG_VFIO_NOIOMMU=y\nCONFIG_IOMMUFD_NOIOMMU=y\n",
                Options::merged(false, None, true, false),
            ),
            // The options of the patches, chosen apart.
            (
                "CONFIG_VFIO=y\nCONFIG_VFIO_GROUP=y\nCONFIG_VFIO_CONTAINER=y\n\
                 # CONFIG_VFIO_GROUP_NOIOMMU is not set\nCONFIG_VFIO_DEVICE_CDEV=y\nCONFIG_VFIO_CDEV_NOIOMMU=y\n",
                with(Options { cdev: true, cdev_noiommu: true, ..GROUP }),
            ),
        ] {
            assert_eq!(super::options(text), options, "{text}");
            assert!(options.interfaces().is_ok());
        }
    }

    #[test]
    fn modules() {
        let root = std::env::temp_dir().join(format!("noiommu-modules-{}", std::process::id()));
        fs::create_dir_all(root.join("lib/modules/6.1")).unwrap();
        fs::create_dir_all(root.join("sys/module/vfio_pci")).unwrap();
        fs::write(
            root.join("lib/modules/6.1/modules.dep"),
            "kernel/drivers/uio/uio_pci_generic.ko.xz: kernel/drivers/uio/uio.ko.xz\nkernel/drivers/uio/uio.ko.xz:\n",
        )
        .unwrap();
        let find = |name| Module::find(&root, "6.1", name);
        assert_eq!(find("vfio-pci"), Module::There);
        assert_eq!(find("uio_pci_generic"), Module::Loadable);
        assert_eq!(find("uio"), Module::Loadable);
        assert_eq!(find("vfio"), Module::Missing);
        assert_eq!(Module::find(&root, "6.2", "uio"), Module::Missing);
        assert_eq!(Module::of_driver(&root, "6.1", "uio-pci-generic"), Module::Loadable);
        fs::remove_dir_all(&root).unwrap();
    }
}
