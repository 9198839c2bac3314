//! Which interfaces exist, as a function of how a kernel is configured.
//!
//! Linux 7.3 has one option for no-IOMMU and derives from it whether groups, character devices (cdevs) or both have it. Here
//! the two are chosen apart, [`Options::group_noiommu`] and [`Options::cdev_noiommu`], and 7.3's choice is
//! [`Options::merged`]. An option whose needs are not met is refused, not switched off or warned about.
//!
//! ```
//! use noiommu_core::vfio::config::{CdevNode, GroupNode, Options};
//!
//! // No noiommu-N node, though there are groups: only the cdev was asked for.
//! let options = Options { group: true, cdev: true, cdev_noiommu: true, ..Options::NONE };
//! let nodes = options.interfaces()?.probe(true, false).unwrap();
//! assert_eq!((nodes.group, nodes.cdev), (None, Some(CdevNode::Noiommu)));
//! // A device with an IOMMU keeps its group.
//! let nodes = options.interfaces()?.probe(true, true).unwrap();
//! assert_eq!((nodes.group, nodes.cdev), (Some(GroupNode::Iommu), Some(CdevNode::Iommu)));
//! # Ok::<(), noiommu_core::vfio::config::ConfigError>(())
//! ```

use core::fmt;

use crate::Errno;

/// Who provides the container, `/dev/vfio/vfio`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Container {
    /// VFIO itself (CONFIG_VFIO_CONTAINER).
    Vfio,
    /// iommufd in its place (CONFIG_IOMMUFD_VFIO_CONTAINER), which every iommufd can be then.
    Iommufd,
}

impl Container {
    /// The kernel's option.
    #[must_use]
    pub const fn option(self) -> &'static str {
        match self {
            Self::Vfio => "CONFIG_VFIO_CONTAINER",
            Self::Iommufd => "CONFIG_IOMMUFD_VFIO_CONTAINER",
        }
    }
}

/// What is switched on. Any combination can be written down; [`Options::interfaces`] tells whether it makes sense.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Options {
    /// Groups, `/dev/vfio/N` (CONFIG_VFIO_GROUP).
    pub group: bool,
    /// Groups of devices without an IOMMU, `/dev/vfio/noiommu-N` (CONFIG_VFIO_GROUP_NOIOMMU).
    pub group_noiommu: bool,
    /// Devices as files of their own, `/dev/vfio/devices/vfioN` (CONFIG_VFIO_DEVICE_CDEV), which take an iommufd.
    pub cdev: bool,
    /// The same of devices without an IOMMU, `/dev/vfio/devices/noiommu-vfioN` (CONFIG_VFIO_CDEV_NOIOMMU).
    pub cdev_noiommu: bool,
    /// Containers, which groups are put into.
    pub container: Option<Container>,
    /// 64-bit atomics are emulated by locks (CONFIG_GENERIC_ATOMIC64): the page table that answers for physical addresses
    /// cannot work so.
    pub generic_atomic64: bool,
}

impl Options {
    /// Nothing.
    pub const NONE: Self = Self {
        group: false,
        group_noiommu: false,
        cdev: false,
        cdev_noiommu: false,
        container: None,
        generic_atomic64: false,
    };

    /// The options of Linux 7.3 with CONFIG_VFIO_NOIOMMU set wherever it can be: with groups only if there is a container,
    /// since they would be of no use; without groups only if there are cdevs that can have it. Without groups there is no
    /// container, whatever is asked for.
    #[must_use]
    pub const fn merged(
        group: bool,
        container: Option<Container>,
        cdev: bool,
        generic_atomic64: bool,
    ) -> Self {
        let container = if group { container } else { None };
        let offered = !group || container.is_some();
        Self {
            group,
            group_noiommu: offered && group,
            cdev,
            cdev_noiommu: offered && cdev && !generic_atomic64,
            container,
            generic_atomic64,
        }
    }

    /// The interfaces that a kernel configured so has.
    ///
    /// # Errors
    /// The first need that is not met.
    pub const fn interfaces(self) -> Result<Interfaces, ConfigError> {
        match self {
            Self { group: false, container: Some(container), .. } => {
                Err(ConfigError::ContainerWithoutGroup(container))
            }
            Self { group: false, group_noiommu: true, .. } => Err(ConfigError::GroupNoiommuWithoutGroup),
            Self { group_noiommu: true, container: None, .. } => {
                Err(ConfigError::GroupNoiommuWithoutContainer)
            }
            Self { cdev: false, cdev_noiommu: true, .. } => Err(ConfigError::CdevNoiommuWithoutCdev),
            Self { cdev_noiommu: true, generic_atomic64: true, .. } => {
                Err(ConfigError::CdevNoiommuWithGenericAtomic64)
            }
            _ => Ok(Interfaces(self)),
        }
    }
}

/// An option whose needs are not met.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ConfigError {
    /// Only groups are put into containers.
    ContainerWithoutGroup(Container),
    /// There are no groups that could have it.
    GroupNoiommuWithoutGroup,
    /// The groups could not be put into a container, and no device be got from them.
    GroupNoiommuWithoutContainer,
    /// There are no cdevs that could have it.
    CdevNoiommuWithoutCdev,
    /// The page table behind it needs 64-bit atomics.
    CdevNoiommuWithGenericAtomic64,
}

impl ConfigError {
    /// The kernel's name of the option that is refused.
    #[must_use]
    pub const fn option(self) -> &'static str {
        match self {
            Self::ContainerWithoutGroup(container) => container.option(),
            Self::GroupNoiommuWithoutGroup | Self::GroupNoiommuWithoutContainer => {
                "CONFIG_VFIO_GROUP_NOIOMMU"
            }
            Self::CdevNoiommuWithoutCdev | Self::CdevNoiommuWithGenericAtomic64 => "CONFIG_VFIO_CDEV_NOIOMMU",
        }
    }

    /// What it needs and has not.
    #[must_use]
    pub const fn need(self) -> &'static str {
        match self {
            Self::ContainerWithoutGroup(_) | Self::GroupNoiommuWithoutGroup => "CONFIG_VFIO_GROUP",
            Self::GroupNoiommuWithoutContainer => "CONFIG_VFIO_CONTAINER or CONFIG_IOMMUFD_VFIO_CONTAINER",
            Self::CdevNoiommuWithoutCdev => "CONFIG_VFIO_DEVICE_CDEV",
            Self::CdevNoiommuWithGenericAtomic64 => "CONFIG_GENERIC_ATOMIC64 to be off",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::ContainerWithoutGroup(_) => "switch groups on, or the container off",
            Self::GroupNoiommuWithoutGroup => "switch groups on, or no-IOMMU for groups off",
            Self::GroupNoiommuWithoutContainer => {
                "switch a container on; or no-IOMMU for groups off, cdevs can have it alone"
            }
            Self::CdevNoiommuWithoutCdev => "switch cdevs on, or no-IOMMU for cdevs off",
            Self::CdevNoiommuWithGenericAtomic64 => {
                "switch no-IOMMU for cdevs off: this machine has no 64-bit compare-and-swap; groups can have it"
            }
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.option())?;
        f.write_str(" needs ")?;
        f.write_str(self.need())
    }
}

impl core::error::Error for ConfigError {}

/// The group of a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GroupNode {
    /// The group that its IOMMU put it in, `/dev/vfio/N`.
    Iommu,
    /// One of its own, in place of an IOMMU's, `/dev/vfio/noiommu-N`.
    Noiommu,
}

impl GroupNode {
    /// The name without the group's number.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Iommu => "",
            Self::Noiommu => "noiommu-",
        }
    }
}

/// The character device of a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CdevNode {
    /// `/dev/vfio/devices/vfioN`.
    Iommu,
    /// `/dev/vfio/devices/noiommu-vfioN`.
    Noiommu,
}

impl CdevNode {
    /// The name without the device's number.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Iommu => "vfio",
            Self::Noiommu => "noiommu-vfio",
        }
    }
}

/// The files that a device got.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DeviceNodes {
    /// Its group.
    pub group: Option<GroupNode>,
    /// Its cdev.
    pub cdev: Option<CdevNode>,
}

impl DeviceNodes {
    /// Whether the kernel is tainted (U) by giving them out.
    #[must_use]
    pub const fn taints(self) -> bool {
        matches!(self.group, Some(GroupNode::Noiommu)) || matches!(self.cdev, Some(CdevNode::Noiommu))
    }
}

/// What can be done through an interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Feature {
    /// Regions, interrupts, resets of the device.
    Device,
    /// Memory mapped for DMA by a container.
    Container,
    /// Memory mapped for DMA by an IOAS of an iommufd; without an IOMMU its physical addresses.
    Ioas,
}

/// How a device is reached.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Interface {
    /// Through its group.
    Group,
    /// As a character device.
    Cdev,
}

/// The interfaces of a kernel whose options make sense.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Interfaces(Options);

impl Interfaces {
    /// The options.
    #[must_use]
    pub const fn options(self) -> Options {
        self.0
    }

    /// Whether there is `/dev/vfio/vfio`.
    #[must_use]
    pub const fn container(self) -> bool {
        self.0.container.is_some()
    }

    /// Whether there is `/dev/iommu`. Kernels may have one without a use for it here; they count as without.
    #[must_use]
    pub const fn iommufd(self) -> bool {
        self.0.cdev || matches!(self.0.container, Some(Container::Iommufd))
    }

    /// What becomes of a device that is given to a VFIO driver. `unsafe_mode` is the parameter
    /// `enable_unsafe_noiommu_mode` at that time, `has_iommu` whether an IOMMU driver manages the device.
    ///
    /// # Errors
    /// EINVAL: it has no IOMMU, and the unsafe mode is off or no option is for such devices.
    pub const fn probe(self, unsafe_mode: bool, has_iommu: bool) -> Result<DeviceNodes, Errno> {
        let Options { group, group_noiommu, cdev, cdev_noiommu, .. } = self.0;
        if has_iommu {
            return Ok(DeviceNodes {
                group: if group { Some(GroupNode::Iommu) } else { None },
                cdev: if cdev { Some(CdevNode::Iommu) } else { None },
            });
        }
        if !unsafe_mode || !(group_noiommu || cdev_noiommu) {
            return Err(Errno::EINVAL);
        }
        Ok(DeviceNodes {
            group: if group_noiommu { Some(GroupNode::Noiommu) } else { None },
            cdev: if cdev_noiommu { Some(CdevNode::Noiommu) } else { None },
        })
    }

    /// Whether a device with these files offers a feature through an interface. Without an IOMMU a group offers no DMA
    /// memory at all: what its container maps would have to be translated.
    #[must_use]
    pub const fn offers(self, nodes: DeviceNodes, feature: Feature, interface: Interface) -> bool {
        match (interface, feature) {
            (Interface::Group, Feature::Device) => nodes.group.is_some(),
            (Interface::Group, Feature::Container) => {
                matches!(nodes.group, Some(GroupNode::Iommu)) && self.container()
            }
            // An iommufd in place of a container.
            (Interface::Group, Feature::Ioas) => {
                matches!(nodes.group, Some(GroupNode::Iommu)) && self.iommufd()
            }
            (Interface::Cdev, Feature::Device | Feature::Ioas) => nodes.cdev.is_some(),
            (Interface::Cdev, Feature::Container) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// Every combination of options.
    fn all_options() -> Vec<Options> {
        const CONTAINERS: [Option<Container>; 3] = [None, Some(Container::Vfio), Some(Container::Iommufd)];
        let bit = |number: u32, bit: u32| number >> bit & 1 == 1;
        let mut all = Vec::new();
        for container in CONTAINERS {
            all.extend((0..32).map(|bits| Options {
                group: bit(bits, 0),
                group_noiommu: bit(bits, 1),
                cdev: bit(bits, 2),
                cdev_noiommu: bit(bits, 3),
                container,
                generic_atomic64: bit(bits, 4),
            }));
        }
        assert_eq!(all.len(), 96);
        all
    }

    /// Whether options fit a row such as `yn-y v -`: group, group_noiommu, cdev, cdev_noiommu; container (`n`, `v`, `i`);
    /// generic_atomic64. `-` is anything.
    fn fits(options: Options, row: &str) -> bool {
        let yes = |on: bool| if on { 'y' } else { 'n' };
        let Options { group, group_noiommu, cdev, cdev_noiommu, container, generic_atomic64 } = options;
        let container = match container {
            None => 'n',
            Some(Container::Vfio) => 'v',
            Some(Container::Iommufd) => 'i',
        };
        let is =
            [yes(group), yes(group_noiommu), yes(cdev), yes(cdev_noiommu), container, yes(generic_atomic64)];
        let row: Vec<char> = row.chars().filter(|letter| *letter != ' ').collect();
        assert_eq!(row.len(), is.len());
        row.iter().zip(is).all(|(row, is)| *row == '-' || *row == is)
    }

    /// What the documents say is refused, in no order: a row and the error.
    const REFUSED: [(&str, ConfigError); 6] = [
        ("n--- v -", ConfigError::ContainerWithoutGroup(Container::Vfio)),
        ("n--- i -", ConfigError::ContainerWithoutGroup(Container::Iommufd)),
        ("ny-- - -", ConfigError::GroupNoiommuWithoutGroup),
        ("-y-- n -", ConfigError::GroupNoiommuWithoutContainer),
        ("--ny - -", ConfigError::CdevNoiommuWithoutCdev),
        ("---y - y", ConfigError::CdevNoiommuWithGenericAtomic64),
    ];

    /// What becomes of devices otherwise: a row, the unsafe mode, an IOMMU; the two names and the taint, or EINVAL.
    type Fate = Option<(Option<&'static str>, Option<&'static str>, bool)>;
    const PROBED: [(&str, &str, Fate); 9] = [
        ("n-n- - -", "-y", Some((None, None, false))),
        ("n-y- - -", "-y", Some((None, Some("vfio"), false))),
        ("y-n- - -", "-y", Some((Some(""), None, false))),
        ("y-y- - -", "-y", Some((Some(""), Some("vfio"), false))),
        ("---- - -", "nn", None),
        ("-n-n - -", "yn", None),
        ("-y-n - -", "yn", Some((Some("noiommu-"), None, true))),
        ("-n-y - -", "yn", Some((None, Some("noiommu-vfio"), true))),
        ("-y-y - -", "yn", Some((Some("noiommu-"), Some("noiommu-vfio"), true))),
    ];

    #[test]
    fn the_whole_truth_table() {
        let (mut refused, mut probed) = (0, 0);
        for options in all_options() {
            let errors: Vec<ConfigError> =
                REFUSED.iter().filter(|(row, _)| fits(options, row)).map(|(_, error)| *error).collect();
            let interfaces = match options.interfaces() {
                Err(error) => {
                    assert!(errors.contains(&error), "{options:?}: {error}");
                    refused += 1;
                    continue;
                }
                Ok(interfaces) => interfaces,
            };
            assert!(errors.is_empty(), "{options:?} is not refused: {errors:?}");
            assert_eq!(interfaces.options(), options);
            for (mode, iommu) in [(false, false), (false, true), (true, false), (true, true)] {
                let is = [if mode { 'y' } else { 'n' }, if iommu { 'y' } else { 'n' }];
                let fates: Vec<Fate> = PROBED
                    .iter()
                    .filter(|(row, world, _)| {
                        fits(options, row) && world.chars().zip(is).all(|(row, is)| row == '-' || row == is)
                    })
                    .map(|(.., fate)| *fate)
                    .collect();
                assert_eq!(fates.len(), 1, "{options:?} {is:?}: {fates:?}");
                let nodes = interfaces.probe(mode, iommu);
                let fate = nodes.map(|nodes| {
                    (nodes.group.map(GroupNode::prefix), nodes.cdev.map(CdevNode::prefix), nodes.taints())
                });
                assert_eq!(fate, fates[0].ok_or(Errno::EINVAL), "{options:?} {is:?}");
                if let Ok(nodes) = nodes {
                    features(interfaces, nodes, iommu);
                }
                probed += 1;
            }
        }
        // What makes sense, counted apart: 6 ways to have groups, containers and their no-IOMMU; 3 to have cdevs with 64-bit
        // atomics and 2 without.
        assert_eq!((refused, probed), (96 - 6 * (3 + 2), 6 * (3 + 2) * 4));
    }

    /// The documentation's table of features, and for devices with an IOMMU what is older than it.
    fn features(interfaces: Interfaces, nodes: DeviceNodes, has_iommu: bool) {
        let Options { container, cdev, .. } = interfaces.options();
        let column = |interface| {
            [Feature::Device, Feature::Container, Feature::Ioas]
                .map(|feature| interfaces.offers(nodes, feature, interface))
        };
        let group = match (nodes.group, has_iommu) {
            (None, _) => [false, false, false],
            (Some(_), false) => [true, false, false],
            (Some(_), true) => [true, container.is_some(), cdev || container == Some(Container::Iommufd)],
        };
        assert_eq!(column(Interface::Group), group, "{interfaces:?} {nodes:?}");
        let cdev = nodes.cdev.is_some();
        assert_eq!(column(Interface::Cdev), [cdev, false, cdev], "{interfaces:?} {nodes:?}");
    }

    /// GROUP, container, CDEV; the names of a device without an IOMMU.
    #[test]
    fn the_six_cases_of_the_merged_kernel() {
        const YES: Option<Container> = Some(Container::Vfio);
        let case = |group, container, cdev, generic_atomic64| {
            let interfaces = Options::merged(group, container, cdev, generic_atomic64).interfaces().unwrap();
            assert_eq!(interfaces.probe(false, false), Err(Errno::EINVAL));
            interfaces
                .probe(true, false)
                .ok()
                .map(|nodes| (nodes.group.map(GroupNode::prefix), nodes.cdev.map(CdevNode::prefix)))
        };
        assert_eq!(case(true, YES, false, false), Some((Some("noiommu-"), None)));
        assert_eq!(case(true, None, false, false), None);
        assert_eq!(case(true, YES, true, false), Some((Some("noiommu-"), Some("noiommu-vfio"))));
        assert_eq!(case(true, None, true, false), None);
        for any in [None, YES, Some(Container::Iommufd)] {
            assert_eq!(case(false, any, true, false), Some((None, Some("noiommu-vfio"))));
            assert_eq!(case(false, any, false, false), None);
        }
        // The cdev needs 64-bit atomics; the group does not.
        assert_eq!(case(true, YES, true, true), Some((Some("noiommu-"), None)));
        assert_eq!(case(true, Some(Container::Iommufd), true, true), Some((Some("noiommu-"), None)));
        assert_eq!(case(false, None, true, true), None);
        assert_eq!(case(true, None, true, true), None);
    }

    #[test]
    fn a_merged_kernel_is_never_refused() {
        for options in all_options() {
            let Options { group, container, cdev, generic_atomic64, .. } = options;
            let merged = Options::merged(group, container, cdev, generic_atomic64);
            assert!(merged.interfaces().is_ok(), "{merged:?}");
            assert_eq!((merged.group, merged.cdev, merged.generic_atomic64), (group, cdev, generic_atomic64));
        }
    }

    #[test]
    fn a_refusal_names_the_option_what_it_needs_and_a_remedy() {
        for (_, error) in REFUSED {
            let text = std::format!("{error}");
            assert!(text.starts_with(error.option()) && text.ends_with(error.need()), "{text}");
            assert!(error.option().starts_with("CONFIG_") && error.need().starts_with("CONFIG_"));
            assert!(error.remedy().contains("switch"), "{}", error.remedy());
        }
        let error = ConfigError::CdevNoiommuWithGenericAtomic64;
        assert_eq!(
            std::format!("{error}"),
            "CONFIG_VFIO_CDEV_NOIOMMU needs CONFIG_GENERIC_ATOMIC64 to be off"
        );
    }
}
