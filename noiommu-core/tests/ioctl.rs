//! The ioctl face, called with bytes. What it answers is held to the kernel's recorded answers elsewhere; here is what no
//! recording shows.
#![cfg(not(loom))]

mod support;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use noiommu_core::ioctl::Process;
use noiommu_core::platform::Caller;
use noiommu_core::{Context, Errno, IovaRange, ObjectId, UserMemory};
use noiommu_uapi::iommufd::*;
use noiommu_uapi::vfio::container::*;
use noiommu_uapi::{CALLS, CallFile};
use proptest::prelude::*;
use support::Fake;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Where the caller's memory is.
const BASE: u64 = 0x10_0000;

/// A caller with 4 KiB of memory.
struct Somebody {
    memory: RefCell<Vec<u8>>,
    read_only: Cell<bool>,
    queues: RefCell<BTreeSet<i32>>,
}

impl Somebody {
    fn new() -> Self {
        Self { memory: RefCell::new(vec![0; 4096]), read_only: Cell::new(false), queues: RefCell::default() }
    }

    fn place(&self, address: u64, length: usize) -> Result<usize, Errno> {
        let at = usize::try_from(address.checked_sub(BASE).ok_or(Errno::EFAULT)?).unwrap();
        if at.checked_add(length).is_none_or(|end| end > self.memory.borrow().len()) {
            return Err(Errno::EFAULT);
        }
        Ok(at)
    }

    fn call<T: IntoBytes + FromBytes + Immutable>(
        &self,
        context: &mut Context<Fake>,
        request: u32,
        argument: &mut T,
    ) -> Result<u32, Errno> {
        self.memory.borrow_mut()[..size_of::<T>()].copy_from_slice(argument.as_bytes());
        let answer = context.ioctl(self, request, BASE);
        argument.as_mut_bytes().copy_from_slice(&self.memory.borrow()[..size_of::<T>()]);
        answer
    }
}

impl UserMemory for Somebody {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        let at = self.place(address, into.len())?;
        into.copy_from_slice(&self.memory.borrow()[at..at + into.len()]);
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        let at = self.place(address, from.len())?;
        if self.read_only.get() {
            return Err(Errno::EFAULT);
        }
        self.memory.borrow_mut()[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }
}

impl Process<u64> for Somebody {
    fn memory(&self) -> &dyn UserMemory {
        self
    }

    fn caller(&self) -> Caller {
        Caller { raw_io: true, ipc_lock: true, resource: true }
    }

    fn user_backing(&self, address: u64) -> u64 {
        address
    }

    fn file_backing(&self, descriptor: i32, start: u64, _: u64) -> Result<u64, Errno> {
        if descriptor < 0 { Err(Errno::EBADF) } else { Ok(start & !0xfff | 1) }
    }

    fn open_fault_queue(&self, queue: ObjectId) -> Result<i32, Errno> {
        self.queues.borrow_mut().insert(queue.0 as i32 + 100);
        Ok(queue.0 as i32 + 100)
    }

    fn take_back(&self, descriptor: i32) {
        assert!(self.queues.borrow_mut().remove(&descriptor));
    }
}

fn alloc(somebody: &Somebody, context: &mut Context<Fake>) -> u32 {
    let mut call = IommuIoasAlloc { size: 12, ..Default::default() };
    assert_eq!(somebody.call(context, IOMMU_IOAS_ALLOC, &mut call), Ok(0));
    call.out_ioas_id
}

#[test]
fn an_answer_that_cannot_be_given_undoes_what_makes_an_object_and_nothing_else() {
    let (somebody, mut context) = (Somebody::new(), Context::new(Fake::default()));
    let ioas = alloc(&somebody, &mut context);
    let device = context.bind().unwrap();
    let mut map = IommuIoasMap {
        size: 40,
        flags: IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_FIXED_IOVA,
        ioas_id: ioas,
        user_va: 0x5000,
        length: 0x1000,
        iova: 0x9000,
        ..Default::default()
    };
    let mut hwpt = IommuHwptAlloc { size: 48, dev_id: device.0, pt_id: ioas, ..Default::default() };
    let mut queue = IommuFaultAlloc { size: 16, ..Default::default() };
    let mut space = IommuIoasAlloc { size: 12, ..Default::default() };
    somebody.read_only.set(true);
    assert_eq!(somebody.call(&mut context, IOMMU_IOAS_MAP, &mut map), Err(Errno::EFAULT));
    assert_eq!(somebody.call(&mut context, IOMMU_HWPT_ALLOC, &mut hwpt), Err(Errno::EFAULT));
    assert_eq!(somebody.call(&mut context, IOMMU_FAULT_QUEUE_ALLOC, &mut queue), Err(Errno::EFAULT));
    assert_eq!(somebody.call(&mut context, IOMMU_IOAS_ALLOC, &mut space), Err(Errno::EFAULT));
    somebody.read_only.set(false);
    assert_eq!(somebody.call(&mut context, IOMMU_IOAS_MAP, &mut map), Err(Errno::EEXIST), "it stands");
    assert_eq!(alloc(&somebody, &mut context), 3, "and no object is left");
    assert!(somebody.queues.borrow().is_empty());
    assert_eq!(context.has_domain(ObjectId(ioas)), Ok(false));
}

#[test]
fn a_tail_counts_to_its_end() {
    let (somebody, mut context) = (Somebody::new(), Context::new(Fake::default()));
    for (size, byte, expected) in [
        (12, 0, Ok(0)),
        (4096, 0, Ok(0)),
        (4096, 4095, Err(Errno::E2BIG)),
        (4096, 12, Err(Errno::E2BIG)),
        (4000, 4000, Ok(0)),
        (4097, 0, Err(Errno::EFAULT)),
        // The first byte that is wrong decides, not how much is looked at in one piece.
        (4097, 4095, Err(Errno::E2BIG)),
        (u32::MAX, 4095, Err(Errno::E2BIG)),
        (u32::MAX, 0, Err(Errno::EFAULT)),
        (11, 0, Err(Errno::EINVAL)),
    ] {
        let mut memory = somebody.memory.borrow_mut();
        memory.fill(0);
        memory[..4].copy_from_slice(&u32::to_ne_bytes(size));
        if byte != 0 {
            memory[byte] = 1;
        }
        drop(memory);
        assert_eq!(context.ioctl(&somebody, IOMMU_IOAS_ALLOC, BASE), expected, "{size} bytes, one at {byte}");
    }
}

#[test]
fn type_1_unmaps_in_the_middle() {
    let (somebody, mut context) = (Somebody::new(), Context::new(Fake::default()));
    let ioas = ObjectId(alloc(&somebody, &mut context));
    context.set_compat_ioas(Some(ioas)).unwrap();
    let device = context.bind().unwrap();
    context.attach(device, ioas).unwrap();
    assert_eq!(context.ioctl(&somebody, VFIO_SET_IOMMU, u64::from(VFIO_TYPE1_IOMMU)), Ok(0));
    let mut map =
        VfioIommuType1DmaMap { argsz: 32, vaddr: 0x5000, iova: 0x10000, size: 0x8000, ..Default::default() };
    assert_eq!(somebody.call(&mut context, VFIO_IOMMU_MAP_DMA, &mut map), Ok(0), "with no access at all");
    let mut unmap = VfioIommuType1DmaUnmap { argsz: 24, iova: 0x12000, size: 0x3000, ..Default::default() };
    assert_eq!(somebody.call(&mut context, VFIO_IOMMU_UNMAP_DMA, &mut unmap), Ok(0));
    assert_eq!((unmap.size, context.usage(ioas).unwrap().areas), (0x3000, 2));
    assert_eq!(somebody.call(&mut context, VFIO_IOMMU_UNMAP_DMA, &mut unmap), Ok(0), "nothing there is fine");
    assert_eq!(unmap.size, 0);
}

#[derive(Clone, Debug)]
struct Attempt {
    request: u32,
    bytes: Vec<u8>,
    read_only: bool,
    at: u64,
}

/// Calls with fields that mean something often enough: small ids, pages, known flags.
fn attempts() -> impl Strategy<Value = Attempt> {
    let numbers: Vec<u32> = CALLS
        .iter()
        .filter(|call| matches!(call.file, CallFile::Iommufd | CallFile::Container))
        .map(|call| call.number)
        .collect();
    let request = prop_oneof![9 => prop::sample::select(numbers), 1 => any::<u32>()];
    let word = prop_oneof![
        6 => 0u32..8,
        3 => (0u32..16).prop_map(|page| page << 12),
        1 => Just(u32::MAX),
        1 => any::<u32>(),
    ];
    let size = prop_oneof![8 => prop::sample::select(vec![8u32, 12, 16, 24, 32, 40, 48]), 1 => any::<u32>()];
    let at = prop_oneof![20 => Just(BASE), 1 => Just(0), 1 => Just(BASE + 4080), 1 => Just(8)];
    (request, size, prop::collection::vec(word, 12), prop::bool::weighted(0.05), at).prop_map(
        |(request, size, words, read_only, at)| {
            let words = [size].into_iter().chain(words);
            Attempt { request, bytes: words.flat_map(u32::to_ne_bytes).collect(), read_only, at }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 400 }, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is called, everything can be taken down afterwards and nothing stays pinned.
    #[test]
    fn any_bytes_are_answered(attempts in prop::collection::vec(attempts(), 1..80)) {
        let (somebody, mut context) = (Somebody::new(), Context::new(Fake::default()));
        let pinned = context.platform().pinned.clone();
        let devices = [context.bind().unwrap(), context.bind().unwrap()];
        for (turn, attempt) in attempts.into_iter().enumerate() {
            if turn % 7 == 3 {
                let _ = context.attach(devices[turn & 1], ObjectId(turn as u32 % 9));
            }
            somebody.memory.borrow_mut()[..attempt.bytes.len()].copy_from_slice(&attempt.bytes);
            somebody.read_only.set(attempt.read_only);
            let answer = context.ioctl(&somebody, attempt.request, attempt.at);
            if let Err(error) = answer {
                prop_assert!(error.raw() > 0 && error != Errno::EIO, "{attempt:?}: {error:?}");
            }
        }
        for device in devices {
            context.unbind(device).unwrap();
        }
        // HWPTs go before IOASes, and queues after both.
        for _ in 0..3 {
            for id in 1..200 {
                context.fault_queue_closed(ObjectId(id));
                let _ = context.destroy(ObjectId(id));
            }
        }
        prop_assert_eq!(pinned.get(), 0);
        prop_assert_eq!(context.ioas_alloc().unwrap(), ObjectId(1));
        prop_assert_eq!(context.unmap(ObjectId(1), IovaRange::ALL), Ok(0));
    }
}
