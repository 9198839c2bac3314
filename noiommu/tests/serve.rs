//! Served nodes, opened and called in this process as the preload library does it, on simulated devices.

use std::cell::RefCell;
use std::collections::BTreeMap;

use noiommu::Errno;
use noiommu::serve::{Caller, Descriptors, File, Node, NodeKind, Provider, Server, Settings};
use noiommu_core::UserMemory;
use noiommu_uapi::iommufd::*;
use noiommu_uapi::vfio::container::*;
use noiommu_uapi::vfio::device::*;
use noiommu_uapi::vfio::group::*;
use zerocopy::{FromBytes, IntoBytes};

/// This process's memory, all of it good: the tests hand out pointers to what they own.
struct Own;

impl UserMemory for Own {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        if address < 4096 {
            return Err(Errno::EFAULT);
        }
        // SAFETY: an address that the test has passed.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        if address < 4096 {
            return Err(Errno::EFAULT);
        }
        // SAFETY: an address that the test has passed.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), address as *mut u8, from.len()) };
        Ok(())
    }
}

/// A table of descriptors, from 100 on.
#[derive(Default)]
struct Table(RefCell<BTreeMap<i32, File>>);

impl Descriptors for Table {
    fn get(&self, descriptor: i32) -> Result<File, Errno> {
        match self.0.borrow().get(&descriptor) {
            Some(file) => Ok(file.clone()),
            None if (0..3).contains(&descriptor) => Err(Errno::EBADFD),
            None => Err(Errno::EBADF),
        }
    }

    fn install(&self, file: File) -> Result<i32, Errno> {
        let mut table = self.0.borrow_mut();
        let descriptor = (100..).find(|descriptor| !table.contains_key(descriptor)).unwrap();
        table.insert(descriptor, file);
        Ok(descriptor)
    }

    fn remove(&self, descriptor: i32) {
        let file = self.0.borrow_mut().remove(&descriptor);
        drop(file);
    }
}

struct Program {
    server: Server,
    table: Table,
}

impl Program {
    fn new(settings: &Settings) -> Self {
        Self { server: Server::start(settings).unwrap(), table: Table::default() }
    }

    fn on_sim() -> Self {
        Self::new(&Settings { provider: Provider::Sim, ..Settings::default() })
    }

    fn open(&self, path: &str) -> Result<i32, Errno> {
        let node = self.server.nodes().iter().find(|node| node.path.to_str() == Some(path));
        self.table.install(self.server.open(node.ok_or(Errno::ENOENT)?)?)
    }

    fn close(&self, descriptor: i32) {
        self.table.remove(descriptor);
    }

    fn ioctl(&self, descriptor: i32, request: u32, argument: u64) -> Result<i64, Errno> {
        let file = self.table.get(descriptor)?;
        file.ioctl(Caller { user: &Own, descriptors: &self.table }, request, argument)
    }

    fn call<T: FromBytes + IntoBytes>(
        &self,
        descriptor: i32,
        request: u32,
        argument: &mut T,
    ) -> Result<i64, Errno> {
        self.ioctl(descriptor, request, std::ptr::from_mut(argument) as u64)
    }

    fn bind(&self, device: i32, iommufd: i32) -> Result<u32, Errno> {
        let mut bind = VfioDeviceBindIommufd { argsz: 16, iommufd, ..Default::default() };
        self.call(device, VFIO_DEVICE_BIND_IOMMUFD, &mut bind).map(|_| bind.out_devid)
    }

    fn ioas(&self, iommufd: i32) -> u32 {
        let mut alloc = IommuIoasAlloc { size: 12, ..Default::default() };
        self.call(iommufd, IOMMU_IOAS_ALLOC, &mut alloc).unwrap();
        alloc.out_ioas_id
    }

    fn attach(&self, device: i32, to: u32) -> Result<u32, Errno> {
        let mut attach = VfioDeviceAttachIommufdPt { argsz: 12, pt_id: to, ..Default::default() };
        self.call(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &mut attach).map(|_| attach.pt_id)
    }

    fn get_info(&self, device: i32) -> Result<i64, Errno> {
        let mut info = VfioDeviceInfo { argsz: 24, ..Default::default() };
        self.call(device, VFIO_DEVICE_GET_INFO, &mut info)
    }
}

const CDEV: &str = "/dev/vfio/devices/noiommu-vfio0";

/// The group's node of the first device.
fn group(program: &Program) -> String {
    let is_group = |node: &&Node| matches!(node.kind, NodeKind::Group { .. });
    program.server.nodes().iter().find(is_group).unwrap().path.to_str().unwrap().to_owned()
}

fn privileged() -> bool {
    // CAP_SYS_RAWIO, as the rules for no-IOMMU nodes ask.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim().to_owned();
    u64::from_str_radix(&effective, 16).unwrap() & 1 << 17 != 0
}

#[test]
fn a_device_is_bound_attached_and_gives_addresses() {
    let program = Program::on_sim();
    if !privileged() {
        assert_eq!(program.open(CDEV), Err(Errno::EPERM));
        return;
    }
    let (iommufd, device) = (program.open("/dev/iommu").unwrap(), program.open(CDEV).unwrap());
    assert_eq!(program.get_info(device), Err(Errno::EINVAL), "before it is bound");
    assert_eq!(program.bind(device, 0), Err(Errno::EBADFD));
    assert_eq!(program.bind(device, 77), Err(Errno::EBADF));
    assert_eq!(program.bind(device, device), Err(Errno::EBADFD));
    assert_eq!(program.bind(device, iommufd), Ok(1));
    assert_eq!(program.bind(device, iommufd), Err(Errno::EINVAL), "twice");
    let second = program.open(CDEV).unwrap();
    assert_eq!(program.bind(second, iommufd), Err(Errno::EINVAL), "by another opener");
    assert_eq!(program.get_info(device), Ok(0));

    let ioas = program.ioas(iommufd);
    let memory = vec![0u8; 3 * 4096];
    let mut map = IommuIoasMap {
        size: 40,
        flags: IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
        ioas_id: ioas,
        user_va: (memory.as_ptr() as u64).next_multiple_of(4096),
        length: 8192,
        ..Default::default()
    };
    program.call(iommufd, IOMMU_IOAS_MAP, &mut map).unwrap();
    let mut pa =
        IommuIoasNoiommuGetPa { size: 40, ioas_id: ioas, iova: map.iova, length: 4096, ..Default::default() };
    let ask = |pa: &mut _| program.call(iommufd, IOMMU_IOAS_NOIOMMU_GET_PA, pa);
    assert_eq!(ask(&mut pa), Err(Errno::EOPNOTSUPP), "nothing is attached");
    assert_eq!(program.attach(device, ioas), Ok(3));
    assert_eq!(ask(&mut pa), Ok(0));
    assert!(pa.out_phys & 4095 == 0 && pa.length == 4096);

    // The context lives as long as the device, and ends with it.
    program.close(iommufd);
    assert_eq!(program.get_info(device), Ok(0));
    program.close(device);
    let iommufd = program.open("/dev/iommu").unwrap();
    assert_eq!(program.bind(second, iommufd), Ok(1), "free again");
}

#[test]
fn the_group_and_the_node_exclude_each_other() {
    if !privileged() {
        return;
    }
    let program = Program::on_sim();
    let group = group(&program);
    let (iommufd, device) = (program.open("/dev/iommu").unwrap(), program.open(CDEV).unwrap());
    let open = program.open(&group).unwrap();
    assert_eq!(program.open(&group), Err(Errno::EBUSY));
    assert_eq!(program.bind(device, iommufd), Err(Errno::EBUSY));
    program.close(open);
    assert_eq!(program.bind(device, iommufd), Ok(1));
    assert_eq!(program.open(&group), Err(Errno::EBUSY));
    program.close(device);
    program.close(program.open(&group).unwrap());
}

#[test]
fn a_device_through_its_group_and_container() {
    if !privileged() {
        return;
    }
    let program = Program::on_sim();
    let (container, group) =
        (program.open("/dev/vfio/vfio").unwrap(), program.open(&group(&program)).unwrap());
    let name = program.server.nodes().iter().find_map(|node| match &node.kind {
        NodeKind::Group { devices, .. } => devices[0].file_name()?.to_str().map(|name| format!("{name}\0")),
        _ => None,
    });
    let name = name.unwrap();
    let get = || program.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name.as_ptr() as u64);
    let set_iommu = |kind: u32| program.ioctl(container, VFIO_SET_IOMMU, u64::from(kind));
    assert_eq!(program.ioctl(container, VFIO_CHECK_EXTENSION, u64::from(VFIO_NOIOMMU_IOMMU)), Ok(1));
    assert_eq!(set_iommu(VFIO_NOIOMMU_IOMMU), Err(Errno::EINVAL), "no group");
    assert_eq!(get(), Err(Errno::EINVAL), "no container");
    let mut descriptor = container;
    assert_eq!(program.call(group, VFIO_GROUP_SET_CONTAINER, &mut descriptor), Ok(0));
    assert_eq!(get(), Err(Errno::EINVAL), "no IOMMU chosen");
    assert_eq!(set_iommu(VFIO_TYPE1_IOMMU), Err(Errno::ENODEV));
    assert_eq!(set_iommu(VFIO_NOIOMMU_IOMMU), Ok(0));
    let (first, second) = (get().unwrap() as i32, get().unwrap() as i32);
    assert_eq!(program.get_info(second), Ok(0));
    assert_eq!(program.attach(second, 1), Err(Errno::ENOTTY), "a call of the node alone");
    assert_eq!(program.ioctl(group, VFIO_GROUP_UNSET_CONTAINER, 0), Err(Errno::EBUSY));
    // The device keeps its group and container.
    program.close(group);
    program.close(container);
    program.close(first);
    assert_eq!(program.get_info(second), Ok(0));
}

#[test]
fn an_iommufd_in_place_of_a_container() {
    if !privileged() {
        return;
    }
    let program = Program::on_sim();
    let (iommufd, group) = (program.open("/dev/iommu").unwrap(), program.open(&group(&program)).unwrap());
    let ioas = program.ioas(iommufd);
    let mut compat = IommuVfioIoas { size: 12, ioas_id: ioas, op: IOMMU_VFIO_IOAS_SET, ..Default::default() };
    program.call(iommufd, IOMMU_VFIO_IOAS, &mut compat).unwrap();
    let mut descriptor = iommufd;
    let mut set = || program.call(group, VFIO_GROUP_SET_CONTAINER, &mut descriptor);
    assert_eq!(set(), Err(Errno::EINVAL), "who has an IOAS there expects translation");
    compat.op = IOMMU_VFIO_IOAS_CLEAR;
    program.call(iommufd, IOMMU_VFIO_IOAS, &mut compat).unwrap();
    assert_eq!(set(), Ok(0));
    assert_eq!(set(), Err(Errno::EINVAL), "twice");
    assert_eq!(program.ioctl(iommufd, VFIO_SET_IOMMU, u64::from(VFIO_NOIOMMU_IOMMU)), Ok(0));
}

#[test]
fn a_fault_queue_stays_empty() {
    let program = Program::on_sim();
    let iommufd = program.open("/dev/iommu").unwrap();
    let mut alloc = IommuFaultAlloc { size: 16, ..Default::default() };
    program.call(iommufd, IOMMU_FAULT_QUEUE_ALLOC, &mut alloc).unwrap();
    let mut destroy = IommuDestroy { size: 8, id: alloc.out_fault_id };
    assert_eq!(program.call(iommufd, IOMMU_DESTROY, &mut destroy), Err(Errno::EBUSY));
    let queue = program.table.get(alloc.out_fault_fd as i32).unwrap();
    let caller = Caller { user: &Own, descriptors: &program.table };
    let mut buffer = [0u8; 80];
    assert_eq!(queue.read(caller, buffer.as_mut_ptr() as u64, 80, 0), Ok(0));
    assert_eq!(queue.read(caller, buffer.as_mut_ptr() as u64, 79, 0), Err(Errno::ESPIPE));
    drop(queue);
    program.close(alloc.out_fault_fd as i32);
    assert_eq!(program.call(iommufd, IOMMU_DESTROY, &mut destroy), Ok(0));
}

#[test]
fn what_is_there_is_configuration() {
    let paths = |settings: &Settings| {
        let program = Program::new(settings);
        program.server.nodes().iter().map(|node| node.path.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let sim = Settings { provider: Provider::Sim, ..Settings::default() };
    let all = paths(&sim);
    assert!(all.iter().any(|path| path.starts_with("/dev/vfio/noiommu-")));
    assert!(all.iter().any(|path| path == CDEV) && all.iter().any(|path| path == "/dev/vfio/vfio"));
    let no_group = paths(&Settings { no_group: true, ..sim.clone() });
    assert!(no_group.iter().all(|path| !path.starts_with("/dev/vfio/noiommu-") && path != "/dev/vfio/vfio"));
    assert!(no_group.iter().any(|path| path == CDEV));
    let no_cdev = paths(&Settings { no_cdev: true, ..sim });
    assert!(no_cdev.iter().all(|path| !path.starts_with("/dev/vfio/devices/") && path != "/dev/iommu"));
}

#[test]
fn a_device_without_a_group_is_bound_all_the_same() {
    if !privileged() {
        return;
    }
    let program = Program::new(&Settings { provider: Provider::Sim, no_group: true, ..Settings::default() });
    let (iommufd, device) = (program.open("/dev/iommu").unwrap(), program.open(CDEV).unwrap());
    assert_eq!(program.bind(device, iommufd), Ok(1));
    assert_eq!(program.get_info(device), Ok(0));
    program.close(device);
}
