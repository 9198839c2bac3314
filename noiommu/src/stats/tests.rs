//! What this process and others have, told and read by the same code as anywhere.

use super::*;
use crate::{Context, Contiguity, DmaBuffer};

const PAGE: usize = 4096;

/// The tests of this program run beside this one, and have contexts of their own: these are told apart by what they map.
fn contexts_with(stats: &ProcessStats, areas: u64, bytes: u64) -> usize {
    stats.contexts.iter().filter(|it| (it.areas, it.bytes) == (areas, bytes)).count()
}

/// What the machine's list says of a process.
fn listed(process: u32) -> Option<ProcessStats> {
    processes().unwrap().processes.into_iter().find(|it| it.process == process)
}

#[test]
fn a_context_is_told_of_as_long_as_it_is_there() {
    let context = Context::simulated();
    let ioas = context.ioas().unwrap();
    let device = context.sim_edu().unwrap();
    // No other test maps so much in so many areas.
    let mappings: Vec<_> = (0..7)
        .map(|n| ioas.map(DmaBuffer::new((17 + n) * PAGE, Contiguity::Pages).unwrap()).unwrap())
        .collect();
    let bytes = (7 * 17 + 21) * PAGE as u64;
    let stats = own();
    assert_eq!(contexts_with(&stats, 7, bytes), 1, "{stats:?}");
    let ours = stats.contexts.iter().find(|it| (it.areas, it.bytes) == (7, bytes)).unwrap();
    assert_eq!((ours.kind, ours.ioases), (ContextKind::Simulated, 1));
    assert_eq!(ours.table_frames, ioas.usage().table_frames);
    assert!(stats.devices >= 1 && stats.maps >= 7 && stats.areas() >= 7 && stats.bytes() >= bytes);
    assert!(stats.table_frames() >= ours.table_frames && !stats.name.is_empty());
    // Others see the same.
    let seen = listed(std::process::id()).expect("this process may look at itself");
    assert_eq!(contexts_with(&seen, 7, bytes), 1, "{seen:?}");
    drop(mappings);
    let stats = own();
    assert_eq!(contexts_with(&stats, 7, bytes), 0, "{stats:?}");
    assert!(stats.unmaps >= 7);
    drop((device, ioas, context));
}

#[test]
fn pins_are_counted_while_they_are_held() {
    let Ok(context) = Context::with_pins(crate::PinChoice::Best) else {
        eprintln!("not run: no memory can be pinned here");
        return;
    };
    let ioas = context.ioas().unwrap();
    const BYTES: u64 = 97 * 4096;
    let mapping = ioas.map(DmaBuffer::new(BYTES as usize, Contiguity::Pages).unwrap()).unwrap();
    let stats = own();
    assert_eq!(contexts_with(&stats, 1, BYTES), 1, "{stats:?}");
    assert!(stats.pin_slots >= 1 && stats.pin_bytes >= BYTES, "{stats:?}");
    if ioas.pin_kind() == Ok(crate::PinKind::IoUring) {
        assert!(stats.charged >= Some(BYTES), "{stats:?}");
    }
    drop(mapping);
    assert_eq!(contexts_with(&own(), 1, BYTES), 0);
}

/// A forked child tells nothing of its parent's, and what it has itself where it has something.
#[test]
fn a_child_tells_of_itself() {
    let context = Context::simulated();
    let ioas = context.ioas().unwrap();
    let _mapping = ioas.map(DmaBuffer::new(53 * PAGE, Contiguity::Pages).unwrap()).unwrap();
    let (mut tell, mut wait) = ([0; 2], [0; 2]);
    // SAFETY: places for two numbers each.
    unsafe {
        assert_eq!(libc::pipe(tell.as_mut_ptr()), 0);
        assert_eq!(libc::pipe(wait.as_mut_ptr()), 0);
    }
    let step = |from: i32| {
        let mut byte = [0u8];
        // SAFETY: one byte, which is here.
        assert_eq!(unsafe { libc::read(from, byte.as_mut_ptr().cast(), 1) }, 1);
    };
    let go = |to: i32| {
        // SAFETY: one byte, which is here.
        assert_eq!(unsafe { libc::write(to, [1u8].as_ptr().cast(), 1) }, 1);
    };
    // SAFETY: the child makes an engine of its own, which is simulated, and ends without the harness.
    let child = unsafe { libc::fork() };
    if child == 0 {
        go(tell[1]);
        step(wait[0]);
        let context = Context::simulated();
        let ioas = context.ioas().unwrap();
        let mapping = ioas.map(DmaBuffer::new(59 * PAGE, Contiguity::Pages).unwrap());
        go(tell[1]);
        step(wait[0]);
        drop(mapping);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) };
    }
    step(tell[0]);
    assert_eq!(listed(child.cast_unsigned()), None, "it has nothing of its own");
    go(wait[1]);
    step(tell[0]);
    let seen = listed(child.cast_unsigned()).expect("it has mapped something");
    assert_eq!((seen.contexts.len(), seen.areas(), seen.bytes()), (1, 1, 59 * PAGE as u64), "{seen:?}");
    assert_eq!(contexts_with(&own(), 1, 53 * PAGE as u64), 1, "its parent's are its parent's");
    go(wait[1]);
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child);
    assert_eq!(listed(child.cast_unsigned()), None, "it has ended");
}
