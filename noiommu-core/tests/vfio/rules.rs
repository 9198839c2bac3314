//! Rules that no recorded device shows, on devices made for them. What is expected follows the kernel's rules as read.

use std::cell::RefCell;
use std::rc::Rc;

use noiommu_core::Errno;
use noiommu_core::vfio::pci::{Address, Bound, Neighbours, PciDevice, Resource, Space, Surroundings};

use crate::machine::{ARGUMENT, Alone, Exported, Machine, State, User};

const CONFIG: u64 = 7 << 40;
const ME: Address = Address { segment: 0, bus: 1, devfn: 0 };

/// A device whose config space has these bytes, and a memory BAR of 16 KiB.
fn machine(size: usize, parts: &[(usize, &[u8])]) -> State {
    let mut config = vec![0; size];
    config[..8].copy_from_slice(&[0xf4, 0x1a, 0x34, 0x12, 0x02, 0x00, 0x10, 0x00]);
    config[0x10..0x14].copy_from_slice(&0xfe00_0000u32.to_le_bytes());
    config[0x34] = 0x40;
    for (at, bytes) in parts {
        config[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    let mut state = State { config: RefCell::new(config), messages: true, msi_limit: 32, ..State::default() };
    state.resources[0] = Resource { start: 0xfe00_0000, size: 0x4000, mappable: true, ..Resource::default() };
    state
}

struct Opened {
    machine: Machine,
    device: PciDevice<Machine>,
}

fn open(state: State) -> Opened {
    let machine = Machine(Rc::new(state));
    let device = PciDevice::open(machine.clone()).unwrap();
    Opened { machine, device }
}

impl Opened {
    fn read(&mut self, at: u64, width: usize) -> u64 {
        let user = User(RefCell::new(vec![0; 8]));
        assert_eq!(self.device.read(&user, ARGUMENT, width as u64, CONFIG + at), Ok(width as u64));
        u64::from_le_bytes(user.0.into_inner().try_into().unwrap())
    }

    fn write(&mut self, at: u64, width: usize, value: u64) {
        let user = User(RefCell::new(value.to_le_bytes()[..width].to_vec()));
        assert_eq!(self.device.write(&user, ARGUMENT, width as u64, CONFIG + at), Ok(width as u64));
    }

    /// What the device has there.
    fn physical(&self, at: u16, width: u8) -> u32 {
        self.machine.0.config_number(at, width)
    }

    fn call(
        &mut self,
        number: u32,
        words: &[u32],
        neighbours: &dyn Neighbours,
    ) -> (Result<i64, Errno>, Vec<u32>) {
        let user = User(RefCell::new(words.iter().flat_map(|word| word.to_ne_bytes()).collect()));
        let around = Surroundings { user: &user, neighbours, export: &Exported };
        let answer = self.device.ioctl(around, 0x3b00 | number, ARGUMENT);
        let after = user.0.into_inner();
        (answer, after.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect())
    }
}

const ALONE: Alone = Alone { at: Some(ME), id: 1 };

#[test]
fn self_test_and_latency_reach_the_device_the_header_type_does_not() {
    let mut open = open(machine(256, &[]));
    open.write(0x0c, 4, 0xffff_ffff);
    assert_eq!(open.physical(0x0c, 4), 0xff00_ffff);
}

/// PCI Express, version 2, an endpoint with a function-level reset; its payload size is 256 bytes.
const EXPRESS: (usize, &[u8]) = (0x40, &[0x10, 0, 2, 0, 0, 0, 0, 0x10, 0x20, 0x00]);

#[test]
fn express_control() {
    let mut open = open(State { can_reset: true, ..machine(256, &[EXPRESS]) });
    let resets = open.machine.0.resets.get();
    // Phantom functions stay off; the payload size is the caller's own.
    open.write(0x48, 2, 0x0fff);
    assert_eq!((open.physical(0x48, 2), open.read(0x48, 2)), (0x0d3f, 0x0dff));
    // The read request size is not below the device's payload size, whatever the caller reads.
    for (wanted, device) in [(0, 0), (1, 1), (3, 3), (5, 5), (0, 1), (6, 1), (7, 1)] {
        open.write(0x48, 2, wanted << 12);
        assert_eq!((open.physical(0x48, 2) >> 12, open.read(0x48, 2) >> 12), (device, wanted), "{wanted}");
    }
    assert_eq!(open.machine.0.resets.get(), resets);
    open.write(0x49, 1, 0x80);
    assert_eq!((open.machine.0.resets.get(), open.read(0x48, 2)), (resets + 1, 0));
    // Device control 2, but for ARI.
    open.write(0x68, 2, 0xffff);
    assert_eq!(open.physical(0x68, 2), 0xffdf);
    // The rest is the device's.
    open.write(0x50, 4, 0xffff_ffff);
    assert_eq!(open.physical(0x50, 4), 0);
}

#[test]
fn no_reset_for_devices_that_cannot() {
    let mut without = EXPRESS.1.to_vec();
    without[7] = 0;
    let mut open = open(machine(256, &[(0x40, &without)]));
    let resets = open.machine.0.resets.get();
    open.write(0x48, 2, 0x8000);
    assert_eq!((open.machine.0.resets.get(), open.read(0x48, 2)), (resets, 0));
}

#[test]
fn advanced_features() {
    for (capabilities, expected) in [(3, 1), (1, 0), (2, 0)] {
        let mut open = open(machine(256, &[(0x40, &[0x13, 0, 6, capabilities])]));
        let resets = open.machine.0.resets.get();
        open.write(0x44, 1, 0xff);
        assert_eq!(open.machine.0.resets.get() - resets, expected);
        assert_eq!((open.read(0x44, 1), open.physical(0x44, 1)), (0, 0));
    }
}

#[test]
fn vital_product_data() {
    let mut open = open(machine(256, &[(0x40, &[3, 0])]));
    open.write(0x42, 2, 0x0123);
    // Done, and read: the machine answers the address.
    assert_eq!((open.read(0x42, 2), open.read(0x44, 4)), (0x8123, 0x123));
    // Writing fails on this machine: the flag stays, for ever.
    open.write(0x42, 2, 0x8004);
    assert_eq!(open.read(0x42, 2), 0x8004);
    // The lower byte alone begins nothing.
    open.write(0x42, 1, 0x40);
    assert_eq!((open.read(0x42, 2), open.read(0x44, 4)), (0x8040, 0x123));
    assert_eq!(open.physical(0x40, 4), 3, "none of it is the device's");
}

#[test]
fn hidden_capabilities_are_skipped() {
    // Slot identification, AGP 8x: hidden. A vendor's: shown.
    let parts: &[(usize, &[u8])] =
        &[(0x40, &[4, 0x50]), (0x50, &[9, 0x60, 8, 0xaa]), (0x60, &[0x0e, 0x70]), (0x70, &[5, 0])];
    let mut open = open(machine(256, parts));
    assert_eq!((open.read(0x34, 1), open.read(0x50, 2), open.read(0x70, 1)), (0x50, 0x7009, 5));
    assert_eq!(open.read(6, 2), 0x10);
    // Nobody's bytes are the device's.
    open.write(0x44, 4, 0x1234_5678);
    assert_eq!(open.physical(0x44, 4), 0x1234_5678);
    // A vendor's are, too, all of them.
    open.write(0x54, 4, 0x1234_5678);
    assert_eq!(open.physical(0x54, 4), 0x1234_5678);
}

#[test]
fn no_capability_shown_at_all() {
    let mut open = open(machine(256, &[(0x40, &[4, 0])]));
    assert_eq!((open.read(0x34, 1), open.read(6, 2)), (0, 0));
}

#[test]
fn lists_that_do_not_end() {
    for parts in [
        &[(0x40usize, &[9u8, 0x40, 4][..])][..],
        &[(0x40, &[9, 0x44, 255]), (0x44, &[9, 0x40, 255])],
        &[(0x34, &[0xff]), (0xfe, &[9, 9])],
        &[(0x34, &[0x02])],
        &[(0x40, &[0x10, 0, 2, 0]), (0x100, &[1, 0, 1, 0x10])],
        &[(0x40, &[0x10, 0, 2, 0]), (0x100, &[0x1b, 0, 1, 0x10])],
        &[(0x40, &[0x10, 0, 2, 0]), (0x100, &[0x0b, 0, 0xc1, 0xff, 0, 0, 0xf0, 0xff]), (0xffc, &[0xff; 4])],
    ] {
        let mut open = open(machine(4096, parts));
        open.read(0x40, 4);
        open.read(0x100, 4);
        open.read(0xffc, 4);
    }
}

#[test]
fn extended_capabilities() {
    let express = (0x40, &[0x10, 0, 2, 0][..]);
    // Error reporting, PASID (hidden), power budgeting, serial number.
    let parts: &[(usize, &[u8])] = &[
        express,
        (0x100, &[1, 0, 0x02, 0x14]),
        (0x140, &[0x1b, 0, 0x01, 0x16]),
        (0x160, &[4, 0, 0x01, 0x18]),
        (0x180, &[3, 0, 0x01, 0x00, 1, 2, 3, 4]),
    ];
    let mut device = open(machine(4096, parts));
    assert_eq!((device.read(0x100, 4), device.read(0x160, 4)), (0x1602_0001, 0x1801_0004));
    for (at, writable) in [
        (0x100, None),
        (0x104, Some(0x03ff_f031)),
        (0x108, Some(0x03ff_f031)),
        (0x10c, Some(0x03ff_f031)),
        (0x110, Some(0xf1c1)),
        (0x114, Some(0xf1c1)),
        (0x118, Some(0x140)),
        (0x11c, Some(0)),
        (0x168, Some(0xff)),
        (0x184, None),
    ] {
        let before = device.physical(at, 4);
        device.write(at.into(), 4, 0xffff_ffff);
        assert_eq!(device.physical(at, 4), writable.unwrap_or(before), "{at:#x}");
    }
    // The first one hidden: its place stays, without an id, and with the link.
    let mut device = open(machine(4096, &[express, (0x100, &[0x1b, 0, 1, 0x16]), (0x160, &[3, 0, 1, 0])]));
    assert_eq!((device.read(0x100, 4), device.read(0x160, 4)), (0x1600_0000, 0x0001_0003));
    // None that is shown: an empty list.
    let mut device = open(machine(4096, &[express, (0x100, &[0x1b, 0, 1, 0])]));
    assert_eq!(device.read(0x100, 4), 0);
    // Without PCI Express there is no list at all.
    let mut device = open(machine(4096, &[(0x40, &[1, 0, 3, 0]), (0x100, &[0x1b, 0, 1, 0])]));
    assert_eq!(device.read(0x100, 4), 0x0001_001b);
}

#[test]
fn two_capabilities_of_a_vendor_in_a_row_count_as_one() {
    let parts: &[(usize, &[u8])] =
        &[(0x40, &[9, 0x44, 4, 0]), (0x44, &[9, 0x50, 4, 0]), (0x50, &[4, 0x60]), (0x60, &[1, 0, 3, 0])];
    let mut open = open(machine(256, parts));
    // The second one's link would be virtual and skip what is hidden; it is read from the device instead.
    assert_eq!((open.read(0x40, 2), open.read(0x44, 2)), (0x4409, 0x5009));
}

#[test]
fn sizes_of_bars() {
    let mut state = machine(256, &[(0x14, &[0x0c]), (0x1c, &[0x01, 0xc0]), (0x30, &[0, 0, 0xf0, 0xfe])]);
    state.resources[1] = Resource {
        start: 0x8_0000_0000,
        size: 1 << 33,
        wide: true,
        prefetchable: true,
        mappable: true,
        ..Resource::default()
    };
    state.resources[3] = Resource { start: 0xc000, size: 0x20, space: Space::Ports, ..Resource::default() };
    state.resources[6] = Resource { start: 0xfef0_0000, size: 0x1_0000, ..Resource::default() };
    let mut open = open(state);
    for at in (0x10..0x28).step_by(4).chain([0x30]) {
        open.write(at, 4, 0xffff_ffff);
    }
    let sizes = (0x10..0x28).step_by(4).chain([0x30]).map(|at| open.read(at, 4)).collect::<Vec<_>>();
    assert_eq!(sizes, [0xffff_c000, 0xc, 0xffff_fffe, 0xffff_ffe1, 0, 0, 0xffff_0001]);
    assert!(open.machine.0.config_writes.borrow().iter().all(|(at, ..)| !(0x10..0x34).contains(at)));
}

#[test]
fn devices_that_lost_their_bars_get_them_back() {
    let mut open = open(machine(256, &[]));
    open.machine.0.config.borrow_mut()[0x10..0x14].fill(0);
    open.write(4, 2, 2);
    assert_eq!(open.physical(0x10, 4), 0xfe00_0000);
    // Memory off behind our back, the caller turning it on again.
    open.machine.0.config.borrow_mut()[4] = 0;
    open.write(4, 2, 2);
    assert_eq!(open.physical(4, 2), 2);
}

/// Power management, with D1, and a device that resets itself in D3hot.
const POWER: (usize, &[u8]) = (0x40, &[1, 0, 3, 2]);

#[test]
fn power_states() {
    let mut open = open(machine(256, &[POWER]));
    // D2 is not there; D1 is, and from there only D3 or D0.
    for (wanted, state) in [(2, 0), (1, 1), (3, 3), (1, 3), (0, 0), (3, 3)] {
        open.write(0x44, 2, wanted);
        assert_eq!(open.physical(0x44, 2) & 3, state, "{wanted}");
        assert_eq!(open.device.memory_enabled(), state != 3);
    }
    let revocations = open.device.revocations();
    // It wakes up without its BARs.
    open.machine.0.config.borrow_mut()[0x10..0x14].fill(0);
    open.write(0x44, 2, 0);
    assert_eq!((open.physical(0x10, 4), open.physical(0x44, 2)), (0xfe00_0000, 0));
    assert!(open.device.memory_enabled());
    open.write(4, 2, 0);
    assert_eq!(open.device.revocations(), revocations + 1);
}

#[test]
fn what_a_device_without_interrupts_shows() {
    let state = machine(256, &[(0x3d, &[1]), (0x40, &[5, 0x50, 0x86, 0]), (0x50, &[0x11, 0, 3, 0])]);
    let mut open = open(State { messages: false, ..state });
    assert_eq!(open.read(0x3d, 1), 0);
    for index in 0..5 {
        let count = u32::from(index >= 3);
        let (answer, info) = open.call(109, &[16, 0, index, 9], &ALONE);
        assert_eq!((answer, info[3]), (Ok(0), count), "{index}");
        let (answer, _) = open.call(110, &[20, 0x21, index, 0, 0], &ALONE);
        assert_eq!(answer, Err(Errno::EINVAL), "{index}");
    }
}

/// Through groups: 7 is ours, 8 another's, 5 no group.
struct Groups {
    served: bool,
    other: u32,
}

impl Neighbours for Groups {
    fn through_cdev(&self) -> bool {
        false
    }

    fn bound(&self, _: Address) -> Bound {
        if self.served { Bound::Elsewhere } else { Bound::NotServed }
    }

    fn group_of(&self, address: Address) -> Option<u32> {
        if address == ME { Some(70) } else { Some(self.other) }
    }

    fn group_at(&self, descriptor: i32) -> Result<u32, Errno> {
        match descriptor {
            7 | 8 => Ok(descriptor as u32 * 10),
            5 => Err(Errno::EINVAL),
            _ => Err(Errno::EBADF),
        }
    }
}

#[test]
fn hot_resets_through_groups() {
    let other = Address { devfn: 1, ..ME };
    let mut open = open(State { scope: vec![ME, other], ..machine(256, &[]) });
    let groups = Groups { served: true, other: 80 };
    let (answer, info) = open.call(112, &[28, 9, 9, 9, 9, 9, 9], &groups);
    assert_eq!(answer, Ok(0));
    assert_eq!(info, [28, 0, 2, 70, 1 << 16, 80, 1 << 16 | 1 << 24]);
    assert_eq!(
        open.call(112, &[27, 9, 9, 9, 9, 9, 9], &groups),
        (Err(Errno::ENOSPC), vec![27, 0, 2, 9, 9, 9, 9])
    );
    let mut reset = |count, descriptors: [u32; 2], groups: &Groups| {
        open.call(113, &[20, 0, count, descriptors[0], descriptors[1]], groups).0
    };
    // Both groups, and the machine's own answer for the reset.
    assert_eq!(reset(2, [7, 8], &groups), Err(Errno::ENOTTY));
    assert_eq!(reset(2, [8, 7], &groups), Err(Errno::ENOTTY));
    for (count, descriptors, error) in [
        (0, [7, 8], Errno::EINVAL),
        (1, [7, 8], Errno::EINVAL),
        (3, [7, 8], Errno::EINVAL),
        (2, [7, 5], Errno::EINVAL),
        (2, [7, 6], Errno::EBADF),
        (2, [5, 6], Errno::EINVAL),
    ] {
        assert_eq!(reset(count, descriptors, &groups), Err(error), "{count} {descriptors:?}");
    }
    let unserved = Groups { served: false, other: 80 };
    assert_eq!(reset(2, [7, 8], &unserved), Err(Errno::EINVAL));
    assert_eq!(reset(1, [7, 7], &Groups { served: true, other: 70 }), Err(Errno::ENOTTY));
}

#[test]
fn registers_by_eventfd() {
    let mut open = open(machine(256, &[]));
    let order = |offset: u64, data: u64, flags, fd: i32| {
        [32, flags, offset as u32, (offset >> 32) as u32, data as u32, (data >> 32) as u32, fd as u32, 0]
    };
    assert_eq!(open.call(116, &order(0x10, 0x1_2345_6789, 8, 100), &ALONE).0, Ok(0));
    assert_eq!(open.call(116, &order(0x22, 0xabcd_ef01, 4, 101), &ALONE).0, Ok(0));
    open.device.watched(1);
    assert_eq!(open.machine.0.register_writes.take(), [(0, 0x10, 8, 0x1_2345_6789)]);
    open.device.watched(2);
    assert_eq!(open.machine.0.register_writes.take().len(), 4, "misaligned: byte by byte");
    open.write(4, 2, 0);
    open.device.watched(1);
    open.device.watched(77);
    assert_eq!(open.machine.0.register_writes.take(), []);
    open.write(4, 2, 2);
    assert_eq!(open.call(116, &order(0x10, 0x1_2345_6789, 8, -1), &ALONE).0, Ok(0));
    open.device.watched(1);
    assert_eq!(open.machine.0.register_writes.take(), []);
    for fd in 0..998 {
        assert_eq!(open.call(116, &order(0x10, fd, 8, 100), &ALONE).0, Ok(0), "{fd}");
    }
    assert_eq!(open.call(116, &order(0x10, 998, 8, 100), &ALONE).0, Ok(0));
    assert_eq!(open.call(116, &order(0x10, 999, 8, 100), &ALONE).0, Err(Errno::ENOSPC));
}

#[test]
fn the_line() {
    let mut open = open(State { line: true, ..machine(256, &[(0x3d, &[1])]) });
    let set = |flags, data: &[u32]| [&[20 + 4 * data.len() as u32, flags, 0, 0, 1][..], data].concat();
    assert_eq!(open.call(110, &set(0x24, &[100]), &ALONE).0, Ok(0));
    assert_eq!(open.call(110, &set(0x14, &[101]), &ALONE).0, Ok(0));
    // Masked by the device's side, and asserted no more: unmasked by the eventfd.
    open.machine.0.config.borrow_mut()[5] |= 4;
    open.device.watched(1);
    assert_eq!(open.physical(4, 2) & 0x400, 0);
    // Still asserted: signalled again, and still masked.
    open.machine.0.config.borrow_mut()[5] |= 4;
    open.machine.0.config.borrow_mut()[6] |= 8;
    open.device.watched(1);
    assert_eq!(
        (open.physical(4, 2) & 0x400, open.machine.0.events.borrow_mut().remove(&100)),
        (0x400, Some(1))
    );
    // The caller's own bit keeps it masked.
    open.write(4, 2, 0x402);
    open.machine.0.config.borrow_mut()[6] = 0x10;
    open.device.watched(1);
    assert_eq!(open.physical(4, 2) & 0x400, 0x400);
    open.write(4, 2, 2);
    assert_eq!(open.physical(4, 2) & 0x400, 0);
}
