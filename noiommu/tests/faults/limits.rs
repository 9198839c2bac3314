//! The limits of a process: locked memory, descriptors, address space.

use noiommu::{Context, Contiguity, DmaBuffer, Errno, ErrorKind, Ioas, Mapping, PinChoice, PinKind};
use rustix::process::Resource;

use crate::alone::{again, alone, both, ended_for_want_of_memory, tell, told};
use crate::counts::{Counts, pinned, status};
use crate::life::{self, Early, can_pin, live};
use crate::rights::{give_up_locking, limit, nobody_else};
use crate::supervisor;

const PAGE: u64 = 4096;

fn map(ioas: &Ioas, pages: u64) -> Result<Mapping, noiommu::MapError> {
    ioas.map(DmaBuffer::new((pages * PAGE) as usize, Contiguity::Pages).unwrap())
}

#[test]
fn the_limit_on_locked_memory() {
    alone(concat!(module_path!(), "::the_limit_on_locked_memory"), || {
        if !can_pin(PinChoice::IoUring) {
            return;
        }
        for (choice, user) in
            [(PinChoice::IoUring, nobody_else()), (PinChoice::AfXdp, nobody_else() + (1 << 24))]
        {
            // The kernel counts for a user, and goes on to count what it has not let go of yet.
            if !give_up_locking(user) {
                return;
            }
            if can_pin(choice) {
                lock_up_to_the_limit(choice);
            }
        }
        // Not even a ring: told so, with what helps.
        limit(Resource::Memlock, Some(0));
        let error = Context::with_pins(PinChoice::IoUring).unwrap_err();
        assert_eq!((error.kind(), error.errno()), (ErrorKind::NoPinSource, Errno::ENOMEM));
        assert!(error.remedy().is_some_and(|remedy| remedy.contains("CAP_IPC_LOCK")), "{error}");
    });
}

fn lock_up_to_the_limit(choice: PinChoice) {
    const LIMIT: u64 = 100;
    limit(Resource::Memlock, Some(LIMIT * PAGE));
    let context = Context::with_pins(choice).unwrap();
    let ioas = context.ioas().unwrap();
    let before = Counts::now();
    let refused = |failed: noiommu::MapError| {
        let error = failed.error;
        assert_eq!((error.kind(), error.errno()), (ErrorKind::MemlockLimit, Errno::ENOMEM), "{error}");
        assert!(error.remedy().is_some());
    };
    let half = map(&ioas, LIMIT / 2).unwrap();
    let (areas, held) = (ioas.usage().areas, pinned());
    refused(map(&ioas, LIMIT).unwrap_err());
    assert_eq!((ioas.usage().areas, pinned()), (areas, held), "something is half done");
    drop(half);
    assert_eq!(ioas.usage().areas, 0);
    // Page by page, up to the limit but for what the ring itself takes; again and again. What is let go of is counted a
    // little longer, a socket's pages and a ring's.
    let fill = || -> Vec<Mapping> {
        std::iter::from_fn(|| match map(&ioas, 1) {
            Ok(mapping) => Some(mapping),
            Err(failed) => {
                refused(failed);
                None
            }
        })
        .collect()
    };
    let mut most = 0;
    for _ in 0..2 {
        let mut tries = 0;
        loop {
            let held = fill();
            assert_eq!(ioas.usage().areas, held.len());
            assert!(held.len() as u64 <= LIMIT, "{} pages of {LIMIT}", held.len());
            most = most.max(held.len());
            if held.len() as u64 > LIMIT - 5 {
                break;
            }
            tries += 1;
            assert!(tries < 2000, "{} pages of {LIMIT}", held.len());
            drop(held);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(ioas.usage().areas, 0);
    }
    let after = Counts::settled(before.pinned);
    assert_eq!((after.pinned, after.descriptors), (before.pinned, before.descriptors));
    println!("{}: {most} pages under a limit of {LIMIT}", context.pin_kind().map_or("", PinKind::name));
}

#[test]
fn the_limit_on_descriptors() {
    alone(concat!(module_path!(), "::the_limit_on_descriptors"), || {
        if !can_pin(PinChoice::Best) {
            return;
        }
        for _ in 0..3 {
            live(PinChoice::Best).unwrap();
        }
        let before = Counts::now();
        let mut refusals = 0;
        // A device that finds no descriptor to look for memory by finds no memory.
        supervisor::expect_disturbed_device();
        for more in 0.. {
            let had = limit(Resource::Nofile, Some(before.descriptors.len() as u64 + more));
            let result = live(PinChoice::Best);
            limit(Resource::Nofile, had);
            assert_eq!(Counts::settled(before.pinned).differs(&before, false), None, "{more}: {result:?}");
            match result {
                Ok(()) => break,
                Err(Early::Own(_)) => {}
                Err(Early::Kit(error)) => {
                    life::check(&error);
                    assert_eq!(error.errno(), Errno::EMFILE, "{error}");
                }
            }
            refusals += 1;
            live(PinChoice::Best).unwrap();
        }
        assert!(refusals > 3, "{refusals}");
        println!("a life takes {refusals} descriptors; with fewer it says so");
    });
}

/// MiB of address space more than the process has.
const ROOM: [u64; 10] = [0, 1, 3, 6, 12, 64, 72, 96, 160, 1024];

#[test]
fn the_limit_on_address_space() {
    const NAME: &str = concat!(module_path!(), "::the_limit_on_address_space");
    if let Some(room) = told() {
        return alone(NAME, || live_within(room.parse().unwrap()));
    }
    let (mut lived, mut refused, mut ended) = (0, 0, 0);
    for room in ROOM {
        let output = again(NAME, &room.to_string()).output().unwrap();
        let said = both(&output);
        match output.status.code() {
            Some(0) if said.contains("not run") => return tell(&output),
            Some(0) if said.contains("lived") => lived += 1,
            Some(0) => refused += 1,
            _ => {
                assert!(ended_for_want_of_memory(&output), "{room} MiB: {said}");
                ended += 1;
            }
        }
    }
    println!(
        "of {} limits: {lived} lives, {refused} errors, {ended} ends by the standard library",
        ROOM.len()
    );
    assert!(lived > 0 && refused > 0 && ended < 3, "{lived}, {refused}, {ended}");
}

fn live_within(room: u64) {
    if !can_pin(PinChoice::Best) {
        return;
    }
    let before = Counts::now();
    let now = status("VmSize:") * 1024;
    let had = limit(Resource::As, Some(now + (room << 20)));
    let result = live(PinChoice::Best);
    limit(Resource::As, had);
    match result {
        Ok(()) => println!("lived"),
        Err(Early::Own(_)) => {}
        Err(Early::Kit(error)) => {
            life::check(&error);
            assert!(matches!(error.errno(), Errno::ENOMEM | Errno::EAGAIN), "{error}");
        }
    }
    let after = Counts::settled(before.pinned);
    assert_eq!((after.pinned, &after.descriptors), (before.pinned, &before.descriptors));
    live(PinChoice::Best).unwrap();
}

/// Programs with hard deadlines lock all their memory, that to come included. What the engine reserves for its tables is to be no memory
/// then either: it would be all there at once.
#[test]
fn a_program_that_locks_all_its_memory() {
    alone(concat!(module_path!(), "::a_program_that_locks_all_its_memory"), || {
        use rustix::mm::{MlockAllFlags, mlockall, munlockall};

        if !can_pin(PinChoice::Best) || mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).is_err() {
            return;
        }
        let (before, locked) = (status("VmRSS:"), status("VmLck:"));
        let ioas = Context::with_pins(PinChoice::Best).and_then(|context| context.ioas()).unwrap();
        let mapping = map(&ioas, 3).unwrap();
        let (resident, more) = (status("VmRSS:") - before, status("VmLck:") - locked);
        assert!(resident < 16 << 10, "{resident} KiB of memory for three pages");
        assert_eq!(ioas.address(mapping.iova()), ioas.lookup(mapping.iova(), 1).map(|found| found.address));
        drop((mapping, ioas));
        munlockall().unwrap();
        println!("{resident} KiB of memory, {more} KiB of address space locked");
    });
}
