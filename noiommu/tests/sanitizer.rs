//! The DMA sanitizer: each kind of report is made by a driver with a bug of that kind, and not by the same driver without it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use noiommu::sim::{Direction, Edu, Fault, Freeing, Hint, Mode, Pace, Report, Sanitizer, Slot};
use noiommu::{Bar, Context, Contiguity, Device, DmaBuffer, Ioas, Iova, Mapping};

/// Where the edu device has its own buffer.
const INSIDE: u64 = 0x4_0000;
const FROM_DEVICE: u64 = 2;

/// A driver that gives the device whatever number it is told.
struct Driver {
    registers: Bar,
    device: Device,
}

impl Driver {
    fn new(slot: &Slot<Edu>, ioas: &Ioas) -> Self {
        let driver = Self::without_mastering(slot, ioas);
        // SAFETY: memory is simulated, and the sanitizer stops what this driver gets wrong.
        unsafe { driver.device.enable_bus_master().unwrap() };
        driver
    }

    fn without_mastering(slot: &Slot<Edu>, ioas: &Ioas) -> Self {
        let device = slot.open().unwrap();
        device.attach(ioas).unwrap();
        Self { registers: device.bar(0).unwrap(), device }
    }

    fn transfer(&self, source: u64, destination: u64, length: u64, direction: u64) {
        for (register, value) in [(0x80, source), (0x88, destination), (0x90, length), (0x98, 1 | direction)]
        {
            self.registers.write_u64(register, value).unwrap();
        }
        while self.registers.read_u64(0x98).unwrap() & 1 != 0 {
            std::thread::yield_now();
        }
    }

    /// The device reads memory.
    fn load(&self, address: u64, length: u64) {
        self.transfer(address, INSIDE, length, 0);
    }

    /// The device writes memory.
    fn store(&self, address: u64, length: u64) {
        self.transfer(INSIDE, address, length, FROM_DEVICE);
    }

    /// What drivers are to give.
    fn address(&self, mapping: &Mapping, offset: u64) -> u64 {
        mapping.for_device(&self.device).unwrap().at(offset).unwrap().address.bits()
    }
}

struct Setup {
    context: Context,
    ioas: Ioas,
    slot: Slot<Edu>,
}

fn setup(mode: Mode) -> Setup {
    let context = Context::simulated();
    context.sanitizer().unwrap().set_mode(mode);
    let ioas = context.ioas().unwrap();
    let slot = context.sim_device_at(Edu::default(), Pace::AtOnce).unwrap();
    Setup { context, ioas, slot }
}

impl Setup {
    fn sanitizer(&self) -> &Sanitizer {
        self.context.sanitizer().unwrap()
    }

    /// The one report that there is.
    fn report(&self) -> Report {
        let mut reports = self.sanitizer().take_reports();
        assert_eq!(reports.len(), 1, "{reports:#?}");
        let report = reports.remove(0);
        let text = report.to_string();
        println!("{text}\n");
        assert!(text.lines().count() <= 8, "{text}");
        assert!(text.lines().all(|line| line.len() <= 170), "{text}");
        assert_eq!(report.device, "sim:edu");
        report
    }
}

fn buffer(length: usize) -> DmaBuffer {
    DmaBuffer::new(length, Contiguity::Pages).unwrap()
}

#[test]
fn a_right_driver_is_not_reported() {
    let setup = setup(Mode::Report);
    let driver = Driver::new(&setup.slot, &setup.ioas);
    let mapping = setup.ioas.map(buffer(20_000)).unwrap();
    let constant = setup.ioas.map_read_only(buffer(5000)).unwrap();
    let view = mapping.for_device(&driver.device).unwrap();
    for segment in view.segments() {
        let length = segment.length.min(4096);
        driver.load(segment.address.bits(), length);
        driver.store(segment.address.bits() + segment.length - length, length);
    }
    driver.load(driver.address(&constant, 4990), 10);
    driver.load(driver.address(&constant, 0), 4096);
    driver.device.quiesce().unwrap();
    // Of a device that has been made quiet nothing goes out any more, which is no fault.
    driver.load(driver.address(&mapping, 0), 10);
    assert_eq!(setup.sanitizer().reports(), []);
}

#[test]
fn addresses_of_nobody_and_what_they_look_like() {
    let setup = setup(Mode::Report);
    let driver = Driver::new(&setup.slot, &setup.ioas);
    let mapping = setup.ioas.map_at(Iova(0x70_0000), buffer(10_000)).unwrap();
    let line = line!() - 1;
    let right = driver.address(&mapping, 5000);
    // The bugs: the IOVA, the address in this process, a register of 32 bits.
    driver.store(0x70_0000 + 5000, 16);
    match setup.report() {
        Report { fault: Fault::NeverMapped, hint: Some(Hint::Iova { mapping, offset: 5000 }), .. } => {
            assert_eq!((mapping.by.file(), mapping.by.line()), (file!(), line));
            assert_eq!((mapping.iova, mapping.length), (Iova(0x70_0000), 10_000));
        }
        other => panic!("{other}"),
    }
    driver.load(mapping.buffer().unwrap().address() as u64 + 5000, 16);
    let report = setup.report();
    assert!(matches!(report.hint, Some(Hint::VirtualAddress { offset: 5000, .. })), "{report}");
    driver.load(u64::from(right as u32), 16);
    let report = setup.report();
    assert!(matches!(report.hint, Some(Hint::CutTo32Bits { offset: 5000, .. })), "{report}");
    // A miscalculation, and what is nearest.
    let page = right & !0xfff;
    driver.load(page - 0x10_0000, 16);
    let report = setup.report();
    assert_eq!((report.direction, report.length, report.at), (Direction::Read, 16, 0));
    assert_eq!(report.address.0, page - 0x10_0000);
    let nearest = report.nearest.unwrap();
    assert!(nearest.is_above && nearest.distance <= 0x10_0000, "{nearest:?}");
    assert_eq!(nearest.mapping.by.line(), line);
    // What the device was stopped from is not done.
    assert_eq!(mapping.buffer().unwrap().load_u64(5000).unwrap(), 0);
    driver.load(right, 16);
    assert_eq!(setup.sanitizer().reports(), []);
}

#[test]
fn memory_that_was_reclaimed_or_dropped() {
    let setup = setup(Mode::Report);
    let driver = Driver::new(&setup.slot, &setup.ioas);
    let mapping = setup.ioas.map(buffer(10_000)).unwrap();
    let line = line!() - 1;
    let address = driver.address(&mapping, 8000);
    driver.store(address, 100);
    assert_eq!(setup.sanitizer().reports(), []);
    // The bug: the device is told to write once more.
    let memory = mapping.reclaim().unwrap().unwrap();
    let reclaimed = line!() - 1;
    memory.fill(0, 10_000, 0).unwrap();
    driver.store(address, 100);
    match setup.report() {
        Report { fault: Fault::Unmapped { mapping, offset: 8000, freed }, at: 0, .. } => {
            assert_eq!(mapping.by.line(), line);
            let Freeing::Reclaimed(by) = freed.how else { panic!("{freed}") };
            assert_eq!((by.file(), by.line(), freed.number), (file!(), reclaimed, 1));
            assert_eq!(freed.thread, std::thread::current().name().unwrap());
        }
        other => panic!("{other}"),
    }
    // Mapped anew it is somewhere else, so the old address is still known for what it is.
    let again = setup.ioas.map(memory).unwrap();
    assert_ne!(driver.address(&again, 8000), address);
    driver.store(address, 100);
    assert!(matches!(setup.report().fault, Fault::Unmapped { .. }));

    // Dropped, and let go when the device was quiet.
    let address = driver.address(&again, 0);
    drop(again);
    driver.load(address, 8);
    assert_eq!(setup.sanitizer().reports(), [], "kept for the device until it is quiet");
    setup.sanitizer().tell_dropped(true);
    driver.load(address, 8);
    assert!(matches!(setup.report().fault, Fault::Dropped { offset: 0, .. }));
    driver.device.quiesce().unwrap();
    // SAFETY: as in `Driver::new`.
    unsafe { driver.device.enable_bus_master().unwrap() };
    driver.load(address, 8);
    match setup.report().fault {
        Fault::Unmapped { freed, .. } => assert_eq!((freed.how, freed.number), (Freeing::Dropped, 2)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn past_a_contiguous_run_and_past_the_end() {
    let setup = setup(Mode::Report);
    let driver = Driver::new(&setup.slot, &setup.ioas);
    let mapping = setup.ioas.map(buffer(30_000)).unwrap();
    let view = mapping.for_device(&driver.device).unwrap();
    let broken = view.segments().find(|piece| piece.length < 4096 * 3).unwrap();
    let start = broken.length - 100;
    // The bug: an address and a length, whatever lies between.
    driver.load(broken.address.bits() + start, 200);
    let report = setup.report();
    match report.fault {
        Fault::PastRun { mapping, offset, begins, next: Some(next) } => {
            assert_eq!((report.at, offset), (100, broken.offset + start));
            assert_eq!(begins.0, broken.address.bits());
            assert_eq!(next.0, view.at(broken.offset + broken.length).unwrap().address.bits());
            assert_eq!(mapping.length, 30_000);
        }
        other => panic!("{other:?}"),
    }
    // The bug: rounded up to whole pages.
    let last = view.at(28_672).unwrap();
    driver.store(last.address.bits(), 4096);
    let report = setup.report();
    assert_eq!(report.at, 30_000 - 28_672);
    assert!(matches!(report.fault, Fault::PastRun { next: None, .. }), "{report}");
    // Where it begins past the end.
    driver.store(last.address.bits() + last.length, 1);
    assert_eq!(setup.report().at, 0);
    // As it should be.
    for piece in view.range(broken.offset + start, 200).unwrap() {
        driver.load(piece.address.bits(), piece.length);
    }
    driver.store(last.address.bits(), last.length);
    assert_eq!(setup.sanitizer().reports(), []);
}

#[test]
fn a_write_to_memory_for_reading() {
    let setup = setup(Mode::Report);
    let driver = Driver::new(&setup.slot, &setup.ioas);
    let mapping = setup.ioas.map_read_only(buffer(4096)).unwrap();
    mapping.buffer().unwrap().fill(0, 4096, 7).unwrap();
    driver.store(driver.address(&mapping, 64), 8);
    let report = setup.report();
    assert!(matches!(report.fault, Fault::ReadOnly { offset: 64, mapping } if mapping.read_only), "{report}");
    assert_eq!(mapping.buffer().unwrap().load_u8(64).unwrap(), 7);
    let access = setup.ioas.lookup(mapping.iova(), 1).unwrap().access;
    assert!(access.read && !access.write);
    driver.load(driver.address(&mapping, 64), 8);
    driver.store(driver.address(&setup.ioas.map(buffer(4096)).unwrap(), 64), 8);
    assert_eq!(setup.sanitizer().reports(), []);
}

#[test]
fn memory_of_another_ioas() {
    let setup = setup(Mode::Report);
    let other = setup.context.ioas().unwrap();
    let mapping = other.map(buffer(4096)).unwrap();
    let address = mapping.segments().unwrap()[0].address.0;
    let driver = Driver::new(&setup.slot, &setup.ioas);
    driver.load(address, 8);
    let report = setup.report();
    assert!(matches!(report.fault, Fault::OtherIoas { offset: 0, .. }), "{report}");
    driver.device.quiesce().unwrap();
    driver.device.attach(&other).unwrap();
    // SAFETY: as in `Driver::new`.
    unsafe { driver.device.enable_bus_master().unwrap() };
    driver.load(address, 8);
    assert_eq!(setup.sanitizer().reports(), []);
}

#[test]
fn bus_mastering_forgotten() {
    let setup = setup(Mode::Report);
    let driver = Driver::without_mastering(&setup.slot, &setup.ioas);
    let mapping = setup.ioas.map(buffer(4096)).unwrap();
    driver.load(driver.address(&mapping, 0), 8);
    let report = setup.report();
    assert_eq!((&report.fault, report.length), (&Fault::NotMastering, 8));
    drop(driver);
    let driver = Driver::new(&setup.slot, &setup.ioas);
    driver.load(driver.address(&mapping, 0), 8);
    assert_eq!(setup.sanitizer().reports(), []);
}

#[test]
fn pages_that_two_mappings_share() {
    let setup = setup(Mode::Report);
    let driver = Driver::new(&setup.slot, &setup.ioas);
    let memory = buffer(8192);
    let start = std::ptr::NonNull::new(memory.address() as *mut u8).unwrap();
    // SAFETY: the buffer outlives both mappings, and nobody has a reference to its bytes.
    let (first, second) = unsafe {
        (setup.ioas.map_borrowed(start, 8192).unwrap(), setup.ioas.map_borrowed(start, 4096).unwrap())
    };
    let address = driver.address(&first, 0);
    assert_eq!(driver.address(&second, 0), address);
    driver.store(address, 4096);
    drop(first.reclaim().unwrap());
    driver.store(address, 4096);
    assert_eq!(setup.sanitizer().reports(), [], "one of the two is still there");
    drop(second.reclaim().unwrap());
    driver.store(address, 4096);
    assert!(matches!(setup.report().fault, Fault::Unmapped { .. }));
}

/// What the driver's test said as it failed.
fn failure(test: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(test)).expect_err("the test did not fail");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn a_test_fails_where_the_driver_is_wrong() {
    let setup = setup(Mode::Fail);
    let driver = Driver::new(&setup.slot, &setup.ioas);
    let text = failure(|| driver.store(0x1000, 8));
    assert!(text.starts_with("DMA sanitizer: sim:edu writes memory that was never mapped"), "{text}");
    // Until somebody takes the reports, so it cannot be missed.
    assert!(failure(|| drop(setup.ioas.map(buffer(4096)))).starts_with("DMA sanitizer"));
    assert_eq!(setup.sanitizer().take_reports().len(), 1);
    drop(setup.ioas.map(buffer(4096)).unwrap());
}

#[test]
fn a_test_fails_at_the_end_at_the_latest() {
    // The fault is the last thing that happens to the device: dropping it tells.
    let setup = setup(Mode::Fail);
    let driver = Driver::new(&setup.slot, &setup.ioas);
    drop(setup.ioas.map(buffer(4096)).unwrap());
    assert_eq!(setup.ioas.quarantined(), 1);
    failure(|| driver.load(0x1000, 8));
    let text = failure(|| drop(driver));
    assert!(text.starts_with("DMA sanitizer"), "{text}");
    // Everything has been done nevertheless.
    assert_eq!((setup.ioas.quarantined(), setup.ioas.usage().areas), (0, 0));
    // A thread that nobody listens to has swallowed it: the end of the context tells.
    let text = failure(|| drop(setup));
    assert!(text.starts_with("DMA sanitizer"), "{text}");
}

#[test]
fn a_thread_that_panics_already_is_let_be() {
    // Device, IOAS and context are dropped by the panic of the driver's test, with a report that nobody has taken: a panic in
    // one of these would end the process.
    let text = failure(|| {
        let setup = setup(Mode::Fail);
        let driver = Driver::new(&setup.slot, &setup.ioas);
        let mapping = setup.ioas.map(buffer(4096)).unwrap();
        let address = driver.address(&mapping, 0);
        driver.load(address + 4000, 97);
    });
    assert!(text.contains("past the end of a mapping"), "{text}");
}

#[test]
fn a_device_with_a_thread_fails_the_test_too() {
    let text = failure(|| {
        let context = Context::simulated();
        let ioas = context.ioas().unwrap();
        let slot = context.sim_device(Edu::default()).unwrap();
        let driver = Driver::new(&slot, &ioas);
        driver.store(0x1000, 8);
        // At the latest.
        drop((driver, slot, ioas, context));
    });
    assert!(text.starts_with("DMA sanitizer: sim:edu writes memory"), "{text}");
}

#[test]
fn corruption_as_hardware_has_it() {
    let setup = setup(Mode::Corrupt);
    let driver = Driver::new(&setup.slot, &setup.ioas);
    let [source, constant] = [setup.ioas.map(buffer(4096)), setup.ioas.map_read_only(buffer(4096))];
    let (source, constant) = (source.unwrap(), constant.unwrap());
    source.buffer().unwrap().fill(0, 4096, 0x5a).unwrap();
    driver.load(driver.address(&source, 0), 64);
    // What devices may only read is written to: nothing is in the way.
    driver.store(driver.address(&constant, 8), 64);
    assert_eq!(constant.buffer().unwrap().load_u8(71).unwrap(), 0x5a);
    assert!(matches!(setup.report().fault, Fault::ReadOnly { .. }));
    // Memory that is somebody else's by now: what was written there is found there, but not by the test's process.
    let target = setup.ioas.map(buffer(4096)).unwrap();
    let address = driver.address(&target, 0);
    let memory = target.reclaim().unwrap().unwrap();
    driver.store(address + 100, 64);
    assert!(matches!(setup.report().fault, Fault::Unmapped { .. }));
    assert_eq!(memory.load_u64(100 / 8 * 8).unwrap(), 0);
    driver.load(address + 164, 8);
    driver.store(driver.address(&source, 0), 8);
    assert_ne!(source.buffer().unwrap().load_u64(0).unwrap(), 0x5a5a_5a5a_5a5a_5a5a, "other memory");
    driver.load(address + 100, 64);
    driver.store(driver.address(&source, 64), 64);
    assert_eq!(source.buffer().unwrap().load_u64(64).unwrap(), 0x5a5a_5a5a_5a5a_5a5a);
    assert_eq!(setup.sanitizer().take_reports().len(), 2);
    // A run that is passed goes on into whatever has the next address.
    driver.store(driver.address(&source, 4000), 200);
    let report = setup.report();
    assert_eq!(report.at, 96);
    let mut tail = [0; 96];
    source.buffer().unwrap().read(4000, &mut tail).unwrap();
    assert_eq!(tail[..64], [0x5a; 64]);
    // It goes on as before, and a driver that is right sees nothing of all this.
    driver.load(driver.address(&source, 64), 64);
    assert_eq!(setup.sanitizer().reports(), []);
}

/// What an access must be found to be, by the views alone.
#[derive(PartialEq, Eq, Debug)]
enum Found {
    Right,
    PastRun(u64),
    ReadOnly,
    OtherIoas,
    Unmapped,
    NeverMapped,
}

/// A contiguous run of a mapping, as a driver is told it.
#[derive(Clone, Copy)]
struct Run {
    address: u64,
    length: u64,
    read_only: bool,
    mine: bool,
    freed: bool,
}

fn expected(runs: &[Run], write: bool, address: u64, length: u64) -> Found {
    // Pages are whole: what is behind the end of a mapping, in its last page, is still nobody else's.
    let within =
        |run: &&Run| (run.address..run.address + run.length.next_multiple_of(4096)).contains(&address);
    match runs.iter().rev().find(within) {
        None => Found::NeverMapped,
        Some(run) if run.freed => Found::Unmapped,
        Some(run) if !run.mine => Found::OtherIoas,
        Some(run) => match (run.address + run.length).saturating_sub(address) {
            room if room < length => Found::PastRun(room),
            _ if write && run.read_only => Found::ReadOnly,
            _ => Found::Right,
        },
    }
}

#[test]
fn every_access_is_judged_by_what_is_mapped() {
    let setup = setup(Mode::Report);
    let driver = Driver::new(&setup.slot, &setup.ioas);
    let other = setup.context.ioas().unwrap();
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut below = |end: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % end
    };
    let (mut runs, mut live): (Vec<Run>, Vec<(Mapping, std::ops::Range<usize>)>) = (Vec::new(), Vec::new());
    let mut seen = [0; 6];
    for _ in 0..20_000 {
        match below(40) {
            0 => {
                let (read_only, mine) = (below(4) == 0, below(5) != 0);
                let ioas = if mine { &setup.ioas } else { &other };
                let buffer = buffer(1 + below(40_000) as usize);
                let mapping = if read_only { ioas.map_read_only(buffer) } else { ioas.map(buffer) }.unwrap();
                let begin = runs.len();
                runs.extend(mapping.segments().unwrap().iter().map(|piece| {
                    let (address, length) = (piece.address.0, piece.length);
                    Run { address, length, read_only, mine, freed: false }
                }));
                live.push((mapping, begin..runs.len()));
            }
            1 if live.len() > 5 => {
                let (mapping, pieces) = live.swap_remove(below(live.len() as u64) as usize);
                mapping.reclaim().unwrap();
                runs[pieces].iter_mut().for_each(|run| run.freed = true);
            }
            _ if runs.is_empty() => {}
            way => {
                // In a run or near it.
                let run = runs[below(runs.len() as u64) as usize];
                let address = (run.address + below(run.length + 6000)).wrapping_sub(below(2) * 5000);
                let longest = [1, 64, 4096, 9000][below(4) as usize];
                let (write, length) = (way % 2 == 0, 1 + below(longest));
                setup.slot.act(|_, bus| {
                    let mut bytes = vec![0; length as usize];
                    let _ = if write { bus.write(address, &bytes) } else { bus.read(address, &mut bytes) };
                });
                let found = match setup.sanitizer().take_reports().pop() {
                    None => Found::Right,
                    Some(report) => match report.fault {
                        Fault::NeverMapped => Found::NeverMapped,
                        Fault::Unmapped { .. } => Found::Unmapped,
                        Fault::OtherIoas { .. } => Found::OtherIoas,
                        Fault::ReadOnly { .. } => Found::ReadOnly,
                        Fault::PastRun { .. } => Found::PastRun(report.at),
                        other => panic!("{other:?}"),
                    },
                };
                let right = expected(&runs, write, address, length);
                assert_eq!(
                    found,
                    right,
                    "{} of {length} at {address:#x}",
                    if write { "write" } else { "read" }
                );
                seen[match found {
                    Found::Right => 0,
                    Found::PastRun(_) => 1,
                    Found::ReadOnly => 2,
                    Found::OtherIoas => 3,
                    Found::Unmapped => 4,
                    Found::NeverMapped => 5,
                }] += 1;
            }
        }
    }
    assert!(seen.iter().all(|&count| count > 100), "{seen:?}");
    drop(driver);
}

#[test]
fn a_flood_is_counted() {
    let setup = setup(Mode::Report);
    let driver = Driver::new(&setup.slot, &setup.ioas);
    for _ in 0..1100 {
        driver.load(0x1000, 1);
    }
    setup.sanitizer().set_mode(Mode::Fail);
    let text = failure(|| drop(setup.ioas.map(buffer(1))));
    assert!(text.ends_with("(1099 more)"), "{text}");
    assert_eq!(setup.sanitizer().take_reports().len(), 1000);
}
