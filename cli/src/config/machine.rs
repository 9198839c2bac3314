//! What the running kernel has, as a question to the rules.

use std::path::Path;

use noiommu::kernel;

use super::{ModeSource, Question};

/// Looks at the machine whose files are below `root` and whose kernel is `release`.
pub(super) fn look(root: &Path, release: &str) -> Question {
    let vfio = kernel::vfio(root, release);
    let mode_source =
        if vfio.unsafe_mode.is_some() { ModeSource::Parameter } else { ModeSource::NoParameter };
    Question {
        options: vfio.options,
        unsafe_mode: vfio.unsafe_mode == Some(true),
        source: vfio.source,
        mode_source,
        case: None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::PathBuf;

    use noiommu_core::vfio::config::{Container, Options};

    use super::*;

    const UNSAFE_MODE: &str = "sys/module/vfio/parameters/enable_unsafe_noiommu_mode";

    const REFERENCE: &str = "CONFIG_IOMMUFD=y\nCONFIG_IOMMUFD_NOIOMMU=y\nCONFIG_VFIO=y\nCONFIG_VFIO_DEVICE_CDEV=y\n\
        CONFIG_VFIO_GROUP=y\nCONFIG_VFIO_CONTAINER=y\nCONFIG_VFIO_IOMMU_TYPE1=y\nCONFIG_VFIO_NOIOMMU=y\n";

    const GROUP: Options = Options { group: true, container: Some(Container::Vfio), ..Options::NONE };

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
        assert_eq!(question.options, Options::merged(true, Some(Container::Vfio), true, false));
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
