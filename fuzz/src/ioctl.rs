//! The engine's ioctl face under random sequences, held to a model of it step by step.
//!
//! [`run`] is what libFuzzer calls with bytes of its choice: they are read as up to 64 steps, which the engine
//! (`noiommu_core::Context` on a made-up platform) and the model go one by one. After each of them:
//!
//! * the answers are the same, and so is all of the caller's memory;
//! * the same objects are there under the same ids, with as many areas;
//! * NOIOMMU_GET_PA at both ends of every area tells where the page was *when it was pinned*, with a run that ends at the
//!   area's end or where physical memory is not contiguous, and there alone;
//! * an IOAS without a domain holds no table frame; where nothing should be pinned, nothing is; no memory is held that no area
//!   is of;
//! * nothing was answered with EIO, which is what the engine answers to a broken platform.
//!
//! At the end everything is destroyed, or simply dropped, and no pin is left.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use arbitrary::Unstructured;
use noiommu_core::platform::Caller;
use noiommu_core::{Context, Errno, Iova, ObjectId, ObjectKind};

use crate::model::{Expected, Model, Setting};
use crate::op;
use crate::op::{Delivery, Op, Step};
use crate::world::{BASE, BYTES, Fake, Memory, PAGE, SMALL_PAGES, Somebody};

/// All rights, and descriptors.
const ALL_RIGHTS: Caller = Caller { raw_io: true, ipc_lock: true, resource: true };

/// The most steps of one sequence.
const MOST: usize = 64;

/// Runs the steps that `bytes` mean, and answers how many they were. With `tell`, each is printed before it is run.
///
/// # Panics
/// Where the engine and the model part ways.
pub fn run(bytes: &[u8], tell: bool) -> usize {
    let mut both = Both::new();
    let mut u = Unstructured::new(bytes);
    let mut number = 0;
    while number < MOST
        && let Some(step) = op::next(&mut u, &both.model)
    {
        if tell {
            println!("  {number}: {step:?}");
        }
        both.run(number, &step);
        number += 1;
    }
    // By the length, which libFuzzer varies all the time.
    both.end(bytes.len().is_multiple_of(2));
    number
}

/// The engine, the model, and the process that calls them.
struct Both {
    engine: Context<Fake>,
    model: Model,
    somebody: Somebody,
    /// Bound devices.
    devices: Vec<u32>,
}

impl Both {
    fn new() -> Self {
        Self {
            engine: Context::new(Fake::default()),
            model: Model::default(),
            somebody: Somebody {
                memory: RefCell::new(Memory { bytes: [0; BYTES], writable: true }),
                caller: Cell::new(ALL_RIGHTS),
                queues: RefCell::default(),
                descriptors: Cell::new(true),
                held: Rc::default(),
            },
            devices: Vec::new(),
        }
    }

    fn run(&mut self, number: usize, step: &Step) {
        // What a want of memory undoes is undone here by going back.
        let before = self.engine.platform().is_short().then(|| self.model.clone());
        let enough = self.step(number, step);
        if let (false, Some(before)) = (enough, before) {
            self.model = before;
        }
        self.compare(number, step);
    }

    /// Whether there was memory enough; if not, the model has gone a way that the engine has not.
    fn step(&mut self, number: usize, step: &Step) -> bool {
        let pages = self.engine.platform().pages.borrow().clone();
        let setting = Setting {
            pages: &pages,
            caller: self.somebody.caller.get(),
            descriptors: self.somebody.descriptors.get(),
        };
        let (told, expected) = match &step.op {
            Op::Ioctl(request, bytes) => return self.ioctl(number, step, *request, bytes, &setting),
            Op::Number(request, argument) => return self.call(number, step, *request, *argument, &setting),
            Op::Bind => {
                if self.devices.len() > 3 {
                    return true;
                }
                let told = self.engine.bind().map(|id| id.0);
                self.devices.push(told.unwrap_or(0));
                (told, Ok(self.model.bind()))
            }
            &Op::Unbind(device) => {
                self.devices.retain(|other| *other != device);
                let told = self.engine.unbind(ObjectId(device));
                (told.map(|()| 0), self.model.unbind(device).map(|()| 0))
            }
            &Op::Attach(device, to, pasid) => {
                let told = match pasid {
                    None => self.engine.attach(ObjectId(device), ObjectId(to)),
                    Some(pasid) => self.engine.attach_pasid(ObjectId(device), ObjectId(to), pasid),
                };
                (told.map(|id| id.0), self.model.attach(&setting, device, to, pasid))
            }
            &Op::Detach(device, pasid) => {
                let told = match pasid {
                    None => self.engine.detach(ObjectId(device)),
                    Some(pasid) => self.engine.detach_pasid(ObjectId(device), pasid),
                };
                let expected = match pasid {
                    Some(1..) if self.model.kind(device) == Some(ObjectKind::Device) => Ok(()),
                    Some(1..) => Err(Errno::ENOENT),
                    _ => self.model.detach(device, pasid.is_some()),
                };
                (told.map(|()| 0), expected.map(|()| 0))
            }
            Op::QueueClosed(id) => {
                self.close_queue(*id);
                return true;
            }
            Op::Group => {
                let told = self.engine.set_no_iommu_container();
                (told.map(|()| 0), self.model.set_group().map(|()| 0))
            }
            world => {
                self.turn(world);
                return true;
            }
        };
        self.agree(number, step, told, expected)
    }

    fn close_queue(&mut self, id: u32) {
        self.engine.fault_queue_closed(ObjectId(id));
        self.model.queue_closed(id);
        self.somebody.queues.borrow_mut().retain(|queue| *queue != id);
    }

    /// What happens in the world.
    fn turn(&mut self, op: &Op) {
        let platform = self.engine.platform();
        let small = |at: &u8| usize::from(*at) % (2 * SMALL_PAGES as usize);
        match op {
            Op::Replace(at) => platform.pages.borrow_mut().replace(small(at)),
            Op::TakeAway(at) => platform.pages.borrow_mut().take_away(small(at)),
            Op::Protect(at) => platform.pages.borrow_mut().protect(small(at)),
            Op::PinsLeft(left) => platform.pins_left.set(*left),
            Op::FramesLeft(left) => platform.frames_left.set(*left),
            Op::AddressesFail(fail) => platform.addresses_fail.set(*fail),
            Op::Rights(bits) => {
                let bit = |number: u8| bits >> number & 1 == 0;
                self.somebody.caller.set(Caller { raw_io: bit(0), ipc_lock: bit(1), resource: bit(2) });
                self.somebody.descriptors.set(bit(3));
            }
            _ => {}
        }
    }

    fn ioctl(
        &mut self,
        number: usize,
        step: &Step,
        request: u32,
        bytes: &[u8],
        setting: &Setting<'_>,
    ) -> bool {
        let Delivery { longer, tail, at, read_only } = step.delivery;
        let mut memory = self.somebody.memory.borrow_mut();
        *memory = Memory { bytes: [0; BYTES], writable: !read_only };
        let start = usize::try_from(at).unwrap_or(BYTES).min(BYTES);
        let there = bytes.len().min(BYTES - start);
        memory.bytes[start..start + there].copy_from_slice(&bytes[..there]);
        if let Some(size) = memory.bytes.get_mut(start..start + 4) {
            let told = u32::from_ne_bytes([size[0], size[1], size[2], size[3]]);
            size.copy_from_slice(&told.wrapping_add_signed(longer).to_ne_bytes());
        }
        if let Some(byte) =
            tail.and_then(|tail| memory.bytes.get_mut(start + bytes.len() + usize::from(tail)))
        {
            *byte = 1;
        }
        drop(memory);
        self.call(number, step, request, BASE.wrapping_add(at), setting)
    }

    fn call(
        &mut self,
        number: usize,
        step: &Step,
        request: u32,
        argument: u64,
        setting: &Setting<'_>,
    ) -> bool {
        let mut memory = self.somebody.memory.borrow().clone();
        let expected = self.model.ioctl(setting, &mut memory, request, argument);
        let told = self.engine.ioctl(&self.somebody, request, argument);
        let expected = match expected {
            Expected::Refusal => {
                assert!(told.is_err(), "step {number}, {step:?}: {told:?}");
                told
            }
            Expected::AsToItsResult(result) => result,
            Expected::Exactly(result) => {
                let same = memory == *self.somebody.memory.borrow();
                let short = self.engine.platform().is_short() && told == Err(Errno::ENOMEM);
                assert!(
                    same || short,
                    "step {number}, {step:?}: {told:?}, and wrote something else than expected"
                );
                result
            }
        };
        self.agree(number, step, told, expected)
    }

    fn agree(
        &self,
        number: usize,
        step: &Step,
        told: Result<u32, Errno>,
        expected: Result<u32, Errno>,
    ) -> bool {
        assert_ne!(told, Err(Errno::EIO), "step {number}, {step:?}");
        if told == Err(Errno::ENOMEM) && self.engine.platform().is_short() {
            return false;
        }
        assert_eq!(told, expected, "step {number}, {step:?}");
        true
    }

    /// Everything that can be seen without changing it.
    fn compare(&self, number: usize, step: &Step) {
        let ids = self.model.objects.keys().next_back().copied().unwrap_or(0) + 2;
        for id in 0..=ids {
            assert_eq!(
                self.engine.kind(ObjectId(id)),
                self.model.kind(id),
                "object {id} after step {number}, {step:?}"
            );
        }
        for (id, ioas) in self.model.ioases() {
            let usage = self.engine.usage(ObjectId(id)).expect("it is there");
            let filled = self.model.has_domain(id);
            assert_eq!(usage.areas, ioas.areas.len(), "areas of {id} after step {number}, {step:?}");
            assert_eq!(
                self.engine.has_domain(ObjectId(id)),
                Ok(filled),
                "{id} after step {number}, {step:?}"
            );
            assert!(
                (filled && usage.areas > 0) == (usage.table_frames > 0),
                "{usage:?} of {id} after step {number}, {step:?}"
            );
            for (first, area) in &ioas.areas {
                for iova in [
                    *first,
                    area.last,
                    area.last & !(PAGE - 1),
                    first.wrapping_add(PAGE),
                    area.last.wrapping_add(1),
                ] {
                    self.compare_place(id, iova, &format_args!("step {number}, {step:?}"));
                }
            }
        }
        let areas: usize = self.model.ioases().map(|(_, ioas)| ioas.areas.len()).sum();
        let held = Rc::strong_count(&self.somebody.held) - 1;
        assert!(held <= areas, "{held} names of memory for {areas} areas after step {number}, {step:?}");
        let pinned = self.engine.platform().pinned.get();
        assert!(pinned >= self.model.pinned(), "{pinned:#x} bytes pinned after step {number}, {step:?}");
        if !self.model.ioases().any(|(id, ioas)| !ioas.areas.is_empty() && self.model.has_domain(id)) {
            assert_eq!(pinned, 0, "still pinned after step {number}, {step:?}");
        }
    }

    fn compare_place(&self, id: u32, iova: u64, when: &std::fmt::Arguments<'_>) {
        let pages = self.engine.platform().pages.borrow();
        let setting = Setting { pages: &pages, caller: ALL_RIGHTS, descriptors: true };
        for limit in [u64::MAX, 5000] {
            let told = self.engine.get_pa(ALL_RIGHTS, ObjectId(id), Iova(iova), limit);
            let told = told.map(|(address, length)| (address.0, length));
            assert_eq!(told, self.model.get_pa(&setting, id, iova, limit), "{iova:#x} of {id} after {when}");
        }
    }

    /// Takes everything down.
    fn end(mut self, by_destroying: bool) {
        let pinned = self.engine.platform().pinned.clone();
        for (id, ioas) in self.model.ioases() {
            for (first, area) in &ioas.areas {
                for iova in (*first..=area.last).step_by(PAGE as usize).take(2 * SMALL_PAGES as usize) {
                    self.compare_place(id, iova, &format_args!("the last step"));
                }
            }
        }
        if by_destroying {
            for device in std::mem::take(&mut self.devices) {
                assert_eq!(self.engine.unbind(ObjectId(device)), Ok(()));
                assert_eq!(self.model.unbind(device), Ok(()));
            }
            // HWPTs go before IOASes and queues.
            let ids: Vec<u32> = self.model.objects.keys().copied().collect();
            ids.iter().for_each(|id| self.close_queue(*id));
            for id in ids.iter().chain(&ids) {
                let _ = self.engine.destroy(ObjectId(*id));
            }
            assert!(
                ids.iter().all(|id| self.engine.kind(ObjectId(*id)).is_none()),
                "something cannot be destroyed"
            );
            assert_eq!(pinned.get(), 0, "pinned by nobody");
            self.engine.platform().frames_left.set(None);
            assert_eq!(self.engine.ioas_alloc(), Ok(ObjectId(1)));
        }
        drop(self.engine);
        assert_eq!(pinned.get(), 0, "pinned by nobody");
    }
}
