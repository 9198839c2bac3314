//! What this process sees in /dev and /sys though the kernel does not have it.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Bound;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use noiommu::serve::{Node, NodeKind};

use crate::raw::system;

/// One place that exists for this process only.
pub(crate) struct Entry {
    /// The whole path, without links in it.
    pub(crate) path: Vec<u8>,
    /// What is there.
    pub(crate) what: What,
    inode: u64,
    /// The number of the file system that it seems to be on.
    device: u64,
    owner: u32,
    /// Seconds since 1970.
    born: i64,
}

/// What is at a place.
pub(crate) enum What {
    /// A device node.
    Node(Node),
    /// A file of sysfs.
    Text(String),
    /// A symbolic link.
    Link(Vec<u8>),
    /// A directory.
    Directory,
}

/// What `stat` tells of a place.
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) owner: u32,
    pub(crate) size: u64,
    pub(crate) links: u32,
    pub(crate) inode: u64,
    pub(crate) device: u64,
    pub(crate) node: (u32, u32),
    pub(crate) born: i64,
}

impl Entry {
    /// The last component of the path.
    pub(crate) fn name(&self) -> &[u8] {
        self.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    }

    /// Whether it is a directory.
    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.what, What::Directory)
    }

    /// The type of an entry of a directory (`d_type`).
    pub(crate) fn kind(&self) -> u8 {
        match self.what {
            What::Node(_) => libc::DT_CHR,
            What::Text(_) => libc::DT_REG,
            What::Link(_) => libc::DT_LNK,
            What::Directory => libc::DT_DIR,
        }
    }

    /// Its number in the file system.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// What `stat` tells of it.
    pub(crate) fn attributes(&self) -> Attributes {
        const SYSFS_FILE: u64 = 4096;
        let (mode, size, links, node) = match &self.what {
            What::Node(node) => (libc::S_IFCHR | (node.mode & 0o7777), 0, 1, (node.major, node.minor)),
            What::Text(_) => (libc::S_IFREG | 0o444, SYSFS_FILE, 1, (0, 0)),
            What::Link(target) => (libc::S_IFLNK | 0o777, target.len() as u64, 1, (0, 0)),
            What::Directory => (libc::S_IFDIR | 0o755, 0, 2, (0, 0)),
        };
        Attributes {
            mode,
            owner: self.owner,
            size,
            links,
            inode: self.inode,
            device: self.device,
            node,
            born: self.born,
        }
    }

    /// Whether a user may do what the three bits (read 4, write 2, execute 1) say; `overrides` stands for CAP_DAC_OVERRIDE,
    /// which lets anybody read and write.
    pub(crate) fn allows(&self, user: u32, group: u32, overrides: bool, wanted: u32) -> bool {
        let mode = self.attributes().mode;
        let granted = if overrides {
            let anybody = mode | mode >> 3 | mode >> 6;
            if self.is_directory() { 7 } else { 6 | anybody }
        } else if user == self.owner {
            mode >> 6
        } else if group == 0 {
            mode >> 3
        } else {
            mode
        };
        wanted & 7 & !granted == 0
    }
}

/// All of them.
pub(crate) struct Overlay {
    entries: BTreeMap<Vec<u8>, Entry>,
}

impl Overlay {
    /// What there is to see when these nodes are served. `owner` has the nodes.
    pub(crate) fn new(nodes: Vec<Node>, owner: u32) -> Self {
        let mut builder = Builder {
            overlay: Self { entries: BTreeMap::new() },
            owner,
            born: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64),
        };
        for node in nodes {
            builder.node(node);
        }
        builder.overlay
    }

    /// What is at this path, which has no links in it. Directories are ours only where the kernel has none.
    pub(crate) fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.entries.get(path).filter(|entry| !entry.is_directory() || !is_real(path))
    }

    /// What of this is in a directory, the kernel's or ours.
    pub(crate) fn children<'a>(&'a self, directory: &[u8]) -> impl Iterator<Item = &'a Entry> + use<'a> {
        let mut prefix = directory.to_vec();
        prefix.push(b'/');
        let length = prefix.len();
        let from = (Bound::Excluded(prefix.clone()), Bound::Unbounded);
        self.entries
            .range::<Vec<u8>, _>(from)
            .take_while(move |(path, _)| path.starts_with(&prefix))
            .filter(move |(path, _)| !path.get(length..).unwrap_or_default().contains(&b'/'))
            .map(|(_, entry)| entry)
    }
}

/// Whether the kernel has something at this path.
pub(crate) fn is_real(path: &[u8]) -> bool {
    let mut with_nul = path.to_vec();
    with_nul.push(0);
    // SAFETY: a string that ends with a NUL.
    let found = unsafe { system!(SYS_faccessat, libc::AT_FDCWD, with_nul.as_ptr(), libc::F_OK) };
    found == 0
}

struct Builder {
    overlay: Overlay,
    owner: u32,
    born: i64,
}

impl Builder {
    /// Adds a place, and the directories above it.
    fn add(&mut self, path: &Path, what: What) {
        for above in path.ancestors().skip(1) {
            let bytes = above.as_os_str().as_bytes();
            if bytes == b"/" || self.overlay.entries.contains_key(bytes) || is_real(bytes) {
                break;
            }
            self.insert(above, What::Directory);
        }
        self.insert(path, what);
    }

    fn insert(&mut self, path: &Path, what: What) {
        /// Numbers that sysfs and devtmpfs, which count from 1, do not come to.
        const FIRST_INODE: u64 = 1 << 40;
        let root = if path.starts_with("/sys") { "/sys" } else { "/dev" };
        let entry = Entry {
            path: path.as_os_str().as_bytes().to_vec(),
            inode: FIRST_INODE + self.overlay.entries.len() as u64,
            device: fs::metadata(root).map_or(0, |metadata| metadata.dev()),
            owner: if matches!(what, What::Node(_)) { self.owner } else { 0 },
            born: self.born,
            what,
        };
        self.overlay.entries.insert(entry.path.clone(), entry);
    }

    fn text(&mut self, path: PathBuf, text: String) {
        self.add(&path, What::Text(text));
    }

    /// A link as sysfs makes them: relative. Left out where there is one.
    fn link(&mut self, path: PathBuf, to: &Path) {
        if fs::symlink_metadata(&path).is_ok() {
            return;
        }
        let from = path.parent().unwrap_or(Path::new("/"));
        // The last component is told even where the link leads up to it.
        let most = to.components().count().saturating_sub(1);
        let same = from.components().zip(to.components()).take_while(|(one, other)| one == other).count();
        let common = same.min(most);
        let mut target: PathBuf = from.components().skip(common).map(|_| "..").collect();
        target.extend(to.components().skip(common));
        self.add(&path, What::Link(target.into_os_string().into_vec()));
    }

    /// A node, and what sysfs says of it.
    fn node(&mut self, node: Node) {
        let Some(name) = node.path.file_name().map(PathBuf::from) else { return };
        let (class, directory) = match &node.kind {
            NodeKind::Iommufd | NodeKind::Container => {
                ("misc", Path::new("/sys/devices/virtual/misc").join(&name))
            }
            NodeKind::Group { number, devices } => {
                self.group(*number, devices);
                ("vfio", Path::new("/sys/devices/virtual/vfio").join(&name))
            }
            NodeKind::Device { directory, attributes } => {
                let device = fs::canonicalize(directory).unwrap_or_else(|_| directory.clone());
                for (name, text) in attributes {
                    self.text(device.join(name), text.clone());
                }
                // What the kernel's device nodes come from.
                self.link(device.join("driver"), Path::new("/sys/bus/pci/drivers/vfio-pci"));
                let directory = device.join("vfio-dev").join(&name);
                self.link(directory.join("device"), &device);
                if let Some(address) = device.file_name() {
                    self.link(Path::new("/sys/bus/pci/devices").join(address), &device);
                }
                ("vfio-dev", directory)
            }
        };
        let number = format!("{}:{}", node.major, node.minor);
        if !is_real(directory.join("dev").as_os_str().as_bytes()) {
            let device_name = node.path.strip_prefix("/dev").unwrap_or(&node.path).display();
            let event = format!("MAJOR={}\nMINOR={}\nDEVNAME={device_name}\n", node.major, node.minor);
            self.text(directory.join("dev"), format!("{number}\n"));
            self.text(directory.join("uevent"), event);
            let class = Path::new("/sys/class").join(class);
            self.link(directory.join("subsystem"), &class);
            self.link(class.join(&name), &directory);
            self.link(Path::new("/sys/dev/char").join(number), &directory);
        }
        let path = node.path.clone();
        self.add(&path, What::Node(node));
    }

    /// The IOMMU group that the kernel would have made for devices without an IOMMU.
    fn group(&mut self, number: u32, devices: &[PathBuf]) {
        let group = Path::new("/sys/kernel/iommu_groups").join(number.to_string());
        for device in devices {
            let device = fs::canonicalize(device).unwrap_or_else(|_| device.clone());
            self.link(device.join("iommu_group"), &group);
            if let Some(address) = device.file_name() {
                self.link(group.join("devices").join(address), &device);
            }
        }
        if !is_real(group.as_os_str().as_bytes()) {
            self.text(group.join("name"), "vfio-noiommu\n".to_owned());
            self.text(group.join("reserved_regions"), String::new());
        }
    }
}
