//! Reads and writes against the simulated controller: what is on the drive and what is in memory is held to a model of both.

use std::collections::HashMap;

use crate::common::{Machine, Random, drain, settings};
use noiommu::sim::Pace;
use noiommu::{Contiguity, DmaBuffer};
use noiommu_nvme::sim::{self, Fault};
use noiommu_nvme::{ErrorKind, Region, Token};

#[test]
fn a_controller_tells_who_it_is() {
    let machine = Machine::new(sim::Controller::new(1000, 512), Pace::AtOnce, &settings());
    let identity = machine.controller.identity().unwrap();
    assert_eq!((identity.vendor, identity.serial.as_str()), (0x1b36, "sim-1"));
    assert_eq!((identity.model.as_str(), identity.version), ("noiommu simulated controller", (1, 4, 0)));
    assert_eq!(identity.max_transfer, Some(512 << 10));
    let (namespaces, refused) = machine.controller.namespaces().unwrap();
    assert_eq!((namespaces.len(), refused.len()), (1, 0));
    assert_eq!((namespaces[0].id(), namespaces[0].blocks(), namespaces[0].block_size()), (1, 1000, 512));
    assert!(machine.controller.namespace(2).is_err());
    assert_eq!(machine.controller.queues(), 8);
    let queues: Vec<_> = (0..8).map(|_| machine.controller.queue().unwrap()).collect();
    assert_eq!(machine.controller.queue().unwrap_err().kind(), ErrorKind::Busy);
    drop(queues);
    machine.controller.queue().unwrap();
    assert!(machine.controller.close().unwrap().bus_master_off);
    assert_eq!(machine.context.sanitizer().unwrap().reports(), []);
}

#[test]
fn every_length_and_offset_arrives() {
    for (block_size, transfer_shift, contiguity) in
        [(512, 7, Contiguity::Pages), (512, 1, Contiguity::Best), (4096, 0, Contiguity::Pages)]
    {
        let model = sim::Controller::new((4 << 20) / u64::from(block_size), block_size)
            .with_transfer_shift(transfer_shift);
        let machine = Machine::new(model, Pace::AtOnce, &settings());
        let namespace = machine.controller.namespace(1).unwrap();
        let region = machine.controller.region_of(DmaBuffer::new(3 << 20, contiguity).unwrap()).unwrap();
        let mut queue = machine.controller.queue().unwrap();
        let mut random = Random::new(u64::from(block_size) + u64::from(transfer_shift));
        let mut bytes = vec![0; 3 << 20];
        random.fill(&mut bytes);
        region.write(0, &bytes).unwrap();
        for round in 0..60_u64 {
            let count = match round % 3 {
                0 => 1 + random.below(3),
                1 => 1 + random.below(40),
                _ => 1 + random.below(2 * (1 << 20) / u64::from(block_size)),
            };
            let length = (count * u64::from(block_size)) as usize;
            let offset = random.below((bytes.len() - length) as u64 / 4) as usize * 4;
            let first = random.below(namespace.blocks() - count + 1);
            queue.write(&namespace, first, count, &region, offset).unwrap();
            let start = (first * u64::from(block_size)) as usize;
            machine.slot.act(|model, _| {
                assert!(model.media()[start..start + length] == bytes[offset..offset + length], "written")
            });
            let target = random.below((bytes.len() - length) as u64 / 4) as usize * 4;
            queue.read(&namespace, first, count, &region, target).unwrap();
            bytes.copy_within(offset..offset + length, target);
            let mut found = vec![0; bytes.len()];
            region.read(0, &mut found).unwrap();
            assert!(found == bytes, "read");
        }
        queue.flush(&namespace).unwrap();
        machine.assert_clean();
    }
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_given_to_the_controller() {
    let machine = Machine::new(sim::Controller::new(1000, 512), Pace::AtOnce, &settings());
    let other = Machine::new(sim::Controller::new(1000, 4096), Pace::AtOnce, &settings());
    let namespace = machine.controller.namespace(1).unwrap();
    let region = machine.controller.region(1 << 20).unwrap();
    let mut queue = machine.controller.queue().unwrap();
    let most = (queue.max_transfer() / 512) as u32;
    for (first, count, offset) in [
        (0, 0, 0),
        (0, most + 1, 0),
        (1000, 1, 0),
        (999, 2, 0),
        (u64::MAX, 1, 0),
        (0, 1, 1 << 20),
        (0, 1, (1 << 20) - 511),
        (0, 1, usize::MAX - 3),
        (0, 1, 2),
    ] {
        let error = queue.submit_read(&namespace, first, count, &region, offset).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
        assert!(queue.submit_write(&namespace, first, count, &region, offset).is_err());
    }
    let foreign = other.controller.namespace(1).unwrap();
    assert_eq!(queue.submit_read(&foreign, 0, 1, &region, 0).unwrap_err().kind(), ErrorKind::Argument);
    assert_eq!(queue.submit_flush(&foreign).unwrap_err().kind(), ErrorKind::Argument);
    let foreign = other.controller.region(4096).unwrap();
    assert_eq!(queue.submit_read(&namespace, 0, 1, &foreign, 0).unwrap_err().kind(), ErrorKind::Argument);
    assert_eq!(queue.read(&namespace, 999, 2, &region, 0).unwrap_err().kind(), ErrorKind::Argument);
    assert_eq!(queue.outstanding(), 0);
    queue.ring().unwrap();
    assert_eq!(machine.slot.act(|model, _| (model.commands(), model.doorbells())), (0, [0, 0]));
}

#[test]
fn many_commands_are_one_doorbell() {
    let machine = Machine::new(sim::Controller::new(1000, 512), Pace::AtOnce, &settings());
    let namespace = machine.controller.namespace(1).unwrap();
    let region = machine.controller.region(63 * 512).unwrap();
    let mut queue = machine.controller.queue().unwrap();
    assert_eq!((queue.depth(), queue.room()), (63, 63));
    let mut done = Vec::with_capacity(queue.depth());
    for round in 1..=40_u64 {
        for slot in 0..queue.depth() {
            queue.submit_read(&namespace, slot as u64, 1, &region, slot * 512).unwrap();
        }
        let full = queue.submit_read(&namespace, 0, 1, &region, 0).unwrap_err();
        assert_eq!((full.kind(), queue.room()), (ErrorKind::Full, 0));
        queue.ring().unwrap();
        assert_eq!(queue.poll(&mut done), 63);
        assert!(done.drain(..).all(|completion| completion.outcome.is_ok()));
        assert_eq!(done.capacity(), 63, "nothing was allocated");
        let [tails, heads] = machine.slot.act(|model, _| model.doorbells());
        assert_eq!(tails, round);
        // Told when half of its 256 places are used, no more often.
        assert!(heads <= round * 63 / 128 + 1, "{heads} heads in {round} rounds");
    }
    assert_eq!(machine.slot.act(|model, _| model.commands()), 40 * 63);
    machine.assert_clean();
}

/// A command that is outstanding, and what it does.
enum Doing {
    Read { first: usize, length: usize, offset: usize },
    Write,
    Flush,
}

/// Several queues, any commands, in whatever order they are done; the drive and memory hold what they should.
fn a_life(seed: u64, pace: Pace) {
    let mut random = Random::new(seed);
    let block_size = [512, 1024, 4096][random.below(3) as usize];
    let blocks = 256 + random.below(1000);
    let model = sim::Controller::new(blocks, block_size).with_transfer_shift(random.below(4) as u8);
    let model = if random.below(2) == 0 { model.with_entries(1 << (1 + random.below(7))) } else { model };
    let model = if random.below(2) == 0 { model.with_shadow_doorbells() } else { model };
    let mut settings = settings();
    settings.entries = 1 << (1 + random.below(7));
    let machine = Machine::new(model, pace, &settings);
    let namespace = machine.controller.namespace(1).unwrap();
    let mut queues: Vec<_> = (0..1 + random.below(4)).map(|_| machine.controller.queue().unwrap()).collect();
    let size = block_size as usize;
    let mut drive = vec![0; namespace.bytes() as usize];
    let area = 64 * size;
    let region =
        machine.controller.region_of(DmaBuffer::new(queues.len() * area + 4096, Contiguity::Pages).unwrap());
    let region: Region = region.unwrap();
    let mut memory = vec![0; region.len()];
    random.fill(&mut memory);
    region.write(0, &memory).unwrap();
    // Commands that are outstanding do not overlap, neither on the drive nor in memory: each queue has a part of both, and each of
    // its commands one of eight parts of that.
    let share = namespace.blocks() as usize / queues.len() / 8;
    let mut doing: Vec<HashMap<Token, (usize, Doing)>> = queues.iter().map(|_| HashMap::new()).collect();
    for _ in 0..300 {
        let index = random.below(queues.len() as u64) as usize;
        let queue = &mut queues[index];
        let part = random.below(8) as usize;
        let free = doing[index].values().all(|(taken, _)| *taken != part);
        if random.below(3) > 0 && free && queue.room() > 0 {
            let most = share.min(8).min(queue.max_transfer() / size);
            let count = 1 + random.below(most as u64) as usize;
            let first = (index * 8 + part) * share + random.below((share - count + 1) as u64) as usize;
            let (length, slack) = (count * size, area / 8 - count * size);
            let offset = index * area + part * (area / 8) + random.below(slack as u64 / 4 + 1) as usize * 4;
            if random.below(3) == 0 {
                machine.slot.act(|model, _| model.inject([Fault::Late]));
            }
            let (token, what) = match random.below(5) {
                0 => (queue.submit_flush(&namespace).unwrap(), Doing::Flush),
                1 | 2 => {
                    let token = queue.submit_write(&namespace, first as u64, count as u32, &region, offset);
                    drive[first * size..first * size + length]
                        .copy_from_slice(&memory[offset..offset + length]);
                    (token.unwrap(), Doing::Write)
                }
                _ => {
                    let token = queue.submit_read(&namespace, first as u64, count as u32, &region, offset);
                    (token.unwrap(), Doing::Read { first: first * size, length, offset })
                }
            };
            assert!(token.index() < queue.depth());
            assert!(doing[index].insert(token, (part, what)).is_none(), "a token twice");
        }
        if random.below(3) == 0 {
            queue.ring().unwrap();
        }
        if random.below(2) == 0 {
            let mut done = Vec::new();
            queue.poll(&mut done);
            finish(&mut doing[index], done, &drive, &mut memory);
        }
    }
    for (queue, doing) in queues.iter_mut().zip(&mut doing) {
        queue.ring().unwrap();
        let done = drain(queue);
        finish(doing, done, &drive, &mut memory);
        assert!(doing.is_empty());
    }
    machine.slot.act(|model, _| assert!(model.media() == drive, "seed {seed}: the drive"));
    let mut found = vec![0; memory.len()];
    region.read(0, &mut found).unwrap();
    assert!(found == memory, "seed {seed}: memory");
    drop(queues);
    let buffer = region.into_buffer().unwrap().unwrap();
    assert_eq!(buffer.len(), memory.len());
    machine.assert_clean();
}

fn finish(
    doing: &mut HashMap<Token, (usize, Doing)>,
    done: Vec<noiommu_nvme::Completion>,
    drive: &[u8],
    memory: &mut [u8],
) {
    for completion in done {
        completion.outcome.unwrap();
        let (_, what) = doing.remove(&completion.token).expect("a completion of nothing");
        if let Doing::Read { first, length, offset } = what {
            memory[offset..offset + length].copy_from_slice(&drive[first..first + length]);
        }
    }
}

#[test]
fn many_lives() {
    (0..150).for_each(|seed| a_life(seed, Pace::AtOnce));
    (150..180).for_each(|seed| a_life(seed, Pace::OwnThread));
}

#[test]
fn every_thread_has_a_queue() {
    let machine = Machine::new(sim::Controller::new(4096, 512), Pace::OwnThread, &settings());
    let namespace = machine.controller.namespace(1).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let mut queue = machine.controller.queue().unwrap();
            let region = machine.controller.region(64 << 10).unwrap();
            scope.spawn(move || {
                let mut random = Random::new(thread + 1);
                let mut bytes = vec![0; 64 << 10];
                for _ in 0..20 {
                    random.fill(&mut bytes);
                    region.write(0, &bytes).unwrap();
                    queue.write(&namespace, thread * 1024, 128, &region, 0).unwrap();
                    region.write(0, &vec![0; bytes.len()]).unwrap();
                    queue.read(&namespace, thread * 1024, 128, &region, 0).unwrap();
                    let mut found = vec![0; bytes.len()];
                    region.read(0, &mut found).unwrap();
                    assert!(found == bytes);
                }
            });
        }
    });
    machine.assert_clean();
}

#[test]
fn a_program_can_sleep_until_the_interrupt() {
    for (vectors, shadow) in [(9, false), (3, true), (0, false), (0, true)] {
        let mut settings = settings();
        settings.interrupts = true;
        let model = sim::Controller::new(4096, 512).with_vectors(vectors);
        let model = if shadow { model.with_shadow_doorbells() } else { model };
        let machine = Machine::new(model, Pace::OwnThread, &settings);
        let kind = if vectors > 0 { noiommu::InterruptKind::Msix } else { noiommu::InterruptKind::Intx };
        assert_eq!(machine.controller.interrupts(), Some(kind));
        let namespace = machine.controller.namespace(1).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..3_u64 {
                let mut queue = machine.controller.queue().unwrap();
                let region = machine.controller.region(4096).unwrap();
                scope.spawn(move || {
                    let mut done = Vec::new();
                    for round in 0..30_u64 {
                        let token =
                            queue.submit_read(&namespace, thread * 100 + round, 1, &region, 0).unwrap();
                        queue.ring().unwrap();
                        while queue.poll(&mut done) == 0 {
                            queue.wait(crate::common::PATIENCE).unwrap();
                        }
                        assert_eq!((done.len(), done[0].token), (1, token));
                        done.clear();
                    }
                    queue.write(&namespace, thread * 100, 8, &region, 0).unwrap();
                });
            }
        });
        machine.assert_clean();
    }
}

#[test]
fn a_controller_that_is_busy_need_not_be_told_by_registers() {
    let model = sim::Controller::new(1000, 512).with_shadow_doorbells();
    let machine = Machine::new(model, Pace::AtOnce, &settings());
    assert!(machine.controller.identity().unwrap().shadow_doorbells);
    let namespace = machine.controller.namespace(1).unwrap();
    let region = machine.controller.region(4096).unwrap();
    let mut queue = machine.controller.queue().unwrap();
    for round in 1..=30 {
        // What is rung for while it has not looked, it finds when it looks.
        machine.slot.hang();
        for block in 0..20 {
            queue.submit_read(&namespace, block, 1, &region, 0).unwrap();
            queue.ring().unwrap();
        }
        assert_eq!(machine.slot.act(|model, _| model.doorbells())[0], round, "the first of each round");
        machine.slot.resume();
        while machine.slot.step() {}
        assert_eq!(drain(&mut queue).len(), 20);
    }
    // After a reset as well.
    machine.controller.reset().unwrap();
    queue.read(&namespace, 0, 8, &region, 0).unwrap();
    machine.assert_clean();
}
