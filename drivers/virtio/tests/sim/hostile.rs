//! Devices that say anything: nothing panics, every call ends, all memory comes back, and the sanitizer sees none but what was given.

use noiommu::sim::Pace;
use noiommu_virtio::sim::{Card, Disk, Fault, Lie, Virtio};
use noiommu_virtio::{ErrorKind, FRAME, SECTOR};

use crate::common::{IMPATIENCE, Machine, Random, disk};

const SECTORS: u64 = 100;

#[test]
fn every_fault_of_a_disk_is_told() {
    for fault in [
        Fault::WrongId(1),
        Fault::WrongId(8),
        Fault::WrongId(0x4000),
        Fault::Twice,
        Fault::Jump(1),
        Fault::Jump(1000),
        Fault::Nothing,
        Fault::Fail,
    ] {
        let machine = disk(SECTORS);
        let mut block = machine.open(Some(IMPATIENCE)).unwrap().block().unwrap();
        machine.model(|model| model.inject([fault]));
        // What comes twice is seen with the next.
        let mut bytes = [0; SECTOR];
        let error = (0..3).find_map(|_| block.read(1, &mut bytes).err());
        let error = error.unwrap_or_else(|| panic!("{fault:?} is not seen"));
        assert!(matches!(error.kind(), ErrorKind::Violation), "{fault:?}: {error}");
        assert!(!machine.model(|model| model.is_running()), "{fault:?}: it was reset");
        assert_eq!(block.write(0, &bytes).unwrap_err(), error);
        drop(block);
        machine.assert_clean();
    }
    // How much it says to have written is of no meaning for a disk: what was asked for is copied, and no more.
    let machine = disk(SECTORS);
    let mut block = machine.block();
    machine.model(|model| model.inject([Fault::Length(u32::MAX), Fault::Length(0)]));
    block.read(0, &mut [0; SECTOR]).unwrap();
    block.read(0, &mut [0; SECTOR]).unwrap();
}

#[test]
fn what_a_device_leaves_out_is_nothing_of_another_request() {
    let machine = disk(SECTORS);
    let mut block = machine.open(Some(IMPATIENCE)).unwrap().block().unwrap();
    block.write(0, &[0x5e; 8 * SECTOR]).unwrap();
    machine.model(|model| model.inject([Fault::Status(0)]));
    let mut bytes = [0x11; SECTOR];
    block.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0x11; SECTOR], "it says it has read, and has not");
}

#[test]
fn what_a_device_says_of_itself_is_checked() {
    let refused = |lie: Lie, kind: ErrorKind| {
        let machine = Machine::new(Virtio::new(Disk::new(SECTORS)).with_lie(lie), Pace::AtOnce);
        let error = machine.open(Some(IMPATIENCE)).and_then(|device| device.block()).unwrap_err();
        assert_eq!(error.kind(), kind, "{lie:?}: {error}");
        machine.assert_clean();
    };
    // It is of before version 1, does not agree, has no queue that is long enough or free.
    refused(Lie::Features(1 << 32), ErrorKind::Unsupported);
    refused(Lie::Disagrees, ErrorKind::Unsupported);
    refused(Lie::QueueSize(8), ErrorKind::Unsupported);
    refused(Lie::QueueSize(0), ErrorKind::Unsupported);
    refused(Lie::Enabled, ErrorKind::Unsupported);
    // No configuration of its kind, or less than there has to be.
    refused(Lie::Structure(4, 0x2000, 4), ErrorKind::Unsupported);
    // Notifications past their structure, and at no word.
    refused(Lie::NotifyOffset(u16::MAX), ErrorKind::Violation);
    refused(Lie::Structure(2, 0x3000, 1), ErrorKind::Violation);
    // Structures past their BAR, also where 32 bits end; a short one.
    for kind in 1..=4 {
        refused(Lie::Structure(kind, 0x3ffc, 8), ErrorKind::Violation);
        refused(Lie::Structure(kind, u32::MAX - 3, 0x1000), ErrorKind::Violation);
    }
    refused(Lie::Structure(1, 0, 0x37), ErrorKind::Violation);
    refused(Lie::Changing, ErrorKind::Violation);
}

/// Any lie.
fn lie(random: &mut Random) -> Lie {
    match random.below(14) {
        0 => Lie::Features(1 << random.below(64)),
        1 => Lie::Disagrees,
        2 => Lie::QueueSize(random.any() as u16 >> random.below(16)),
        3 => Lie::Enabled,
        4 => Lie::NotifyOffset(random.any() as u16 >> random.below(16)),
        5 => Lie::Multiplier(random.any() as u32 >> random.below(32)),
        6..=9 => {
            // Structures of any place and length.
            let (at, length) = (random.any() as u32, random.any() as u32);
            let (at, length) = (at >> random.below(32), length >> random.below(32));
            Lie::Structure(1 + random.below(4) as u8, at & !3, length)
        }
        10 => Lie::Structure(1 + random.below(4) as u8, u32::MAX - 3, 0x1000),
        11 => Lie::Changing,
        12 => Lie::Deaf,
        _ => Lie::Features(random.any()),
    }
}

fn fault(random: &mut Random) -> Fault {
    match random.below(12) {
        0 => Fault::Late,
        1 if random.below(4) == 0 => Fault::Silence,
        2 => Fault::Status(random.any() as u8),
        3 => Fault::Nothing,
        4 => Fault::WrongId(1 << random.below(32)),
        5 => Fault::Twice,
        6 => Fault::Length(random.any() as u32),
        7 => Fault::Jump(random.any() as u16),
        8 if random.below(4) == 0 => Fault::Fail,
        _ => Fault::None,
    }
}

#[test]
fn any_registers() {
    let mut started = 0;
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let (first, second) = (lie(&mut random), lie(&mut random));
        let second = if random.below(2) == 0 { first } else { second };
        let disk = Virtio::new(Disk::new(SECTORS)).with_lie(first).with_lie(second);
        let machine = Machine::new(disk, Pace::AtOnce);
        // It starts and works, or is refused with a reason.
        match machine.open(Some(IMPATIENCE)).and_then(|device| device.block()) {
            Ok(mut block) => {
                started += 1;
                let _ = block.write(0, &[1; 4 * SECTOR]);
                let _ = block.read(0, &mut [1; 4 * SECTOR]);
                let _ = block.flush();
            }
            Err(error) => assert!(!error.cause().is_empty()),
        }
        machine.assert_clean();
        let card = Virtio::new(Card::default()).with_lie(first).with_lie(second);
        let machine = Machine::new(card, Pace::AtOnce);
        if let Ok(mut net) = machine.open(Some(IMPATIENCE)).and_then(|device| device.net()) {
            let _ = net.send(&[1; 100]);
            machine.arrive([vec![1; 100]]);
            let _ = net.receive(&mut [0; FRAME]);
        }
        machine.assert_clean();
    }
    assert!(started > 20, "{started} of them started: the others show little");
}

#[test]
fn many_lives() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let machine = disk(SECTORS);
        for _ in 0..4 {
            let mut block = machine.open(Some(IMPATIENCE)).unwrap().block().unwrap();
            for _ in 0..20 {
                let faults: Vec<_> = (0..random.below(4)).map(|_| fault(&mut random)).collect();
                machine.model(|model| model.inject(faults));
                let first = random.below(SECTORS);
                let length = random.below(SECTORS - first + 1) as usize * SECTOR;
                let _ = match random.below(5) {
                    0 | 1 => block.read(first, &mut vec![0; length]),
                    2 | 3 => block.write(first, &vec![1; length]),
                    _ => block.flush(),
                };
                if random.below(8) == 0 {
                    let (id, length, step) = (random.any() as u32, random.any() as u32, random.any() as u16);
                    machine.slot.act(|model, bus| {
                        model.scribble(0, id >> random.below(32), length, step >> random.below(16), bus);
                    });
                }
            }
            drop(block);
            machine.assert_clean();
        }
    }
}
