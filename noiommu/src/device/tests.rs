//! The life of a device and of memory given up while it may still be reached; devices of the sim kind, and one that lies.

use super::config::COMMAND;
use super::*;
use crate::{Context, Contiguity, DmaBuffer, Iova, Mapping, PhysAddr};

fn setup() -> (Context, Ioas, Device) {
    let context = Context::simulated();
    let ioas = context.ioas().unwrap();
    let device = context.sim_edu().unwrap();
    (context, ioas, device)
}

fn map(ioas: &Ioas) -> Mapping {
    ioas.map(DmaBuffer::new(10_000, Contiguity::Pages).unwrap()).unwrap()
}

/// Turns on bus mastering of a device that is told nothing at all.
fn let_loose(device: &Device) {
    // SAFETY: nobody writes to a register of the device in these tests.
    unsafe { device.enable_bus_master().unwrap() };
}

#[test]
fn dropped_memory_waits_until_the_device_is_quiet() {
    let (_context, ioas, device) = setup();
    device.attach(&ioas).unwrap();
    drop(map(&ioas));
    assert_eq!((ioas.quarantined(), ioas.usage().areas), (0, 0), "never let loose");
    let_loose(&device);
    let mapping = map(&ioas);
    let iova = mapping.iova();
    drop(mapping);
    assert_eq!((ioas.quarantined(), ioas.usage().areas), (1, 1));
    assert!(ioas.lookup(iova, 1).is_some(), "still mapped, so nobody else gets it");
    let quiet = device.quiesce().unwrap();
    assert_eq!(quiet, Quiet { bus_master_off: true, transactions_done: None, reset: false });
    assert_eq!((ioas.quarantined(), ioas.usage().areas), (0, 0));
    let_loose(&device);
    drop(map(&ioas));
    assert_eq!(ioas.quarantined(), 1);
    drop(device);
    assert_eq!((ioas.quarantined(), ioas.usage().areas), (0, 0), "dropping it makes it quiet");
}

#[test]
fn the_last_of_two_devices_counts() {
    let (context, ioas, first) = setup();
    let second = context.sim_edu().unwrap();
    for device in [&first, &second] {
        device.attach(&ioas).unwrap();
        let_loose(device);
        let_loose(device);
    }
    drop(map(&ioas));
    first.quiesce().unwrap();
    first.quiesce().unwrap();
    assert_eq!(ioas.quarantined(), 1);
    second.quiesce().unwrap();
    assert_eq!(ioas.quarantined(), 0);
}

#[test]
fn a_panic_keeps_memory_too() {
    let (_context, ioas, device) = setup();
    device.attach(&ioas).unwrap();
    let_loose(&device);
    let shared = ioas.clone();
    let panicked = std::thread::spawn(move || {
        let _mapping = map(&shared);
        panic!("on purpose");
    })
    .join();
    assert!(panicked.is_err());
    assert_eq!(ioas.quarantined(), 1);
}

#[test]
fn reclaiming_wants_the_views_gone() {
    let (_context, ioas, device) = setup();
    device.attach(&ioas).unwrap();
    let_loose(&device);
    let mapping = map(&ioas);
    let view = mapping.for_device(&device).unwrap();
    let mapping = mapping.reclaim().unwrap_err();
    drop(view);
    let buffer = mapping.reclaim().unwrap().unwrap();
    assert_eq!((buffer.len(), ioas.usage().areas, ioas.quarantined()), (10_000, 0, 0));
    // A view keeps the memory for itself.
    let mapping = ioas.map_at(Iova(0x7000), buffer).unwrap();
    let view = mapping.for_device(&device).unwrap();
    drop(mapping);
    device.quiesce().unwrap();
    assert_eq!(ioas.usage().areas, 1);
    drop(view);
    assert_eq!(ioas.usage().areas, 0);
}

#[test]
fn attaching_and_detaching() {
    let (context, ioas, device) = setup();
    let other = context.ioas().unwrap();
    let mapping = map(&ioas);
    assert_eq!(mapping.for_device(&device).unwrap_err().kind(), ErrorKind::Rule);
    // SAFETY: refused.
    assert!(unsafe { device.enable_bus_master() }.is_err(), "attached to nothing");
    device.attach(&other).unwrap();
    assert_eq!(mapping.for_device(&device).unwrap_err().kind(), ErrorKind::Rule);
    device.attach(&ioas).unwrap();
    mapping.for_device(&device).unwrap();
    let_loose(&device);
    assert_eq!(device.attach(&other).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(device.detach().unwrap_err().kind(), ErrorKind::Busy);
    device.quiesce().unwrap();
    device.detach().unwrap();
    device.detach().unwrap();
    let foreign = Context::simulated().ioas().unwrap();
    assert_eq!(device.attach(&foreign).unwrap_err().kind(), ErrorKind::Argument);
    assert_eq!(context.open("00:04.0").unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn the_mask_is_obeyed() {
    let (_context, ioas, device) = setup();
    device.attach(&ioas).unwrap();
    let mapping = map(&ioas);
    let highest = mapping.segments().unwrap().iter().map(|s| s.address.0 + s.length - 1).max().unwrap();
    let bits = 64 - highest.leading_zeros();
    device.set_dma_bits(bits).unwrap();
    mapping.for_device(&device).unwrap();
    device.set_dma_bits(bits - 1).unwrap();
    assert_eq!(mapping.for_device(&device).unwrap_err().kind(), ErrorKind::Unsupported);
    for wrong in [0, 65] {
        assert!(device.set_dma_bits(wrong).is_err());
    }
}

#[test]
fn memory_is_where_the_bus_has_it() {
    let (_context, ioas, device) = setup();
    device.attach(&ioas).unwrap();
    let mapping = map(&ioas);
    let plain = mapping.for_device(&device).unwrap();
    let whole = |bus, memory, length| DmaRange { bus, memory: PhysAddr(memory), length };
    // Everything 1 GiB higher than the processor has it.
    let (shift, end) = (1 << 30, 1 << 60);
    device.set_dma_ranges(&[whole(shift, 0, end)]).unwrap();
    let shifted = mapping.for_device(&device).unwrap();
    assert_eq!(shifted.len(), plain.len());
    for offset in [0, 4095, 4096, 9_999] {
        let [there, here] = [&shifted, &plain].map(|view| view.at(offset).unwrap().address.bits());
        assert_eq!(there, here + shift);
    }
    // A break in the bus's addresses breaks the segment.
    let first = mapping.segments().unwrap()[0].address.0;
    let broken = [whole(0, 0, first + 100), whole(end, first + 100, end)];
    device.set_dma_ranges(&broken).unwrap();
    let view = mapping.for_device(&device).unwrap();
    assert_eq!(view.at(0).unwrap().length, 100);
    assert_eq!(view.at(100).unwrap().address.bits(), end);
    assert_eq!(view.segments().map(|segment| segment.length).sum::<u64>(), 10_000);
    for wrong in [
        &[whole(0, 0, 0)][..],
        &[whole(u64::MAX, 0, 2)],
        &[whole(0, u64::MAX, 2)],
        &[whole(0, 0, 100), whole(4096, 99, 1)],
    ] {
        assert_eq!(device.set_dma_ranges(wrong).unwrap_err().kind(), ErrorKind::Argument, "{wrong:?}");
    }
    device.set_dma_ranges(&[whole(0, 1 << 61, 4096)]).unwrap();
    assert_eq!(mapping.for_device(&device).unwrap_err().kind(), ErrorKind::Unsupported);
    device.set_dma_ranges(&[]).unwrap();
    let_loose(&device);
    assert_eq!(device.set_dma_ranges(&[whole(0, 0, 1)]).unwrap_err().kind(), ErrorKind::Busy);
}

#[test]
fn views_count_in_the_mapping() {
    let (_context, ioas, device) = setup();
    device.attach(&ioas).unwrap();
    let mapping = map(&ioas);
    let view = mapping.for_device(&device).unwrap();
    assert_eq!((view.len(), view.segments().map(|s| s.length).sum()), (10_000, 10_000u64));
    for offset in [0, 1, 4095, 4096, 9_999] {
        let here = view.at(offset).unwrap();
        let found = ioas.lookup(Iova(mapping.iova().0 + offset), 1).unwrap();
        assert_eq!(here.address.bits(), found.address.0);
    }
    assert!(view.at(10_000).is_err() && view.range(9_999, 2).is_err() && view.range(u64::MAX, 2).is_err());
    let pieces = view.range(5, 9_990).unwrap();
    assert_eq!(pieces.iter().map(|piece| piece.length).sum::<u64>(), 9_990);
    assert!(pieces.windows(2).all(|pair| pair[0].offset + pair[0].length == pair[1].offset));
}

#[test]
fn registers_are_checked() {
    let (_context, _ioas, device) = setup();
    assert_eq!(device.id().unwrap(), (0x1234, 0x11e8));
    let bar = device.bar(0).unwrap();
    assert_eq!(bar.size(), 1 << 20);
    for refused in [
        bar.read_u32(1 << 20),
        bar.read_u32((1 << 20) - 2),
        bar.read_u32(2),
        bar.read_u64((1 << 20) - 4).map(|_| 0),
        bar.read_u32(u64::MAX - 3),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Argument);
    }
    assert!(device.bar(1).is_err() && device.bar(200).is_err());
    assert!(device.config_read(4095, &mut [0; 2]).is_err());
}

#[test]
fn config_writes_do_not_turn_bus_mastering_on_or_off() {
    let (_context, ioas, device) = setup();
    let command = |device: &Device| device.inner.config().read_u16(COMMAND).unwrap();
    for (offset, bytes) in [(4, &[0xff, 0xff][..]), (2, &[0; 4]), (3, &[0xff; 3]), (4, &[0xff])] {
        device.config_write(offset, bytes).unwrap();
        assert_eq!(command(&device) & COMMAND_BUS_MASTER, 0);
    }
    device.attach(&ioas).unwrap();
    let_loose(&device);
    for (offset, bytes) in [(4, &[0, 0][..]), (0, &[0; 8])] {
        device.config_write(offset, bytes).unwrap();
        assert_eq!(command(&device) & COMMAND_BUS_MASTER, COMMAND_BUS_MASTER);
    }
}

/// A device whose bus mastering cannot be turned off, whose transactions never end, or that is gone.
struct Stubborn {
    stuck: bool,
    pending: bool,
    resets: bool,
    gone: Arc<std::sync::atomic::AtomicBool>,
    config: Mutex<[u8; 256]>,
}

impl Stubborn {
    fn new(stuck: bool, pending: bool, resets: bool) -> Self {
        let mut config = [0; 256];
        config[..4].copy_from_slice(&[0x34, 0x12, 0xe8, 0x11]);
        config[0x06] = 0x10;
        config[0x34] = 0x40;
        // A vendor capability, then PCI Express with "transactions pending" as told.
        config[0x40..0x42].copy_from_slice(&[0x09, 0x50]);
        config[0x50..0x52].copy_from_slice(&[0x10, 0x40]);
        config[0x5a] = if pending { 0x20 } else { 0 };
        Self { stuck, pending, resets, gone: Arc::default(), config: Mutex::new(config) }
    }
}

impl Backend for Stubborn {
    fn name(&self) -> &str {
        "stubborn"
    }

    fn provider(&self) -> Provider {
        Provider::Sim
    }

    fn config_read(&self, offset: u16, into: &mut [u8]) -> Result<()> {
        if self.gone.load(std::sync::atomic::Ordering::Relaxed) {
            into.fill(0xff);
            return Ok(());
        }
        let start = usize::from(offset);
        into.copy_from_slice(&self.config.lock().unwrap()[start..start + into.len()]);
        Ok(())
    }

    fn config_write(&self, offset: u16, from: &[u8]) -> Result<()> {
        let mut config = self.config.lock().unwrap();
        let start = usize::from(offset);
        let stuck = if self.stuck { config[4] & COMMAND_BUS_MASTER as u8 } else { 0 };
        config[start..start + from.len()].copy_from_slice(from);
        config[4] |= stuck;
        Ok(())
    }

    fn bar(&self, _: u8) -> Result<Arc<dyn Registers>> {
        Err(Errno::EINVAL.into())
    }

    fn reset(&self) -> Result<bool> {
        Ok(self.resets)
    }
}

#[test]
fn what_is_not_proved_quiet_keeps_its_memory() {
    for (stuck, pending, resets, quiet) in [
        (false, false, false, true),
        (false, true, true, true),
        (false, true, false, false),
        (true, false, true, false),
    ] {
        let context = Context::simulated();
        let ioas = context.ioas().unwrap();
        let backend = Stubborn::new(stuck, pending, resets);
        let device = Device::new(ioas.inner().context(), Box::new(backend)).unwrap();
        device.attach(&ioas).unwrap();
        let_loose(&device);
        drop(map(&ioas));
        match device.quiesce() {
            Ok(proof) => {
                assert!(quiet && proof.bus_master_off && proof.reset == resets);
                assert_eq!(proof.transactions_done, Some(!pending));
            }
            Err(error) => assert!(!quiet && error.kind() == ErrorKind::NotQuiet),
        }
        drop(device);
        assert_eq!(
            ioas.quarantined(),
            usize::from(!quiet),
            "stuck {stuck} pending {pending} resets {resets}"
        );
    }
}

#[test]
fn a_device_that_is_gone_is_quiet() {
    let context = Context::simulated();
    let ioas = context.ioas().unwrap();
    let backend = Stubborn::new(true, true, false);
    let gone = backend.gone.clone();
    assert!(backend.pending);
    let device = Device::new(ioas.inner().context(), Box::new(backend)).unwrap();
    device.attach(&ioas).unwrap();
    let_loose(&device);
    drop(map(&ioas));
    gone.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(device.id().unwrap_err().kind(), ErrorKind::NoDevice);
    device.quiesce().unwrap();
    assert_eq!(ioas.quarantined(), 0);
}
