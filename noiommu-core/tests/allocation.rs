//! Every allocation made to fail in turn: ENOMEM, the state as before, nothing leaked.
#![cfg(not(loom))]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use noiommu_core::ioctl::Process;
use noiommu_core::platform::Caller;
use noiommu_core::table::format::Access;
use noiommu_core::{
    Context, CopyRequest, Errno, Iova, IovaRange, MapRequest, ObjectId, ObjectKind, Place, UserMemory,
};
use support::Fake;

thread_local! {
    /// Allocations until one fails; `None`: none does.
    static COUNTDOWN: Cell<Option<u64>> = const { Cell::new(None) };
    /// Bytes that this thread has allocated and not freed.
    static LIVE: Cell<i64> = const { Cell::new(0) };
}

/// Counts down; tells whether the allocation at hand is the one to fail.
fn may_allocate() -> bool {
    COUNTDOWN.with(|countdown| match countdown.get() {
        Some(0) => false,
        Some(left) => {
            countdown.set(Some(left - 1));
            true
        }
        None => true,
    })
}

struct Failing;

// SAFETY: passes everything on to the system allocator, or answers null, which is allowed.
unsafe impl GlobalAlloc for Failing {
    // SAFETY: the caller's promises are passed on.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !may_allocate() {
            return std::ptr::null_mut();
        }
        LIVE.with(|live| live.set(live.get() + layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: the caller's promises are passed on.
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.with(|live| live.set(live.get() - layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// The platform's own allocations: each counts once, as it can be refused only as a whole.
fn allocate(run: &mut dyn FnMut()) -> bool {
    if !may_allocate() {
        return false;
    }
    let countdown = COUNTDOWN.with(Cell::take);
    run();
    COUNTDOWN.with(|cell| cell.set(countdown));
    true
}

/// Runs `operation` with the `failing`th allocation refused; tells whether it got that far.
fn with_failure<R>(failing: u64, operation: impl FnOnce() -> R) -> (R, bool) {
    COUNTDOWN.with(|countdown| countdown.set(Some(failing)));
    let result = operation();
    let reached = COUNTDOWN.with(|countdown| countdown.take()) == Some(0);
    (result, reached)
}

/// Maps in a row, and pages of a long one: few under Miri, which takes its time.
const MANY: u64 = if cfg!(miri) { 6 } else { 300 };
const LONG: u64 = if cfg!(miri) { 10 } else { 600 };

const ROOT: Caller = Caller { raw_io: true, ipc_lock: true, resource: true };

fn request(iova: Option<u64>, pages: u64) -> MapRequest<u64> {
    let place = iova.map_or(Place::Automatic, |iova| Place::Fixed(Iova(iova)));
    MapRequest { backing: 0x5000, address: 0x5000, length: pages << 12, access: Access::READ_WRITE, place }
}

/// Everything a user could see.
fn state(context: &Context<Fake>, ioas: &[ObjectId]) -> Vec<(usize, u64, u64, Vec<Option<u64>>)> {
    ioas.iter()
        .map(|&ioas| {
            let usage = context.usage(ioas).unwrap();
            let looks = [0, 0x1000, 0x2000, 0x40_0000, 1 << 30, 1 << 39, 1 << 50, u64::MAX - 0xfff];
            let found =
                looks.map(|at| context.get_pa(ROOT, ioas, Iova(at), u64::MAX).ok().map(|(pa, n)| pa.0 ^ n));
            (usage.areas, usage.table_frames, context.platform().pinned.get(), found.to_vec())
        })
        .collect()
}

type Operation = fn(&mut Context<Fake>, &[ObjectId], ObjectId) -> Result<(), Errno>;

#[test]
fn every_allocation_fails_in_turn() {
    let operations: &[(&str, Operation)] = &[
        ("map, nothing attached", |context, ioas, _| {
            context.map(ioas[0], ROOT, request(Some(0x1000), 3)).map(drop)
        }),
        ("map high", |context, ioas, _| context.map(ioas[0], ROOT, request(Some(1 << 50), 1)).map(drop)),
        ("allow", |context, ioas, _| {
            context.allow_iovas(
                ioas[0],
                [Ok(IovaRange::new(Iova(0x10_0000), Iova(0x7f_ffff)).unwrap())].into_iter(),
            )
        }),
        ("hwpt", |context, ioas, device| context.hwpt_alloc(device, ioas[0], None).map(drop)),
        ("attach", |context, ioas, device| context.attach(device, ioas[0]).map(drop)),
        ("map automatic, attached", |context, ioas, _| {
            context.map(ioas[0], ROOT, request(None, LONG)).map(drop)
        }),
        ("copy", |context, ioas, _| {
            let (source_iova, length) = (Iova(0x2000), 5 << 12);
            let copy = CopyRequest {
                source: ioas[1],
                source_iova,
                length,
                access: Access::READ_WRITE,
                place: Place::Automatic,
            };
            context.copy(ioas[0], copy).map(drop)
        }),
        ("map at the end", |context, ioas, _| {
            context.map(ioas[0], ROOT, request(Some(u64::MAX - 0xfff), 1)).map(drop)
        }),
        ("map many", |context, ioas, _| {
            let mut made = 0;
            let outcome = (0..MANY).try_for_each(|n| {
                context.map(ioas[0], ROOT, request(Some((1 << 30) + (n << 13)), 1))?;
                made += 1;
                Ok(())
            });
            if outcome.is_err() && made > 0 {
                let all = IovaRange::with_length(Iova(1 << 30), made << 13).unwrap();
                context.unmap(ioas[0], all).unwrap();
            }
            outcome
        }),
        ("bind", |context, _, _| context.bind().map(drop)),
        ("attach elsewhere", |context, ioas, device| context.attach(device, ioas[1]).map(drop)),
        ("ioas", |context, _, _| context.ioas_alloc().map(drop)),
    ];
    let outset = LIVE.with(Cell::get);
    let mut failures = 0;
    {
        let mut context = Context::new(Fake { allocate: Some(allocate), ..Fake::default() });
        let ioas = [context.ioas_alloc().unwrap(), context.ioas_alloc().unwrap()];
        context.map(ioas[1], ROOT, request(Some(0x2000), 7)).unwrap();
        let device = context.bind().unwrap();
        for (name, operation) in operations {
            let before = state(&context, &ioas);
            for failing in 0.. {
                let (outcome, reached) = with_failure(failing, || operation(&mut context, &ioas, device));
                if !reached {
                    assert_eq!(outcome, Ok(()), "{name}");
                    break;
                }
                // A refused allocation may have been one too many to be needed; else it is told as what it is.
                if outcome.is_ok() {
                    break;
                }
                failures += 1;
                assert_eq!(outcome, Err(Errno::ENOMEM), "{name}, allocation {failing}");
                assert_eq!(state(&context, &ioas), before, "{name}, allocation {failing}");
            }
        }
        // Taking away needs no memory at all.
        let (outcome, reached) = with_failure(0, || {
            context.detach(device)?;
            context.unmap(ioas[0], IovaRange::ALL)?;
            context.unmap(ioas[1], IovaRange::ALL)?;
            context.unbind(device)
        });
        assert!(outcome == Ok(()) && reached, "{outcome:?}");
        // And no operation that failed has left a domain behind: once the HWPTs are gone, so can everything go.
        for id in (1..=20).map(ObjectId).filter(|id| !ioas.contains(id)) {
            let _ = context.destroy(id);
        }
        for id in ioas {
            assert_eq!(context.destroy(id), Ok(()));
        }
        assert_eq!(context.platform().pinned.get(), 0);
    }
    assert_eq!(LIVE.with(Cell::get), outset, "leaked");
    assert!(failures > if cfg!(miri) { 12 } else { 20 }, "only {failures} allocations were made to fail");
}

/// A caller whose memory is its argument, at address 0x1000; it allocates nothing.
struct Somebody(std::cell::RefCell<[u8; 64]>);

impl UserMemory for Somebody {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        let at = address.checked_sub(0x1000).ok_or(Errno::EFAULT)? as usize;
        let memory = self.0.borrow();
        into.copy_from_slice(memory.get(at..at + into.len()).ok_or(Errno::EFAULT)?);
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        let at = address.checked_sub(0x1000).ok_or(Errno::EFAULT)? as usize;
        let mut memory = self.0.borrow_mut();
        memory.get_mut(at..at + from.len()).ok_or(Errno::EFAULT)?.copy_from_slice(from);
        Ok(())
    }
}

impl Process<u64> for Somebody {
    fn memory(&self) -> &dyn UserMemory {
        self
    }

    fn caller(&self) -> Caller {
        ROOT
    }

    fn user_backing(&self, address: u64) -> u64 {
        address
    }

    fn file_backing(&self, _: i32, start: u64, _: u64) -> Result<u64, Errno> {
        Ok(start | 1)
    }

    fn open_fault_queue(&self, queue: ObjectId) -> Result<i32, Errno> {
        Ok(queue.0 as i32 + 100)
    }

    fn take_back(&self, _: i32) {}
}

/// The same through the ioctl face: what a call has begun it undoes, and its answer is in the caller's memory only if it is one.
#[test]
fn every_allocation_of_the_ioctls_fails_in_turn() {
    use noiommu_uapi::iommufd::*;
    use zerocopy::IntoBytes;
    let outset = LIVE.with(Cell::get);
    let mut failures = 0;
    {
        let somebody = Somebody(std::cell::RefCell::new([0; 64]));
        let mut context = Context::new(Fake { allocate: Some(allocate), ..Fake::default() });
        let device = context.bind().unwrap().0;
        let (ioas, flags) = (2, IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE);
        let fixed = flags | IOMMU_IOAS_MAP_FIXED_IOVA;
        let map = IommuIoasMap { size: 40, flags, ioas_id: ioas, user_va: 0x5000, ..Default::default() };
        let calls: [(u32, Vec<u8>); 9] = [
            (IOMMU_IOAS_ALLOC, IommuIoasAlloc { size: 12, ..Default::default() }.as_bytes().to_vec()),
            (IOMMU_IOAS_MAP, IommuIoasMap { length: 0x3000, ..map }.as_bytes().to_vec()),
            (
                IOMMU_HWPT_ALLOC,
                IommuHwptAlloc { size: 48, dev_id: device, pt_id: ioas, ..Default::default() }
                    .as_bytes()
                    .to_vec(),
            ),
            (IOMMU_IOAS_MAP, IommuIoasMap { length: LONG << 12, ..map }.as_bytes().to_vec()),
            (
                IOMMU_IOAS_MAP,
                IommuIoasMap { flags: fixed, length: 0x1000, iova: 1 << 50, ..map }.as_bytes().to_vec(),
            ),
            (IOMMU_IOAS_ALLOC, IommuIoasAlloc { size: 12, ..Default::default() }.as_bytes().to_vec()),
            (
                IOMMU_IOAS_MAP_FILE,
                IommuIoasMapFile {
                    size: 40,
                    flags,
                    ioas_id: ioas,
                    fd: 3,
                    length: 0x2000,
                    ..Default::default()
                }
                .as_bytes()
                .to_vec(),
            ),
            (
                IOMMU_IOAS_COPY,
                IommuIoasCopy {
                    size: 40,
                    flags,
                    dst_ioas_id: ioas,
                    src_ioas_id: ioas,
                    length: 0x1000,
                    src_iova: 1 << 50,
                    ..Default::default()
                }
                .as_bytes()
                .to_vec(),
            ),
            (IOMMU_FAULT_QUEUE_ALLOC, IommuFaultAlloc { size: 16, ..Default::default() }.as_bytes().to_vec()),
        ];
        for (at, (request, argument)) in calls.into_iter().enumerate() {
            let there: Vec<ObjectId> =
                (1..30).map(ObjectId).filter(|id| context.kind(*id) == Some(ObjectKind::Ioas)).collect();
            let before =
                (state(&context, &there), (1..30).map(|id| context.kind(ObjectId(id))).collect::<Vec<_>>());
            for failing in 0.. {
                let mut memory = [0; 64];
                memory[..argument.len()].copy_from_slice(&argument);
                somebody.0.replace(memory);
                let (answer, reached) = with_failure(failing, || context.ioctl(&somebody, request, 0x1000));
                if answer.is_ok() {
                    break;
                }
                assert!(reached, "call {at}: {answer:?}");
                failures += 1;
                assert_eq!(answer, Err(Errno::ENOMEM), "call {at}, allocation {failing}");
                assert_eq!(*somebody.0.borrow(), memory, "call {at} has answered");
                let kinds = (1..30).map(|id| context.kind(ObjectId(id))).collect::<Vec<_>>();
                assert_eq!((state(&context, &there), kinds), before, "call {at}, allocation {failing}");
            }
        }
    }
    assert_eq!(LIVE.with(Cell::get), outset, "leaked");
    assert!(failures > 12, "only {failures} allocations were made to fail");
}
