//! Freed buffers under watch: a device that writes to them is found out, whatever the memory.

use noiommu::sim::{Edu, Mode, Pace, Slot};
use noiommu::{Context, Contiguity, Device, DmaBuffer, Ioas, LateWrite, Mapping, Occasion};

struct Setup {
    ioas: Ioas,
    slot: Slot<Edu>,
    device: Device,
    context: Context,
}

/// On simulated memory, and on real memory where that can be had.
fn setups() -> Vec<Setup> {
    let simulated = Context::simulated();
    // As hardware would: the watch is to find it, not the sanitizer.
    simulated.sanitizer().unwrap().set_mode(Mode::Corrupt);
    let real = Context::new();
    if let Err(error) = &real {
        eprintln!("not run on real memory: {error}");
    }
    let contexts = [Some(simulated), real.ok()];
    contexts.into_iter().flatten().map(setup).collect()
}

fn setup(context: Context) -> Setup {
    let ioas = context.ioas().unwrap();
    let slot = context.sim_device_at(Edu::default(), Pace::AtOnce).unwrap();
    let device = slot.open().unwrap();
    device.attach(&ioas).unwrap();
    // SAFETY: the device writes to mappings, and to buffers that the IOAS keeps: that is what is tested.
    unsafe { device.enable_bus_master().unwrap() };
    Setup { ioas, slot, device, context }
}

impl Setup {
    fn map(&self, length: usize) -> Mapping {
        self.ioas.map(DmaBuffer::new(length, Contiguity::Pages).unwrap()).unwrap()
    }

    /// Where the device finds a byte.
    fn address(&self, mapping: &Mapping, offset: u64) -> u64 {
        mapping.for_device(&self.device).unwrap().at(offset).unwrap().address.bits()
    }

    /// The device writes, whatever its driver thinks.
    fn write(&self, address: u64, bytes: &[u8]) {
        self.slot.act(|_, bus| bus.write(address, bytes)).unwrap();
    }
}

fn is_clean(ioas: &Ioas) -> bool {
    ioas.check_freed().is_empty()
}

#[test]
fn a_late_write_is_found() {
    for setup in setups() {
        setup.ioas.watch_freed(1 << 20);
        let mapping = setup.map(10_000);
        let (iova, first, second) =
            (mapping.iova(), setup.address(&mapping, 4095), setup.address(&mapping, 9000));
        setup.write(first, &[1]);
        drop(mapping);
        assert!(is_clean(&setup.ioas), "written before it was freed");
        setup.write(first, &[0xaa]);
        setup.write(second, &[0xbb; 20]);
        let [late] = &setup.ioas.check_freed()[..] else { panic!("none found, or more than one") };
        println!("{late}\n");
        let LateWrite { devices, length, offset, changed, found, occasion, .. } = late;
        assert_eq!((late.iova, *length, late.by.file(), late.reclaimed), (iova, 10_000, file!(), false));
        assert_eq!((&devices[..], *occasion), (&["sim:edu".to_owned()][..], Occasion::Asked));
        // A byte of 20 may have been what is there.
        assert!((*offset, *changed) == (4095, 21) || *changed == 20 || *offset == 9000, "{late}");
        assert!(found.len() == 16 && (found[0] == 0xaa || found[0] == 0xbb), "{late}");
        assert!(late.to_string().lines().all(|line| line.len() < 120), "{late}");
        // It is told once, and again when it happens again.
        assert!(is_clean(&setup.ioas));
        setup.write(second, &[0xcc; 64]);
        assert_eq!(setup.ioas.check_freed().len(), 1);
        setup.device.quiesce().unwrap();
        assert!(is_clean(&setup.ioas));
    }
}

#[test]
fn a_reclaimed_buffer_is_a_copy() {
    for setup in setups() {
        let mapping = setup.map(5000);
        let place = mapping.buffer().unwrap().address();
        let buffer = mapping.reclaim().unwrap().unwrap();
        assert_eq!(buffer.address(), place, "not watched, so it is the buffer itself");
        setup.ioas.watch_freed(1 << 20);
        let mapping = setup.ioas.map(buffer).unwrap();
        let address = setup.address(&mapping, 100);
        setup.write(address, b"before");
        let copy = mapping.reclaim().unwrap().unwrap();
        assert_ne!(copy.address(), place);
        let contents = |copy: &DmaBuffer| {
            let mut bytes = [0; 6];
            copy.read(100, &mut bytes).unwrap();
            bytes
        };
        assert_eq!((copy.len(), &contents(&copy)), (5000, b"before"));
        setup.write(address, b"after!");
        assert_eq!(&contents(&copy), b"before", "no harm is done");
        let found = setup.ioas.check_freed();
        assert!(found.len() == 1 && found[0].reclaimed && found[0].changed >= 5, "{found:?}");
        assert_eq!(setup.ioas.quarantined(), 0, "it waits for nobody");
    }
}

#[test]
fn the_queue_is_bounded_and_its_end_is_looked_at() {
    for setup in setups() {
        setup.ioas.watch_freed(4 * 4096);
        let before = setup.ioas.usage().areas;
        let addresses: Vec<u64> = (0..10)
            .map(|_| {
                let mapping = setup.map(4096);
                let address = setup.address(&mapping, 0);
                mapping.reclaim().unwrap();
                address
            })
            .collect();
        assert_eq!(setup.ioas.usage().areas, before + 4);
        setup.write(addresses[6], &[1; 64]);
        drop(setup.map(4096).reclaim().unwrap());
        let found = setup.ioas.check_freed();
        assert!(found.len() == 1 && found[0].occasion == Occasion::Left, "{found:?}");
        // What is larger than all of it is not watched.
        drop(setup.map(5 * 4096).reclaim().unwrap());
        assert_eq!(setup.ioas.usage().areas, before + 4);
        // Dropped ones wait for the device, watched or not.
        drop((0..6).map(|_| setup.map(4096)).collect::<Vec<_>>());
        assert_eq!(setup.ioas.quarantined(), 6);
        setup.write(addresses[0], &[]);
        setup.device.quiesce().unwrap();
        assert_eq!((setup.ioas.quarantined(), setup.ioas.usage().areas), (0, before + 4));
        // The end.
        setup.ioas.watch_freed(0);
        assert_eq!(setup.ioas.usage().areas, before);
        assert!(is_clean(&setup.ioas));
        drop(setup.map(4096));
        assert_eq!(setup.ioas.usage().areas, before);
    }
}

#[test]
fn quiet_and_the_end_are_looked_at() {
    for setup in setups() {
        setup.ioas.watch_freed(1 << 20);
        let mapping = setup.map(4096);
        let address = setup.address(&mapping, 8);
        drop(mapping);
        setup.write(address, &[7; 16]);
        setup.device.quiesce().unwrap();
        let mapping = setup.map(4096);
        // SAFETY: as in `setup`.
        unsafe { setup.device.enable_bus_master().unwrap() };
        let second = setup.address(&mapping, 0);
        drop(mapping);
        setup.write(second, &[9; 32]);
        setup.ioas.watch_freed(0);
        let found = setup.ioas.check_freed();
        let seen: Vec<_> = found.iter().map(|late| (late.occasion, late.offset / 8)).collect();
        assert_eq!(seen, [(Occasion::Quiet, 1), (Occasion::End, 0)]);
    }
}

#[test]
fn a_right_driver_is_not_reported() {
    for setup in setups() {
        setup.ioas.watch_freed(64 << 10);
        for round in 0..100u8 {
            let mapping = setup.map(usize::from(round) * 100 + 1);
            let view = mapping.for_device(&setup.device).unwrap();
            for piece in view.segments() {
                setup.write(piece.address.bits(), &vec![round; piece.length as usize]);
            }
            drop(view);
            if round % 2 == 0 {
                drop(mapping);
            } else {
                let buffer = mapping.reclaim().unwrap().unwrap();
                assert_eq!(buffer.load_u8(usize::from(round) * 100).unwrap(), round);
            }
        }
        assert!(is_clean(&setup.ioas));
        let Setup { ioas, slot, device, context } = setup;
        drop((device, slot));
        assert!(is_clean(&ioas));
        if let Some(sanitizer) = context.sanitizer() {
            assert_eq!(sanitizer.reports(), []);
        }
    }
}
