//! The rules of a vfio-pci device against what Linux 7.3 answered for devices of QEMU: the recordings are played again, the
//! device's own config space following the recorded one, and every answer has to be the same.
#![cfg(not(loom))]

mod machine;
mod random;
mod recording;
mod rules;

use std::cell::RefCell;
use std::rc::Rc;

use noiommu_core::Errno;
use noiommu_core::vfio::pci::{Address, PciDevice, Resource, Space, Surroundings};

use self::machine::{ARGUMENT, Alone, Exported, Machine, State, User};
use self::recording::{Line, bytes, lines};

/// Config space begins here in the file.
const CONFIG: u64 = 7 << 40;
const SET_IRQS: u32 = 110;

struct Replay {
    machine: Machine,
    device: PciDevice<Machine>,
    alone: Alone,
    /// The device's config space as recorded.
    raw: Vec<u8>,
    /// What the open device shows, as recorded.
    virt: Vec<u8>,
    /// Bits of the device that are known to be writable.
    writable: Vec<u8>,
}

fn address(text: &str) -> Address {
    let number = |text| u8::from_str_radix(text, 16).unwrap();
    Address {
        segment: u16::from_str_radix(&text[..4], 16).unwrap(),
        bus: number(&text[5..7]),
        devfn: number(&text[8..10]) << 3 | number(&text[11..]),
    }
}

/// The flags of *include/linux/ioport.h*, as sysfs shows them.
fn resource(line: &Line<'_>) -> Resource {
    let (start, end, flags) = (line.hex(2), line.hex(3), line.hex(4));
    let size = if end == 0 { 0 } else { end - start + 1 };
    let memory = flags & 0x200 != 0;
    Resource {
        start,
        size,
        space: if flags & 0x100 != 0 { Space::Ports } else { Space::Memory },
        wide: flags & 0x10_0000 != 0,
        prefetchable: flags & 0x2000 != 0,
        mappable: memory && size != 0 && start.is_multiple_of(4096),
    }
}

fn put(config: &mut [u8], line: &Line<'_>) {
    let bytes = bytes(line.words[2]);
    let start = line.hex(1) as usize;
    config[start..start + bytes.len()].copy_from_slice(&bytes);
}

/// Opens the device that a recording begins with, and answers the lines that follow.
fn open<'a, 'l>(lines: &'a [Line<'l>]) -> (Replay, &'a [Line<'l>]) {
    let mut state = State { messages: true, msi_limit: 1, dynamic: true, ..State::default() };
    let mut alone = Alone { at: None, id: 0 };
    let (mut raw, mut virt, mut at) = (vec![], vec![], 0);
    for line in lines {
        let words = &line.words;
        match words[0] {
            "device" => alone.at = Some(address(words[1])),
            "resource" => state.resources[words[1].parse::<usize>().unwrap()] = resource(line),
            "reset_method" => state.can_reset = words[1] != "-",
            "config_size" => {
                raw.resize(words[1].parse().unwrap(), 0);
                virt.resize(raw.len(), 0);
            }
            "irq" => state.line = words[1] != "0",
            "scope" => state.scope = words[1..].iter().filter(|w| **w != "-").map(|w| address(w)).collect(),
            "rom" if words[1] != "0" => state.rom = Some((words[1].parse().unwrap(), bytes(words[2]))),
            "rom" => {}
            "bound" => alone.id = words[1].parse().unwrap(),
            "raw" => put(&mut raw, line),
            "virt" => put(&mut virt, line),
            _ => break,
        }
        at += 1;
    }
    // The kernel was asked while the device was open: the device showed what it shows here.
    state.config = RefCell::new(raw.clone());
    let writable = vec![0; raw.len()];
    let machine = Machine(Rc::new(state));
    let device = PciDevice::open(machine.clone()).unwrap();
    machine.0.config.borrow_mut().copy_from_slice(&raw);
    (Replay { machine, device, alone, raw, virt, writable }, &lines[at..])
}

fn errno(text: &str) -> Option<Errno> {
    (1..200).filter_map(Errno::from_raw).find(|errno| errno.name() == Some(text))
}

fn result(line: &Line<'_>) -> Result<i64, Errno> {
    match line.result[0] {
        "fd" => Ok(200),
        text => text.parse().map_err(|_| errno(text).unwrap_or_else(|| panic!("{}", line.text))),
    }
}

impl Replay {
    /// A call with these bytes as argument; answers the bytes afterwards.
    fn call(&mut self, number: u32, argument: &[u8], at: u64) -> (Result<i64, Errno>, Vec<u8>) {
        let user = User(RefCell::new(argument.to_vec()));
        let around = Surroundings { user: &user, neighbours: &self.alone, export: &Exported };
        let answer = self.device.ioctl(around, 0x3b00 | number, at);
        (answer, user.0.into_inner())
    }

    fn read(&mut self, offset: u64, length: usize) -> (Result<u64, Errno>, Vec<u8>) {
        let user = User(RefCell::new(vec![0xa5; length]));
        let answer = self.device.read(&user, ARGUMENT, length as u64, offset);
        (answer, user.0.into_inner())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<u64, Errno> {
        let user = User(RefCell::new(bytes.to_vec()));
        self.device.write(&user, ARGUMENT, bytes.len() as u64, offset)
    }

    fn play(&mut self, line: &Line<'_>) {
        let words = &line.words;
        match words[0] {
            "ioctl" => {
                let argument = bytes(words[2]);
                let (answer, after) = self.call(words[1].parse().unwrap(), &argument, ARGUMENT);
                assert_eq!(answer, result(line));
                assert_eq!(after, line.result.get(1).map_or(argument, |text| bytes(text)));
            }
            "dmabuf" => {
                let mut argument = vec![];
                for number in [words[10].parse().unwrap(), 11 | 1 << 16, words[1].parse().unwrap()] {
                    argument.extend(u32::to_le_bytes(number));
                }
                for number in [line.hex(2) as u32, words[3].parse().unwrap(), words[4].parse().unwrap()] {
                    argument.extend(u32::to_le_bytes(number));
                }
                for word in 5..9 {
                    argument.extend(line.hex(word).to_le_bytes());
                }
                assert_eq!(self.call(117, &argument, ARGUMENT).0, result(line));
            }
            "read" => {
                let offset = line.hex(1);
                let (answer, data) = self.read(offset, words[2].parse().unwrap());
                assert_eq!(answer.map(|bytes| bytes as i64), result(line));
                let Ok(length) = answer else { return };
                let recorded = bytes(line.result[1]);
                let hole = self.machine.0.resources.get((offset >> 40) as usize).is_some();
                for (index, byte) in recorded.iter().enumerate().take(length as usize) {
                    // Of registers, what the MSI-X table reads as; registers of the machine here are zero.
                    assert!(data[index] == *byte || (hole && data[index] == 0), "byte {index}: {data:x?}");
                }
            }
            "write" => {
                let answer = self.write(line.hex(1), &bytes(words[2]));
                assert_eq!(answer.map(|bytes| bytes as i64), result(line));
            }
            "mmap" => {
                let shared = words[4] == "1";
                let answer = self.device.map(line.hex(1), line.hex(2), shared);
                assert_eq!(answer.map(|_| 0), result(line));
            }
            "event" => {
                let count = self.machine.0.events.borrow_mut().remove(&words[1].parse().unwrap());
                assert_eq!(count.unwrap_or(0) as i64, result(line).unwrap());
            }
            "badptr" | "nullptr" => {
                let address = u64::from(words[0] == "badptr");
                assert_eq!(self.call(words[1].parse().unwrap(), &[], address).0, result(line));
            }
            "odd" => {
                let user = User::default();
                let around = Surroundings { user: &user, neighbours: &self.alone, export: &Exported };
                assert_eq!(self.device.ioctl(around, 0x1234, 0), Err(Errno::ENOTTY));
            }
            "badread" => {
                assert_eq!(self.device.read(&User::default(), 1, 4, CONFIG), Err(result(line).unwrap_err()));
            }
            "badwrite" | "badwrite0" => {
                let offset = if words[0] == "badwrite" { 0x0c } else { 0 };
                let answer = self.device.write(&User::default(), 1, 4, CONFIG + offset);
                assert_eq!(answer, Err(result(line).unwrap_err()));
            }
            "negread" | "farread" => {
                let offset = if words[0] == "negread" { (-4i64) as u64 } else { 0x7fff_ffff_ffff_fffe };
                let answer = self.device.read(&User::default(), ARGUMENT, 4, offset);
                assert_eq!(answer, Err(result(line).unwrap_err()));
            }
            other => panic!("{other}"),
        }
    }

    /// The device follows the recording: `changes` are the lines of its own bytes after a step. What the kernel changed has
    /// been changed here too, where `exact`.
    fn follow(&mut self, changes: &[&Line<'_>], exact: bool) {
        let before = self.raw.clone();
        for line in changes {
            put(&mut self.raw, line);
        }
        let ours = self.machine.0.config.borrow().clone();
        for (at, ((&before, &after), &ours)) in before.iter().zip(&self.raw).zip(&ours).enumerate() {
            if exact {
                let changed = before ^ after;
                assert_eq!(
                    (ours ^ after) & changed,
                    0,
                    "the kernel made {before:#x} {after:#x} at {at:#x}, we {ours:#x}"
                );
                // Status and other bits that the device changes by itself aside.
                self.writable[at] |= changed;
                let known = self.writable[at];
                assert_eq!(
                    (ours ^ after) & known,
                    0,
                    "the kernel left {after:#x} at {at:#x}, we made it {ours:#x}"
                );
            }
        }
        self.machine.0.config.borrow_mut().copy_from_slice(&self.raw);
        self.machine.0.config_writes.borrow_mut().clear();
    }

    /// All of config space is as recorded.
    fn compare(&mut self) {
        let size = self.raw.len();
        let (answer, data) = self.read(CONFIG, size);
        assert_eq!(answer, Ok(size as u64));
        for (at, (ours, recorded)) in data.iter().zip(&self.virt).enumerate() {
            assert_eq!(ours, recorded, "at {at:#x}: {ours:#x}, the kernel showed {recorded:#x}");
        }
    }
}

fn replay(text: &str) {
    let lines = lines(text);
    let (mut replay, mut lines) = open(&lines);
    replay.compare();
    while let Some((step, rest)) = lines.split_first() {
        if step.words[0] == "closed" {
            return closed(replay, lines);
        }
        let after = rest.iter().take_while(|line| matches!(line.words[0], "raw" | "virt")).count();
        let (changes, rest) = rest.split_at(after);
        lines = rest;
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            if matches!(step.words[0], "raw" | "virt") {
                // Seen late: of the step before.
                replay.follow(&[step], false);
            } else {
                let resets = replay.machine.0.resets.get();
                replay.play(step);
                let interrupts = step.words[0] == "ioctl" && step.words[1] == SET_IRQS.to_string();
                let exact = replay.machine.0.resets.get() == resets && !interrupts;
                let raw = changes.iter().filter(|line| line.words[0] == "raw").collect::<Vec<_>>();
                replay.follow(&raw, exact);
            }
            for line in changes.iter().filter(|line| line.words[0] == "virt") {
                put(&mut replay.virt, line);
            }
            if matches!(step.words[0], "write" | "ioctl") {
                replay.compare();
            }
        }));
        if let Err(reason) = caught {
            eprintln!("at line {}: {}", step.number, step.text);
            std::panic::resume_unwind(reason);
        }
    }
}

/// The device after it was closed: its header, but for status bits, is the one that the kernel left.
fn closed(replay: Replay, lines: &[Line<'_>]) {
    let mut left = vec![0; replay.raw.len()];
    for line in lines.iter().take_while(|line| line.words[0] == "closed") {
        put(&mut left, line);
    }
    let machine = replay.machine.clone();
    let _ = replay.device.close();
    let ours = machine.0.config.borrow().clone();
    assert_eq!((&ours[..6], &ours[8..0x40]), (&left[..6], &left[8..0x40]));
    assert_eq!((machine.0.enabled.get(), ours[4] & 4), (None, 0));
}

macro_rules! recordings {
    ($($name:ident: $file:literal,)*) => {
        $(#[test]
        fn $name() {
            replay(include_str!(concat!("recorded/", $file, ".txt")));
        })*
    };
}

recordings! {
    ahci: "ahci",
    e1000: "e1000",
    e1000e: "e1000e",
    edu: "edu",
    nvme: "nvme",
    nvme_behind_a_port: "nvme-port",
    rtl8139: "rtl8139",
    virtio_blk: "virtio-blk",
    virtio_net: "virtio-net",
    xhci: "xhci",
}
