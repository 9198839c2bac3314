//! The driver against a device that hangs, is pulled out, or works when the test wants it to; the sanitizer watches, and fails
//! the test if the driver gives the device anything but its own.

use std::collections::VecDeque;
use std::time::Duration;

use noiommu::sim::{Edu as Model, Pace, Slot};
use noiommu::{Context, Contiguity, DmaBuffer, ErrorKind, Ioas, Mapping};
use noiommu_edu::{BUFFER_SIZE, Edu};

const PACES: [Pace; 3] = [Pace::OwnThread, Pace::AtOnce, Pace::OnTouch];

fn setup(context: &Context, pace: Pace) -> (Ioas, Slot<Model>, Edu) {
    let (ioas, slot) = (context.ioas().unwrap(), context.sim_device_at(Model::default(), pace).unwrap());
    context.sanitizer().unwrap().tell_dropped(true);
    let mut edu = Edu::new(slot.open().unwrap(), &ioas).unwrap();
    // For ever is not waited; a busy machine is.
    edu.set_timeout(Duration::from_secs(600));
    (ioas, slot, edu)
}

fn map(ioas: &Ioas, length: usize) -> Mapping {
    ioas.map(DmaBuffer::new(length, Contiguity::Pages).unwrap()).unwrap()
}

#[test]
fn a_device_that_hangs_loses_no_memory() {
    for pace in PACES {
        let context = Context::simulated();
        let (ioas, slot, mut edu) = setup(&context, pace);
        let mapping = map(&ioas, 4096);
        slot.hang();
        edu.set_timeout(Duration::from_millis(20));
        assert_eq!(edu.factorial(3).unwrap_err().kind(), ErrorKind::Timeout);
        let view = mapping.for_device(edu.device()).unwrap();
        assert_eq!(edu.store(&view, 0, 64).unwrap_err().kind(), ErrorKind::Timeout);
        assert!(slot.act(|model, _| model.is_copying()), "it has not been done");
        // The driver has made it quiet: whatever it does when it comes to itself, it does not reach the memory.
        drop(view);
        mapping.buffer().unwrap().fill(0, 4096, 1).unwrap();
        let memory = mapping.reclaim().unwrap().unwrap();
        slot.resume();
        while slot.act(|model, _| model.is_copying()) {
            slot.step();
        }
        assert_eq!(memory.load_u64(0).unwrap(), 0x0101_0101_0101_0101);
        assert_eq!(context.sanitizer().unwrap().reports(), []);
    }
}

#[test]
fn a_device_that_is_pulled_out_is_told_as_gone() {
    for pace in PACES {
        let context = Context::simulated();
        let (ioas, slot, edu) = setup(&context, pace);
        let mapping = map(&ioas, 4096);
        let view = mapping.for_device(edu.device()).unwrap();
        edu.load(&view, 0, 100).unwrap();
        slot.unplug();
        assert_eq!(edu.load(&view, 0, 100).unwrap_err().kind(), ErrorKind::NoDevice);
        assert_eq!(edu.factorial(5).unwrap_err().kind(), ErrorKind::NoDevice);
        drop((view, mapping));
        edu.close().unwrap();
        assert_eq!(ioas.quarantined(), 0);
        assert!(Edu::new(slot.open().unwrap(), &ioas).is_err());
    }
}

/// Numbers of no order, but the same each time.
struct Random(u64);

impl Random {
    /// Below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// A mapping, and what its memory must hold.
struct Known {
    mapping: Mapping,
    bytes: Vec<u8>,
    read_only: bool,
}

impl Known {
    fn check(&self, seed: u64) {
        let mut found = vec![0; self.bytes.len()];
        self.mapping.buffer().unwrap().read(0, &mut found).unwrap();
        assert!(found == self.bytes, "seed {seed}: memory does not hold what it should");
    }
}

/// Maps, copies, drops, reclaims, and makes trouble, by the numbers; memory and the device hold what they should throughout.
fn a_life(seed: u64) {
    let context = Context::simulated();
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (ioas, slot, mut edu) = setup(&context, PACES[random.below(3) as usize]);
    if random.below(2) == 0 {
        ioas.watch_freed(64 << 10);
    }
    let mut inside = vec![0; BUFFER_SIZE as usize];
    let mut all: VecDeque<Known> = VecDeque::new();
    for _ in 0..60 {
        match random.below(10) {
            0..=1 => {
                let length = 1 + random.below(20_000) as usize;
                let buffer = DmaBuffer::new(length, Contiguity::Pages).unwrap();
                let bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
                buffer.write(0, &bytes).unwrap();
                let read_only = random.below(4) == 0;
                let mapping = if read_only { ioas.map_read_only(buffer) } else { ioas.map(buffer) };
                all.push_back(Known { mapping: mapping.unwrap(), bytes, read_only });
            }
            2 => {
                if let Some(known) = all.pop_front() {
                    known.check(seed);
                    if random.below(2) == 0 {
                        let buffer = known.mapping.reclaim().unwrap().unwrap();
                        assert_eq!(buffer.load_u8(0).unwrap(), known.bytes[0]);
                    }
                }
            }
            way => {
                let count = all.len() as u64;
                if count == 0 {
                    continue;
                }
                let known = &mut all[random.below(count) as usize];
                let length = random.below(BUFFER_SIZE.min(known.bytes.len() as u64)) + 1;
                let offset = random.below(known.bytes.len() as u64 - length + 1);
                let (there, here) = (offset as usize..(offset + length) as usize, ..length as usize);
                let view = known.mapping.for_device(edu.device()).unwrap();
                if way < 7 || known.read_only {
                    edu.load(&view, offset, length).unwrap();
                    inside[here].copy_from_slice(&known.bytes[there]);
                } else {
                    edu.store(&view, offset, length).unwrap();
                    known.bytes[there].copy_from_slice(&inside[here]);
                }
                assert!(edu.load(&view, known.bytes.len() as u64, 1).is_err());
            }
        }
        slot.act(|model, _| {
            assert!(model.buffer()[..inside.len()] == inside, "seed {seed}: the device's buffer")
        });
    }
    all.iter().for_each(|known| known.check(seed));
    // Trouble at the end: the memory is given back all the same, and nothing is written to it.
    match random.below(3) {
        0 => {
            slot.hang();
            edu.set_timeout(Duration::from_millis(5));
        }
        1 => slot.unplug(),
        _ => {}
    }
    let last = map(&ioas, 3000);
    if let Ok(view) = last.for_device(edu.device()) {
        let _ = edu.store(&view, 1000, 1000);
    }
    drop((all, last));
    assert_eq!(edu.close().unwrap().transactions_done, None);
    assert_eq!(ioas.check_freed(), [], "seed {seed}");
    assert_eq!(ioas.quarantined(), 0);
    assert_eq!(context.sanitizer().unwrap().reports(), [], "seed {seed}");
}

#[test]
fn many_lives() {
    (0..200).for_each(a_life);
}
