//! Models of devices through the public interface: paces, interrupts, resets, devices that hang, vanish and break down.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use noiommu::sim::{At, Bus, Identity, Model, Pace, Slot, Work};
use noiommu::{Context, Contiguity, Device, DmaBuffer, ErrorKind, InterruptKind, Ioas};

/// Counts up to what is written to 0x00 of BAR 0, one for each piece of work, and then interrupts by vector 1, or the line. 0x08
/// tells where it is; 0x10 is memory of 1, 2, 4 and 8 bytes; 0x20 panics in its next piece of work. BAR 2 answers its offset. With an
/// address at 0x28 it writes where it is to memory, too.
#[derive(Default)]
struct Counter {
    goal: u64,
    count: u64,
    scratch: u64,
    widths: Vec<u8>,
    panics: bool,
    endless: bool,
    address: u64,
    config_writes: Vec<(u16, usize)>,
    resets: u32,
}

impl Model for Counter {
    fn identity(&self) -> Identity {
        Identity::new("counter", 0xabcd, 0x0001)
            .class(0x12_00_00)
            .bar(0, 0x1000)
            .bar64(2, 0x2_0000)
            .line()
            .msi(4)
            .msix(3, 0, 0x800)
            .express()
            .capability(0x09, &[4, 0x55], &[0, 0x0f])
            .resettable()
    }

    fn read(&mut self, at: At, _: &mut Bus<'_>) -> u64 {
        self.widths.push(at.width);
        match (at.bar, at.offset) {
            (0, 0x08) => self.count,
            (0, 0x10) => self.scratch,
            (2, offset) => offset,
            _ => u64::MAX,
        }
    }

    fn write(&mut self, at: At, value: u64, bus: &mut Bus<'_>) {
        match at.offset {
            0x00 => self.goal = value,
            0x10 => self.scratch = value,
            0x18 => bus.lower(),
            0x20 => self.panics = true,
            0x28 => self.address = value,
            _ => {}
        }
    }

    fn work(&mut self, bus: &mut Bus<'_>) -> Work {
        assert!(!self.panics, "on purpose");
        if self.endless {
            return Work::More;
        }
        if self.count >= self.goal {
            return Work::Idle;
        }
        self.count += 1;
        if self.address != 0 {
            let _ = bus.write(self.address, &self.count.to_le_bytes());
        }
        if self.count < self.goal {
            return Work::After(Duration::from_micros(10));
        }
        bus.raise(if bus.vectors() > 1 { 1 } else { 0 });
        Work::Idle
    }

    fn reset(&mut self) {
        let resets = self.resets + 1;
        *self = Self { resets, ..Self::default() };
    }

    fn config_written(&mut self, offset: u16, length: usize, bus: &mut Bus<'_>) {
        self.config_writes.push((offset, length));
        // What is written to the vendor's capability is seen there, doubled.
        let mut body = [0; 2];
        bus.config(0x9a, &mut body);
        bus.set_config(0x9a, &[body[0].wrapping_add(1)]);
    }
}

fn setup(pace: Pace) -> (Context, Ioas, Slot<Counter>) {
    let context = Context::simulated();
    let ioas = context.ioas().unwrap();
    let slot = context.sim_device_at(Counter::default(), pace).unwrap();
    (context, ioas, slot)
}

/// Open, attached, mastering.
fn open(slot: &Slot<Counter>, ioas: &Ioas) -> Device {
    let device = slot.open().unwrap();
    device.attach(ioas).unwrap();
    // SAFETY: it is given no address but that of a live mapping.
    unsafe { device.enable_bus_master().unwrap() };
    device
}

#[test]
fn identity_bars_and_config_space() {
    let (_context, _ioas, slot) = setup(Pace::Stepped);
    let device = slot.open().unwrap();
    assert_eq!((device.name(), device.id().unwrap()), ("sim:counter", (0xabcd, 1)));
    assert_eq!(device.provider().name(), "sim");
    let (low, high) = (device.bar(0).unwrap(), device.bar(2).unwrap());
    assert_eq!((low.size(), high.size()), (0x1000, 0x2_0000));
    assert!(device.bar(1).is_err() && device.bar(3).is_err(), "the upper half of BAR 2 is none");
    assert_eq!(high.read_u32(0x1_2344).unwrap(), 0x1_2344);
    // Values as wide as the access.
    low.write_u64(0x10, 0x1122_3344_5566_7788).unwrap();
    assert_eq!(low.read_u8(0x10).unwrap(), 0x88);
    assert_eq!(low.read_u16(0x10).unwrap(), 0x7788);
    low.write_u8(0x10, 0xff).unwrap();
    assert_eq!(low.read_u64(0x10).unwrap(), 0xff);
    assert_eq!(slot.act(|model, _| model.widths.clone()), [4, 1, 2, 8]);
    // Sizes of BARs as firmware finds them out.
    let word = |offset: u16| {
        let mut bytes = [0; 4];
        device.config_read(offset, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    };
    let before = word(0x10);
    device.config_write(0x10, &[0xff; 4]).unwrap();
    assert_eq!(word(0x10), !0xfff);
    device.config_write(0x10, &before.to_le_bytes()).unwrap();
    assert_eq!((word(0x18) & 0xf, word(0x08) >> 8), (4, 0x12_00_00));
    // What the driver may change of a capability, and what the device makes of it.
    let vendor = device.find_capability(0x09).unwrap().unwrap();
    assert_eq!(vendor, 0x98);
    let shown = word(0x98) >> 16;
    device.config_write(0x9a, &[0xff, 0xff]).unwrap();
    assert_eq!(word(0x98) >> 16, ((shown & 0xff) + 1) | 0x5f00);
    assert_eq!(slot.act(|model, _| *model.config_writes.last().unwrap()), (0x9a, 2));
    assert!(device.find_capability(0x10).unwrap().is_some());
    assert!(device.config_read(4094, &mut [0; 2]).is_ok());
    assert!(device.config_read(4095, &mut [0; 2]).is_err());
}

#[test]
fn an_identity_that_cannot_be_is_an_error() {
    struct Wrong;
    impl Model for Wrong {
        fn identity(&self) -> Identity {
            Identity::new("wrong", 1, 1).bar(0, 1000)
        }
        fn read(&mut self, _: At, _: &mut Bus<'_>) -> u64 {
            0
        }
        fn write(&mut self, _: At, _: u64, _: &mut Bus<'_>) {}
    }
    let error = Context::simulated().sim_device(Wrong).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument);
    assert!(error.cause().contains("sim:wrong: BAR 0: 1000 bytes"), "{error}");
}

#[test]
fn one_driver_at_a_time_and_again() {
    let (_context, _ioas, slot) = setup(Pace::OwnThread);
    let device = slot.open().unwrap();
    let registers = device.bar(0).unwrap();
    registers.write_u64(0x10, 7).unwrap();
    assert_eq!(slot.open().unwrap_err().kind(), ErrorKind::Busy);
    drop(device);
    assert_eq!(slot.open().unwrap_err().kind(), ErrorKind::Busy, "the registers are held");
    drop(registers);
    // The device was there all the time: it was reset as the driver gave it up.
    assert_eq!(slot.act(|model, _| (model.resets, model.widths.len())), (1, 0));
    slot.act(|model, _| model.scratch = 8);
    assert_eq!(slot.open().unwrap().bar(0).unwrap().read_u64(0x10).unwrap(), 8);
}

#[test]
fn paces() {
    let count = |device: &Device| device.bar(0).unwrap().read_u64(0x08).unwrap();
    let begin = |device: &Device| device.bar(0).unwrap().write_u64(0x00, 5).unwrap();
    let (_context, _ioas, slot) = setup(Pace::OwnThread);
    let device = slot.open().unwrap();
    begin(&device);
    while count(&device) < 5 {
        std::thread::yield_now();
    }
    let (_context, _ioas, slot) = setup(Pace::AtOnce);
    let device = slot.open().unwrap();
    begin(&device);
    assert_eq!(slot.act(|model, _| model.count), 5);
    assert!(!slot.step());
    let (_context, _ioas, slot) = setup(Pace::OnTouch);
    let device = slot.open().unwrap();
    begin(&device);
    assert_eq!(slot.act(|model, _| model.count), 0);
    assert_eq!([(); 6].map(|()| count(&device)), [1, 2, 3, 4, 5, 5]);
    let (_context, _ioas, slot) = setup(Pace::Stepped);
    let device = slot.open().unwrap();
    assert!(!slot.step());
    begin(&device);
    assert_eq!((count(&device), slot.step(), count(&device)), (0, true, 1));
    assert_eq!((0..100).take_while(|_| slot.step()).count(), 4);
    assert_eq!(count(&device), 5);
}

#[test]
fn a_device_that_always_has_something_to_do_keeps_nobody_out() {
    for pace in [Pace::OwnThread, Pace::AtOnce, Pace::OnTouch] {
        let (_context, _ioas, slot) = setup(pace);
        let device = slot.open().unwrap();
        let registers = device.bar(0).unwrap();
        slot.act(|model, _| model.endless = true);
        for value in 0..20 {
            registers.write_u64(0x10, value).unwrap();
            assert_eq!(registers.read_u64(0x10).unwrap(), value);
        }
    }
}

#[test]
fn interrupts_of_every_kind() {
    for pace in [Pace::OwnThread, Pace::AtOnce, Pace::OnTouch] {
        let (_context, ioas, slot) = setup(pace);
        let device = open(&slot, &ioas);
        let registers = device.bar(0).unwrap();
        let counts = InterruptKind::ALL.map(|kind| device.interrupt_count(kind).unwrap());
        assert_eq!(counts, [3, 4, 1]);
        let mut goal = 0;
        for kind in InterruptKind::ALL {
            let vectors = if kind == InterruptKind::Intx { 1 } else { 2 };
            let interrupts = device.enable_interrupts(kind, vectors).unwrap();
            let flags = |id, offset| {
                let mut byte = [0];
                device.config_read(device.find_capability(id).unwrap().unwrap() + offset, &mut byte).unwrap();
                byte[0]
            };
            let (msi, msix) = (flags(0x05, 2) & 1, flags(0x11, 3) & 0x80);
            assert_eq!(msi, u8::from(kind == InterruptKind::Msi), "{kind:?}");
            assert_eq!(msix, if kind == InterruptKind::Msix { 0x80 } else { 0 }, "{kind:?}");
            goal += 3;
            registers.write_u64(0x00, goal).unwrap();
            let last = interrupts.last().unwrap();
            assert_eq!(last.wait(Some(Duration::from_secs(60))).unwrap(), Some(1), "{kind:?} {pace:?}");
            if vectors > 1 {
                assert_eq!(interrupts[0].try_wait().unwrap(), None);
            } else {
                registers.write_u64(0x18, 0).unwrap();
                last.unmask().unwrap();
                assert_eq!(last.try_wait().unwrap(), None, "lowered");
            }
        }
        // Messages do not get out of a device that does not master the bus.
        let interrupts = device.enable_interrupts(InterruptKind::Msix, 2).unwrap();
        device.quiesce().unwrap();
        slot.act(|model, bus| {
            bus.raise(1);
            model.goal = 0;
        });
        assert_eq!(interrupts[1].try_wait().unwrap(), None);
    }
}

#[test]
fn resets() {
    let (_context, ioas, slot) = setup(Pace::AtOnce);
    let device = open(&slot, &ioas);
    device.bar(0).unwrap().write_u64(0x10, 7).unwrap();
    let quiet = device.reset().unwrap();
    assert!(quiet.reset && quiet.bus_master_off && quiet.transactions_done == Some(true));
    assert_eq!(slot.act(|model, _| (model.resets, model.scratch)), (1, 0));
    drop(device);
    assert_eq!(slot.act(|model, _| model.resets), 2, "dropping it makes it quiet");
}

#[test]
fn a_device_that_hangs() {
    for pace in [Pace::OwnThread, Pace::AtOnce, Pace::OnTouch, Pace::Stepped] {
        let (_context, ioas, slot) = setup(pace);
        let device = open(&slot, &ioas);
        let registers = device.bar(0).unwrap();
        slot.hang();
        registers.write_u64(0x00, 2).unwrap();
        assert!(!slot.step());
        assert_eq!(registers.read_u64(0x08).unwrap(), 0, "registers answer");
        slot.resume();
        while slot.act(|model, _| model.count) < 2 {
            slot.step();
        }
        slot.hang();
        device.reset().unwrap();
        registers.write_u64(0x00, 1).unwrap();
        while slot.act(|model, _| model.count) < 1 {
            slot.step();
        }
    }
}

#[test]
fn a_device_that_is_pulled_out() {
    let (_context, ioas, slot) = setup(Pace::AtOnce);
    let device = open(&slot, &ioas);
    let registers = device.bar(0).unwrap();
    let removal = device.removal().unwrap().unwrap();
    let ready = || {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        poll(&mut [PollFd::new(&removal, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap()
    };
    let mapping = ioas.map(DmaBuffer::new(4096, Contiguity::Pages).unwrap()).unwrap();
    let view = mapping.for_device(&device).unwrap();
    registers.write_u64(0x28, view.at(0).unwrap().address.bits()).unwrap();
    registers.write_u64(0x00, 2).unwrap();
    assert_eq!(mapping.buffer().unwrap().load_u64(0).unwrap(), 2);
    assert_eq!(ready(), 0);
    slot.announce_removal();
    assert_eq!(ready(), 1);
    assert!(!device.is_gone().unwrap());
    slot.unplug();
    registers.write_u64(0x00, 4).unwrap();
    assert_eq!((registers.read_u64(0x08).unwrap(), registers.read_u8(0x08).unwrap()), (u64::MAX, 0xff));
    assert_eq!(mapping.buffer().unwrap().load_u64(0).unwrap(), 2);
    assert!(device.is_gone().unwrap());
    assert_eq!(device.id().unwrap_err().kind(), ErrorKind::NoDevice);
    drop((view, mapping));
    assert_eq!(ioas.quarantined(), 1);
    device.quiesce().unwrap();
    assert_eq!(ioas.quarantined(), 0, "what is gone is quiet");
    slot.act(|_, bus| assert!(bus.read(0x1000, &mut [0; 8]).is_err(), "nor does it reach memory"));
}

#[test]
fn a_model_that_breaks_down_fails_the_test() {
    let text = |panic: Box<dyn std::any::Any + Send>| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap()
    };
    // In its thread: at the next look at the device, and at the end.
    let (context, ioas, slot) = setup(Pace::OwnThread);
    let device = slot.open().unwrap();
    let registers = device.bar(0).unwrap();
    let _ = registers.write_u64(0x20, 1);
    let panic = catch_unwind(AssertUnwindSafe(|| {
        while registers.read_u64(0x08).is_ok() {
            std::thread::yield_now();
        }
    }));
    assert_eq!(text(panic.unwrap_err()), "the model of sim:counter panicked: on purpose");
    let panic = catch_unwind(AssertUnwindSafe(|| drop((registers, device, slot, ioas, context))));
    assert_eq!(text(panic.unwrap_err()), "on purpose");
    // Without a thread: where it happens.
    let (_context, _ioas, slot) = setup(Pace::AtOnce);
    let registers = slot.open().unwrap().bar(0).unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| registers.write_u64(0x20, 1)));
    assert_eq!(text(panic.unwrap_err()), "on purpose");
}
