//! Links only if nothing in `noiommu-core` can panic or abort for want of memory: the panic handler calls a function that
//! does not exist, and a release build keeps that call exactly if a panic is reachable.
//!
//! Every public operation is called with values that the compiler cannot know.
#![no_std]
#![no_main]

mod vfio;

use core::alloc::{GlobalAlloc, Layout};
use core::hint::black_box;
use core::ops::Deref;
use core::sync::atomic::{AtomicU64, Ordering};

use noiommu_core::ioctl::Process;
use noiommu_core::platform::{Caller, PhysRun, Pins, Platform};
use noiommu_core::table::format::{self, Access};
use noiommu_core::table::{Frame, Slot, Table, TableMemory, TableWriter};
use noiommu_core::vfio::config::{Container, Feature, Interface, Options};
use noiommu_core::vfio::group::DeviceGroup;
use noiommu_core::{
    Context, CopyRequest, Errno, Iova, IovaRange, MapRequest, ObjectId, PhysAddr, Place, UserMemory,
};

#[link(name = "c")]
unsafe extern "C" {
    fn aligned_alloc(alignment: usize, size: usize) -> *mut u8;
    fn free(memory: *mut u8);
    /// Defined nowhere.
    fn noiommu_core_can_panic() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: never linked, so never called.
    unsafe { noiommu_core_can_panic() }
}

struct LibC;

// SAFETY: the C library's allocator, with the alignment rounded up to what it accepts.
unsafe impl GlobalAlloc for LibC {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let alignment = layout.align().max(16);
        // SAFETY: the alignment is a power of two and the size a multiple of it.
        unsafe { aligned_alloc(alignment, layout.size().wrapping_add(alignment - 1) & !(alignment - 1)) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, _: Layout) {
        // SAFETY: came from `alloc`.
        unsafe { free(memory) }
    }
}

#[global_allocator]
static ALLOCATOR: LibC = LibC;

/// A number that the compiler cannot know.
fn unknown() -> u64 {
    static STATE: AtomicU64 = AtomicU64::new(1);
    let next = STATE.load(Ordering::Relaxed).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    STATE.store(next, Ordering::Relaxed);
    black_box(next)
}

static FRAMES: [Frame; 32] = [const { Frame::new() }; 32];
static WORDS: [Slot; 64] = [const { Slot::new() }; 64];
static ENTRIES: [Slot; 64 * 512] = [const { Slot::new() }; 64 * 512];

struct Frames;

impl TableMemory for Frames {
    fn frame(&self, number: u64) -> Option<&Frame> {
        FRAMES.get(usize::try_from(number).ok()?)
    }

    fn grow(&self, frames: u64) -> Result<u64, Errno> {
        if black_box(frames) <= FRAMES.len() as u64 { Ok(frames) } else { Err(Errno::ENOMEM) }
    }

    fn words(&self) -> &[Slot] {
        black_box(&WORDS)
    }

    fn entries(&self) -> &[Slot] {
        black_box(&ENTRIES)
    }

    fn prepare_words(&self, first: usize, last: usize) -> Result<(), Errno> {
        if black_box(first) <= black_box(last) { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    fn prepare_table(&self, slot: usize) -> Result<(), Errno> {
        if black_box(slot) <= WORDS.len() { Ok(()) } else { Err(Errno::ENOMEM) }
    }
}

#[derive(Clone)]
struct Handle(&'static Table<Frames>);

impl Deref for Handle {
    type Target = Table<Frames>;

    fn deref(&self) -> &Table<Frames> {
        self.0
    }
}

struct World(&'static Table<Frames>);

struct Pinned(u64);

impl Pins for Pinned {
    type Error = Errno;

    fn runs(&self, sink: &mut dyn FnMut(&[PhysRun]) -> Result<(), Errno>) -> Result<(), Errno> {
        for _ in 0..black_box(self.0) {
            let run = || PhysRun { address: PhysAddr(unknown()), length: unknown() };
            let runs = [run(), run(), run()];
            sink(runs.get(..black_box(3)).unwrap_or(&runs))?;
        }
        Ok(())
    }
}

impl Platform for World {
    type Error = Errno;
    type Backing = u64;
    type Pins = Pinned;
    type Memory = Frames;
    type Table = Handle;

    fn new_table(&self) -> Result<Handle, Errno> {
        Ok(Handle(self.0))
    }

    fn is_file(&self, backing: &u64) -> bool {
        black_box(*backing) == 0
    }

    fn pin(&self, backing: &u64, _: u64, _: u64, _: Access, _: Caller) -> Result<Pinned, Errno> {
        if unknown() == 0 { Err(Errno::EFAULT) } else { Ok(Pinned(*backing)) }
    }

    fn huge_page(&self) -> u64 {
        unknown()
    }
}

/// A caller whose memory holds what nobody knows.
struct Somebody;

impl UserMemory for Somebody {
    fn read(&self, _: u64, into: &mut [u8]) -> Result<(), Errno> {
        into.iter_mut().for_each(|byte| *byte = unknown() as u8);
        if unknown() == 0 { Err(Errno::EFAULT) } else { Ok(()) }
    }

    fn write(&self, _: u64, from: &[u8]) -> Result<(), Errno> {
        black_box(from);
        if unknown() == 0 { Err(Errno::EFAULT) } else { Ok(()) }
    }
}

fn caller() -> Caller {
    Caller { raw_io: unknown() & 1 == 0, ipc_lock: unknown() & 1 == 0, resource: unknown() & 1 == 0 }
}

impl Process<u64> for Somebody {
    fn memory(&self) -> &dyn UserMemory {
        self
    }

    fn caller(&self) -> Caller {
        caller()
    }

    fn user_backing(&self, address: u64) -> u64 {
        address
    }

    fn file_backing(&self, _: i32, offset: u64, _: u64) -> Result<u64, Errno> {
        if unknown() == 0 { Err(Errno::EBADF) } else { Ok(offset) }
    }

    fn open_fault_queue(&self, _: ObjectId) -> Result<i32, Errno> {
        if unknown() == 0 { Err(Errno::EMFILE) } else { Ok(unknown() as i32) }
    }

    fn take_back(&self, descriptor: i32) {
        black_box(descriptor);
    }
}

fn range() -> IovaRange {
    IovaRange::new(Iova(unknown()), Iova(unknown())).unwrap_or(IovaRange::ALL)
}

fn id() -> ObjectId {
    ObjectId(unknown() as u32)
}

fn access() -> Access {
    Access { read: unknown() & 1 == 0, write: unknown() & 1 == 0 }
}

fn tables(table: &'static Table<Frames>) {
    let _ = black_box(table.address(Iova(unknown())));
    let _ = black_box(table.lookup(Iova(unknown())));
    let _ = black_box(table.run(Iova(unknown()), unknown()));
    let _ = black_box(table.entry(Iova(unknown())));
    let _ = black_box(table.top_level());
    for segment in table.segments(range()) {
        let _ = black_box(segment);
    }
    if let Ok(mut writer) = TableWriter::new(Handle(table)) {
        let _ =
            black_box(writer.map(Iova(unknown()), PhysAddr(unknown()), unknown(), access(), unknown() == 0));
        let _ = black_box(writer.unmap(range()));
        let _ = black_box(writer.frames_in_use());
    }
    let _ = black_box(format::decode(unknown(), unknown() as u32));
    let _ = black_box(format::leaf_entry(unknown(), unknown() as u32, access(), unknown() == 0));
    let _ = black_box(format::best_leaf(unknown(), unknown(), unknown()));
    let _ = black_box(format::leaf_slots(unknown() as u32));
    let _ = black_box(format::slot_of(unknown(), unknown() as u32));
    let _ = black_box(format::reaches(unknown() as u32, unknown()));
    let _ = black_box(format::table_entry(unknown() as u32, unknown()));
}

fn contexts(table: &'static Table<Frames>) {
    let mut context = Context::new(World(table));
    for _ in 0..unknown() {
        let caller = caller();
        let place = if unknown() & 1 == 0 { Place::Automatic } else { Place::Fixed(Iova(unknown())) };
        let request =
            MapRequest { backing: unknown(), address: unknown(), length: unknown(), access: access(), place };
        let _ = black_box(context.ioas_alloc());
        let _ = black_box(context.bind());
        let _ = black_box(context.allow_iovas(id(), [Ok(range()), Ok(range())].into_iter()));
        let _ = black_box(context.map(id(), caller, request));
        let _ = black_box(context.unmap(id(), range()));
        let _ = black_box(context.hwpt_alloc(id(), id(), Some(id())));
        let _ = black_box(context.attach(id(), id()));
        let _ = black_box(context.detach(id()));
        let _ = black_box(context.unbind(id()));
        let _ = black_box(context.destroy(id()));
        let copy = CopyRequest {
            source: id(),
            source_iova: Iova(unknown()),
            length: unknown(),
            access: access(),
            place: Place::Automatic,
        };
        let _ = black_box(context.copy(id(), copy));
        let _ = black_box(context.cut(id(), Iova(unknown())));
        let _ = black_box(context.set_large_pages(id(), unknown() == 0));
        let _ = black_box(context.set_charges_process(caller, unknown() == 0));
        let _ = black_box(context.change_process());
        let _ = black_box(context.attach_pasid(id(), id(), unknown() as u32));
        let _ = black_box(context.detach_pasid(id(), unknown() as u32));
        let _ = black_box(context.fault_queue_alloc());
        context.fault_queue_closed(id());
        let _ = black_box(context.set_compat_ioas(Some(id())));
        let _ = black_box(context.set_no_iommu_container());
        let _ = black_box(context.ioctl(&Somebody, unknown() as u32, unknown()));
        let _ = black_box(context.get_pa(caller, id(), Iova(unknown()), unknown()));
        let _ = black_box(context.usage(id()));
        let _ = black_box(context.table(id()).is_ok());
    }
}

fn numbers() {
    let _ = black_box(Errno::from_raw(unknown() as i32).map(|errno| (errno.raw(), errno.name())));
    let _ = black_box(Iova(unknown()).checked_add(unknown()));
    let _ = black_box(IovaRange::with_length(Iova(unknown()), unknown()));
    let _ = black_box((range().length(), range().covers(range()), range().overlaps(range())));
    #[cfg(feature = "break")]
    {
        let _ = black_box([1u8, 2, 3][unknown() as usize]);
    }
}

fn groups() {
    let yes = || unknown() & 1 == 0;
    for _ in 0..unknown() {
        let container = if yes() { None } else { Some(Container::Vfio) };
        black_box(Options::merged(yes(), container, yes(), yes()));
        let options = Options {
            group: yes(),
            group_noiommu: yes(),
            cdev: yes(),
            cdev_noiommu: yes(),
            container,
            generic_atomic64: yes(),
        };
        let Ok(interfaces) = black_box(options.interfaces()) else { continue };
        let Ok(nodes) = black_box(interfaces.probe(yes(), yes())) else { continue };
        black_box(interfaces.offers(nodes, Feature::Ioas, Interface::Cdev));
        let mut group = DeviceGroup::new(nodes.group);
        for _ in 0..unknown() {
            group.register();
            let _ = black_box((group.open(yes()), group.set_container(), group.open_device(), group.block()));
            group.unblock();
            group.close_device();
            let _ =
                black_box((group.unset_container(), group.node(), group.is_open(), group.has_container()));
            group.close();
            group.unregister();
            if yes() {
                group.remove();
            }
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn main() -> i32 {
    // SAFETY: zeroed once, never freed: a table of no entries, which lives as long as the program.
    let table =
        unsafe { aligned_alloc(64, 64 * size_of::<Table<Frames>>().div_ceil(64)) }.cast::<Table<Frames>>();
    if table.is_null() {
        return 1;
    }
    // SAFETY: just allocated, large enough and aligned.
    let table: &'static Table<Frames> = unsafe {
        table.write(Table::new(Frames));
        &*table
    };
    tables(table);
    contexts(table);
    vfio::devices();
    numbers();
    groups();
    0
}

/// Named by the precompiled `core`, which was built to unwind; nothing here does.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
