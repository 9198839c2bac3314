//! What is served in this process, and how its nodes are opened.

use std::sync::Arc;

use noiommu_core::Errno;

use super::cdev::CdevFile;
use super::container::ContainerFile;
use super::device::{Device, World};
use super::discovery::{self, Found};
use super::file::File;
use super::group::{Group, GroupFile};
use super::iommufd::{Iommufd, IommufdFile};
use super::memory::ServedMemory;
use super::node::{Node, NodeKind};
use super::settings::{Provider, Settings};
use crate::{Result, memory, optin};

/// Permission bits and device numbers as the kernel gives them; majors of its own range for drivers without a fixed one.
const IOMMU_MODE: u32 = 0o660;
const CONTAINER_MODE: u32 = 0o666;
const DEVICE_MODE: u32 = 0o600;
const MISC_MAJOR: u32 = 10;
const IOMMU_MINOR: u32 = 125;
const CONTAINER_MINOR: u32 = 196;
const GROUP_MAJOR: u32 = 510;
const CDEV_MAJOR: u32 = 511;

/// The kernel's interfaces, served by this process to itself.
pub struct Server {
    world: Arc<World>,
    groups: Vec<Arc<Group>>,
    nodes: Vec<Node>,
    provider: String,
}

impl Server {
    /// Looks for the devices that `settings` ask for, and serves them. Nothing is claimed before a node is opened.
    ///
    /// Where the kernel has no-IOMMU device nodes of its own there is nothing to serve: the answer has no nodes.
    ///
    /// # Errors
    /// [`ErrorKind::NotEnabled`](crate::ErrorKind::NotEnabled): the unsafe opt-in is not given; those of pinning and of
    /// learning physical addresses; [`ErrorKind::NoDevice`](crate::ErrorKind::NoDevice) and
    /// [`ErrorKind::HasIommu`](crate::ErrorKind::HasIommu) for a device that was asked for by its address.
    pub fn start(settings: &Settings) -> Result<Self> {
        if settings.provider == Provider::Auto && discovery::kernel_serves() {
            return Ok(Self::nothing("the kernel itself"));
        }
        let interfaces = settings.interfaces()?;
        let (memory, found) = match settings.provider {
            Provider::Sim => (simulated_or_real(), discovery::simulated()),
            Provider::Auto => {
                let found = discovery::real(&settings.devices)?;
                if !found.iter().all(Found::is_enabled_by_kernel) || found.is_empty() {
                    optin::require()?;
                }
                (ServedMemory::real()?, found)
            }
        };
        let provider = format!("{}, memory pinned by {}", discovery::describe(&found), memory.pin_kind());
        let mut server = Self {
            world: Arc::new(World { memory: memory.clone(), devices: Vec::new() }),
            groups: Vec::new(),
            nodes: Vec::new(),
            provider,
        };
        if interfaces.iommufd() {
            let place = (MISC_MAJOR, IOMMU_MINOR);
            server.nodes.push(node("/dev/iommu", NodeKind::Iommufd, IOMMU_MODE, place));
        }
        if interfaces.container() {
            let place = (MISC_MAJOR, CONTAINER_MINOR);
            server.nodes.push(node("/dev/vfio/vfio", NodeKind::Container, CONTAINER_MODE, place));
        }
        let mut devices = Vec::new();
        for (index, found) in (0..).zip(found) {
            let number = found.group_number(index);
            // The opt-in has been asked for, and none of them has an IOMMU.
            let given = interfaces.probe(true, false)?;
            let group = Group::new(number, given.group);
            let directory = found.directory().to_owned();
            if let Some(kind) = given.group {
                let path = format!("/dev/vfio/{}{number}", kind.prefix());
                let kind = NodeKind::Group { number, devices: vec![directory.clone()] };
                server.nodes.push(node(&path, kind, DEVICE_MODE, (GROUP_MAJOR, index)));
            }
            if let Some(kind) = given.cdev {
                let path = format!("/dev/vfio/devices/{}{index}", kind.prefix());
                let kind = NodeKind::Device { directory, attributes: found.attributes() };
                server.nodes.push(node(&path, kind, DEVICE_MODE, (CDEV_MAJOR, index)));
            }
            devices.push(Arc::new(Device {
                name: found.name().to_owned(),
                address: found.address(),
                served: found.serve(&memory)?,
                group: group.clone(),
                state: std::sync::Mutex::default(),
            }));
            server.groups.push(group);
        }
        server.world = Arc::new(World { memory, devices });
        Ok(server)
    }

    fn nothing(provider: &str) -> Self {
        let world = World { memory: ServedMemory::simulated(), devices: Vec::new() };
        Self { world: Arc::new(world), groups: Vec::new(), nodes: Vec::new(), provider: provider.to_owned() }
    }

    /// What serves, in a few words.
    #[must_use]
    pub fn provider(&self) -> &str {
        &self.provider
    }

    /// The nodes; always the same ones.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Opens a node of [`Server::nodes`].
    ///
    /// # Errors
    /// EPERM: without CAP_SYS_RAWIO, for groups and devices; EBUSY: a group that is open, or one with a bound device;
    /// ENODEV: no such node.
    pub fn open(&self, node: &Node) -> std::result::Result<File, Errno> {
        let Self { world, .. } = self;
        let index = node.minor as usize;
        Ok(match &node.kind {
            NodeKind::Iommufd => Arc::new(IommufdFile(Iommufd::new(&world.memory))),
            NodeKind::Container => Arc::new(ContainerFile(Arc::default())),
            NodeKind::Group { .. } => GroupFile::open(world, self.groups.get(index).ok_or(Errno::ENODEV)?)?,
            NodeKind::Device { .. } => {
                Arc::new(CdevFile::open(world, world.devices.get(index).ok_or(Errno::ENODEV)?)?)
            }
        })
    }
}

/// Simulated devices reach this process's real memory where its physical addresses can be had, else made-up memory.
fn simulated_or_real() -> ServedMemory {
    ServedMemory::real().unwrap_or_else(|error| {
        tracing::debug!(%error, "physical memory is made up");
        ServedMemory::simulated()
    })
}

fn node(path: &str, kind: NodeKind, mode: u32, (major, minor): (u32, u32)) -> Node {
    Node { path: path.into(), kind, mode, major, minor }
}

/// Whether the calling process may serve real devices as far as it can be seen beforehand: what a program that starts others
/// checks first.
///
/// # Errors
/// The first obstacle, with its remedy.
pub fn check(settings: &Settings) -> Result<()> {
    if settings.provider == Provider::Sim || discovery::kernel_serves() {
        return Ok(());
    }
    let found = discovery::real(&settings.devices)?;
    if !found.iter().all(Found::is_enabled_by_kernel) || found.is_empty() {
        optin::require()?;
    }
    memory::Memory::real(memory::PinChoice::Best).map(drop)
}
