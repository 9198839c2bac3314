//! A stock kernel and an edu device: the engine's addresses are where memory is, for the CPU, for a device and for the
//! host, before and after the kernel has been made to move pages; by every pin source.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use noiommu::{Context, Contiguity, DmaBuffer, Error, ErrorKind, Ioas, Mapping, PageKind, PinChoice, optin};
use noiommu_edu::Edu;
use rustix::fs::MemfdFlags;

use crate::witness::Witness;

pub(crate) const DEVICES: &str = "/sys/bus/pci/devices";

/// Bytes of each buffer: some pages, and a part of one.
const SIZE: usize = 60_000;

/// Runs it all.
pub(crate) fn run() -> Result<()> {
    let mut witness = Witness::connect("stock-edu")?;
    let address = find_edu()?;
    witness.note(&format!("kernel {}, edu at {address}", noiommu::kernel_release()))?;
    opt_in(&address)?;
    let mut moved = 0;
    for choice in [PinChoice::IoUring, PinChoice::AfXdp] {
        let context = match Context::with_pins(choice) {
            Ok(context) => context,
            // io_uring must be there in a stock kernel; AF_XDP is said to be missing where it is.
            Err(error) if choice == PinChoice::AfXdp => {
                witness.note(&format!("not with AF_XDP: {error}"))?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        moved += copies(&context, &address, &mut witness)?;
        huge(&context, &address, &mut witness)?;
        witness.note(&format!("pins by {}: done", context.pin_kind()?.name()))?;
    }
    witness.result(&format!(r#"{{"bytes_moved": {moved}}}"#))?;
    witness.done(0)
}

/// The address of the first edu device.
pub(crate) fn find_edu() -> Result<String> {
    Ok(find_edus()?.swap_remove(0))
}

/// The addresses of all edu devices, at least one, in order.
pub(crate) fn find_edus() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(DEVICES).context(DEVICES)? {
        let path = entry?.path();
        let id = |file| fs::read_to_string(path.join(file)).unwrap_or_default();
        if id("vendor").trim() == "0x1234" && id("device").trim() == "0x11e8" {
            found.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    if found.is_empty() {
        bail!("no edu device in this machine");
    }
    found.sort();
    Ok(found)
}

/// Refused without the opt-in, and tainted with it.
fn opt_in(address: &str) -> Result<()> {
    let refused = Context::new()?.open(address);
    ensure!(
        refused.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotEnabled),
        "opened without the opt-in: {refused:?}"
    );
    ensure!(!optin::is_tainted(), "tainted before anything was opened");
    optin::enable()?;
    let device = Context::new()?.open(address)?;
    ensure!(optin::is_tainted(), "not tainted by opening a device");
    let second = Context::new()?.open(address);
    ensure!(second.as_ref().is_err_and(|error| error.kind() == ErrorKind::Busy), "opened twice: {second:?}");
    ensure!(read(address, "driver_override")? == "noiommu", "not claimed");
    drop(device);
    ensure!(read(address, "driver_override")? == "(null)", "the override was not put back");
    ensure!(read(address, "enable")? == "0", "still enabled");
    Ok(())
}

pub(crate) fn read(address: &str, file: &str) -> Result<String> {
    let path = Path::new(DEVICES).join(address).join(file);
    Ok(fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?.trim().to_owned())
}

fn bus_master(address: &str) -> Result<bool> {
    let config = fs::read(Path::new(DEVICES).join(address).join("config"))?;
    Ok(config.get(4).context("no config space")? & 4 != 0)
}

/// Makes the kernel move what it may move.
fn compact() -> Result<()> {
    fs::write("/proc/sys/vm/compact_memory", "1").context("/proc/sys/vm/compact_memory")
}

/// Memory to the device and from the device to other memory, in pieces that lie across page borders.
fn copies(context: &Context, address: &str, witness: &mut Witness) -> Result<u64> {
    let ioas = context.ioas()?;
    // One buffer of scattered pages, one as contiguous as it gets.
    let source = map(&ioas, Contiguity::Pages)?;
    let target = map(&ioas, Contiguity::Best)?;
    let (from_cpu, to_cpu) = (buffer(&source)?, buffer(&target)?);
    from_cpu.write(0, &witness.stream(0, SIZE))?;
    check(witness, &source, 0, SIZE)?;
    let first = source.segments()?[0];
    let seen = witness.peek(first.address.0, 64)?;
    ensure!(
        seen == witness.stream(0, 64),
        "the witness reads other bytes at {} than were written",
        first.address
    );

    let edu = Edu::new(context.open(address)?, &ioas)?;
    ensure!(edu.is_alive()? && edu.factorial(6)? == 720, "the edu device does not answer as it should");
    ensure!(bus_master(address)?, "bus mastering is off");
    let (from, to) = (source.for_device(edu.device())?, target.for_device(edu.device())?);
    let mut moved = 0;
    for (at, length) in [(0x123, 777), (0xff0, 0x20), (0x4f01, 2048), (SIZE as u64 - 100, 100)] {
        edu.load(&from, at, length)?;
        compact()?;
        edu.store(&to, at, length)?;
        check(witness, &target, at, length as usize)?;
        ensure!(
            bytes(to_cpu, at, length)? == witness.stream(at, length as usize),
            "what the device stored at offset {at:#x} is not in this program's memory"
        );
        moved += 2 * length;
    }
    for mapping in [&source, &target] {
        ensure!(mapping.moved_pages()? == Some(0), "pinned pages moved");
    }

    // A mapping dropped while the device may use it waits.
    drop((to, target));
    ensure!(ioas.quarantined() == 1, "memory given back while the device masters the bus");
    let quiet = edu.device().quiesce()?;
    ensure!(quiet.bus_master_off && !bus_master(address)?, "bus mastering was not turned off");
    ensure!(ioas.quarantined() == 0, "memory kept for a quiet device");
    // And a quiet device moves nothing.
    let before = bytes(from_cpu, 0, 256)?;
    edu.store(&from, 0, 256)?;
    ensure!(bytes(from_cpu, 0, 256)? == before, "the device wrote with bus mastering off");
    check(witness, &source, 0, 256)?;
    drop(edu);
    ensure!(read(address, "driver_override")? == "(null)", "the override was not put back");
    Ok(moved)
}

/// Reserved huge pages, as a buffer and as a file: one segment for each, which the device and the witness reach.
fn huge(context: &Context, address: &str, witness: &mut Witness) -> Result<()> {
    const PAGE: usize = 2 << 20;
    fs::write("/proc/sys/vm/nr_hugepages", "8").context("/proc/sys/vm/nr_hugepages")?;
    let ioas = context.ioas()?;
    let edu = Edu::new(context.open(address)?, &ioas)?;
    let mapping = ioas.map(DmaBuffer::new(2 * PAGE, Contiguity::Huge)?).map_err(Error::from)?;
    ensure!(buffer(&mapping)?.pages() == PageKind::Hugetlb2M, "made of {}", buffer(&mapping)?.pages().name());
    let file = memfd(2 * PAGE as u64)?;
    let shared = ioas.map_file(file.try_clone()?, PAGE as u64, PAGE as u64)?;
    for segment in mapping.segments()?.iter().chain(&shared.segments()?) {
        ensure!(segment.length % PAGE as u64 == 0, "a huge page in pieces: {segment:?}");
    }
    // Around the border of the two pages of the buffer, from there to the file, at an odd place.
    let (at, length) = (PAGE as u64 - 500, 1000);
    buffer(&mapping)?.write(at as usize, &witness.stream(at, length))?;
    check(witness, &mapping, at, length)?;
    edu.load(&mapping.for_device(edu.device())?, at, length as u64)?;
    compact()?;
    edu.store(&shared.for_device(edu.device())?, 0x777, length as u64)?;
    let place = shared.segments()?[0].address.0 + 0x777;
    witness.expect_stream(place, length, at)?;
    // What the device stored is in the file.
    ensure!(read_file(&file, PAGE as u64 + 0x777, length)? == witness.stream(at, length), "not in the file");
    edu.close()?;
    drop((mapping, shared, file));
    fs::write("/proc/sys/vm/nr_hugepages", "0").context("/proc/sys/vm/nr_hugepages")
}

/// Shared memory of huge pages.
fn memfd(length: u64) -> Result<OwnedFd> {
    let file = rustix::fs::memfd_create("noiommu-guest", MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)?;
    rustix::fs::ftruncate(&file, length)?;
    Ok(file)
}

fn read_file(file: &OwnedFd, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    std::fs::File::from(file.try_clone()?).read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn map(ioas: &Ioas, contiguity: Contiguity) -> Result<Mapping> {
    let buffer = DmaBuffer::new(SIZE, contiguity)?;
    Ok(ioas.map(buffer).map_err(Error::from)?)
}

fn buffer(mapping: &Mapping) -> Result<&DmaBuffer> {
    mapping.buffer().context("a mapping without a buffer")
}

fn bytes(buffer: &DmaBuffer, offset: u64, length: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    buffer.read(offset as usize, &mut bytes)?;
    Ok(bytes)
}

/// Has the witness look at the physical addresses that the engine names for a part of a mapping, which holds the bytes of
/// the stream at the same offsets.
pub(crate) fn check(witness: &mut Witness, mapping: &Mapping, offset: u64, length: usize) -> Result<()> {
    let mut start = 0;
    for segment in mapping.segments()? {
        let (first, end) = (start.max(offset), (start + segment.length).min(offset + length as u64));
        if first < end {
            witness.expect_stream(segment.address.0 + (first - start), (end - first) as usize, first)?;
        }
        start += segment.length;
    }
    Ok(())
}
