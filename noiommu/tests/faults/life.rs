//! One life of the kit, from opening the engine to the last drop: what most tests here disturb.

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use noiommu::{
    Bar, Context, Contiguity, Device, DmaBuffer, DmaView, Errno, Error, ErrorKind, InterruptKind, Ioas, Iova,
    Mapping, PinChoice, PinKind,
};
use rustix::fs::MemfdFlags;

use crate::counts::pinned;
use crate::supervisor;

const PAGE: usize = 4096;
const SMALL: usize = 3 * PAGE;
const HUGE: usize = 2 << 20;

/// Why a life ended early.
#[derive(Debug)]
pub(crate) enum Early {
    /// The kit's answer.
    Kit(Error),
    /// A call of the test itself failed.
    Own(#[allow(dead_code, reason = "for output")] std::io::Error),
}

impl From<Error> for Early {
    fn from(error: Error) -> Self {
        Self::Kit(error)
    }
}

impl From<noiommu::MapError> for Early {
    fn from(failed: noiommu::MapError) -> Self {
        Self::Kit(failed.error)
    }
}

impl From<rustix::io::Errno> for Early {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Own(error.into())
    }
}

/// Whether there is anything to disturb: this process can pin for real. If not, says why the test is not run.
pub(crate) fn can_pin(choice: PinChoice) -> bool {
    match noiommu::machine::prove_pins(choice) {
        Ok(_) => true,
        Err(error) => {
            eprintln!("not run: {error}");
            false
        }
    }
}

/// Lives: pins memory of three kinds, has a device copy from one to the others, looks it up, and lets it go.
///
/// # Panics
/// Where a byte is wrong, an address is not that of the page, or a page is pinned that should not be, or not that should.
pub(crate) fn live(choice: PinChoice) -> Result<(), Early> {
    let before = supervisor::undisturbed(pinned);
    let context = Context::with_pins(choice)?;
    let counts_pins = context.pin_kind()? == PinKind::IoUring;
    let ioas = context.ioas()?;
    let device = context.sim_edu()?;
    device.attach(&ioas)?;
    let small = ioas.map(DmaBuffer::new(SMALL, Contiguity::Pages)?)?;
    let huge = ioas.map(DmaBuffer::new(HUGE, Contiguity::Best)?)?;
    let file = ioas.map_file(memfd()?, PAGE as u64, 2 * PAGE as u64)?;
    let shared = supervisor::undisturbed(Shared::new);
    // SAFETY: nobody else knows of the memory, and it outlives the mapping, of which no device is told.
    let borrowed = unsafe { ioas.map_borrowed(shared.0, PAGE)? };
    let taken = ioas.map_at(small.iova(), DmaBuffer::new(PAGE, Contiguity::Pages)?);
    assert!(taken.is_err(), "two mappings at one IOVA");
    drop(taken);
    supervisor::undisturbed(|| {
        let held = (SMALL + HUGE + 3 * PAGE) as u64 / 1024;
        assert!(!counts_pins || pinned() == before + held, "{} KiB pinned, not {held}", pinned() - before);
        look(&ioas, &[&small, &huge, &file, &borrowed]);
    });
    for mapping in [&small, &huge] {
        if let Some(moved) = mapping.moved_pages()? {
            assert_eq!(moved, 0, "pages of {mapping:?} are elsewhere than told");
        }
    }
    copy(&device, &small, &huge)?;
    // Given up while the device may reach it, it waits; given back, it is as it was.
    drop((file, borrowed));
    assert_eq!(ioas.quarantined(), 2);
    device.quiesce()?;
    assert_eq!(ioas.quarantined(), 0);
    match small.reclaim() {
        Ok(Some(buffer)) => assert_eq!(buffer.load_u8(PAGE)?, pattern(PAGE)),
        other => panic!("a mapping that nobody looks at does not come back: {other:?}"),
    }
    drop((huge, device));
    assert_eq!(ioas.usage(), noiommu::Usage { areas: 0, table_frames: 0 });
    Ok(())
}

/// A page that is shared: such memory could be DAX, which the kit looks at.
struct Shared(NonNull<u8>);

impl Shared {
    fn new() -> Self {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at a place of the kernel's choice.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, -1, 0) };
        assert_ne!(memory, libc::MAP_FAILED);
        Self(NonNull::new(memory.cast()).unwrap())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the page is this value's; the mapping that borrowed it was declared later, so it is gone.
        supervisor::undisturbed(|| unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE) });
    }
}

fn memfd() -> Result<OwnedFd, Early> {
    let file = rustix::fs::memfd_create("faults", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&file, 4 * PAGE as u64)?;
    Ok(file)
}

/// Every page of these is found, where its segments say.
fn look(ioas: &Ioas, mappings: &[&Mapping]) {
    for mapping in mappings {
        let mut at = 0;
        for segment in mapping.segments().unwrap() {
            assert_eq!(segment.iova, Iova(mapping.iova().0 + at));
            let found = ioas.lookup(segment.iova, segment.length).unwrap();
            assert_eq!((found.address, found.length), (segment.address, segment.length));
            at += segment.length;
        }
        assert_eq!(at, mapping.len(), "a part of {mapping:?} is nowhere");
    }
}

/// What the byte at an offset is.
fn pattern(offset: usize) -> u8 {
    (offset % 251) as u8 ^ 0x5a
}

/// Has the device copy the second page of one mapping to the third of another, by its interrupt.
fn copy(device: &Device, from: &Mapping, to: &Mapping) -> Result<(), Early> {
    let (Some(source), Some(destination)) = (from.buffer(), to.buffer()) else { panic!("they own buffers") };
    let bytes: Vec<u8> = (0..SMALL).map(pattern).collect();
    source.write(0, &bytes)?;
    let registers = device.bar(0)?;
    let interrupts = device.enable_interrupts(InterruptKind::Intx, 1)?;
    let (from, to) = (from.for_device(device)?, to.for_device(device)?);
    // SAFETY: `transfer` is told addresses of these two views alone, and waits for the device; both are used here only.
    unsafe { device.enable_bus_master()? };
    transfer(&registers, &from, PAGE as u64, false)?;
    transfer(&registers, &to, 2 * PAGE as u64, true)?;
    let came = interrupts[0].try_wait()?;
    let mut there = vec![0; PAGE];
    destination.read(2 * PAGE, &mut there)?;
    // The model's own calls may have been made to fail: then it found no memory, read ones, or wrote nothing.
    let lame = supervisor::device_was_disturbed();
    let right = |(&byte, wanted): (&u8, &u8)| byte == *wanted || lame && (byte == 0xff || byte == 0);
    assert!(there.iter().zip(&bytes[PAGE..]).all(right), "wrong bytes: {:x?}...", &there[..16]);
    assert!(came == Some(1) || supervisor::was_disturbed(), "the interrupt was lost: {came:?}");
    for at in [0, PAGE, 3 * PAGE, HUGE - PAGE] {
        assert_eq!(destination.load_u64(at)?, 0, "a page that nobody named was written to");
    }
    Ok(())
}

/// One page at `offset`, to the device's buffer or from there.
fn transfer(registers: &Bar, view: &DmaView, offset: u64, from_device: bool) -> Result<(), Error> {
    const BUFFER: u64 = 0x4_0000;
    let segment =
        view.segments().find(|segment| (segment.offset..segment.offset + segment.length).contains(&offset));
    let segment = segment.unwrap();
    let memory = segment.address.bits() + (offset - segment.offset);
    let (source, destination) = if from_device { (BUFFER, memory) } else { (memory, BUFFER) };
    registers.write_u64(0x80, source)?;
    registers.write_u64(0x88, destination)?;
    registers.write_u64(0x90, PAGE as u64)?;
    registers.write_u64(0x98, 1 | if from_device { 2 | 4 } else { 0 })?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while registers.read_u64(0x98)? & 1 != 0 {
        // Its thread may have found no room to begin in.
        if Instant::now() > deadline {
            return Err(Error::timeout("sim:edu", "copying"));
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// An error says what failed, and is not that of a broken engine.
pub(crate) fn check(error: &Error) {
    assert!(!error.cause().is_empty(), "{error:?}");
    assert!(error.kind() != ErrorKind::Rule || error.errno() != Errno::EIO, "{error:?}");
}
