//! What the running kernel has: its configuration where it can be read, else the traces that it leaves.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use flate2::read::GzDecoder;
use noiommu_core::vfio::config::{Container, Options};

use super::{ModeSource, Question};

/// The parameter that a loaded VFIO has, if it can do without an IOMMU.
const UNSAFE_MODE: &str = "sys/module/vfio/parameters/enable_unsafe_noiommu_mode";

/// Looks at the machine whose files are below `root` and whose kernel is `release`.
pub(crate) fn look(root: &Path, release: &str) -> Question {
    let mode = fs::read_to_string(root.join(UNSAFE_MODE)).ok();
    let (options, source) = match configuration(root, release) {
        Some((text, path)) => (of_configuration(&text), path),
        None => (of_traces(root, mode.is_some()), "nodes in /dev and /sys, no configuration".to_owned()),
    };
    let unsafe_mode = mode.as_deref().is_some_and(|mode| matches!(mode.trim(), "Y" | "y" | "1"));
    let mode_source = if mode.is_some() { ModeSource::Parameter } else { ModeSource::NoParameter };
    Question { options, unsafe_mode, source, mode_source, case: None }
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
fn of_configuration(text: &str) -> Options {
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
fn of_traces(root: &Path, has_mode: bool) -> Options {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::path::PathBuf;

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
            assert_eq!(of_configuration(text), options, "{text}");
            assert!(options.interfaces().is_ok());
        }
    }

    /// A made-up machine's files.
    struct Files(PathBuf);

    impl Files {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("noiommu-config-{name}-{}", std::process::id()));
            fs::create_dir_all(&root).unwrap();
            Self(root)
        }

        fn write(&self, path: &str, bytes: &[u8]) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_kernels_own_word_comes_first() {
        let files = Files::new("own");
        let question = look(&files.0, "6.1.0");
        assert_eq!((question.options, question.unsafe_mode), (Options::NONE, false));
        assert_eq!(question.mode_source, ModeSource::NoParameter);
        files.write("boot/config-6.1.0", b"CONFIG_VFIO=m\n");
        files.write("boot/config-6.1.1", REFERENCE.as_bytes());
        let question = look(&files.0, "6.1.0");
        assert_eq!((question.options, &*question.source), (GROUP, "/boot/config-6.1.0"));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(REFERENCE.as_bytes()).unwrap();
        files.write("proc/config.gz", &gzip.finish().unwrap());
        files.write(UNSAFE_MODE, b"Y\n");
        let question = look(&files.0, "6.1.0");
        assert_eq!(question.options, of_configuration(REFERENCE));
        assert!(question.unsafe_mode);
        assert_eq!(&*question.source, "/proc/config.gz");
        assert_eq!(question.mode_source, ModeSource::Parameter);
        files.write(UNSAFE_MODE, b"N\n");
        assert!(!look(&files.0, "6.1.0").unsafe_mode);
        // A file that cannot be unpacked is no configuration.
        files.write("proc/config.gz", b"not gzip");
        assert_eq!(look(&files.0, "6.1.0").source, "/boot/config-6.1.0");
    }

    #[test]
    fn without_a_configuration_nodes_tell() {
        let files = Files::new("nodes");
        files.write("dev/vfio/vfio", b"");
        let question = look(&files.0, "6.1.0");
        assert_eq!(question.options, GROUP);
        assert!(question.source.starts_with("nodes"));
        files.write(UNSAFE_MODE, b"N\n");
        assert_eq!(look(&files.0, "6.1.0").options, Options { group_noiommu: true, ..GROUP });
        files.write("dev/vfio/devices/vfio0", b"");
        let cdevs = Options { group_noiommu: true, cdev: true, ..GROUP };
        assert_eq!(look(&files.0, "6.1.0").options, cdevs);
        files.write("dev/vfio/devices/noiommu-vfio1", b"");
        assert_eq!(look(&files.0, "6.1.0").options, Options { cdev_noiommu: true, ..cdevs });
    }
}
