//! A controller that says anything: nothing panics, every command ends, all memory comes back, and the sanitizer sees none but what
//! was given.

use crate::common::{Machine, Random, impatient};
use noiommu::sim::Pace;
use noiommu_nvme::sim::{self, Fault};

/// A fault of any kind that a reset mends.
fn fault(random: &mut Random) -> Fault {
    let any = random.any() as u16;
    match random.below(12) {
        0 => Fault::Late,
        1 => Fault::Status(any as u8 & 7, (any >> 8) as u8),
        2 => Fault::WrongIdentifier(any),
        3 => Fault::Twice,
        4 => Fault::WrongQueue(any),
        5 => Fault::WrongHead(any),
        6 => Fault::Silence,
        7 if random.below(4) == 0 => Fault::Deaf,
        8 if random.below(4) == 0 => Fault::Fatal,
        9 if random.below(4) == 0 => Fault::Stall,
        _ => Fault::None,
    }
}

fn a_life(seed: u64) {
    let mut random = Random::new(seed);
    let mut settings = impatient();
    settings.timeout = std::time::Duration::from_millis(1);
    let model = sim::Controller::new(1000, 512);
    let model = if random.below(2) == 0 { model.with_shadow_doorbells() } else { model };
    let machine = Machine::new(model, Pace::AtOnce, &settings);
    let namespace = machine.controller.namespace(1).unwrap();
    let region = machine.controller.region(64 << 10).unwrap();
    let mut queues: Vec<_> = (0..3).map(|_| machine.controller.queue().unwrap()).collect();
    let mut given = 0_usize;
    let mut done = Vec::new();
    for _ in 0..200 {
        let queue = &mut queues[random.below(3) as usize];
        match random.below(8) {
            0..=2 => {
                let faults: Vec<_> = (0..random.below(4)).map(|_| fault(&mut random)).collect();
                machine.slot.act(|model, _| model.inject(faults));
                for _ in 0..random.below(9) {
                    let (first, offset) = (random.below(900), random.below(50 << 8) as usize * 4);
                    let count = 1 + random.below(20) as u32;
                    let submitted = match random.below(2) {
                        0 => queue.submit_read(&namespace, first, count, &region, offset),
                        _ => queue.submit_write(&namespace, first, count, &region, offset),
                    };
                    given += usize::from(submitted.is_ok());
                }
                queue.ring().unwrap();
            }
            3..=5 => {
                queue.poll(&mut done);
            }
            6 => {
                // Any bytes where a completion could be, of any queue, the admin queue included.
                let (number, valid) = (random.below(4) as u16, random.below(2) == 0);
                let mut entry = [0; 16];
                random.fill(&mut entry);
                if random.below(2) == 0 {
                    // Near to one that could be.
                    let slot = entry[12] & 63;
                    entry[8..].copy_from_slice(&[0, 0, number as u8, 0, slot, 0, 0, 0]);
                }
                machine.slot.act(|model, bus| model.scribble(number, entry, valid, bus));
            }
            _ => {
                let _ = queue.recover(&mut done);
            }
        }
    }
    for queue in &mut queues {
        let _ = queue.ring();
        while queue.outstanding() > 0 {
            queue.poll(&mut done);
        }
    }
    assert_eq!(done.len(), given, "seed {seed}: every command ends once");
    drop(queues);
    assert!(region.into_buffer().is_ok(), "seed {seed}");
    machine.controller.close().unwrap();
    assert_eq!(machine.ioas.quarantined(), 0, "seed {seed}");
    assert_eq!(machine.context.sanitizer().unwrap().reports(), [], "seed {seed}");
}

#[test]
fn many_lives() {
    (0..60).for_each(a_life);
}

#[test]
fn any_capabilities_and_structures() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let mut model = sim::Controller::new(1000, 512);
        if random.below(2) == 0 {
            // Not the time that it may take, which would be waited for; nor so small a BAR that nothing is there.
            model = model.with_lies(random.any() & !(0xff << 24));
        }
        let all = random.below(3) == 0;
        let mut noise = Random::new(seed + 1000);
        model.forge(move |_, bytes| {
            if all {
                noise.fill(bytes);
            } else {
                for _ in 0..noise.below(20) {
                    let at = noise.below(256) as usize * if noise.below(2) == 0 { 1 } else { 4 };
                    bytes[at] = noise.any() as u8;
                }
            }
        });
        // It starts and works, or is refused with a reason.
        match Machine::start(model, Pace::AtOnce, &impatient()) {
            Ok(machine) => {
                let listed = machine.controller.namespaces();
                let namespaces = listed.map(|(found, _)| found).unwrap_or_default();
                // One with pages of many megabytes would want memory that is as contiguous.
                let Ok(region) = machine.controller.region(128 << 10) else { continue };
                if let Ok(mut queue) = machine.controller.queue() {
                    for namespace in namespaces.iter().take(3) {
                        let last = namespace.blocks() - 1;
                        let count = 1 + random.below(1 + (32 << 10) / u64::from(namespace.block_size()));
                        // The drive is smaller than it may say, or it has other blocks: that is for the controller to refuse.
                        let _ = queue.read(
                            namespace,
                            last.saturating_sub(count),
                            count.min(last.max(1)),
                            &region,
                            0,
                        );
                        let _ = queue.write(namespace, 0, 1, &region, 0);
                    }
                }
                assert!(region.into_buffer().is_ok());
                machine.assert_clean();
            }
            Err(error) => assert!(!error.cause().is_empty()),
        }
    }
}
