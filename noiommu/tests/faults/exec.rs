//! Executing another program closes the rings, and with them go the pins.

use std::os::unix::process::CommandExt;

use noiommu::{Context, Contiguity, DmaBuffer, PinChoice};
use rustix::process::Resource;

use crate::alone::{again, alone, told};
use crate::counts::pinned;
use crate::life::can_pin;
use crate::rights::{give_up_locking, limit, nobody_else};

/// Of these the program that executes pins most, and so does the one that is executed: both together are over the limit.
const LIMIT: u64 = 4 << 20;
const MOST: usize = 3 << 20;
/// What the executed program is told.
const EXECUTED: &str = "executed";
const NAME: &str = concat!(module_path!(), "::pins_end_with_the_program");

#[test]
fn pins_end_with_the_program() {
    alone(NAME, || {
        if told().as_deref() == Some(EXECUTED) {
            return pin_again();
        }
        if !can_pin(PinChoice::IoUring) || !give_up_locking(nobody_else()) {
            return;
        }
        limit(Resource::Memlock, Some(LIMIT));
        let context = Context::with_pins(PinChoice::IoUring).unwrap();
        let ioas = context.ioas().unwrap();
        let mapping = ioas.map(DmaBuffer::new(MOST, Contiguity::Pages).unwrap()).unwrap();
        assert_eq!(pinned(), MOST as u64 / 1024);
        // Counted for the user: no more can be had, by whichever process of his.
        assert!(ioas.map(DmaBuffer::new(MOST, Contiguity::Pages).unwrap()).is_err());
        let error = again(NAME, EXECUTED).exec();
        drop(mapping);
        panic!("{error}");
    });
}

/// In the executed program, which is the same user under the same limit.
fn pin_again() {
    assert_eq!(rustix::process::getrlimit(Resource::Memlock).current, Some(LIMIT));
    assert_eq!(pinned(), 0);
    let rings = std::fs::read_dir("/proc/self/fd").unwrap().flatten().filter(|entry| {
        std::fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().contains("io_uring"))
    });
    assert_eq!(rings.count(), 0, "a ring was inherited");
    // The kernel lets go some milliseconds after the close.
    let mut tries = 0;
    loop {
        let context = Context::with_pins(PinChoice::IoUring);
        let mapped = context.and_then(|context| {
            let ioas = context.ioas()?;
            Ok(ioas.map(DmaBuffer::new(MOST, Contiguity::Pages)?)?)
        });
        match mapped {
            Ok(_) => break,
            Err(error) => {
                tries += 1;
                assert!(tries < 2000, "the pins of the program before are still there: {error}");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
    println!("executed: as much can be pinned again");
}
