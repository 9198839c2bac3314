//! A program's calls on served nodes (`noiommu::serve`), as the preload library hands them on: open, close, dup, ioctl, read, write,
//! mmap, touches of what is mapped; with arguments that mean something, and with ones that do not.
//!
//! The devices are the two simulated ones, on made-up physical memory; the program's memory is an [arena](program), so that a
//! device that is told to write somewhere writes there, or nowhere. Whatever the program does: nothing panics or hangs, the answer
//! is an error number or a number, nothing outside of the arena is read or written, and once all is closed everything is as at the
//! beginning: no descriptor is left, every group can be opened, every device bound.

mod call;
mod program;

use arbitrary::{Arbitrary, Unstructured};
use noiommu::Errno;
use noiommu::serve::{Caller, FileKind, MmapRequest, NodeKind, Provider, Server, Settings, Touch};
use noiommu_uapi::vfio::device::{VFIO_DEVICE_BIND_IOMMUFD, VfioDeviceBindIommufd};
use zerocopy::IntoBytes;

use self::call::Argument;
use self::program::Program;
use crate::steps;

/// The most steps of one sequence.
const MOST: usize = 96;

#[derive(Arbitrary, Debug)]
enum Step {
    Open {
        node: u8,
    },
    Close {
        file: u8,
    },
    Dup {
        file: u8,
    },
    /// The beginning of most programs, so that what comes after it is reached.
    Begin {
        device: u8,
        through_group: bool,
    },
    Call {
        file: u8,
        call: u8,
        argument: Argument,
    },
    /// Any number, with what is in memory.
    Raw {
        file: u8,
        request: u32,
        argument: u16,
    },
    Read {
        file: u8,
        at: Place,
        length: u16,
        to: u16,
    },
    Write {
        file: u8,
        at: Place,
        bytes: [u8; 8],
        length: u8,
    },
    Map {
        file: u8,
        at: Place,
        pages: u8,
        protection: u8,
        flags: u8,
    },
    Touch {
        mapping: u8,
        offset: u16,
        width: u8,
        value: Option<u64>,
    },
}

/// Where in a device's file.
#[derive(Arbitrary, Debug, Clone, Copy)]
enum Place {
    Region {
        index: u8,
        offset: u16,
    },
    /// Of edu's DMA engine: the registers that make it reach memory.
    Engine {
        register: u8,
    },
    Any(u64),
}

impl Place {
    fn offset(self) -> u64 {
        match self {
            Self::Region { index, offset } => u64::from(index % 10) << 40 | u64::from(offset),
            Self::Engine { register } => 0x80 + 4 * u64::from(register % 8),
            Self::Any(at) => at,
        }
    }
}

/// Runs the steps that `bytes` mean; the first byte leaves out groups or device nodes.
///
/// # Panics
/// Where the answer is no answer, or something is left.
pub fn run(bytes: &[u8], tell: bool) -> usize {
    let Some((first, bytes)) = bytes.split_first() else { return 0 };
    program::give_up_physical_addresses();
    let settings = Settings {
        provider: Provider::Sim,
        no_group: first & 3 == 1,
        no_cdev: first & 3 == 2,
        ..Settings::default()
    };
    let before = program::descriptors();
    let mut program = Program::new(Server::start(&settings).expect("simulated devices are always there"));
    let number = steps::each(Unstructured::new(bytes), tell, MOST, |step| {
        let answer = go(&mut program, step);
        if tell {
            println!("     {answer:?}");
        }
    });
    program.close_all();
    everything_is_back(&mut program);
    drop(program);
    assert_eq!(program::descriptors(), before, "descriptors are left");
    number
}

fn go(program: &mut Program, step: &Step) -> Result<i64, Errno> {
    match step {
        Step::Open { node } => program.open(*node).map(i64::from),
        Step::Close { file } => {
            program.close(*file);
            Ok(0)
        }
        Step::Dup { file } => program.dup(*file).map(i64::from),
        Step::Begin { device, through_group } => {
            if *through_group {
                begin_with_group(program, *device)
            } else {
                begin_with_node(program, *device)
            }
        }
        Step::Call { file, call, argument } => {
            let (request, argument) = call::prepare(program, *call, argument);
            program.ioctl(*file, request, argument)
        }
        Step::Raw { file, request, argument } => {
            // Numbers of these two interfaces, and any.
            let request = if request & 1 == 0 { 0x3b00 | (request >> 1) & 0xff } else { *request };
            program.ioctl(*file, request, program.arena.base() + u64::from(*argument))
        }
        Step::Read { file, at, length, to } => {
            let (file, kind) = program.file(*file)?;
            let (address, length) = (program.arena.base() + u64::from(*to), u64::from(*length));
            let read = file.read(program.caller(), address, length, at.offset())?;
            assert!(read <= length, "{read} bytes of {length} are read");
            assert!(kind != FileKind::Calls, "it can be read though it says that it cannot");
            Ok(read as i64)
        }
        Step::Write { file, at, bytes, length } => {
            let (file, kind) = program.file(*file)?;
            let length = u64::from(length % 9);
            program.arena.put(0x800, bytes);
            let written = file.write(program.caller(), program.arena.base() + 0x800, length, at.offset())?;
            assert!(written <= length, "{written} bytes of {length} are written");
            assert!(kind != FileKind::Calls, "it can be written though it says that it cannot");
            Ok(written as i64)
        }
        Step::Map { file, at, pages, protection, flags } => {
            let (file, _) = program.file(*file)?;
            // Nothing of the program's own is replaced: no fixed addresses.
            let request = MmapRequest {
                address: 0,
                length: u64::from(pages % 8) * 4096,
                protection: i32::from(protection % 8),
                flags: if flags % 4 == 0 { libc::MAP_PRIVATE } else { libc::MAP_SHARED },
                offset: at.offset() & !0xfff,
            };
            // SAFETY: at a place of the kernel's choice, which nobody knows of.
            let start = unsafe { file.mmap(request) }?;
            program.mapped(file, start, request.length);
            Ok(0)
        }
        Step::Touch { mapping, offset, width, value } => {
            let Some((file, start, length)) = program.mapping(*mapping) else { return Err(Errno::EFAULT) };
            let width = 1 << (width % 4);
            let address = start + u64::from(*offset) % length / u64::from(width) * u64::from(width);
            let touched = file.touch(Touch { address, width, value: *value });
            assert!(value.is_none() || touched.unwrap_or(0) == 0, "a write answers {touched:?}");
            Ok(touched.unwrap_or(0) as i64)
        }
    }
}

/// Opens an iommufd and a device's node, binds it, makes an IOAS and attaches it.
fn begin_with_node(program: &mut Program, device: u8) -> Result<i64, Errno> {
    use noiommu_uapi::iommufd::{IOMMU_IOAS_ALLOC, IommuIoasAlloc};
    use noiommu_uapi::vfio::device::{VFIO_DEVICE_ATTACH_IOMMUFD_PT, VfioDeviceAttachIommufdPt};
    let iommufd = program.open_kind(0, |kind| matches!(kind, NodeKind::Iommufd))?;
    let device = program.open_kind(device, |kind| matches!(kind, NodeKind::Device { .. }))?;
    let bind = VfioDeviceBindIommufd { argsz: 16, iommufd, ..Default::default() };
    program.call(device, VFIO_DEVICE_BIND_IOMMUFD, bind.as_bytes())?;
    program.call(iommufd, IOMMU_IOAS_ALLOC, IommuIoasAlloc { size: 12, ..Default::default() }.as_bytes())?;
    let ioas = program.arena.number(8);
    let attach = VfioDeviceAttachIommufdPt { argsz: 12, pt_id: ioas, ..Default::default() };
    program.call(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, attach.as_bytes())
}

/// Opens a container and a device's group, puts one into the other, and gets the device.
fn begin_with_group(program: &mut Program, device: u8) -> Result<i64, Errno> {
    use noiommu_uapi::vfio::container::{VFIO_NOIOMMU_IOMMU, VFIO_SET_IOMMU};
    use noiommu_uapi::vfio::group::{VFIO_GROUP_GET_DEVICE_FD, VFIO_GROUP_SET_CONTAINER};
    let container = program.open_kind(0, |kind| matches!(kind, NodeKind::Container))?;
    let group = program.open_kind(device, |kind| matches!(kind, NodeKind::Group { .. }))?;
    program.call(group, VFIO_GROUP_SET_CONTAINER, &container.to_ne_bytes())?;
    program.ioctl_of(container, VFIO_SET_IOMMU, u64::from(VFIO_NOIOMMU_IOMMU))?;
    let name = program.device_name(device);
    program.call(group, VFIO_GROUP_GET_DEVICE_FD, name.as_bytes())
}

/// All is closed: each group can be opened, and each device bound by its node.
fn everything_is_back(program: &mut Program) {
    let nodes = program.nodes();
    for at in 0..nodes {
        match program.open(at as u8) {
            Ok(_) | Err(Errno::EPERM) => {}
            Err(error) => panic!("node {at} cannot be opened after all was closed: {error}"),
        }
        program.close_all();
    }
    for device in 0..2 {
        let began = begin_with_node(program, device);
        let there = program.has_device_nodes();
        assert!(
            matches!((began, there), (Ok(_), true) | (Err(Errno::ENOENT), false) | (Err(Errno::EPERM), _)),
            "{began:?}"
        );
        program.close_all();
    }
}

impl Program {
    /// Who calls.
    fn caller(&self) -> Caller<'_> {
        Caller { user: &self.arena, descriptors: &self.table }
    }
}
