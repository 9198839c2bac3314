//! What is so on the machine: gathered once, judged by nobody here.
//!
//! All that files tell is read below a root directory, so that tests make up machines; what only a try tells comes from a
//! [`Process`].

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use noiommu::{Error, ErrorKind, PinChoice, PinKind};
use noiommu_core::Errno;

use crate::config::{Question, machine};

/// Bits of capabilities, as *include/uapi/linux/capability.h* numbers them.
pub(super) const SYS_RAWIO: Capability = Capability { bit: 17, name: "CAP_SYS_RAWIO" };
pub(super) const SYS_ADMIN: Capability = Capability { bit: 21, name: "CAP_SYS_ADMIN" };
pub(super) const IPC_LOCK: Capability = Capability { bit: 14, name: "CAP_IPC_LOCK" };

/// A capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capability {
    bit: u8,
    pub(super) name: &'static str,
}

/// Capabilities, a bit for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capabilities(pub(super) u64);

impl Capabilities {
    pub(super) fn has(self, capability: Capability) -> bool {
        self.0 >> capability.bit & 1 == 1
    }

    #[cfg(test)]
    pub(super) fn without(self, capability: Capability) -> Self {
        Self(self.0 & !(1 << capability.bit))
    }
}

/// Why the kit refuses something.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refused {
    pub(super) kind: ErrorKind,
    pub(super) errno: Errno,
    pub(super) cause: String,
    pub(super) remedy: Option<String>,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self {
            kind: error.kind(),
            errno: error.errno(),
            cause: error.cause().to_owned(),
            remedy: error.remedy().map(str::to_owned),
        }
    }
}

/// What only this process can find out, by trying.
pub(super) trait Process {
    /// Whether the engine takes the opt-in for given.
    fn is_opted_in(&self) -> bool;
    /// Whether physical addresses are shown.
    fn frames(&self) -> Result<(), Refused>;
    /// Whether a source of pins can be opened.
    fn pins(&self, choice: PinChoice) -> Result<PinKind, Refused>;
    /// One page pinned, looked up, and let go.
    fn proof(&self) -> Result<PinKind, Refused>;
    /// The program's own file.
    fn program(&self) -> PathBuf;
}

/// The process that runs this.
pub(super) struct OwnProcess;

impl Process for OwnProcess {
    fn is_opted_in(&self) -> bool {
        noiommu::optin::is_enabled()
    }

    fn frames(&self) -> Result<(), Refused> {
        Ok(noiommu::machine::check_frames()?)
    }

    fn pins(&self, choice: PinChoice) -> Result<PinKind, Refused> {
        Ok(noiommu::machine::check_pins(choice)?)
    }

    fn proof(&self) -> Result<PinKind, Refused> {
        Ok(noiommu::machine::prove_pins(PinChoice::Best)?)
    }

    fn program(&self) -> PathBuf {
        std::env::current_exe().unwrap_or_else(|_| "noiommu".into())
    }
}

/// Where a module of the kernel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Module {
    /// Loaded, or built in.
    Loaded,
    /// modprobe would find it.
    Loadable,
    Absent,
}

/// A file as `lstat` tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) path: String,
    pub(super) owner: u32,
    /// Permissions, without the file's kind.
    pub(super) mode: u32,
    pub(super) is_link: bool,
}

/// Huge pages of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HugePages {
    pub(super) kib: u64,
    pub(super) reserved: u64,
    pub(super) free: u64,
}

/// A PCI device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PciDevice {
    pub(super) address: String,
    pub(super) driver: Option<String>,
    pub(super) driver_override: Option<String>,
    /// `noiommu bind` has bound it, and so set the override. Only root sees that.
    pub(super) is_bound: bool,
    /// An IOMMU serves it.
    pub(super) has_iommu: bool,
    /// Its group is the dummy of the kernel's own no-IOMMU mode.
    pub(super) has_noiommu_group: bool,
    /// Its no-IOMMU node as a device of VFIO.
    pub(super) has_noiommu_cdev: bool,
    pub(super) is_bridge: bool,
    /// The ways to reset it.
    pub(super) resets: Vec<String>,
}

/// What this process may do, and where it lives.
pub(super) struct Rights {
    pub(super) user: u32,
    pub(super) effective: Capabilities,
    pub(super) bounding: Capabilities,
    /// /proc/self/uid_map, one range a line.
    pub(super) uid_map: String,
    /// A seccomp filter watches over this process.
    pub(super) is_filtered: bool,
    /// What speaks for a container.
    pub(super) container: Vec<&'static str>,
    /// The program's own file.
    pub(super) program: PathBuf,
}

impl Rights {
    /// Reads them below `root`.
    pub(super) fn read(root: &Path, program: PathBuf) -> Self {
        let files = Files(root);
        let status = files.text("proc/self/status").unwrap_or_default();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let set =
            |name| Capabilities(field(name).and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0));
        // The second one is the effective one.
        let user = field("Uid:").and_then(|ids| ids.split_ascii_whitespace().nth(1)?.parse().ok());
        Self {
            user: user.unwrap_or(u32::MAX),
            effective: set("CapEff:"),
            bounding: set("CapBnd:"),
            uid_map: files.text("proc/self/uid_map").unwrap_or_default(),
            is_filtered: field("Seccomp:") == Some("2"),
            container: files.container(),
            program,
        }
    }

    /// Whether user 0 here is user 0 of the machine: capabilities count in the first user namespace alone.
    pub(super) fn is_first_user_namespace(&self) -> bool {
        // A kernel without namespaces has no such file.
        if self.uid_map.is_empty() {
            return true;
        }
        let numbers: Vec<u64> =
            self.uid_map.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect();
        numbers == [0, 0, u64::from(u32::MAX)]
    }
}

/// All that the checks judge by.
pub(super) struct Facts {
    pub(super) release: String,
    pub(super) too_old: Option<Refused>,
    /// The kernel's options and VFIO's unsafe mode.
    pub(super) vfio: Question,
    pub(super) command_line: String,
    pub(super) encryption: Option<Refused>,
    pub(super) devices: Vec<PciDevice>,
    pub(super) vfio_module: Module,
    pub(super) vfio_pci: Module,
    pub(super) uio_pci_generic: Module,
    pub(super) opted_in: bool,
    /// The directory of the opt-in and what is in it.
    pub(super) opt_in_files: Vec<Node>,
    pub(super) rights: Rights,
    pub(super) sys_is_read_only: bool,
    /// The trees of cgroups are mounted read-only.
    pub(super) cgroups_are_read_only: bool,
    /// The socket of the guardian's service is there.
    pub(super) has_guardian_service: bool,
    pub(super) frames: Result<(), Refused>,
    /// kernel.io_uring_disabled, where the kernel has it.
    pub(super) io_uring_disabled: Option<u32>,
    pub(super) io_uring: Result<PinKind, Refused>,
    pub(super) af_xdp: Result<PinKind, Refused>,
    pub(super) proof: Result<PinKind, Refused>,
    /// RLIMIT_MEMLOCK in bytes; `None` is unlimited.
    pub(super) memlock: Option<u64>,
    /// The word in force in /sys/kernel/security/lockdown.
    pub(super) lockdown: Option<String>,
    pub(super) secure_boot: Option<bool>,
    pub(super) huge_pages: Vec<HugePages>,
    /// The mode of transparent huge pages.
    pub(super) thp: Option<String>,
    pub(super) nodes: Vec<Node>,
}

impl Facts {
    /// Looks at the machine whose files are below `root`, and at this process.
    pub(super) fn read(root: &Path, process: &dyn Process) -> Self {
        let files = Files(root);
        let release = files.text("proc/sys/kernel/osrelease").unwrap_or_else(noiommu::kernel_release);
        let cpuinfo = files.text("proc/cpuinfo").unwrap_or_default();
        let [vfio_module, vfio_pci, uio_pci_generic] =
            ["vfio", "vfio-pci", "uio_pci_generic"].map(|name| files.module(name, &release));
        Self {
            too_old: noiommu::machine::check_kernel(&release).err().map(Refused::from),
            vfio: machine::look(root, &release),
            command_line: files.text("proc/cmdline").unwrap_or_default(),
            encryption: noiommu::machine::check_encryption(&cpuinfo, &root.join("dev"))
                .err()
                .map(Refused::from),
            devices: files.devices(),
            vfio_module,
            vfio_pci,
            uio_pci_generic,
            opted_in: process.is_opted_in(),
            opt_in_files: files.nodes(&["run/noiommu"], &["run/noiommu"]),
            rights: Rights::read(root, process.program()),
            sys_is_read_only: files.is_read_only(|place| place == "/sys"),
            cgroups_are_read_only: files.is_read_only(|place| place.starts_with("/sys/fs/cgroup")),
            has_guardian_service: files.exists(noiommu::guardian::SOCKET.trim_start_matches('/')),
            frames: process.frames(),
            io_uring_disabled: files.number("proc/sys/kernel/io_uring_disabled"),
            io_uring: process.pins(PinChoice::IoUring),
            af_xdp: process.pins(PinChoice::AfXdp),
            proof: process.proof(),
            memlock: files.memlock(),
            lockdown: files.text("sys/kernel/security/lockdown").as_deref().and_then(chosen),
            secure_boot: files.secure_boot(),
            huge_pages: files.huge_pages(),
            thp: files.text("sys/kernel/mm/transparent_hugepage/enabled").as_deref().and_then(chosen),
            nodes: files.nodes(&["dev/iommu"], &["dev/vfio", "dev/vfio/devices"]),
            release,
        }
    }

    /// Whether drivers are kept from the files of PCI devices.
    pub(super) fn is_locked_down(&self) -> bool {
        matches!(self.lockdown.as_deref(), Some("integrity" | "confidentiality"))
    }

    /// Whether this kernel has a way of its own for devices without an IOMMU.
    pub(super) fn kernel_can(&self) -> bool {
        self.vfio.options.group_noiommu || self.vfio.options.cdev_noiommu
    }
}

/// The word in brackets, as /sys shows a choice.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// The files of a machine.
struct Files<'a>(&'a Path);

impl Files<'_> {
    fn text(&self, path: &str) -> Option<String> {
        let bytes = fs::read(self.0.join(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    fn number<T: std::str::FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    fn exists(&self, path: &str) -> bool {
        self.0.join(path).symlink_metadata().is_ok()
    }

    /// What is in a directory, in order.
    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.0.join(directory)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    fn link_name(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.0.join(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    fn node(&self, path: &str) -> Option<Node> {
        let metadata = self.0.join(path).symlink_metadata().ok()?;
        Some(Node {
            path: format!("/{path}"),
            owner: metadata.uid(),
            mode: metadata.mode() & 0o7777,
            is_link: metadata.is_symlink(),
        })
    }

    /// Nodes by their paths, and those in directories that are none themselves.
    fn nodes(&self, paths: &[&str], directories: &[&str]) -> Vec<Node> {
        let mut all: Vec<Node> = paths.iter().filter_map(|path| self.node(path)).collect();
        for directory in directories {
            for name in self.names(directory) {
                let path = format!("{directory}/{name}");
                if !self.0.join(&path).is_dir() {
                    all.extend(self.node(&path));
                }
            }
        }
        all
    }

    fn module(&self, name: &str, release: &str) -> Module {
        let plain = name.replace('-', "_");
        let listed = |list: &str| {
            ["lib/modules", "usr/lib/modules"].iter().any(|modules| {
                let text = self.text(&format!("{modules}/{release}/{list}")).unwrap_or_default();
                text.lines().any(|line| {
                    let path = line.split(':').next().unwrap_or(line);
                    let file = path.rsplit('/').next().unwrap_or(path);
                    file.split('.').next().is_some_and(|stem| stem.replace('-', "_") == plain)
                })
            })
        };
        let paths = [format!("sys/module/{plain}"), format!("sys/bus/pci/drivers/{name}")];
        if paths.iter().any(|path| self.exists(path)) || listed("modules.builtin") {
            Module::Loaded
        } else if listed("modules.dep") {
            Module::Loadable
        } else {
            Module::Absent
        }
    }

    fn devices(&self) -> Vec<PciDevice> {
        const DEVICES: &str = "sys/bus/pci/devices";
        let device = |address: String| {
            let directory = format!("{DEVICES}/{address}");
            let group = format!("{directory}/iommu_group");
            let dummy = self.text(&format!("{group}/name")).as_deref() == Some("vfio-noiommu");
            let class = self.text(&format!("{directory}/class")).unwrap_or_default();
            let methods = self.text(&format!("{directory}/reset_method")).unwrap_or_default();
            let mut resets: Vec<String> = methods.split_ascii_whitespace().map(str::to_owned).collect();
            // Kernels before 5.15 tell only that there is a way.
            if resets.is_empty() && self.exists(&format!("{directory}/reset")) {
                resets.push("reset".to_owned());
            }
            let nodes = self.names(&format!("{directory}/vfio-dev"));
            PciDevice {
                driver: self.link_name(&format!("{directory}/driver")),
                driver_override: self
                    .text(&format!("{directory}/driver_override"))
                    .filter(|text| text != "(null)" && !text.is_empty()),
                is_bound: self.exists(&format!("run/noiommu/bindings/{address}")),
                has_iommu: self.exists(&format!("{directory}/iommu")) || self.exists(&group) && !dummy,
                has_noiommu_group: dummy,
                has_noiommu_cdev: nodes.iter().any(|name| name.starts_with("noiommu-")),
                is_bridge: class.starts_with("0x06"),
                resets,
                address,
            }
        };
        self.names(DEVICES).into_iter().map(device).collect()
    }

    fn container(&self) -> Vec<&'static str> {
        let mut hints = Vec::new();
        for (file, hint) in [
            ("run/.containerenv", "/run/.containerenv"),
            (".dockerenv", "/.dockerenv"),
            ("run/systemd/container", "/run/systemd/container"),
        ] {
            if self.exists(file) {
                hints.push(hint);
            }
        }
        let cgroup = self.text("proc/1/cgroup").unwrap_or_default();
        if ["docker", "kubepods", "containerd", "libpod", "/lxc"].iter().any(|word| cgroup.contains(word)) {
            hints.push("the cgroup of process 1");
        }
        hints
    }

    /// Whether what is mounted on a place is read-only.
    fn is_read_only(&self, is_place: impl Fn(&str) -> bool) -> bool {
        let mounts = self.text("proc/self/mounts").unwrap_or_default();
        // The last mount on a place is the one that is seen.
        let mut options = mounts.lines().filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            is_place(words.next()?).then(|| words.nth(1))?
        });
        options.next_back().is_some_and(|options| options.split(',').any(|option| option == "ro"))
    }

    fn memlock(&self) -> Option<u64> {
        let limits = self.text("proc/self/limits").unwrap_or_default();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    }

    fn secure_boot(&self) -> Option<bool> {
        // Four bytes of attributes, then the value.
        let name = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
        fs::read(self.0.join(name)).ok()?.get(4).map(|&value| value == 1)
    }

    fn huge_pages(&self) -> Vec<HugePages> {
        const SIZES: &str = "sys/kernel/mm/hugepages";
        let size = |name: String| {
            let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let count = |file: &str| self.number(&format!("{SIZES}/{name}/{file}"));
            Some(HugePages { kib, reserved: count("nr_hugepages")?, free: count("free_hugepages")? })
        };
        let mut sizes: Vec<HugePages> = self.names(SIZES).into_iter().filter_map(size).collect();
        sizes.sort_by_key(|pages| pages.kib);
        sizes
    }
}
