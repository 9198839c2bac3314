//! Made-up machines: trees of files that look like sysfs and procfs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::*;
use crate::ErrorKind;

/// The classes that are asked about.
pub(crate) const NVME: u32 = 0x01_0802;
pub(crate) const ETHERNET: u32 = 0x02_0000;
pub(crate) const ISA_BRIDGE: u32 = 0x06_0100;

/// A made-up machine, gone when dropped.
pub(crate) struct Tree(PathBuf);

impl Tree {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("noiommu-pci-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("sys/bus/pci/devices")).unwrap();
        fs::create_dir_all(path.join("proc")).unwrap();
        Self(fs::canonicalize(path).unwrap())
    }

    pub(crate) fn root(&self) -> Root {
        Root::of(&self.0)
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// Where a device really is.
    pub(crate) fn real(&self, address: &str) -> PathBuf {
        self.at("sys/devices/pci0000:00").join(address)
    }

    pub(crate) fn write(&self, path: impl AsRef<Path>, text: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A link to `target`, which is made if it is not there.
    pub(crate) fn link(&self, path: impl AsRef<Path>, target: impl AsRef<Path>) {
        let (path, target) = (self.0.join(path), self.0.join(target));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::create_dir_all(&target).unwrap();
        symlink(target, path).unwrap();
    }

    pub(crate) fn driver(&self, name: &str) {
        fs::create_dir_all(self.at("sys/bus/pci/drivers").join(name)).unwrap();
    }

    pub(crate) fn device(&self, address: &str, class: u32, driver: Option<&str>) {
        let real = self.real(address);
        let file = |name: &str, text: &str| self.write(real.join(name), text);
        file("vendor", "0x1b36\n");
        file("device", "0x0010\n");
        file("class", &format!("{class:#08x}\n"));
        file("driver_override", "(null)\n");
        file("numa_node", "-1\n");
        self.config(address, 0, 1);
        self.link(Path::new("sys/bus/pci/devices").join(address), &real);
        if let Some(driver) = driver {
            self.link(real.join("driver"), Path::new("sys/bus/pci/drivers").join(driver));
        }
    }

    /// The kind of header, and the interrupt pin.
    pub(crate) fn config(&self, address: &str, header: u8, pin: u8) {
        let mut config = [0u8; 256];
        (config[0x0e], config[0x3d]) = (header, pin);
        fs::write(self.real(address).join("config"), config).unwrap();
    }

    /// Puts a device in an IOMMU group; its name is that of the kernel's no-IOMMU mode, or none.
    pub(crate) fn group(&self, address: &str, group: u32, name: &str) {
        let directory = Path::new("sys/kernel/iommu_groups").join(group.to_string());
        self.write(directory.join("name"), name);
        self.link(self.real(address).join("iommu_group"), &directory);
        self.link(directory.join("devices").join(address), self.real(address));
    }

    /// A block device at a place below sys/devices.
    pub(crate) fn disk(&self, place: &str, number: &str) {
        let place = Path::new("sys/devices").join(place);
        let name = place.file_name().unwrap().to_owned();
        self.write(place.join("dev"), &format!("{number}\n"));
        fs::create_dir_all(self.0.join(&place).join("holders")).unwrap();
        self.link(Path::new("sys/class/block").join(&name), &place);
        self.write(Path::new("dev").join(name), "");
    }

    /// A network interface at a place below sys/devices.
    pub(crate) fn interface(&self, place: &str, up: bool) {
        let place = Path::new("sys/devices").join(place);
        self.write(place.join("flags"), if up { "0x1003\n" } else { "0x1002\n" });
        self.link(Path::new("sys/class/net").join(place.file_name().unwrap()), &place);
    }

    fn uses(&self, address: &str) -> Vec<Use> {
        uses_of(&self.root(), &device_of(&self.root(), address).unwrap()).unwrap()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn devices_are_what_sysfs_says() {
    let tree = Tree::new("devices");
    assert_eq!(devices_of(&Root::of(Path::new("/nowhere"))).unwrap(), []);
    tree.device("0000:00:04.0", NVME, Some("nvme"));
    tree.device("0000:00:05.0", ETHERNET, None);
    tree.device("0000:00:05.1", ETHERNET, None);
    tree.device("0000:00:06.0", ISA_BRIDGE, None);
    tree.device("0000:00:07.0", 0xff_0000, None);
    tree.config("0000:00:05.0", 0x80, 0);
    tree.config("0000:00:07.0", 0x81, 1);
    tree.write(tree.real("0000:00:04.0").join("numa_node"), "1\n");
    tree.write(tree.real("0000:00:05.0").join("driver_override"), "vfio-pci\n");
    tree.group("0000:00:04.0", 3, "");
    tree.group("0000:00:05.0", 4, "vfio-noiommu\n");
    tree.link(tree.real("0000:00:07.0").join("iommu"), "sys/class/iommu/dmar0");
    let devices = devices_of(&tree.root()).unwrap();
    assert_eq!(
        devices.iter().map(|it| &*it.address).collect::<Vec<_>>(),
        ["0000:00:04.0", "0000:00:05.0", "0000:00:05.1", "0000:00:06.0", "0000:00:07.0"]
    );
    let [nvme, nic, second, isa, odd] = &devices[..] else { panic!() };
    assert_eq!((nvme.vendor, nvme.device, nvme.class), (0x1b36, 0x10, NVME));
    assert_eq!((nvme.driver.as_deref(), nvme.driver_override.as_deref()), (Some("nvme"), None));
    assert_eq!((nvme.iommu, nvme.numa_node, nvme.is_bridge), (Iommu::Group(3), Some(1), false));
    assert_eq!((nvme.has_line, nvme.siblings.len()), (Some(true), 0));
    assert_eq!((nic.iommu, nic.numa_node), (Iommu::Dummy(4), None));
    assert_eq!((nic.driver.as_deref(), nic.driver_override.as_deref()), (None, Some("vfio-pci")));
    assert_eq!((nic.has_line, &nic.siblings[..]), (Some(false), &["0000:00:05.1".to_owned()][..]));
    assert_eq!((second.iommu, &second.siblings[..]), (Iommu::None, &["0000:00:05.0".to_owned()][..]));
    assert!(isa.is_bridge && odd.is_bridge, "by class, and by the header");
    assert!(odd.iommu.is_real());

    assert_eq!(&device_of(&tree.root(), "00:04.0").unwrap(), nvme);
    assert_eq!(device_of(&tree.root(), "00:08.0").unwrap_err().kind(), ErrorKind::NoDevice);
    assert_eq!(device_of(&tree.root(), "../4").unwrap_err().kind(), ErrorKind::Argument);
}

#[test]
fn disks_in_use() {
    let tree = Tree::new("disks");
    let (disk, other) = ("0000:00:04.0", "0000:00:05.0");
    for address in [disk, other] {
        tree.device(address, NVME, Some("nvme"));
    }
    let place = format!("pci0000:00/{disk}/nvme/nvme0/nvme0n1");
    tree.disk(&place, "259:0");
    tree.disk(&format!("{place}/nvme0n1p1"), "259:1");
    tree.disk("virtual/block/dm-0", "253:0");
    tree.link(format!("sys/devices/{place}/nvme0n1p1/holders/dm-0"), "sys/devices/virtual/block/dm-0");
    tree.disk(&format!("pci0000:00/{other}/nvme/nvme1/nvme1n1"), "259:2");
    let mounted = |disk: &str, at: &str| Use::Mounted { disk: disk.to_owned(), at: at.to_owned() };
    let line = |number: &str, at: &str, kind: &str, source: &str| {
        format!("22 1 {number} / {at} rw,relatime shared:1 - {kind} {source} rw\n")
    };

    tree.write("proc/self/mountinfo", &line("0:21", "/proc", "proc", "proc"));
    assert_eq!(tree.uses(disk), []);
    // What is built of a partition, at a place with a space in its name.
    tree.write("proc/self/mountinfo", &line("253:0", "/my\\040data", "ext4", "/dev/mapper/data"));
    assert_eq!(tree.uses(disk), [mounted("dm-0", "/my data")]);
    assert_eq!(tree.uses(other), []);
    // A file system whose number is not its disk's.
    tree.write("proc/self/mountinfo", &line("0:35", "/", "btrfs", "/dev/nvme0n1p1"));
    assert_eq!(tree.uses(disk), [mounted("nvme0n1p1", "/")]);
    tree.write("proc/self/mountinfo", "");
    tree.write("proc/swaps", "Filename Type Size Used Priority\n/dev/nvme1n1 partition 1048572 0 -2\n");
    assert_eq!(tree.uses(disk), []);
    let [used] = &tree.uses(other)[..] else { panic!() };
    assert_eq!((used, &*used.remedy()), (&Use::Swap { disk: "nvme1n1".to_owned() }, "swapoff /dev/nvme1n1"));

    // Multipath: the disk belongs to the subsystem, which has a link to the controller.
    let tree = Tree::new("multipath");
    tree.device(disk, NVME, Some("nvme"));
    let subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0";
    tree.link(format!("{subsystem}/nvme0"), tree.real(disk).join("nvme/nvme0"));
    tree.link("sys/class/nvme-subsystem/nvme-subsys0", subsystem);
    tree.disk("virtual/nvme-subsystem/nvme-subsys0/nvme0n1", "259:0");
    tree.write("proc/self/mountinfo", &line("259:0", "/data", "xfs", "/dev/nvme0n1"));
    assert_eq!(tree.uses(disk), [mounted("nvme0n1", "/data")]);
}

#[test]
fn interfaces_in_use() {
    let tree = Tree::new("interfaces");
    let (first, second) = ("0000:00:04.0", "0000:00:05.0");
    for (address, name) in [(first, "eth0"), (second, "eth1")] {
        tree.device(address, ETHERNET, Some("e1000e"));
        tree.interface(&format!("pci0000:00/{address}/net/{name}"), false);
    }
    let named = str::to_owned;
    let default = |interface: &str| Use::DefaultRoute { interface: interface.to_owned() };
    assert_eq!(tree.uses(first), []);
    tree.interface("virtual/net/lo", true);
    tree.write(tree.real(first).join("net/eth0/flags"), "0x1003\n");
    assert_eq!(tree.uses(first), [Use::Up { interface: named("eth0") }]);

    // As the kernel writes them: a route to a net, and the default route.
    let heading = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
    let to_net = "eth1\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
    let to_all = "eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
    tree.write("proc/net/route", &format!("{heading}{to_net}{to_all}"));
    assert_eq!(tree.uses(first), [default("eth0")]);
    assert_eq!(tree.uses(second), []);

    let zero = "0".repeat(32);
    tree.write("proc/net/route", heading);
    tree.write(
        "proc/net/ipv6_route",
        &format!(
            "{zero} 00 {zero} 00 fe800000000000000000000000000002 00000400 00000001 00000000 00000003     eth1\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n"
        ),
    );
    assert_eq!(tree.uses(second), [default("eth1")]);

    // Through a bond, and a VLAN on top of it.
    tree.write("proc/net/ipv6_route", "");
    tree.interface("virtual/net/bond0", false);
    tree.interface("virtual/net/bond0.7", false);
    tree.link(tree.real(second).join("net/eth1/upper_bond0"), "sys/devices/virtual/net/bond0");
    tree.link("sys/devices/virtual/net/bond0/upper_bond0.7", "sys/devices/virtual/net/bond0.7");
    tree.write("proc/net/route", &format!("{heading}{}", to_all.replace("eth0", "bond0.7")));
    assert_eq!(tree.uses(second), [default("bond0.7")]);
}
