//! A storm of signals, whose handler lets no call be restarted, changes nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use noiommu::PinChoice;

use crate::alone::alone;
use crate::counts::Counts;
use crate::life::{can_pin, live};

static CAME: AtomicU64 = AtomicU64::new(0);

extern "C" fn handler(_: i32) {
    CAME.fetch_add(1, Relaxed);
}

#[test]
fn a_storm_of_signals_changes_nothing() {
    alone(concat!(module_path!(), "::a_storm_of_signals_changes_nothing"), || {
        if !can_pin(PinChoice::Best) {
            return;
        }
        for _ in 0..3 {
            live(PinChoice::Best).unwrap();
        }
        let before = Counts::now();
        // SAFETY: zeros are a valid action: no flags (SA_RESTART above all), nothing masked.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as extern "C" fn(i32) as usize;
        // SAFETY: the handler only adds to an atomic.
        assert_eq!(unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) }, 0);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let storm = scope.spawn(|| {
                while !stop.load(Relaxed) {
                    signal_all_others();
                }
            });
            // By the number of signals, not by time.
            let mut lives = 0;
            while lives < 60 || CAME.load(Relaxed) < 5000 {
                live(PinChoice::Best).unwrap();
                lives += 1;
            }
            stop.store(true, Relaxed);
            storm.join().unwrap();
            println!("{lives} lives under {} signals", CAME.load(Relaxed));
        });
        let after = Counts::settled(before.pinned);
        // The storm's thread has left its stack to the next one.
        assert_eq!(after.differs(&before, true), None);
    });
}

/// Sends one to every other thread of this process: the one that lives, and the device's.
fn signal_all_others() {
    // SAFETY: asks for numbers.
    let (process, own) = unsafe { (libc::getpid(), libc::gettid()) };
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let thread: i32 = task.file_name().to_str().unwrap().parse().unwrap();
        if thread != own {
            // SAFETY: a signal that has a handler; the thread may be gone by now, which is an error and nothing else.
            unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1) };
        }
    }
}
