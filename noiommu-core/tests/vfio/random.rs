//! Anything at all, from devices and callers: an answer, and the device's virtual bits untouched.

use std::cell::RefCell;
use std::rc::Rc;

use noiommu_core::vfio::pci::{PciDevice, Resource, Space, Surroundings};
use proptest::prelude::*;

use crate::machine::{ARGUMENT, Alone, Exported, Machine, State, User};

const CONFIG: u64 = 7 << 40;

/// A config space with a list of capabilities of any kind and contents.
fn config() -> impl Strategy<Value = Vec<u8>> {
    let size = prop_oneof![Just(256usize), Just(4096)];
    let capability = (0u8..0x18, any::<[u8; 6]>());
    let extended = (0u16..0x34, any::<[u8; 8]>());
    let lists = (prop::collection::vec(capability, 0..9), prop::collection::vec(extended, 0..9));
    (size, any::<u64>(), lists, any::<bool>()).prop_map(|(size, seed, (standard, extended), garbage)| {
        let mut random = seed | 1;
        let mut config = (0..size)
            .map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if garbage { (random >> 24) as u8 } else { 0 }
            })
            .collect::<Vec<_>>();
        config[0x0e] &= 0x80;
        if !garbage || seed % 3 == 0 {
            config[6] |= 0x10;
            config[0x34] = 0x40;
            let mut at = 0x40;
            for (index, (id, bytes)) in standard.iter().enumerate() {
                config[at] = *id;
                config[at + 2..at + 8].copy_from_slice(bytes);
                let next = at + 8 + usize::from(bytes[5] & 0x10);
                config[at + 1] = if index + 1 == standard.len() { 0 } else { next as u8 };
                at = next;
            }
            let mut at = 0x100;
            for (index, (id, bytes)) in extended.iter().enumerate() {
                if size == 256 {
                    break;
                }
                let next = at + 12 + usize::from(bytes[7] & 0x70);
                let link = if index + 1 == extended.len() { 0 } else { next as u32 };
                config[at..at + 4].copy_from_slice(&(u32::from(*id) | 0x10000 | link << 20).to_le_bytes());
                config[at + 4..at + 12].copy_from_slice(bytes);
                at = next;
            }
        }
        config
    })
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64, u64),
    Write(u64, Vec<u8>),
    Call(u32, Vec<u8>),
    Map(u64, u64, bool),
    Watched(u64),
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0u64..0x120).prop_map(|at| CONFIG + at),
        2 => (0u64..4100).prop_map(|at| CONFIG + at),
        2 => (0u64..10, 0u64..0x4010).prop_map(|(region, at)| region << 40 | at),
        1 => any::<u64>(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let small =
        prop_oneof![Just(0u32), Just(1), Just(4), Just(20), Just(24), Just(32), 0u32..130, any::<u32>()];
    let argument = prop::collection::vec(small, 0..16)
        .prop_map(|words| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>());
    prop_oneof![
        2 => (offset(), 0u64..24).prop_map(|(at, length)| Step::Read(at, length)),
        4 => (offset(), prop::collection::vec(prop_oneof![Just(0xff), Just(0), any::<u8>()], 0..9))
            .prop_map(|(at, bytes)| Step::Write(at, bytes)),
        3 => (105u32..120, argument).prop_map(|(number, bytes)| Step::Call(number, bytes)),
        1 => (offset(), any::<u32>(), any::<bool>()).prop_map(|(at, length, shared)| Step::Map(at, length.into(), shared)),
        1 => (0u64..5).prop_map(Step::Watched),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn anything(config in config(), steps in prop::collection::vec(step(), 0..40), can_reset: bool, line: bool) {
        let mut state = State {
            config: RefCell::new(config.clone()), can_reset, line, messages: true, msi_limit: 4, dynamic: line,
            ..State::default()
        };
        state.resources[0] = Resource { start: 0xfe00_0000, size: 0x4000, mappable: true, ..Resource::default() };
        state.resources[1] = Resource { start: 0xc000, size: 4, space: Space::Ports, ..Resource::default() };
        state.resources[6] = Resource { start: 0xfd00_0000, size: 0x1000, ..Resource::default() };
        state.rom = Some((0x200, vec![0x55, 0xaa]));
        let machine = Machine(Rc::new(state));
        let Ok(mut device) = PciDevice::open(machine.clone()) else { return Ok(()) };
        let alone = Alone { at: None, id: 1 };
        for step in steps {
            match step {
                Step::Read(at, length) => {
                    let user = User(RefCell::new(vec![0; 16]));
                    let _ = device.read(&user, ARGUMENT, length, at);
                }
                Step::Write(at, bytes) => {
                    let length = bytes.len() as u64;
                    let _ = device.write(&User(RefCell::new(bytes)), ARGUMENT, length, at);
                }
                Step::Call(number, bytes) => {
                    let user = User(RefCell::new(bytes));
                    let around = Surroundings { user: &user, neighbours: &alone, export: &Exported };
                    let _ = device.ioctl(around, 0x3b00 | number, ARGUMENT);
                }
                Step::Map(at, length, shared) => { let _ = device.map(at, length, shared); }
                Step::Watched(token) => device.watched(token),
            }
            // The header's virtual bytes stay the device's own: ids, BARs, pin.
            let now = machine.0.config.borrow();
            for range in [0..4, 0x10..0x28, 0x2c..0x34, 0x3c..0x3e] {
                prop_assert_eq!(&now[range.clone()], &config[range]);
            }
        }
        device.close();
        prop_assert_eq!(machine.0.config.borrow()[4] & 4, 0);
        prop_assert_eq!(machine.0.enabled.get(), None);
    }
}
