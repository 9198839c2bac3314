//! The program: its memory, its descriptors, what it has mapped.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Once;

use noiommu::Errno;
use noiommu::serve::{Descriptors, File, FileKind, NodeKind, Server};
use noiommu_core::UserMemory;
use noiommu_uapi::iommufd::IOMMU_IOAS_MAP;
use noiommu_uapi::vfio::container::VFIO_IOMMU_MAP_DMA;
use rustix::event::EventfdFlags;
use rustix::fs::MemfdFlags;
use rustix::thread::CapabilitySet;

/// Bytes of the program's memory; behind it is as much that is not there.
pub(super) const ARENA: u64 = 64 << 10;
/// The longest that is mapped in one call: no made-up memory is ever refused for its size.
const LONGEST: u64 = 2 * ARENA;

/// Has physical memory made up: this process's own is not for a fuzzer to hand to devices.
pub(super) fn give_up_physical_addresses() {
    static ONCE: Once = Once::new();
    ONCE.call_once(noiommu::serve::serve_touches);
    let Ok(mut sets) = rustix::thread::capabilities(None) else { return };
    if sets.effective.contains(CapabilitySet::SYS_ADMIN) {
        sets.effective -= CapabilitySet::SYS_ADMIN;
        rustix::thread::set_capabilities(None, sets).expect("less can always be had");
    }
}

/// How many descriptors this process has open.
pub(super) fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// The program's memory: real, and all that its arguments can name.
pub(super) struct Arena(NonNull<u8>);

impl Arena {
    fn new() -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let memory =
            unsafe { libc::mmap(std::ptr::null_mut(), 2 * ARENA as usize, protection, flags, -1, 0) };
        assert_ne!(memory, libc::MAP_FAILED);
        // SAFETY: the second half of the mapping just made.
        let closed =
            unsafe { libc::mprotect(memory.byte_add(ARENA as usize), ARENA as usize, libc::PROT_NONE) };
        assert_eq!(closed, 0);
        Self(NonNull::new(memory.cast()).expect("not at 0"))
    }

    pub(super) fn base(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// Where bytes are, if they are inside.
    fn place(&self, address: u64, length: usize) -> Result<*mut u8, Errno> {
        let at = address.checked_sub(self.base()).ok_or(Errno::EFAULT)?;
        match at.checked_add(length as u64) {
            // SAFETY: inside of the mapping.
            Some(end) if end <= ARENA => Ok(unsafe { self.0.as_ptr().add(at as usize) }),
            _ => Err(Errno::EFAULT),
        }
    }

    /// Puts bytes at an offset.
    pub(super) fn put(&self, offset: u64, bytes: &[u8]) {
        let _ = self.write(self.base() + offset, bytes);
    }

    /// The number at an offset.
    pub(super) fn number(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        let _ = self.read(self.base() + offset, &mut bytes);
        u32::from_ne_bytes(bytes)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: this value's own mapping.
        unsafe { libc::munmap(self.0.as_ptr().cast(), 2 * ARENA as usize) };
    }
}

// A device writes there through the kernel while the program reads: so byte by byte, volatile.
impl UserMemory for Arena {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        let from = self.place(address, into.len())?;
        for (at, byte) in into.iter_mut().enumerate() {
            // SAFETY: inside of the mapping, as `place` has seen.
            *byte = unsafe { from.add(at).read_volatile() };
        }
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Errno> {
        let to = self.place(address, from.len())?;
        for (at, byte) in from.iter().enumerate() {
            // SAFETY: inside of the mapping, as `place` has seen.
            unsafe { to.add(at).write_volatile(*byte) };
        }
        Ok(())
    }
}

/// Served files, by descriptor.
#[derive(Default)]
pub(super) struct Table(RefCell<BTreeMap<i32, File>>);

/// The first descriptor of served files, above those that are really open.
const FIRST: i32 = 100_000;
/// Descriptors that the program may have.
const MOST: usize = 24;

impl Descriptors for Table {
    fn get(&self, descriptor: i32) -> Result<File, Errno> {
        match self.0.borrow().get(&descriptor) {
            Some(file) => Ok(file.clone()),
            None if (0..FIRST).contains(&descriptor) => Err(Errno::EBADFD),
            None => Err(Errno::EBADF),
        }
    }

    fn install(&self, file: File) -> Result<i32, Errno> {
        let mut table = self.0.borrow_mut();
        if table.len() >= MOST {
            return Err(Errno::EMFILE);
        }
        let descriptor = (FIRST..).find(|descriptor| !table.contains_key(descriptor)).ok_or(Errno::EMFILE)?;
        table.insert(descriptor, file);
        Ok(descriptor)
    }

    fn remove(&self, descriptor: i32) {
        // Let go of after the table: a file that ends may look at it.
        let file = self.0.borrow_mut().remove(&descriptor);
        drop(file);
    }
}

pub(super) struct Program {
    server: Server,
    pub(super) table: Table,
    pub(super) arena: Arena,
    mappings: Vec<(File, u64, u64)>,
    /// Really open: shared memory, and two eventfds.
    real: [OwnedFd; 3],
}

impl Program {
    pub(super) fn new(server: Server) -> Self {
        let memory = rustix::fs::memfd_create("program", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
        let memory = memory.expect("a memfd");
        rustix::fs::ftruncate(&memory, ARENA).expect("it grows");
        let event = || rustix::event::eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        Self {
            server,
            table: Table::default(),
            arena: Arena::new(),
            mappings: Vec::new(),
            real: [memory, event(), event()],
        }
    }

    pub(super) fn nodes(&self) -> usize {
        self.server.nodes().len()
    }

    pub(super) fn has_device_nodes(&self) -> bool {
        self.server.nodes().iter().any(|node| matches!(node.kind, NodeKind::Device { .. }))
    }

    pub(super) fn open(&mut self, node: u8) -> Result<i32, Errno> {
        let at = usize::from(node) % self.nodes().max(1);
        let node = self.server.nodes().get(at).ok_or(Errno::ENOENT)?;
        self.table.install(self.server.open(node)?)
    }

    /// Opens the `which`-th node of a kind.
    pub(super) fn open_kind(&mut self, which: u8, is: fn(&NodeKind) -> bool) -> Result<i32, Errno> {
        let nodes: Vec<_> = self.server.nodes().iter().filter(|node| is(&node.kind)).collect();
        let node = nodes.get(usize::from(which) % nodes.len().max(1)).ok_or(Errno::ENOENT)?;
        self.table.install(self.server.open(node)?)
    }

    /// The name of a device, as its group is asked for it.
    pub(super) fn device_name(&self, which: u8) -> String {
        let mut names = self.server.nodes().iter().filter_map(|node| match &node.kind {
            NodeKind::Group { devices, .. } => {
                devices.first()?.file_name()?.to_str().map(|name| format!("{name}\0"))
            }
            _ => None,
        });
        names.nth(usize::from(which % 2)).unwrap_or_default()
    }

    /// The descriptor that a step names: most of the time an open one.
    pub(super) fn descriptor(&self, file: u8) -> i32 {
        let table = self.table.0.borrow();
        match usize::from(file) {
            at if at < 0xe0 => table.keys().copied().nth(at % table.len().max(1)).unwrap_or(FIRST),
            at => self.real.get(at % 4).map_or(-1, AsRawFd::as_raw_fd),
        }
    }

    pub(super) fn file(&self, file: u8) -> Result<(File, FileKind), Errno> {
        let file = self.table.get(self.descriptor(file))?;
        let kind = file.kind();
        Ok((file, kind))
    }

    pub(super) fn close(&mut self, file: u8) {
        let descriptor = self.descriptor(file);
        self.table.remove(descriptor);
    }

    pub(super) fn dup(&mut self, file: u8) -> Result<i32, Errno> {
        self.table.install(self.table.get(self.descriptor(file))?)
    }

    /// A call with bytes of the program's as its argument.
    pub(super) fn call(&mut self, descriptor: i32, request: u32, bytes: &[u8]) -> Result<i64, Errno> {
        self.arena.put(0, bytes);
        self.ioctl_of(descriptor, request, self.arena.base())
    }

    pub(super) fn ioctl(&mut self, file: u8, request: u32, argument: u64) -> Result<i64, Errno> {
        self.ioctl_of(self.descriptor(file), request, argument)
    }

    pub(super) fn ioctl_of(&mut self, descriptor: i32, request: u32, argument: u64) -> Result<i64, Errno> {
        self.keep_to_the_arena(request, argument);
        let answer = self.table.get(descriptor)?.ioctl(self.caller(), request, argument);
        if let Ok(value) = answer {
            assert!(value >= 0, "{request:#x} answers {value}");
        }
        answer
    }

    /// Memory that is mapped is the arena, or what is behind it: made-up memory is pinned without a look whether there is any.
    fn keep_to_the_arena(&self, request: u32, argument: u64) {
        let (address, length) = match request {
            IOMMU_IOAS_MAP => (argument.wrapping_add(16), argument.wrapping_add(24)),
            VFIO_IOMMU_MAP_DMA => (argument.wrapping_add(8), argument.wrapping_add(24)),
            _ => return,
        };
        let number = |at: u64| {
            let mut bytes = [0; 8];
            self.arena.read(at, &mut bytes).map(|()| u64::from_ne_bytes(bytes))
        };
        if let Ok(wanted) = number(address)
            && !(self.arena.base()..self.arena.base() + 2 * ARENA).contains(&wanted)
        {
            let _ = self.arena.write(address, &(self.arena.base() + wanted % (2 * ARENA)).to_ne_bytes());
        }
        if let Ok(wanted) = number(length)
            && wanted > LONGEST
        {
            let _ = self.arena.write(length, &(wanted % LONGEST).to_ne_bytes());
        }
    }

    pub(super) fn mapped(&mut self, file: File, start: u64, length: u64) {
        self.mappings.push((file, start, length));
    }

    pub(super) fn mapping(&self, which: u8) -> Option<(&File, u64, u64)> {
        let at = usize::from(which) % self.mappings.len().max(1);
        self.mappings.get(at).map(|(file, start, length)| (file, *start, *length))
    }

    /// Closes and unmaps everything.
    pub(super) fn close_all(&mut self) {
        for (file, start, length) in self.mappings.drain(..) {
            // SAFETY: mapped for this program, which does not use it.
            unsafe { libc::munmap(start as *mut _, length as usize) };
            drop(file);
        }
        let files = std::mem::take(&mut *self.table.0.borrow_mut());
        drop(files);
    }
}
