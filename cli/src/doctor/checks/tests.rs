//! Machines that are made up, and what is said of them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use noiommu::{ErrorKind, PinChoice, PinKind};
use noiommu_core::Errno;

use super::*;
use crate::doctor::facts::{Capabilities, IPC_LOCK, Module, Node, Process, Refused, SYS_ADMIN, SYS_RAWIO};
use crate::doctor::render;

const DEVICE: &str = "0000:00:04.0";

/// A process to which nothing is refused.
struct Able;

impl Process for Able {
    fn is_opted_in(&self) -> bool {
        true
    }

    fn frames(&self) -> Result<(), Refused> {
        Ok(())
    }

    fn pins(&self, choice: PinChoice) -> Result<PinKind, Refused> {
        Ok(if choice == PinChoice::AfXdp { PinKind::AfXdp } else { PinKind::IoUring })
    }

    fn proof(&self) -> Result<PinKind, Refused> {
        Ok(PinKind::IoUring)
    }

    fn program(&self) -> PathBuf {
        "/opt/my drivers/it's".into()
    }
}

/// The files of a machine, gone when dropped.
struct Machine(PathBuf);

impl Machine {
    /// A stock machine that is in order.
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("noiommu-doctor-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let machine = Self(root);
        for (path, text) in [
            ("proc/sys/kernel/osrelease", "6.12.1-amd64\n"),
            (
                "boot/config-6.12.1-amd64",
                "CONFIG_VFIO=m\nCONFIG_VFIO_GROUP=y\nCONFIG_VFIO_CONTAINER=y\n# CONFIG_VFIO_NOIOMMU is not set\n",
            ),
            ("proc/cmdline", "quiet\n"),
            (
                "proc/self/status",
                "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\nCapBnd:\t000001ffffffffff\nSeccomp:\t0\n",
            ),
            ("proc/self/uid_map", "         0          0 4294967295\n"),
            (
                "proc/self/limits",
                "Limit  Soft Limit  Hard Limit  Units\nMax locked memory         8388608              8388608              bytes\n",
            ),
            ("proc/self/mounts", "sysfs /sys sysfs rw,nosuid 0 0\nproc /proc proc rw 0 0\n"),
            ("proc/sys/kernel/io_uring_disabled", "0\n"),
            ("sys/kernel/security/lockdown", "[none] integrity confidentiality\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "8\n"),
            ("sys/module/uio_pci_generic/refcnt", "0\n"),
            ("sys/bus/pci/devices/0000:00:04.0/class", "0x00ff00\n"),
            ("sys/bus/pci/devices/0000:00:04.0/driver_override", "(null)\n"),
            ("sys/bus/pci/devices/0000:00:04.0/reset_method", "flr bus\n"),
        ] {
            machine.write(path, text);
        }
        machine
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, to: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(Path::new(to), path).unwrap();
    }

    fn facts(&self) -> Facts {
        Facts::read(&self.0, &Able)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn check(facts: &Facts, name: &str) -> Check {
    let all = of_machine(facts).into_iter().chain(of_device(facts, DEVICE));
    all.into_iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check {name}"))
}

/// The status and the remedy of a check.
fn told(facts: &Facts, name: &str) -> (Status, String) {
    let check = check(facts, name);
    (check.status, check.remedy.unwrap_or_default())
}

fn problems(facts: &Facts) -> Vec<&'static str> {
    let all = of_machine(facts).into_iter().chain(of_device(facts, DEVICE));
    all.filter(Check::is_problem).map(|check| check.name).collect()
}

fn refused(kind: ErrorKind, errno: Errno) -> Refused {
    Refused { kind, errno, cause: "refused".to_owned(), remedy: Some("do something".to_owned()) }
}

#[test]
fn a_machine_in_order() {
    let facts = Machine::new("order").facts();
    assert_eq!(problems(&facts), [""; 0]);
    assert_eq!(check(&facts, "device-provider").found, "sysfs with uio_pci_generic");
    assert_eq!(check(&facts, "device-reset").found, "flr, bus");
    assert_eq!(check(&facts, "hugepages").found, "8 of 8 free (2 MiB)");
    let names: Vec<&str> = of_machine(&facts).iter().map(|check| check.name).collect();
    for (at, name) in names.iter().enumerate() {
        assert!(!names[..at].contains(name), "{name} twice");
    }
}

#[test]
fn kernels() {
    let machine = Machine::new("kernels");
    machine.write("proc/sys/kernel/osrelease", "5.10.0-28-amd64\n");
    assert_eq!(told(&machine.facts(), "kernel").0, Status::Problem);
    machine.write("proc/cpuinfo", "flags\t\t: fpu hypervisor sev_snp\n");
    let (status, remedy) = told(&machine.facts(), "encryption");
    assert!(status == Status::Problem && remedy.starts_with('#'));
}

#[test]
fn lockdown() {
    let machine = Machine::new("lockdown");
    machine.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n");
    machine.write("proc/cmdline", "quiet lockdown=integrity\n");
    let mut facts = machine.facts();
    assert_eq!(problems(&facts), ["lockdown", "provider", "device-provider"]);
    assert_eq!(told(&facts, "lockdown").1, "# boot parameter: boot without lockdown=integrity");
    // By the firmware.
    facts.command_line.clear();
    facts.secure_boot = Some(true);
    assert!(told(&facts, "lockdown").1.contains("Secure Boot"));
    assert_eq!(told(&facts, "secure-boot").0, Status::Note);
    // VFIO still works.
    facts.vfio.options.cdev_noiommu = true;
    facts.vfio.unsafe_mode = true;
    facts.vfio_pci = Module::Loaded;
    assert_eq!(told(&facts, "lockdown").0, Status::Note);
    assert_eq!(check(&facts, "provider").found, "cdev");
    // Asked for, but nobody tells.
    facts.lockdown = None;
    facts.command_line = "lockdown=integrity".to_owned();
    assert_eq!(told(&facts, "lockdown").1, "mount -t securityfs securityfs /sys/kernel/security");
    machine
        .write("sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", "\x06\0\0\0\x01");
    assert_eq!(machine.facts().secure_boot, Some(true));
}

#[test]
fn opt_ins() {
    let machine = Machine::new("optins");
    let mut facts = machine.facts();
    facts.opted_in = false;
    assert_eq!(problems(&facts), ["opt-in", "provider", "device-provider"]);
    assert_eq!(told(&facts, "opt-in").1, "noiommu enable");
    assert_eq!(told(&facts, "vfio-parameter").0, Status::NotApplicable);
    // A kernel that can do it itself.
    machine.write(
        "boot/config-6.12.1-amd64",
        "CONFIG_VFIO=y\nCONFIG_VFIO_GROUP=y\nCONFIG_VFIO_CONTAINER=y\nCONFIG_VFIO_NOIOMMU=y\n",
    );
    machine.write("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "N\n");
    let mut facts = machine.facts();
    facts.opted_in = false;
    let echo = "echo Y > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
    assert_eq!(told(&facts, "vfio-parameter"), (Status::Problem, echo.to_owned()));
    facts.opted_in = true;
    assert_eq!(told(&facts, "vfio-parameter").0, Status::Note);
    machine.write("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n");
    let mut facts = machine.facts();
    facts.opted_in = false;
    assert_eq!(told(&facts, "opt-in"), (Status::Note, "noiommu enable".to_owned()));
    facts.vfio.mode_source = crate::config::ModeSource::NoParameter;
    facts.vfio.unsafe_mode = false;
    facts.vfio_module = Module::Loadable;
    assert_eq!(told(&facts, "vfio-parameter").1, "modprobe vfio enable_unsafe_noiommu_mode=1");
    // Somebody else's opt-in.
    let node = |owner, mode| Node { path: "/run/noiommu".to_owned(), owner, mode, is_link: false };
    for (owner, mode, status) in
        [(0, 0o755, Status::Ok), (1000, 0o755, Status::Problem), (0, 0o777, Status::Problem)]
    {
        facts.opt_in_files = vec![node(owner, mode)];
        assert_eq!(told(&facts, "opt-in-files").0, status, "{owner} {mode:o}");
    }
}

#[test]
fn privileges() {
    let mut facts = Machine::new("privileges").facts();
    let all = facts.rights.effective;
    facts.rights.effective = all.without(SYS_RAWIO).without(SYS_ADMIN);
    facts.rights.user = 1000;
    let (status, remedy) = told(&facts, "capabilities");
    assert_eq!(status, Status::Problem);
    assert!(remedy.starts_with("setcap cap_sys_admin,cap_sys_rawio,"), "{remedy}");
    assert!(remedy.ends_with(r"=ep '/opt/my drivers/it'\''s'"), "{remedy}");
    // Nothing gets back what the bounding set has lost.
    facts.rights.bounding = facts.rights.bounding.without(SYS_ADMIN);
    assert!(told(&facts, "capabilities").1.ends_with("CapabilityBoundingSet=CAP_SYS_ADMIN"));
    facts.rights.container = vec!["/.dockerenv"];
    assert!(told(&facts, "capabilities").1.ends_with("--cap-add=SYS_ADMIN"));
    assert_eq!(may_drive(&facts.rights).status, Status::Problem);
    // All capabilities, but of a user namespace.
    facts.rights.effective = all;
    facts.rights.uid_map = "         0       1000          1".to_owned();
    facts.frames = Err(refused(ErrorKind::NoPhysicalAddresses, Errno::EPERM));
    // The limit of locked memory is lifted by none of them either.
    assert_eq!(problems(&facts), ["user-namespace", "pagemap", "memlock"]);
    assert!(told(&facts, "pagemap").1.contains("user-namespace"));
    facts.rights.effective = all.without(SYS_ADMIN);
    assert!(told(&facts, "pagemap").1.contains("capabilities"));
}

#[test]
fn containers() {
    let machine = Machine::new("containers");
    machine.write("run/.containerenv", "");
    machine.write("proc/1/cgroup", "0::/docker/0123\n");
    machine.write("proc/self/mounts", "sysfs /sys sysfs rw 0 0\nsysfs /sys sysfs ro,nosuid 0 0\n");
    let facts = machine.facts();
    assert_eq!(facts.rights.container, ["/run/.containerenv", "the cgroup of process 1"]);
    assert_eq!(told(&facts, "container").0, Status::Note);
    assert_eq!(told(&facts, "sysfs"), (Status::Problem, "mount -o remount,rw /sys".to_owned()));
    assert_eq!(problems(&facts), ["sysfs", "provider", "device-provider"]);
    machine.write("proc/self/mounts", "sysfs /sys sysfs ro 0 0\nsysfs /sys sysfs rw,ro_not 0 0\n");
    assert!(!machine.facts().sys_is_read_only);
}

#[test]
fn sources_of_pins() {
    let mut facts = Machine::new("sources").facts();
    let off = |errno| Err(refused(ErrorKind::NoPinSource, errno));
    facts.io_uring = off(Errno::EPERM);
    facts.io_uring_disabled = Some(2);
    let sysctl = "sysctl -w kernel.io_uring_disabled=0".to_owned();
    assert_eq!(told(&facts, "io_uring"), (Status::Note, sysctl.clone()));
    assert_eq!(told(&facts, "af_xdp").0, Status::Ok);
    facts.af_xdp = off(Errno::EPERM);
    assert_eq!(told(&facts, "io_uring"), (Status::Problem, sysctl));
    assert_eq!(told(&facts, "af_xdp").0, Status::Note);
    // A filter refuses with whatever number it likes.
    for errno in [Errno::EPERM, Errno::ENOSYS] {
        facts.io_uring = off(errno);
        facts.io_uring_disabled = Some(0);
        facts.rights.is_filtered = true;
        assert!(told(&facts, "io_uring").1.contains("seccomp"), "{errno}");
    }
    facts.rights.is_filtered = false;
    assert!(told(&facts, "io_uring").1.contains("CONFIG_IO_URING"));
    // Switched off for those without privileges.
    facts.io_uring = off(Errno::EPERM);
    facts.io_uring_disabled = Some(1);
    facts.rights.effective = Capabilities(0);
    assert!(told(&facts, "io_uring").1.starts_with("sysctl"));
    facts.proof = off(Errno::EOPNOTSUPP);
    assert_eq!(told(&facts, "proof"), (Status::Problem, "# see io_uring, which is the cause".to_owned()));
    facts.rights.effective = facts.rights.bounding;
    assert_eq!(check(&facts, "provider").found, "none: memory cannot be pinned here");
}

#[test]
fn locked_memory() {
    let machine = Machine::new("memlock");
    let mut facts = machine.facts();
    assert_eq!(facts.memlock, Some(8 << 20));
    assert_eq!(told(&facts, "memlock").0, Status::Ok);
    facts.rights.effective = facts.rights.effective.without(IPC_LOCK);
    assert_eq!(told(&facts, "memlock"), (Status::Problem, "ulimit -l unlimited".to_owned()));
    facts.memlock = Some(1 << 30);
    assert_eq!(told(&facts, "memlock").0, Status::Note);
    machine.write(
        "proc/self/limits",
        "Max locked memory         unlimited            unlimited            bytes\n",
    );
    assert_eq!(machine.facts().memlock, None);
}

#[test]
fn huge_pages() {
    let machine = Machine::new("huge");
    machine.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
    machine.write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0\n");
    let facts = machine.facts();
    assert_eq!(told(&facts, "hugepages"), (Status::Note, "sysctl -w vm.nr_hugepages=72".to_owned()));
    let (status, remedy) = told(&facts, "thp");
    assert!(status == Status::Note && remedy.ends_with("transparent_hugepage/enabled"));
    assert_eq!(problems(&facts), [""; 0]);
}

#[test]
fn modules_and_nodes() {
    let machine = Machine::new("modules");
    fs::remove_dir_all(machine.0.join("sys/module/uio_pci_generic")).unwrap();
    assert_eq!(machine.facts().uio_pci_generic, Module::Absent);
    machine.write(
        "lib/modules/6.12.1-amd64/modules.dep",
        "kernel/drivers/uio/uio_pci_generic.ko.xz: kernel/drivers/uio/uio.ko.xz\n",
    );
    assert_eq!(
        told(&machine.facts(), "uio_pci_generic"),
        (Status::Note, "modprobe uio_pci_generic".to_owned())
    );
    machine.write("lib/modules/6.12.1-amd64/modules.builtin", "kernel/drivers/vfio/pci/vfio-pci.ko\n");
    assert_eq!(machine.facts().vfio_pci, Module::Loaded);
    let mut facts = machine.facts();
    let node = |path: &str, mode| Node { path: path.to_owned(), owner: 0, mode, is_link: false };
    facts.nodes = vec![node("/dev/vfio/vfio", 0o666), node("/dev/vfio/noiommu-0", 0o600)];
    assert_eq!(told(&facts, "nodes").0, Status::Ok);
    facts.nodes.push(node("/dev/iommu", 0o666));
    assert_eq!(told(&facts, "nodes"), (Status::Problem, "chmod o= /dev/iommu".to_owned()));
}

#[test]
fn devices() {
    let machine = Machine::new("devices");
    let directory = format!("sys/bus/pci/devices/{DEVICE}");
    machine.link(&format!("{directory}/driver"), "../../bus/pci/drivers/nvme");
    machine.write(&format!("{directory}/driver_override"), "noiommu\n");
    fs::remove_file(machine.0.join(format!("{directory}/reset_method"))).unwrap();
    let facts = machine.facts();
    let unbind = format!("echo {DEVICE} > /sys/bus/pci/devices/{DEVICE}/driver/unbind");
    assert_eq!(told(&facts, "device-driver"), (Status::Problem, unbind));
    assert_eq!(told(&facts, "device-override").0, Status::Note);
    machine.write(&format!("run/noiommu/bindings/{DEVICE}"), "id=1b36:0010\n");
    assert_eq!(told(&machine.facts(), "device-override").0, Status::Ok);
    assert_eq!(told(&facts, "device-reset").0, Status::Note);
    assert_eq!(told(&facts, "device-provider").0, Status::Problem);
    // Behind an IOMMU.
    machine.link(&format!("{directory}/iommu"), "../dmar0");
    assert_eq!(told(&machine.facts(), "device-iommu").1, "# boot parameter: intel_iommu=off amd_iommu=off");
    machine.write("lib/modules/6.12.1-amd64/modules.dep", "kernel/drivers/vfio/pci/vfio-pci.ko:\n");
    let (status, remedy) = told(&machine.facts(), "device-iommu");
    assert!(status == Status::Problem && remedy.ends_with("echo 0000:00:04.0 > /sys/bus/pci/drivers_probe"));
    assert_eq!(told(&machine.facts(), "iommu").0, Status::Note);
    // The kernel's own no-IOMMU mode.
    fs::remove_file(machine.0.join(format!("{directory}/iommu"))).unwrap();
    fs::remove_file(machine.0.join(format!("{directory}/driver"))).unwrap();
    machine.link(&format!("{directory}/driver"), "../../bus/pci/drivers/vfio-pci");
    machine.write(&format!("{directory}/iommu_group/name"), "vfio-noiommu\n");
    assert_eq!(check(&machine.facts(), "device-provider").found, "group");
    machine.write(&format!("{directory}/vfio-dev/noiommu-vfio0/dev"), "511:0\n");
    assert_eq!(check(&machine.facts(), "device-provider").found, "cdev");
    assert_eq!(of_device(&facts, "0000:00:1f.0")[0].status, Status::Problem);
}

#[test]
fn what_is_told() {
    let machine = Machine::new("told");
    machine.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n");
    let facts = machine.facts();
    let all = of_machine(&facts);
    let value = render::json(&all);
    assert_eq!(value["problems"], 2);
    let keys: Vec<&String> = value["checks"][0].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["name", "status", "found", "why", "remedy"]);
    for width in [60, 80, 132] {
        for line in render::lines(&all, width) {
            let line = anstream::adapter::strip_str(&line).to_string();
            assert!(line.contains("try:") || line.chars().count() <= width, "{width}: {line}");
        }
    }
}

#[test]
fn a_guardian_shall_not_end_with_its_driver() {
    let machine = Machine::new("guardian");
    assert_eq!(check(&machine.facts(), "guardian").status, Status::Ok);
    machine
        .write("proc/self/mounts", "sysfs /sys sysfs rw 0 0\ncgroup /sys/fs/cgroup cgroup2 ro,nosuid 0 0\n");
    let (status, remedy) = told(&machine.facts(), "guardian");
    assert!(status == Status::Note && remedy.contains("noiommu guardian --listen"), "{remedy}");
    machine.write("run/noiommu/guardian.sock", "");
    assert_eq!(check(&machine.facts(), "guardian").found, "its service listens");
}
