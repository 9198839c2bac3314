//! Pins of real memory. They need root (CAP_SYS_ADMIN for addresses); without it, that is what they check.

use std::os::fd::AsFd;
use std::ptr::NonNull;

use noiommu_core::Iova;
use rustix::fs::MemfdFlags;
use rustix::mm::MprotectFlags;

use super::*;
use crate::{Context, Contiguity, DmaBuffer, ErrorKind};

/// Runs `test` with every pin source that this machine has.
fn with_each_source(test: impl Fn(&Context)) {
    let mut ran = 0;
    for choice in [PinChoice::IoUring, PinChoice::AfXdp] {
        match Context::with_pins(choice) {
            Ok(context) => {
                test(&context);
                ran += 1;
            }
            Err(error) => {
                assert!(error.remedy().is_some(), "{error}");
                eprintln!("not run with {choice:?}: {error}");
            }
        }
    }
    let root = Pagemap::open().and_then(|pagemap| host::check_frames(&pagemap)).is_ok();
    assert!(ran > 0 || !root, "no pin source at all on a machine that shows addresses");
}

fn memory(pages: usize) -> NonNull<u8> {
    // SAFETY: a new mapping, never unmapped: tests are short.
    let memory = unsafe {
        mm::mmap_anonymous(
            std::ptr::null_mut(),
            pages * 4096,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    };
    NonNull::new(memory.unwrap().cast()).unwrap()
}

fn frame(address: usize) -> Option<u64> {
    Pagemap::open().unwrap().entry(address).unwrap().frame(4096).map(u64::from)
}

#[test]
fn addresses_are_those_of_the_pagemap() {
    with_each_source(|context| {
        let ioas = context.ioas().unwrap();
        for (length, contiguity) in
            [(1, Contiguity::Pages), (300_000, Contiguity::Pages), (5 << 20, Contiguity::Best)]
        {
            let mapping = ioas.map(DmaBuffer::new(length, contiguity).unwrap()).unwrap();
            let address = mapping.buffer().unwrap().address();
            for page in (0..mapping.len()).step_by(4096) {
                let found = ioas.lookup(Iova(mapping.iova().0 + page), 1).unwrap();
                assert_eq!(Some(found.address.0), frame(address + page as usize));
            }
            let segments = mapping.segments().unwrap();
            assert_eq!(segments.iter().map(|segment| segment.length).sum::<u64>(), mapping.len());
            drop(mapping);
        }
        assert_eq!((ioas.usage().areas, ioas.usage().table_frames), (0, 0));
    });
}

#[test]
fn addresses_stay_whatever_becomes_of_the_mapping() {
    with_each_source(|context| {
        let ioas = context.ioas().unwrap();
        let memory = memory(16);
        // SAFETY: nobody else knows this memory.
        let mapping = unsafe { ioas.map_borrowed(memory, 16 * 4096) }.unwrap();
        let before = mapping.segments().unwrap();
        let places: Vec<_> = (0..16)
            .map(|page| ioas.lookup(Iova(mapping.iova().0 + page * 4096), 1).unwrap().address)
            .collect();
        // SAFETY: as above.
        unsafe { mm::munmap(memory.as_ptr().cast(), 16 * 4096) }.unwrap();
        assert_eq!(mapping.segments().unwrap(), before);
        // The frames are not free: as much fresh memory as the kernel hands out at once holds none of them.
        let fresh = DmaBuffer::new(64 << 20, Contiguity::Pages).unwrap();
        let entries = Pagemap::open().unwrap().entries(fresh.address(), 16 << 10).unwrap();
        assert!(entries.iter().all(|entry| !places.contains(&entry.frame(4096).unwrap())));
    });
}

#[test]
fn what_cannot_be_pinned_is_refused_and_leaves_nothing() {
    with_each_source(|context| {
        let ioas = context.ioas().unwrap();
        let read_only = memory(4);
        // SAFETY: memory of this test alone.
        unsafe {
            read_only.as_ptr().write(1);
            mm::mprotect(read_only.as_ptr().cast(), 4 * 4096, MprotectFlags::READ).unwrap();
        }
        let holed = memory(8);
        // SAFETY: as above.
        unsafe { mm::munmap(holed.as_ptr().add(4 * 4096).cast(), 4096) }.unwrap();
        let nowhere = NonNull::new(std::ptr::without_provenance_mut(4096)).unwrap();
        for (memory, pages, kind) in [
            (read_only, 4, ErrorKind::ReadOnlyMemory),
            (holed, 8, ErrorKind::BadMemory),
            (nowhere, 1, ErrorKind::BadMemory),
        ] {
            // SAFETY: nobody else knows this memory.
            let error = unsafe { ioas.map_borrowed(memory, pages * 4096) }.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert_eq!((ioas.usage().areas, ioas.usage().table_frames), (0, 0));
        }
        // Nearly all of the address space, nearly all of it holes: refused at the first, not looked through.
        let most = 1 << 62;
        // SAFETY: as above.
        let error = unsafe { ioas.map_borrowed(holed, most) }.unwrap_err();
        assert_eq!((error.kind(), error.errno()), (ErrorKind::BadMemory, Errno::EFAULT), "{error}");
        // SAFETY: refused before anything is looked at.
        let misaligned = unsafe { ioas.map_borrowed(memory(2).add(8), 4096) }.unwrap_err();
        assert_eq!((misaligned.kind(), misaligned.errno()), (ErrorKind::Rule, Errno::EINVAL));
    });
}

fn memfd(length: u64, flags: MemfdFlags) -> Option<OwnedFd> {
    let file = rustix::fs::memfd_create("noiommu-test", flags | MemfdFlags::ALLOW_SEALING).ok()?;
    rustix::fs::ftruncate(&file, length).ok()?;
    Some(file)
}

#[test]
fn files_of_shared_memory() {
    with_each_source(|context| {
        let ioas = context.ioas().unwrap();
        let file = memfd(0x8000, MemfdFlags::empty()).unwrap();
        let mapping = ioas.map_file(file.try_clone().unwrap(), 0x1000, 0x4000).unwrap();
        let before = mapping.segments().unwrap();
        // A view of our own sees the same frames.
        // SAFETY: a new mapping.
        let view = unsafe {
            mm::mmap(
                std::ptr::null_mut(),
                0x8000,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::POPULATE,
                &file,
                0,
            )
        }
        .unwrap() as usize;
        for page in (0..0x4000).step_by(4096) {
            let found = ioas.lookup(Iova(mapping.iova().0 + page), 1).unwrap().address.0;
            assert_eq!(Some(found), frame(view + 0x1000 + page as usize));
        }
        rustix::fs::ftruncate(&file, 0).unwrap();
        assert_eq!(mapping.segments().unwrap(), before, "pinned, whatever becomes of the file");

        for (offset, length) in [(0, 0x1000), (0x8000, 0x1000)] {
            let error = ioas.map_file(file.try_clone().unwrap(), offset, length).unwrap_err();
            assert_eq!(error.errno(), Errno::EINVAL, "past the end: {error}");
        }
        let ordinary = std::fs::File::open("/proc/self/exe").unwrap();
        let error = ioas.map_file(ordinary.into(), 0, 0x1000).unwrap_err();
        assert_eq!((error.kind(), error.errno()), (ErrorKind::BadMemory, Errno::EINVAL));
        let sealed = memfd(0x1000, MemfdFlags::empty()).unwrap();
        rustix::fs::fcntl_add_seals(sealed.as_fd(), SealFlags::WRITE).unwrap();
        assert_eq!(ioas.map_file(sealed, 0, 0x1000).unwrap_err().kind(), ErrorKind::ReadOnlyMemory);
        assert_eq!(ioas.usage().areas, 1);
    });
}

#[test]
fn huge_pages_are_leaves_of_their_size() {
    with_each_source(|context| {
        let ioas = context.ioas().unwrap();
        let mapping = ioas.map(DmaBuffer::new(8 << 20, Contiguity::Best).unwrap()).unwrap();
        let buffer = mapping.buffer().unwrap();
        if buffer.pages() == crate::PageKind::Base {
            eprintln!("no huge pages on this machine now");
            return;
        }
        for segment in mapping.segments().unwrap() {
            assert!(segment.length.is_multiple_of(HUGE as u64), "{segment:?}");
        }
        // Two levels of tables beside the top at the most: leaves of 2 MiB and more need no table of 4 KiB slots.
        assert!(ioas.usage().table_frames <= 2);
        for offset in (0..8 << 20).step_by(4096) {
            let found = ioas.lookup(Iova(mapping.iova().0 + offset), 1).unwrap().address.0;
            assert_eq!(Some(found), frame(buffer.address() + offset as usize));
        }
    });
}

#[test]
fn many_maps_take_few_rings() {
    let Ok(context) = Context::with_pins(PinChoice::IoUring) else { return };
    let ioas = context.ioas().unwrap();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let buffer = || DmaBuffer::new(4096, Contiguity::Pages).unwrap();
    let kept: Vec<_> = (0..100).map(|_| ioas.map(buffer()).unwrap()).collect();
    let before = descriptors();
    for _ in 0..2000 {
        drop(ioas.map(buffer()).unwrap());
    }
    // Other tests of this process open files too.
    assert!(descriptors() < before + 50);
    drop(kept);
    assert_eq!(ioas.usage().areas, 0);
}

/// Runs `test` in a thread of its own, whose capabilities and system calls it may restrict.
fn restricted<R: Send + 'static>(test: impl FnOnce() -> R + Send + 'static) -> R {
    std::thread::spawn(test).join().unwrap()
}

/// Takes capabilities from this thread.
fn drop_capabilities(gone: CapabilitySet) {
    let mut sets = rustix::thread::capabilities(None).unwrap();
    sets.effective.remove(gone);
    sets.permitted.remove(gone);
    sets.inheritable = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, sets).unwrap();
}

/// Makes system call `number` answer EPERM in this thread; for socket(), only those of AF_XDP.
fn forbid(number: libc::c_long) {
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let first_argument = if number == libc::SYS_socket { Some(libc::AF_XDP as u32) } else { None };
    let mut filter = vec![
        // struct seccomp_data: the number at 0, the first argument at 16.
        statement(load, 0, 0, 0),
        statement(equal, 0, if first_argument.is_some() { 3 } else { 1 }, number as u32),
    ];
    if let Some(value) = first_argument {
        filter.push(statement(load, 0, 0, 16));
        filter.push(statement(equal, 0, 1, value));
    }
    filter.push(statement(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32));
    filter.push(statement(answer, 0, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter live through the calls, which copy them; they concern this thread alone.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let install = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program);
        assert_eq!(install, 0, "{}", std::io::Error::last_os_error());
    }
}

fn is_root() -> bool {
    let root = host::capabilities().contains(CapabilitySet::SYS_ADMIN);
    if !root {
        eprintln!("not run: needs CAP_SYS_ADMIN");
    }
    root
}

#[test]
fn without_sys_admin_there_are_no_addresses() {
    let error = restricted(|| {
        if is_root() {
            drop_capabilities(CapabilitySet::SYS_ADMIN);
        }
        Context::new().unwrap_err()
    });
    assert_eq!((error.kind(), error.errno()), (ErrorKind::NoPhysicalAddresses, Errno::EPERM));
    assert!(error.remedy().unwrap().contains("CAP_SYS_ADMIN"));
}

#[test]
fn without_io_uring_there_is_af_xdp_and_without_both_an_error() {
    if !is_root() {
        return;
    }
    restricted(|| {
        forbid(libc::SYS_io_uring_setup);
        match Context::new() {
            Ok(context) => {
                assert_eq!(context.pin_kind(), Ok(PinKind::AfXdp));
                let ioas = context.ioas().unwrap();
                ioas.map(DmaBuffer::new(4 << 20, Contiguity::Best).unwrap()).unwrap();
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoPinSource, "no AF_XDP in this kernel: {error}")
            }
        }
        assert_eq!(Context::with_pins(PinChoice::IoUring).unwrap_err().kind(), ErrorKind::NoPinSource);
        forbid(libc::SYS_socket);
        let error = Context::new().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoPinSource);
        let text = error.to_string();
        assert!(text.contains("io_uring is switched off") && text.contains("io_uring_disabled=0"), "{text}");
    });
}

#[test]
fn the_limit_of_locked_memory_counts() {
    if !is_root() {
        return;
    }
    restricted(|| {
        drop_capabilities(CapabilitySet::IPC_LOCK);
        // The soft limit of the whole process; the other threads of this one have the capability and do not see it.
        let before = rustix::process::getrlimit(rustix::process::Resource::Memlock);
        let limit = rustix::process::Rlimit { current: Some(256 << 10), ..before };
        rustix::process::setrlimit(rustix::process::Resource::Memlock, limit).unwrap();
        for choice in [PinChoice::IoUring, PinChoice::AfXdp] {
            let Ok(context) = Context::with_pins(choice) else { continue };
            let ioas = context.ioas().unwrap();
            let buffer = |kib: usize| DmaBuffer::new(kib << 10, Contiguity::Pages).unwrap();
            let small = ioas.map(buffer(64)).unwrap();
            let refused = ioas.map(buffer(1024)).unwrap_err();
            assert_eq!(
                (refused.error.kind(), refused.error.errno()),
                (ErrorKind::MemlockLimit, Errno::ENOMEM)
            );
            assert_eq!(refused.buffer.len(), 1 << 20, "the buffer comes back");
            assert_eq!(ioas.usage().areas, 1);
            drop(small);
        }
        rustix::process::setrlimit(rustix::process::Resource::Memlock, before).unwrap();
    });
}

#[test]
fn more_than_a_gibibyte_goes_in_pieces() {
    with_each_source(|context| {
        let ioas = context.ioas().unwrap();
        // Beyond the kernel's limit for one io_uring buffer, with an odd end.
        let length = (1 << 30) + (9 << 20) + 5000;
        let mapping = ioas.map(DmaBuffer::new(length, Contiguity::Best).unwrap()).unwrap();
        let address = mapping.buffer().unwrap().address();
        for page in (0..length).step_by(4096 * 251).chain([length - 1, (1 << 30) - 1, 1 << 30]) {
            let page = page / 4096 * 4096;
            let found = ioas.lookup(Iova(mapping.iova().0 + page as u64), 1).unwrap();
            assert_eq!(Some(found.address.0), frame(address + page));
        }
        assert_eq!(mapping.moved_pages().unwrap(), Some(0));
    });
}

/// Once an error of this class came out as "there is no way to pin", which a caller takes for a property of the machine.
#[test]
fn want_of_descriptors_is_no_want_of_a_pin_source() {
    let refused = |errno| Error::new(ErrorKind::NoPinSource, errno, "refused").with_remedy("do something");
    for short in [Errno::EMFILE, Errno::ENFILE] {
        assert_eq!(no_pin_source(&refused(short), &refused(short)).errno(), short);
        assert_eq!(no_pin_source(&refused(short), &refused(Errno::EPERM)).errno(), short);
    }
    let none = no_pin_source(&refused(Errno::EPERM), &refused(Errno::EPERM));
    assert_eq!((none.kind(), none.errno()), (ErrorKind::NoPinSource, Errno::EOPNOTSUPP));
}
