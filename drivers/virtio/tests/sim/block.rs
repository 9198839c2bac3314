//! Disks.

use noiommu::sim::Pace;
use noiommu::{Context, ErrorKind as KitError};
use noiommu_virtio::sim::{Disk, Fault, Lie, Virtio};
use noiommu_virtio::{ErrorKind, Kind, SECTOR, VirtioDevice};

use crate::common::{IMPATIENCE, Machine, Random, card, disk};

/// Sectors of a disk: some pieces and a rest.
const SECTORS: u64 = 300;

fn everything_both_ways(machine: &Machine<Disk>) {
    let mut random = Random::new(1);
    let mut block = machine.block();
    assert_eq!((block.sectors(), block.is_read_only()), (SECTORS, false));
    assert_eq!(block.serial().unwrap(), "simulated-disk");
    let all = random.bytes(SECTORS as usize * SECTOR);
    let mut sector = 0;
    while sector < SECTORS {
        let count = (1 + random.below(90)).min(SECTORS - sector);
        let bytes = &all[sector as usize * SECTOR..][..count as usize * SECTOR];
        block.write(sector, bytes).unwrap();
        sector += count;
    }
    block.flush().unwrap();
    assert_eq!(machine.model(|model| (model.kind.media == all, model.kind.flushes)), (true, 1));
    for _ in 0..50 {
        let first = random.below(SECTORS);
        let count = random.below(SECTORS - first + 1);
        let mut bytes = vec![0xee; count as usize * SECTOR];
        block.read(first, &mut bytes).unwrap();
        assert_eq!(bytes, all[first as usize * SECTOR..][..bytes.len()]);
    }
    assert_eq!(block.shared(), 0, "what was shared was taken back");
    assert!(block.close().unwrap().recipe == Some(true));
    machine.assert_clean();
}

#[test]
fn what_is_written_is_read() {
    everything_both_ways(&disk(SECTORS));
}

#[test]
fn at_any_pace() {
    for pace in [Pace::OwnThread, Pace::OnTouch] {
        everything_both_ways(&Machine::new(Virtio::new(Disk::new(SECTORS)), pace));
    }
}

#[test]
fn what_is_not_there_is_refused() {
    let machine = disk(SECTORS);
    let mut block = machine.block();
    for (sector, length) in
        [(0, 1), (0, SECTOR + 1), (SECTORS, SECTOR), (SECTORS - 1, 2 * SECTOR), (u64::MAX, SECTOR)]
    {
        assert_eq!(block.read(sector, &mut vec![0; length]).unwrap_err().kind(), ErrorKind::Argument);
        assert_eq!(block.write(sector, &vec![0; length]).unwrap_err().kind(), ErrorKind::Argument);
    }
    block.read(SECTORS, &mut []).unwrap();
    // A device that has fewer than it says.
    drop(block);
    machine.model(|model| model.kind.sectors = SECTORS + 10);
    let mut block = machine.block();
    assert_eq!(block.read(SECTORS, &mut [0; SECTOR]).unwrap_err().kind(), ErrorKind::Failed);
    block.read(0, &mut [0; SECTOR]).unwrap();
    drop(block);
    machine.assert_clean();
}

#[test]
fn a_disk_that_is_only_read() {
    let machine = Machine::new(Virtio::new(Disk::new(8)).with_lie(Lie::Features(1 << 5)), Pace::AtOnce);
    let mut block = machine.block();
    assert!(block.is_read_only());
    assert_eq!(block.write(0, &[0; SECTOR]).unwrap_err().kind(), ErrorKind::Unsupported);
    block.read(0, &mut [0; SECTOR]).unwrap();
}

#[test]
fn requests_end_in_any_order() {
    let machine = disk(SECTORS);
    let mut block = machine.block();
    let all = Random::new(2).bytes(SECTORS as usize * SECTOR);
    for _ in 0..10 {
        machine
            .model(|model| model.inject([Fault::Late, Fault::None, Fault::Late, Fault::Late, Fault::None]));
        block.write(0, &all).unwrap();
        let mut bytes = vec![0; all.len()];
        machine.model(|model| model.inject([Fault::None, Fault::Late, Fault::None, Fault::Late]));
        block.read(0, &mut bytes).unwrap();
        assert!(bytes == all);
    }
    assert_eq!(block.shared(), 0);
    drop(block);
    machine.assert_clean();
}

#[test]
fn a_request_that_fails_is_told_and_the_next_is_done() {
    let machine = disk(SECTORS);
    let mut block = machine.block();
    let mut bytes = vec![0; SECTORS as usize * SECTOR];
    for (status, kind) in [(1, ErrorKind::Failed), (2, ErrorKind::Unsupported), (77, ErrorKind::Failed)] {
        machine.model(|model| model.inject([Fault::None, Fault::Status(status)]));
        assert_eq!(block.read(0, &mut bytes).unwrap_err().kind(), kind);
        machine.model(|model| model.inject([Fault::Status(status)]));
        assert_eq!(block.flush().unwrap_err().kind(), kind);
        assert_eq!(block.shared(), 0);
        block.read(0, &mut bytes).unwrap();
    }
}

#[test]
fn a_silent_device_is_given_up() {
    // By a request that is never answered, whichever it is, and by one that is never looked at.
    for (what, lie) in
        [(0, None), (1, None), (2, None), (3, None), (1, Some(Lie::Deaf)), (2, Some(Lie::Deaf))]
    {
        let model = Virtio::new(Disk::new(SECTORS));
        let model = lie.into_iter().fold(model, Virtio::with_lie);
        let machine = Machine::new(model, Pace::AtOnce);
        let mut block = machine.open(Some(IMPATIENCE)).unwrap().block().unwrap();
        machine.model(|model| model.inject([Fault::Silence]));
        let resets = machine.model(|model| model.resets());
        let error = match what {
            0 => block.read(0, &mut vec![0; 200 * SECTOR]).unwrap_err(),
            1 => block.write(0, &[1; SECTOR]).unwrap_err(),
            2 => block.flush().unwrap_err(),
            _ => block.serial().unwrap_err(),
        };
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(machine.model(|model| model.resets()) > resets, "it is reset");
        assert!(!machine.model(|model| model.is_running()));
        assert_eq!(block.read(0, &mut [0; SECTOR]).unwrap_err(), error, "and used no more");
        assert_eq!(block.flush().unwrap_err(), error);
        drop(block);
        machine.assert_clean();
        if lie.is_none() {
            // It can be taken anew.
            machine.model(|model| model.inject([Fault::None]));
            machine.block().read(0, &mut [0; SECTOR]).unwrap();
        }
    }
}

#[test]
fn a_device_that_is_pulled_out() {
    let machine = disk(SECTORS);
    let mut block = machine.block();
    machine.slot.unplug();
    assert_eq!(block.read(0, &mut [0; SECTOR]).unwrap_err().kind(), ErrorKind::Gone);
    drop(block);
    machine.assert_clean();
}

/// It never says that it was reset.
#[test]
fn a_device_that_never_stops_keeps_its_memory() {
    let machine = Machine::new(Virtio::new(Disk::new(8)).with_lie(Lie::Running), Pace::AtOnce);
    // From the start it is as after a reset.
    let mut block = machine.block();
    block.write(1, &[3; SECTOR]).unwrap();
    let areas = machine.ioas.usage().areas;
    assert!(areas > 0);
    drop(block);
    assert_eq!(machine.ioas.usage().areas, areas, "it could not be proved quiet");
    assert!(machine.ioas.quarantined() > 0);
    assert_eq!(machine.context.sanitizer().unwrap().reports(), []);
}

#[test]
fn dropped_in_the_middle_nothing_is_reached_any_more() {
    let machine = disk(SECTORS);
    let mut block = machine.open(Some(IMPATIENCE)).unwrap().block().unwrap();
    machine.model(|model| model.inject([Fault::Late]));
    machine.slot.hang();
    assert_eq!(block.write(0, &[5; 8 * SECTOR]).unwrap_err().kind(), ErrorKind::Timeout);
    drop(block);
    machine.slot.resume();
    while machine.slot.step() {}
    machine.assert_clean();
}

#[test]
fn two_disks_do_not_meet() {
    let context = Context::simulated();
    let ioases = [context.ioas().unwrap(), context.ioas().unwrap()];
    let slots = [0, 1].map(|_| context.sim_device_at(Virtio::new(Disk::new(SECTORS)), Pace::AtOnce).unwrap());
    let mut blocks: Vec<_> = slots
        .iter()
        .zip(&ioases)
        .map(|(slot, ioas)| VirtioDevice::open(slot.open().unwrap(), ioas).unwrap().block().unwrap())
        .collect();
    let mut random = Random::new(3);
    // By turns in this thread, then each in one of its own.
    for sector in 0..50 {
        for block in &mut blocks {
            block.write(sector, &random.bytes(SECTOR)).unwrap();
        }
    }
    std::thread::scope(|scope| {
        for (number, block) in (0..).zip(&mut blocks) {
            scope.spawn(move || {
                let bytes = Random::new(number).bytes(250 * SECTOR);
                block.write(50, &bytes).unwrap();
                let mut back = vec![0; bytes.len()];
                block.read(50, &mut back).unwrap();
                assert!(back == bytes);
            });
        }
    });
    drop(blocks);
    assert_eq!(context.sanitizer().unwrap().reports(), []);
    assert!(ioases.iter().all(|ioas| ioas.usage().areas == 0));
    let media = slots.map(|slot| slot.act(|model, _| model.kind.media.clone()));
    assert!(media[0] != media[1]);
}

#[test]
fn other_devices_are_refused() {
    let context = Context::simulated();
    let ioas = context.ioas().unwrap();
    let edu = VirtioDevice::open(context.sim_edu().unwrap(), &ioas).unwrap_err();
    assert_eq!(edu.kind(), ErrorKind::Gone, "{edu}");
    let machine = card();
    let device = machine.open(None).unwrap();
    assert_eq!(device.kind(), Kind::Net);
    assert_eq!(device.block().unwrap_err().kind(), ErrorKind::Unsupported);
    let machine = disk(1);
    let device = machine.open(None).unwrap();
    assert_eq!(device.kind(), Kind::Block);
    assert_eq!(device.net().unwrap_err().kind(), ErrorKind::Unsupported);
    // Before it is looked at, it has to be had.
    let _first = machine.slot.open().unwrap();
    assert_eq!(machine.open(None).unwrap_err().kind(), ErrorKind::Kit(KitError::Busy));
}

#[test]
fn a_device_behind_an_iommu_is_told_that_we_know() {
    const ACCESS_PLATFORM: u64 = 1 << 33;
    let machine =
        Machine::new(Virtio::new(Disk::new(8)).with_lie(Lie::Features(ACCESS_PLATFORM)), Pace::AtOnce);
    machine.block().read(0, &mut [0; SECTOR]).unwrap();
    let machine =
        Machine::new(Virtio::new(Disk::new(8)).with_lie(Lie::Features(ACCESS_PLATFORM)), Pace::AtOnce);
    let block = machine.block();
    let accepted = machine.model(|model| model.accepted());
    assert_eq!(accepted, 1 << 32 | 1 << 9 | ACCESS_PLATFORM, "and neither indirect nor by index");
    drop(block);
}
