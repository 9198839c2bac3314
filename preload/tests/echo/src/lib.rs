//! `libnoiommu_preload_echo.so`: the preload library in front of files that show what arrives at them, how often they are released,
//! and what they can reach. The numbers of their calls are in `preload/tests/check.h`.

use std::any::Any;
use std::fs::{self, File as Kernel};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use noiommu::Errno;
use noiommu::serve::{Caller, File, FileKind, FileOperations, MmapRequest, Node, NodeKind, Settings};
use noiommu_preload::Serve;

const REVERSE: u32 = 0x3b00;
const LIVE: u32 = 0x3b01;
const INSTALL: u32 = 0x3b02;
const GET: u32 = 0x3b03;
const SLEEP: u32 = 0x3b04;
const REAL_OPEN: u32 = 0x3b05;
const COPY_TIME: u32 = 0x3b06;
const SYSTEM_TIME: u32 = 0x3b07;
const QUEUE: u32 = 0x3b08;
const WORDS: u32 = 0x3b09;
const FLAGS: u32 = 0x3b0a;
const REMOVE: u32 = 0x3b0b;
const WORD: u32 = 0x3b0c;
/// IOMMU_IOAS_NOIOMMU_GET_PA.
const GET_PA: u32 = 0x3b95;

/// The only IOAS there is. The way that a call has come is told by the answer: the IOVA, and one of these.
const IOAS: u64 = 7;
const BY_IOCTL: u64 = 1;
const QUICKLY: u64 = 2;

/// How many echo files are open.
static OPEN: AtomicI64 = AtomicI64::new(0);

struct Server {
    device: PathBuf,
}

fn start(_: &Settings) -> Result<Box<dyn Serve>, String> {
    // A device that is there, so that its directory is the kernel's and ours together.
    let first = fs::read_dir("/sys/bus/pci/devices").ok().and_then(|mut all| all.next()?.ok());
    let device = first
        .and_then(|entry| fs::canonicalize(entry.path()).ok())
        .unwrap_or_else(|| PathBuf::from("/sys/devices/pci0000:00/0000:00:1f.7"));
    Ok(Box::new(Server { device }))
}

impl Serve for Server {
    fn provider(&self) -> String {
        "echoes".to_owned()
    }

    fn nodes(&self) -> Vec<Node> {
        let node = |path: &str, kind, mode, minor| Node {
            path: Path::new(path).into(),
            kind,
            mode,
            major: 511,
            minor,
        };
        let group = NodeKind::Group { number: 977, devices: vec![self.device.clone()] };
        vec![
            node("/dev/iommu", NodeKind::Iommufd, 0o600, 0),
            node("/dev/vfio/vfio", NodeKind::Container, 0o666, 1),
            node("/dev/vfio/noiommu-977", group, 0o600, 2),
            node(
                "/dev/vfio/devices/noiommu-vfio977",
                NodeKind::Device { directory: self.device.clone(), attributes: Vec::new() },
                0o600,
                3,
            ),
        ]
    }

    fn open(&self, node: &Node, flags: i32) -> Result<File, Errno> {
        let kind = match node.kind {
            NodeKind::Device { .. } => FileKind::Bytes,
            _ => FileKind::Calls,
        };
        Ok(Arc::new(Echo::new(kind, flags)?))
    }
}

struct Echo {
    kind: FileKind,
    flags: i32,
    /// What is read, written and mapped.
    memory: Kernel,
    /// The words of the last call of [`WORDS`].
    words: AtomicU64,
}

impl Echo {
    const LENGTH: u64 = 1 << 20;

    fn new(kind: FileKind, flags: i32) -> Result<Self, Errno> {
        // SAFETY: a string that ends with a NUL; the descriptor is new.
        let memory = unsafe {
            let fd = libc::memfd_create(c"echo".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(last());
            }
            Kernel::from_raw_fd(fd)
        };
        memory.set_len(Self::LENGTH).map_err(|_| Errno::ENOMEM)?;
        OPEN.fetch_add(1, Ordering::SeqCst);
        Ok(Self { kind, flags, memory, words: AtomicU64::new(0) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::SeqCst);
    }
}

fn last() -> Errno {
    io::Error::last_os_error().raw_os_error().and_then(Errno::from_raw).unwrap_or(Errno::EIO)
}

fn word(caller: Caller<'_>, address: u64) -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    caller.user.read(address, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Nanoseconds that 100000 reads of a word take.
fn time(read: impl Fn() -> Result<(), Errno>) -> Result<i64, Errno> {
    let begin = Instant::now();
    for _ in 0..100_000 {
        read()?;
    }
    Ok(begin.elapsed().as_nanos() as i64)
}

impl FileOperations for Echo {
    fn ioctl(&self, caller: Caller<'_>, request: u32, argument: u64) -> Result<i64, Errno> {
        match request {
            // { address, length, answer }: turns the bytes round.
            REVERSE => {
                let address = word(caller, argument)?;
                let length = word(caller, argument.wrapping_add(8))?;
                let mut bytes = vec![0; length.min(Self::LENGTH) as usize];
                caller.user.read(address, &mut bytes)?;
                bytes.reverse();
                caller.user.write(address, &bytes)?;
                Ok(word(caller, argument.wrapping_add(16))? as i64)
            }
            LIVE => Ok(OPEN.load(Ordering::SeqCst)),
            INSTALL => caller.descriptors.install(Arc::new(Self::new(FileKind::Bytes, 0)?)).map(i64::from),
            QUEUE => caller.descriptors.install(Arc::new(Self::new(FileKind::Queue, 0)?)).map(i64::from),
            REMOVE => {
                let new = caller.descriptors.install(Arc::new(Self::new(FileKind::Bytes, 0)?))?;
                caller.descriptors.remove(new);
                Ok(i64::from(new))
            }
            GET => {
                let file = caller.descriptors.get(argument as i32)?;
                let echo = file.as_any().downcast_ref::<Self>().ok_or(Errno::EBADFD)?;
                Ok(i64::from(echo.kind == FileKind::Bytes))
            }
            SLEEP => {
                std::thread::sleep(Duration::from_millis(argument));
                Ok(0)
            }
            // What the engine opens is the kernel's: 0 when that has it.
            REAL_OPEN => match Kernel::open("/dev/vfio/devices/noiommu-vfio977") {
                Ok(_) => Ok(0),
                Err(error) => Err(error.raw_os_error().and_then(Errno::from_raw).unwrap_or(Errno::EIO)),
            },
            COPY_TIME => time(|| word(caller, argument).map(drop)),
            SYSTEM_TIME => time(|| {
                let mut bytes = [0_u8; 8];
                let into = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
                let from = libc::iovec { iov_base: argument as *mut libc::c_void, iov_len: bytes.len() };
                // SAFETY: the bytes are here; the other address may be wrong.
                let moved = unsafe {
                    libc::process_vm_readv(libc::getpid(), &raw const into, 1, &raw const from, 1, 0)
                };
                if moved == 8 { Ok(()) } else { Err(last()) }
            }),
            WORDS => {
                self.words.store(argument, Ordering::SeqCst);
                Ok(argument as i32 as i64 & 0xffff)
            }
            WORD => word(caller, argument).map(|word| word as i64),
            FLAGS => Ok(self.flags.into()),
            GET_PA => {
                for offset in (0..40).step_by(8) {
                    word(caller, argument.wrapping_add(offset))?;
                }
                let address = word(caller, argument.wrapping_add(16))? + BY_IOCTL;
                caller.user.write(argument.wrapping_add(32), &address.to_ne_bytes())?;
                Ok(0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn get_pa(&self, ioas: u32, iova: u64, length: u64) -> Option<(u64, u64)> {
        (u64::from(ioas) == IOAS).then_some((iova + QUICKLY, length))
    }

    fn kind(&self) -> FileKind {
        self.kind
    }

    fn read(&self, caller: Caller<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno> {
        use std::os::unix::fs::FileExt as _;
        let length = length.min(Self::LENGTH.saturating_sub(offset));
        let mut bytes = vec![0; length as usize];
        self.memory.read_exact_at(&mut bytes, offset).map_err(|_| Errno::EIO)?;
        caller.user.write(address, &bytes)?;
        Ok(length)
    }

    fn write(&self, caller: Caller<'_>, address: u64, length: u64, offset: u64) -> Result<u64, Errno> {
        use std::os::unix::fs::FileExt as _;
        let length = length.min(Self::LENGTH.saturating_sub(offset));
        let mut bytes = vec![0; length as usize];
        caller.user.read(address, &mut bytes)?;
        self.memory.write_all_at(&bytes, offset).map_err(|_| Errno::EIO)?;
        Ok(length)
    }

    unsafe fn mmap(&self, request: MmapRequest) -> Result<u64, Errno> {
        if self.kind != FileKind::Bytes {
            return Err(Errno::ENODEV);
        }
        // SAFETY: the caller's promise.
        let address = unsafe {
            libc::mmap(
                request.address as *mut libc::c_void,
                request.length as usize,
                request.protection,
                request.flags,
                self.memory.as_raw_fd(),
                request.offset as i64,
            )
        };
        if address == libc::MAP_FAILED { Err(last()) } else { Ok(address as u64) }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

extern "C" fn construct() {
    noiommu_preload::serve_with(start);
}

#[used]
#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
static CONSTRUCTOR: extern "C" fn() = construct;
