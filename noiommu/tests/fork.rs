//! A forked child shares the parent's rings and devices, and must not take anything from it. Alone in its process, as it
//! looks at the process's count of pinned pages.

use noiommu::{Context, Contiguity, DmaBuffer, ErrorKind, PinKind};

/// Pages that io_uring keeps pinned for this process, in KiB.
fn pinned() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_child_takes_nothing_from_its_parent() {
    let context = match Context::new() {
        Ok(context) if context.pin_kind() == Ok(PinKind::IoUring) => context,
        other => {
            eprintln!("not run: {other:?}");
            return;
        }
    };
    let ioas = context.ioas().unwrap();
    let device = context.sim_edu().unwrap();
    device.attach(&ioas).unwrap();
    let before = pinned();
    let mapping = ioas.map(DmaBuffer::new(8 << 20, Contiguity::Pages).unwrap()).unwrap();
    let with = pinned();
    assert_eq!(with - before, 8 << 10, "VmPin counts what io_uring pins");

    // SAFETY: the child calls nothing but this crate and _exit; no other thread holds a lock of either at this time.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = |error: noiommu::Error| error.kind() == ErrorKind::Rule && error.remedy().is_some();
        let map = ioas.map(DmaBuffer::new(4096, Contiguity::Pages).unwrap());
        let mut right = map.is_err_and(|failed| refused(failed.error));
        // SAFETY: refused.
        right &= unsafe { device.enable_bus_master() }.is_err_and(refused);
        drop((mapping, device, ioas, context));
        // SAFETY: ends the child at once, without running what belongs to the test harness.
        unsafe { libc::_exit(i32::from(!right)) };
    }
    let mut status = -1;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child was not refused");
    assert_eq!(pinned(), with, "the child let go of the parent's pages");
    assert_eq!(mapping.moved_pages().unwrap(), Some(0));
    drop(mapping);
    assert_eq!(pinned(), before, "dropped by the parent, they are free");
}
