//! Threads that close and map at once: engines, IOASes, devices and mappings dropped in one thread while others map, look up
//! and transfer.

use std::sync::{Arc, Mutex, PoisonError};

use noiommu::{Context, Contiguity, Device, DmaBuffer, Ioas, Iova, Mapping, PinChoice, Usage};

use crate::alone::alone;
use crate::counts::Counts;
use crate::life::can_pin;

const THREADS: u64 = 4;
const STEPS: u32 = 1500;
const PAGE: usize = 4096;

/// An engine with an IOAS and a device. Its parts are dropped by whichever thread is the last to use them.
struct World {
    _context: Context,
    ioas: Ioas,
    device: Device,
    /// Held while the device is told to do something.
    in_use: Mutex<()>,
}

/// Memory, all bytes of which are `tag`.
struct Held {
    world: Arc<World>,
    mapping: Mapping,
    tag: u8,
}

#[derive(Default)]
struct Shared {
    worlds: Mutex<Vec<Arc<World>>>,
    pool: Mutex<Vec<Held>>,
}

#[test]
fn threads_close_and_map_at_once() {
    alone(concat!(module_path!(), "::threads_close_and_map_at_once"), || {
        let real = can_pin(PinChoice::Best);
        drop(World::new(real));
        let before = Counts::now();
        let shared = Shared::default();
        let tallies: Vec<[u32; 6]> = std::thread::scope(|scope| {
            let shared = &shared;
            let threads = (1..=THREADS).map(|seed| scope.spawn(move || work(shared, real, seed)));
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        shared.pool.into_inner().unwrap().clear();
        for world in shared.worlds.into_inner().unwrap() {
            world.device.quiesce().unwrap();
            assert_eq!(world.ioas.usage(), Usage { areas: 0, table_frames: 0 });
            assert_eq!((world.ioas.quarantined(), Arc::strong_count(&world)), (0, 1));
        }
        let after = Counts::settled(before.pinned);
        // Threads leave their stacks to those that come.
        assert_eq!(after.differs(&before, true), None);
        let sum = |at: usize| tallies.iter().map(|tally| tally[at]).sum::<u32>();
        println!(
            "{} worlds opened and {} dropped; {} mapped, {} dropped, {} looked at, {} transfers; seeds 1 to {THREADS}",
            sum(0),
            sum(1),
            sum(2),
            sum(3),
            sum(4),
            sum(5)
        );
        assert!((0..6).all(|at| sum(at) > 50), "too few of something");
    });
}

impl World {
    fn new(real: bool) -> Arc<Self> {
        let context = if real { Context::new().unwrap() } else { Context::simulated() };
        let ioas = context.ioas().unwrap();
        let device = context.sim_edu().unwrap();
        device.attach(&ioas).unwrap();
        // SAFETY: `transfer` alone tells the device to do something: with addresses of live mappings, and it waits.
        unsafe { device.enable_bus_master().unwrap() };
        Arc::new(Self { _context: context, ioas, device, in_use: Mutex::default() })
    }
}

/// One thread's steps; answers how many there were of each kind.
fn work(shared: &Shared, real: bool, seed: u64) -> [u32; 6] {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 33) as usize % below
    };
    let mut tally = [0; 6];
    for _ in 0..STEPS {
        let worlds = lock(&shared.worlds).len();
        let step = next(100);
        match step {
            _ if worlds == 0 || step < 4 && worlds < 3 => {
                let world = World::new(real);
                lock(&shared.worlds).push(world);
                tally[0] += 1;
            }
            0..4 => {
                // Others may be in it, and mappings of it live on.
                let at = next(worlds);
                let mut worlds = lock(&shared.worlds);
                let world = (at < worlds.len()).then(|| worlds.swap_remove(at));
                drop(worlds);
                tally[1] += u32::from(world.is_some());
            }
            4..8 => {
                let Some(world) = pick(&shared.worlds, next(worlds)) else { continue };
                let _in_use = lock(&world.in_use);
                world.device.quiesce().unwrap();
                // SAFETY: as when it was first turned on.
                unsafe { world.device.enable_bus_master().unwrap() };
            }
            8..45 => {
                let Some(world) = pick(&shared.worlds, next(worlds)) else { continue };
                let tag = next(255) as u8 + 1;
                let buffer = DmaBuffer::new(PAGE * (1 + next(4)), Contiguity::Pages).unwrap();
                buffer.fill(0, buffer.len(), tag).unwrap();
                let mapping = world.ioas.map(buffer).unwrap();
                lock(&shared.pool).push(Held { world, mapping, tag });
                tally[2] += 1;
            }
            45..70 => {
                let held = take(&shared.pool, next(1 << 20));
                tally[3] += u32::from(held.is_some());
            }
            70..90 => {
                let Some(held) = take(&shared.pool, next(1 << 20)) else { continue };
                held.look();
                lock(&shared.pool).push(held);
                tally[4] += 1;
            }
            _ => {
                let Some(from) = take(&shared.pool, next(1 << 20)) else { continue };
                let Some(mut to) = take_of(&shared.pool, &from.world) else { continue };
                transfer(&from, &mut to);
                tally[5] += 1;
                from.look();
                to.look();
                lock(&shared.pool).extend([from, to]);
            }
        }
    }
    tally
}

impl Held {
    /// The bytes are those that were put there, the addresses those of the pages.
    fn look(&self) {
        let buffer = self.mapping.buffer().unwrap();
        let mut bytes = vec![0; buffer.len()];
        buffer.read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == self.tag), "wrong bytes in {:?}", self.mapping);
        let view = self.mapping.for_device(&self.world.device).unwrap();
        let mut at = 0;
        for segment in view.segments() {
            let found = self.world.ioas.lookup(Iova(self.mapping.iova().0 + at), segment.length).unwrap();
            assert_eq!((found.address.0, found.length), (segment.address.bits(), segment.length));
            at += segment.length;
        }
        assert!(matches!(self.mapping.moved_pages(), Ok(None | Some(0))), "{:?} has moved", self.mapping);
    }
}

/// Has the device fill one mapping with the bytes of the other.
fn transfer(from: &Held, to: &mut Held) {
    const BUFFER: u64 = 0x4_0000;
    let device = &from.world.device;
    let _in_use = lock(&from.world.in_use);
    let registers = device.bar(0).unwrap();
    let run = |source: u64, destination: u64, length: u64, command: u64| {
        for (at, value) in [(0x80, source), (0x88, destination), (0x90, length), (0x98, command | 1)] {
            registers.write_u64(at, value).unwrap();
        }
        while registers.read_u64(0x98).unwrap() & 1 != 0 {
            std::thread::yield_now();
        }
    };
    let page = |held: &Held| held.mapping.for_device(device).unwrap();
    let (source, destination) = (page(from), page(to));
    run(source.segments().next().unwrap().address.bits(), BUFFER, PAGE as u64, 0);
    for segment in destination.segments() {
        for offset in (0..segment.length).step_by(PAGE) {
            run(BUFFER, segment.address.bits() + offset, PAGE as u64, 2);
        }
    }
    to.tag = from.tag;
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pick(worlds: &Mutex<Vec<Arc<World>>>, at: usize) -> Option<Arc<World>> {
    lock(worlds).get(at).cloned()
}

fn take(pool: &Mutex<Vec<Held>>, at: usize) -> Option<Held> {
    let mut pool = lock(pool);
    let length = pool.len();
    (length > 0).then(|| pool.swap_remove(at % length))
}

fn take_of(pool: &Mutex<Vec<Held>>, world: &Arc<World>) -> Option<Held> {
    let mut pool = lock(pool);
    let at = pool.iter().position(|held| Arc::ptr_eq(&held.world, world))?;
    Some(pool.swap_remove(at))
}
