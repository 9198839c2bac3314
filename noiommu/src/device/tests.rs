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
    assert_eq!(quiet, Quiet { bus_master_off: true, transactions_done: None, recipe: None, reset: false });
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
    let first = mapping.segments().unwrap()[0];
    assert_eq!(first.length, 8192);
    let border = first.address.0 + 4096;
    device.set_dma_ranges(&[whole(0, 0, border), whole(end, border, end)]).unwrap();
    let view = mapping.for_device(&device).unwrap();
    assert_eq!(view.at(0).unwrap().length, 4096);
    assert_eq!(view.at(4096).unwrap().address.bits(), end);
    assert_eq!(view.segments().map(|segment| segment.length).sum::<u64>(), 10_000);
    same_by_both_ways(&view);
    for wrong in [
        &[whole(0, 0, 0)][..],
        &[whole(u64::MAX - 4095, 0, 8192)],
        &[whole(0, u64::MAX - 4095, 8192)],
        &[whole(0, 0, 8192), whole(8192, 4096, 4096)],
        &[whole(0, 0, 100)],
        &[whole(100, 0, 4096)],
        &[whole(0, 100, 4096)],
    ] {
        assert_eq!(device.set_dma_ranges(wrong).unwrap_err().kind(), ErrorKind::Argument, "{wrong:?}");
    }
    device.set_dma_ranges(&[whole(0, 1 << 61, 4096)]).unwrap();
    assert_eq!(mapping.for_device(&device).unwrap_err().kind(), ErrorKind::Unsupported);
    device.set_dma_ranges(&[]).unwrap();
    let_loose(&device);
    assert_eq!(device.set_dma_ranges(&[whole(0, 0, 4096)]).unwrap_err().kind(), ErrorKind::Busy);
}

/// Every address of a view by the load of an array and by the search among its segments.
fn same_by_both_ways(view: &DmaView) {
    for offset in 0..view.len() {
        assert_eq!(view.address(offset), Some(view.at(offset).unwrap().address), "{offset}");
    }
    // The rest of the last page belongs to the mapping, too.
    let pages = view.len().next_multiple_of(4096);
    let last = view.address(view.len() - 1).unwrap().bits();
    for rest in view.len()..pages {
        assert_eq!(view.address(rest).map(DmaAddr::bits), Some(last + 1 + rest - view.len()));
    }
    for past in [pages, pages + 1, 1 << 63, u64::MAX] {
        assert_eq!(view.address(past), None);
    }
}

/// Buffers of one page, of pages, of huge pages, and with an end inside a page.
#[test]
fn addresses_of_views_of_all_kinds() {
    let (_context, ioas, device) = setup();
    device.attach(&ioas).unwrap();
    for (length, contiguity) in [
        (1, Contiguity::Pages),
        (4096, Contiguity::Pages),
        (40_961, Contiguity::Pages),
        (5 << 20, Contiguity::Best),
    ] {
        let mapping = ioas.map(DmaBuffer::new(length, contiguity).unwrap()).unwrap();
        same_by_both_ways(&mapping.for_device(&device).unwrap());
    }
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
        assert_eq!(ioas.address(Iova(mapping.iova().0 + offset)), Some(found.address));
    }
    assert_eq!(ioas.address(Iova(mapping.iova().0 + 3 * 4096)), None);
    same_by_both_ways(&view);
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

#[test]
fn lists_of_capabilities_are_not_believed() {
    let context = Context::simulated();
    let open = |config: &[(usize, &[u8])]| {
        let backend = Stubborn::new(false, false, false);
        for (at, bytes) in config {
            backend.config.lock().unwrap()[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        Device::new(context.ioas().unwrap().inner().context(), Box::new(backend)).unwrap()
    };
    let found = |config: &[(usize, &[u8])], id| open(config).find_capability(id).unwrap();
    assert_eq!(found(&[], 0x10), Some(0x50));
    assert_eq!(found(&[], 0x05), None, "a list that goes in a circle");
    assert_eq!(found(&[(0x51, &[0x04])], 0x05), None, "into the header");
    assert_eq!(found(&[(0x06, &[0])], 0x10), None, "no list at all");
    assert_eq!(found(&[(0x34, &[0x43])], 0x09), Some(0x40), "reserved bits");
    // PCI Express at the very end has no room for its registers: there is nothing to wait for.
    let device = open(&[(0x34, &[0xfc]), (0xfc, &[0x10, 0])]);
    assert_eq!(device.quiesce().unwrap().transactions_done, None);
    let conventional = open(&[(0x50, &[0x11])]);
    assert_eq!(conventional.find_extended_capability(1).unwrap(), None);
}

/// A device with an extended config space.
struct Express(Mutex<Vec<u8>>);

impl Express {
    fn opened(headers: &[(usize, u32)]) -> Device {
        let mut config = vec![0; 4096];
        config[0] = 1;
        config[0x06] = 0x10;
        config[0x34] = 0x40;
        config[0x40] = 0x10;
        for (at, header) in headers {
            config[*at..*at + 4].copy_from_slice(&header.to_le_bytes());
        }
        let context = Context::simulated();
        Device::new(context.ioas().unwrap().inner().context(), Box::new(Self(Mutex::new(config)))).unwrap()
    }
}

impl Backend for Express {
    fn name(&self) -> &str {
        "express"
    }

    fn provider(&self) -> Provider {
        Provider::Sim
    }

    fn config_read(&self, offset: u16, into: &mut [u8]) -> Result<()> {
        let start = usize::from(offset);
        into.copy_from_slice(&self.0.lock().unwrap()[start..start + into.len()]);
        Ok(())
    }

    fn config_write(&self, offset: u16, from: &[u8]) -> Result<()> {
        let start = usize::from(offset);
        self.0.lock().unwrap()[start..start + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn bar(&self, _: u8) -> Result<Arc<dyn Registers>> {
        Err(Errno::EINVAL.into())
    }

    fn reset(&self) -> Result<bool> {
        Ok(false)
    }
}

#[test]
fn extended_capabilities() {
    let header = |id: u32, next: u32| next << 20 | 1 << 16 | id;
    let found = |headers: &[(usize, u32)], id| Express::opened(headers).find_extended_capability(id).unwrap();
    let list = [(0x100, header(0x01, 0x150)), (0x150, header(0x0e, 0xffc)), (0xffc, header(0x10, 0))];
    for (id, at) in [(0x01, Some(0x100)), (0x0e, Some(0x150)), (0x10, Some(0xffc)), (0x0b, None)] {
        assert_eq!(found(&list, id), at);
    }
    assert_eq!(found(&[], 1), None);
    assert_eq!(found(&[(0x100, u32::MAX)], 0xffff), None, "nobody there");
    // Circles, and ways out of the space.
    assert_eq!(found(&[(0x100, header(1, 0x100))], 2), None);
    assert_eq!(found(&[(0x100, header(1, 0x200)), (0x200, header(3, 0x100))], 2), None);
    assert_eq!(found(&[(0x100, header(1, 0x0f0)), (0x0f0, header(2, 0))], 2), None);
    assert_eq!(found(&[(0x100, header(1, 0xfff)), (0xffc, header(2, 0))], 2), Some(0xffc), "reserved bits");
}

#[test]
fn memory_bars_and_devices_that_are_gone() {
    // Memory of 64 bits at 0 (so none at 1), ports at 2, memory at 3.
    let device = Express::opened(&[(0x10, 4), (0x18, 1)]);
    let config = device.inner().config();
    let memory = [0, 1, 2, 3].map(|index| config.is_memory_bar(index).unwrap());
    assert_eq!(memory, [true, false, false, true]);
    // By the id, or, where somebody answers for that, by bits that are never set.
    for (word, gone) in [(0x0000_07ff, false), (0x0000_ffff, true), (0x0000_f800, true)] {
        assert!(!Express::opened(&[]).is_gone().unwrap());
        let device = Express::opened(&[]);
        device.inner().backend.config_write(4, &u32::to_le_bytes(word)).unwrap();
        assert_eq!(device.is_gone().unwrap(), gone, "{word:#x}");
    }
}

/// edu's register at 4 answers the contrary of what is written to it.
const LIVENESS: (u8, u64, u8) = (0, 4, 4);

fn wait_for(mask: u64, value: u64) -> QuietStep {
    let (bar, offset, width) = LIVENESS;
    QuietStep::Wait { bar, offset, width, mask, value, timeout: std::time::Duration::from_millis(5) }
}

#[test]
fn a_recipe_is_done_before_a_device_is_quiet() {
    let (_context, ioas, device) = setup();
    let (bar, offset, width) = LIVENESS;
    device
        .set_quiet_recipe(&[
            QuietStep::Write { bar, offset, width, value: 0x00ff },
            wait_for(0xffff, 0xff00),
            // Reads 0xffffff00, writes 0xfffffa05, and so it reads 0x5fa.
            QuietStep::Update { bar, offset, width, clear: 0x500, set: 0x5 },
            wait_for(0xffff_ffff, 0x5fa),
        ])
        .unwrap();
    device.attach(&ioas).unwrap();
    assert_eq!(device.quiesce().unwrap().recipe, None, "it was not let loose");
    let_loose(&device);
    assert_eq!(device.quiesce().unwrap().recipe, Some(true));
    assert_eq!(device.bar(0).unwrap().read_u32(4).unwrap(), 0x5fa);
    // What does not come is not quiet, though bus mastering is off: there is no reset.
    device.set_quiet_recipe(&[wait_for(0xf, 0)]).unwrap();
    let_loose(&device);
    drop(map(&ioas));
    assert_eq!(device.quiesce().unwrap_err().kind(), ErrorKind::NotQuiet);
    assert_eq!(ioas.quarantined(), 1);
    device.set_quiet_recipe(&[]).unwrap();
    assert_eq!(device.quiesce().unwrap().recipe, None);
    assert_eq!(ioas.quarantined(), 0);
}

#[test]
fn recipes_are_checked() {
    let (_context, _ioas, device) = setup();
    let write = |bar, offset, width| QuietStep::Write { bar, offset, width, value: 0 };
    let size = device.bar(0).unwrap().size();
    let long = QuietStep::Wait {
        bar: 0,
        offset: 4,
        width: 4,
        mask: 1,
        value: 1,
        timeout: std::time::Duration::from_secs(66),
    };
    for bad in
        [write(0, 2, 4), write(0, 0, 3), write(0, size, 4), write(0, u64::MAX - 3, 4), long, wait_for(1, 2)]
    {
        assert_eq!(device.set_quiet_recipe(&[bad]).unwrap_err().kind(), ErrorKind::Argument, "{bad:?}");
    }
    assert_eq!(device.set_quiet_recipe(&[write(1, 0, 4)]).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(device.set_quiet_recipe(&[write(0, 4, 4); 17]).unwrap_err().kind(), ErrorKind::Argument);
    device.set_quiet_recipe(&[write(0, size - 4, 4); 16]).unwrap();
}
