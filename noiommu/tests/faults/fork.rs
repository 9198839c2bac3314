//! Forks while other threads are in the engine: the child can be refused, drop what it has inherited and end, though a lock
//! that it inherits may never be let go; the parent goes on as before.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use noiommu::{Context, Contiguity, DmaBuffer, Error, ErrorKind, PinChoice};

use crate::alone::alone;
use crate::counts::{Counts, pinned};
use crate::life::can_pin;

const FORKS: u32 = 200;

#[test]
fn a_child_forked_in_the_middle() {
    alone(concat!(module_path!(), "::a_child_forked_in_the_middle"), || {
        if !can_pin(PinChoice::IoUring) {
            return;
        }
        let before = Counts::now();
        fork_in_the_middle();
        assert_eq!(Counts::settled(before.pinned).differs(&before, true), None);
    });
}

fn fork_in_the_middle() {
    let context = Context::with_pins(PinChoice::IoUring).unwrap();
    let ioas = context.ioas().unwrap();
    let other = context.ioas().unwrap();
    let device = context.sim_edu().unwrap();
    device.attach(&ioas).unwrap();
    let kept = ioas.map(DmaBuffer::new(64 << 10, Contiguity::Pages).unwrap()).unwrap();
    kept.buffer().unwrap().fill(0, 64 << 10, 0xa5).unwrap();
    let with = pinned();
    let (stop, maps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            while !stop.load(Relaxed) {
                let mapping = ioas.map(DmaBuffer::new(16 << 10, Contiguity::Pages).unwrap()).unwrap();
                let view = mapping.for_device(&device).unwrap();
                assert_eq!(view.len(), 16 << 10);
                maps.fetch_add(1, Relaxed);
            }
        });
        for number in 0..FORKS {
            // Each in another moment of the other thread's.
            let until = maps.load(Relaxed) + u64::from(number % 3);
            while maps.load(Relaxed) < until {
                std::hint::spin_loop();
            }
            // SAFETY: the child calls nothing but this crate, whose promise it is to do so in a forked child, and the C library
            // and its allocator, which are made for it.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: a child that waits for a lock for ever ends by this.
                unsafe { libc::alarm(60) };
                let refused = |error: Error| error.kind() == ErrorKind::Rule && error.remedy().is_some();
                let mut right = ioas
                    .map(DmaBuffer::new(4096, Contiguity::Pages).unwrap())
                    .is_err_and(|failed| refused(failed.error));
                // SAFETY: refused.
                right &= unsafe { device.enable_bus_master() }.is_err_and(refused);
                right &= context.ioas().is_err_and(refused);
                right &= device.attach(&other).is_err_and(refused);
                right &= device.detach().is_err_and(refused);
                right &= device.config_write(0x3c, &[0]).is_err_and(refused);
                right &= device.quiesce().is_err_and(refused);
                right &= ioas.lookup(kept.iova(), 1).is_some();
                // What it has inherited it can drop; what the other thread had in hand is nobody's.
                // SAFETY: both are read once, and the originals never touched again: the child ends here.
                unsafe {
                    drop(std::ptr::read(&raw const kept));
                    drop(std::ptr::read(&raw const device));
                    drop(std::ptr::read(&raw const other));
                    libc::_exit(i32::from(!right));
                }
            }
            let mut status = -1;
            // SAFETY: waits for the child just made.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "fork {number}: the child was not refused, or hung");
        }
        stop.store(true, Relaxed);
        busy.join().unwrap();
    });
    assert_eq!((pinned(), kept.moved_pages()), (with, Ok(Some(0))));
    let mut bytes = vec![0; 64 << 10];
    kept.buffer().unwrap().read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0xa5));
    println!("{FORKS} forks while {} mappings came and went", maps.load(Relaxed));
}
