//! The rules of a vfio-pci device (`noiommu_core::vfio::pci`), which a hostile device stands behind and a hostile program before.
//!
//! The [device] answers any bytes, other ones each time if it likes, fails, and goes. Whatever it does: every access is inside of
//! its space and aligned; no step takes more accesses than a few walks through all of config space; the program changes none of
//! the header that is virtual; what was enabled is disabled in the end.

mod device;

use std::cell::RefCell;
use std::rc::Rc;

use arbitrary::{Arbitrary, Unstructured};
use noiommu_core::vfio::pci::{PciDevice, Surroundings};
use noiommu_uapi::vfio::device::VFIO_DEVICE_GET_INFO;

use self::device::{ARGUMENT, Alone, Exported, Hostile, Machine, User};
use crate::steps;

/// The most steps of one sequence.
const MOST: usize = 64;
/// Config space in the device's file.
const CONFIG: u64 = 7 << 40;

#[derive(Arbitrary, Debug)]
enum Place {
    Header(u8),
    Config(u16),
    Region { index: u8, offset: u16 },
    Any(u64),
}

impl Place {
    fn offset(&self) -> u64 {
        match *self {
            Self::Header(at) => CONFIG + u64::from(at),
            Self::Config(at) => CONFIG + u64::from(at % 4100),
            Self::Region { index, offset } => u64::from(index % 10) << 40 | u64::from(offset),
            Self::Any(at) => at,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    Read {
        at: Place,
        length: u8,
    },
    Write {
        at: Place,
        bytes: [u8; 8],
        length: u8,
    },
    /// The `number`-th call of a device, with these numbers as its structure.
    Call {
        number: u8,
        words: Vec<Word>,
    },
    Map {
        at: Place,
        length: u32,
        shared: bool,
    },
    Watched {
        token: u8,
    },
    /// What the device does by itself.
    Change {
        at: u16,
        value: u8,
    },
    Lie {
        how: u8,
    },
    Fail {
        fails: bool,
    },
    Gone,
}

/// A number in a structure: most have few values that mean something.
#[derive(Arbitrary, Debug, Clone, Copy)]
enum Word {
    Small(u8),
    Size(u8),
    Bit(u8),
    Descriptor(u8),
    Any(u32),
}

impl Word {
    fn number(self) -> u32 {
        match self {
            Self::Small(number) => number.into(),
            Self::Size(size) => u32::from(size) * 4,
            Self::Bit(bit) => 1 << (bit % 32),
            Self::Descriptor(number) => 98 + u32::from(number % 14),
            Self::Any(number) => number,
        }
    }
}

/// Runs the steps that `bytes` mean, on a device that their beginning means.
///
/// # Panics
/// Where an access is out of bounds, there are too many of them, or something stays on.
pub fn run(bytes: &[u8], tell: bool) -> usize {
    let mut u = Unstructured::new(bytes);
    let Ok(hostile) = Hostile::arbitrary(&mut u) else { return 0 };
    if tell {
        println!("  {hostile:x?}");
    }
    let machine = Machine::new(hostile);
    let Ok(mut device) = PciDevice::open(machine.clone()) else {
        machine.rested("open");
        return 0;
    };
    machine.rested("open");
    let number = steps::each(u, tell, MOST, |step| {
        go(&mut device, &machine, step);
        machine.rested(&format!("{step:x?}"));
    });
    device.close();
    machine.rested("close");
    machine.closed();
    number
}

fn go(device: &mut PciDevice<Machine>, machine: &Machine, step: &Step) {
    match step {
        Step::Read { at, length } => {
            let user = User(RefCell::new(vec![0; 24]));
            let _ = device.read(&user, ARGUMENT, u64::from(length % 32), at.offset());
        }
        Step::Write { at, bytes, length } => {
            let bytes = bytes[..usize::from(length % 9)].to_vec();
            let length = bytes.len() as u64;
            let _ = device.write(&User(RefCell::new(bytes)), ARGUMENT, length, at.offset());
        }
        Step::Call { number, words } => {
            let bytes = words.iter().flat_map(|word| word.number().to_ne_bytes()).collect();
            let user = User(RefCell::new(bytes));
            let alone = Alone;
            let around = Surroundings { user: &user, neighbours: &alone, export: &Exported };
            // Those of a device have numbers close to each other.
            let request = (VFIO_DEVICE_GET_INFO & !0xff) | (100 + u32::from(number % 40));
            let _ = device.ioctl(around, request, ARGUMENT);
        }
        Step::Map { at, length, shared } => {
            if let Ok(mapped) = device.map(at.offset(), u64::from(*length), *shared) {
                let _ = (mapped, device.mappings_answer(), device.revocations());
            }
        }
        Step::Watched { token } => device.watched(u64::from(*token)),
        Step::Change { at, value } => machine.change(*at, *value),
        Step::Lie { how } => machine.lie(*how),
        Step::Fail { fails } => machine.fail(*fails),
        Step::Gone => machine.go(),
    }
    let _ = device.memory_enabled();
    let _ = Rc::strong_count(machine.shared());
}
