//! The simulated edu device through its calls, against what Linux 7.3 answered for QEMU's.

use std::any::Any;
use std::cell::RefCell;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use noiommu_core::vfio::pci::{Address, Bound, Neighbours};
use noiommu_core::{Errno, UserMemory};
use rustix::event::{EventfdFlags, eventfd};

use super::{BarBuffer, ServedDevice, Session, sim};
use crate::memory::SimulatedMemory;
use crate::serve::{Caller, Descriptors, File, MmapRequest};

#[path = "../../../../noiommu-core/tests/vfio/recording.rs"]
mod recording;

use recording::{Line, bytes, lines};

const RECORDED: &str = include_str!("../../../../noiommu-core/tests/vfio/recorded/edu.txt");
const ARGUMENT: u64 = 0x1_0000;
const CONFIG: u64 = 7 << 40;

/// The caller: an argument for memory, descriptor 200 for what it is given, and bound alone.
#[derive(Default)]
struct Tester {
    memory: RefCell<Vec<u8>>,
    installed: Mutex<Vec<File>>,
}

impl Tester {
    fn range(&self, address: u64, length: usize) -> Result<std::ops::Range<usize>, Errno> {
        let start = address.checked_sub(ARGUMENT).ok_or(Errno::EFAULT)? as usize;
        match start.checked_add(length) {
            Some(end) if end <= self.memory.borrow().len() => Ok(start..end),
            _ => Err(Errno::EFAULT),
        }
    }

    fn session(&self) -> Session<'_> {
        Session { caller: Caller { user: self, descriptors: self }, neighbours: self }
    }

    fn call(&self, device: &dyn ServedDevice, number: u32, argument: &[u8]) -> (Result<i64, Errno>, Vec<u8>) {
        self.memory.replace(argument.to_vec());
        let answer = device.ioctl(self.session(), 0x3b00 | number, ARGUMENT);
        (answer, self.memory.take())
    }

    fn call_words(&self, device: &dyn ServedDevice, number: u32, words: &[u32]) -> Result<i64, Errno> {
        let argument = words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
        self.call(device, number, &argument).0
    }

    fn read(&self, device: &dyn ServedDevice, offset: u64, length: usize) -> (Result<u64, Errno>, Vec<u8>) {
        self.memory.replace(vec![0xa5; length]);
        let answer = device.read(self.session(), ARGUMENT, length as u64, offset);
        (answer, self.memory.take())
    }

    fn write(&self, device: &dyn ServedDevice, offset: u64, bytes: &[u8]) -> Result<u64, Errno> {
        self.memory.replace(bytes.to_vec());
        device.write(self.session(), ARGUMENT, bytes.len() as u64, offset)
    }
}

impl UserMemory for Tester {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        let range = self.range(address, into.len())?;
        into.copy_from_slice(&self.memory.borrow()[range]);
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        let range = self.range(address, from.len())?;
        self.memory.borrow_mut()[range].copy_from_slice(from);
        Ok(())
    }
}

impl Descriptors for Tester {
    fn get(&self, _: i32) -> Result<File, Errno> {
        Err(Errno::EBADF)
    }

    fn install(&self, file: File) -> Result<i32, Errno> {
        self.installed.lock().unwrap().push(file);
        Ok(200)
    }

    fn remove(&self, _: i32) {}
}

impl Neighbours for Tester {
    fn through_cdev(&self) -> bool {
        true
    }

    fn bound(&self, _: Address) -> Bound {
        Bound::NotServed
    }

    fn group_of(&self, _: Address) -> Option<u32> {
        None
    }

    fn group_at(&self, _: i32) -> Result<u32, Errno> {
        Err(Errno::EBADF)
    }
}

fn edu() -> Box<dyn ServedDevice> {
    let device = sim::edu(Some(&Arc::new(SimulatedMemory::default())));
    device.open_first().unwrap();
    device
}

/// Eventfds at the descriptors that the recording names.
fn eventfds() -> Vec<OwnedFd> {
    (100..103)
        .map(|number| {
            let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
            // SAFETY: nobody in the tests has so many descriptors that this is one of theirs; owned from here on.
            unsafe {
                assert_eq!(libc::dup3(event.as_raw_fd(), number, libc::O_CLOEXEC), number);
                OwnedFd::from_raw_fd(number)
            }
        })
        .collect()
}

fn signals(event: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    rustix::io::read(event, &mut bytes).map_or(0, |_| u64::from_ne_bytes(bytes))
}

fn result(line: &Line<'_>) -> Result<i64, Errno> {
    line.result[0].parse().map_err(|_| {
        (1..200).filter_map(Errno::from_raw).find(|errno| errno.name() == Some(line.result[0])).unwrap()
    })
}

#[test]
fn the_simulated_device_answers_as_the_kernel_does_for_qemus() {
    /// Tells of regions: the simulated BAR cannot be mapped.
    const GET_REGION_INFO: u32 = 108;
    let (device, tester, events) = (edu(), Tester::default(), eventfds());
    let mut shown = vec![0; 256];
    let mut steps = 0;
    for line in &lines(RECORDED) {
        let words = &line.words;
        let place = || format!("line {}: {}", line.number, line.text);
        match words[0] {
            "ioctl" => {
                let number = words[1].parse().unwrap();
                let argument = bytes(words[2]);
                let (answer, after) = tester.call(&*device, number, &argument);
                assert_eq!(answer, result(line), "{}", place());
                let mut recorded = line.result.get(1).map_or(argument, |text| bytes(text));
                if number == GET_REGION_INFO && recorded[4] == 7 && recorded[8] == 0 {
                    recorded[4] = 3;
                }
                assert_eq!(after, recorded, "{}", place());
            }
            "read" => {
                let (answer, data) = tester.read(&*device, line.hex(1), words[2].parse().unwrap());
                assert_eq!(answer.map(|bytes| bytes as i64), result(line), "{}", place());
                if let Ok(length) = answer {
                    assert_eq!(data[..length as usize], bytes(line.result[1]), "{}", place());
                }
            }
            "write" => {
                let answer = tester.write(&*device, line.hex(1), &bytes(words[2]));
                assert_eq!(answer.map(|bytes| bytes as i64), result(line), "{}", place());
            }
            "virt" => {
                let start = line.hex(1) as usize;
                let changed = bytes(words[2]);
                shown[start..start + changed.len()].copy_from_slice(&changed);
            }
            "event" => {
                let number = words[1].parse::<usize>().unwrap() - 100;
                assert_eq!(signals(&events[number]) as i64, result(line).unwrap(), "{}", place());
            }
            "closed" => break,
            _ => continue,
        }
        steps += 1;
    }
    // All that was written is in what is shown in the end.
    assert_eq!(tester.read(&*device, CONFIG, 256).1, shown);
    assert!(steps > 1000);
    device.close_last();
    device.close_last();
    assert_eq!(tester.read(&*device, CONFIG, 4).0, Err(Errno::EINVAL));
    drop(events);

    interrupts(&tester);
}

/// Registers of edu: raise and acknowledge interrupts.
const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;

/// The interrupts that the device raises itself. Part of the test above, whose descriptors it takes over.
fn interrupts(tester: &Tester) {
    let (device, events) = (edu(), eventfds());
    let set = |flags: u32, index: u32, descriptors: &[u32]| {
        let count = descriptors.len().max(1) as u32;
        let words = [&[20 + 4 * descriptors.len() as u32, flags, index, 0, count][..], descriptors].concat();
        tester.call_words(&*device, 110, &words)
    };
    let put = |offset, value: u32| tester.write(&*device, offset, &value.to_le_bytes()).unwrap();
    // The line: masked when it comes, and coming again when it is unmasked while asserted.
    assert_eq!(set(0x24, 0, &[100]), Ok(0));
    put(RAISE, 1);
    put(RAISE, 2);
    assert_eq!(signals(&events[0]), 1);
    assert_eq!(set(0x11, 0, &[]), Ok(0));
    assert_eq!(signals(&events[0]), 1, "still asserted");
    put(ACKNOWLEDGE, 3);
    assert_eq!(set(0x11, 0, &[]), Ok(0));
    put(RAISE, 1);
    assert_eq!(signals(&events[0]), 1);
    // Unmasked by an eventfd.
    put(ACKNOWLEDGE, 1);
    assert_eq!(set(0x14, 0, &[101]), Ok(0));
    rustix::io::write(&events[1], &1u64.to_ne_bytes()).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while signals(&events[0]) == 0 {
        // Masked until the eventfd has been seen.
        put(ACKNOWLEDGE, 1);
        put(RAISE, 1);
        assert!(std::time::Instant::now() < deadline);
    }
    assert_eq!(tester.call_words(&*device, 110, &[20, 0x21, 0, 0, 0]), Ok(0));
    // Messages: each time, none masked. They are writes to memory, so none comes with bus mastering off.
    put(ACKNOWLEDGE, 1);
    assert_eq!(set(0x24, 1, &[102]), Ok(0));
    put(RAISE, 1);
    assert_eq!(signals(&events[2]), 0);
    tester.write(&*device, CONFIG + 4, &[7]).unwrap();
    put(RAISE, 1);
    put(RAISE, 1);
    assert_eq!(signals(&events[2]), 2);
    assert_eq!(tester.call_words(&*device, 110, &[20, 0x21, 1, 0, 0]), Ok(0));
    put(RAISE, 1);
    assert_eq!(signals(&events[2]), 0);
    // A register written by an eventfd: the liveness check.
    let order = [32, 4, 4, 0, 0x1234_5678, 0, 101, 0];
    assert_eq!(tester.call_words(&*device, 116, &order), Ok(0));
    rustix::io::write(&events[1], &1u64.to_ne_bytes()).unwrap();
    while tester.read(&*device, 4, 4).1 != (!0x1234_5678u32).to_le_bytes() {
        assert!(std::time::Instant::now() < deadline);
    }
    device.close_last();
}

#[test]
fn an_exported_bar_goes_away_with_the_devices_memory() {
    let (device, tester) = (edu(), Tester::default());
    let feature = [40, 11 | 1 << 16, 0, 0, 0, 1, 0x1000, 0, 0x2000, 0];
    assert_eq!(tester.call_words(&*device, 117, &feature), Ok(200));
    let file = tester.installed.lock().unwrap().pop().unwrap();
    let buffer = file.as_any().downcast_ref::<BarBuffer>().unwrap();
    assert_eq!(
        buffer.ranges().iter().map(|range| (range.start.0, range.length)).collect::<Vec<_>>(),
        [(0xfe20_1000, 0x2000)]
    );
    let first = buffer.epoch().unwrap();
    tester.write(&*device, CONFIG + 4, &[0]).unwrap();
    assert_eq!(buffer.epoch(), None);
    tester.write(&*device, CONFIG + 4, &[2]).unwrap();
    let second = buffer.epoch().unwrap();
    assert_ne!(first, second);
    // What is exported while it is away is away.
    tester.write(&*device, CONFIG + 4, &[0]).unwrap();
    assert_eq!(tester.call_words(&*device, 117, &feature), Ok(200));
    let other = tester.installed.lock().unwrap().pop().unwrap();
    assert_eq!(other.as_any().downcast_ref::<BarBuffer>().unwrap().epoch(), None);
    tester.write(&*device, CONFIG + 4, &[2]).unwrap();
    device.close_last();
    assert_eq!(buffer.epoch(), None, "for good");
    let request = MmapRequest { address: 0, length: 4096, protection: 1, flags: 1, offset: 0 };
    // SAFETY: refused.
    assert_eq!(unsafe { file.mmap(request) }, Err(Errno::EINVAL));
    let _: &dyn Any = file.as_any();
}

#[test]
fn addresses() {
    let address = Address { segment: 0x12, bus: 0xa5, devfn: 0x1f << 3 | 7 };
    assert_eq!(super::parse_address("0012:a5:1f.7"), Some(address));
    for wrong in ["a5:1f.7", "0012:A5:1f.7", "0012:a5:20.0", "uevent", "pci0000:00", ""] {
        assert_eq!(super::parse_address(wrong), None, "{wrong}");
    }
}
