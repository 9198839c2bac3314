//! Every system call of a life of the kit failing in turn, in every way that the kernel has for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

use libc::c_long;
use noiommu::PinChoice;

use crate::alone::{again, alone, both, ended_for_want_of_memory, tell, told};
use crate::counts::{self, Counts};
use crate::life::{self, Early, can_pin, live};
use crate::supervisor::{self, Failed, Fault, Plan};

use Fault::{Errno, Nothing};

/// The ways in which calls of the kit, and of what it is built on, can fail.
fn failures(nr: c_long, of_device: bool) -> &'static [Fault] {
    const NO_MEMORY: Fault = Errno(libc::ENOMEM);
    match nr {
        libc::SYS_openat => {
            &[Errno(libc::ENOENT), Errno(libc::EACCES), Errno(libc::EMFILE), Errno(libc::EINTR), NO_MEMORY]
        }
        libc::SYS_read | libc::SYS_pread64 => &[Errno(libc::EIO), Errno(libc::EINTR), Nothing],
        libc::SYS_write => &[Errno(libc::EIO), Errno(libc::EINTR)],
        libc::SYS_ioctl => &[Errno(libc::ENOTTY), Errno(libc::EFAULT), Errno(libc::EINTR), NO_MEMORY],
        libc::SYS_close => &[Errno(libc::EIO), Errno(libc::EINTR)],
        libc::SYS_process_vm_readv | libc::SYS_process_vm_writev => {
            &[Errno(libc::EFAULT), Errno(libc::EPERM)]
        }
        // What a thread does to begin and to end is the standard library's, which does not go on without: see the test of
        // allocations for what that means.
        _ if of_device => &[],
        libc::SYS_fstat | libc::SYS_newfstatat | libc::SYS_statx => &[Errno(libc::EACCES), NO_MEMORY],
        libc::SYS_fcntl => &[Errno(libc::EINVAL), Errno(libc::EMFILE)],
        libc::SYS_lseek => &[Errno(libc::EINVAL)],
        libc::SYS_mmap => &[NO_MEMORY, Errno(libc::EAGAIN), Errno(libc::EPERM)],
        libc::SYS_munmap | libc::SYS_mprotect | libc::SYS_brk | libc::SYS_mremap => &[NO_MEMORY],
        libc::SYS_madvise => {
            &[NO_MEMORY, Errno(libc::EINVAL), Errno(libc::EAGAIN), Errno(libc::EFAULT), Errno(libc::EINTR)]
        }
        libc::SYS_io_uring_setup => {
            &[NO_MEMORY, Errno(libc::EPERM), Errno(libc::ENOSYS), Errno(libc::EMFILE)]
        }
        libc::SYS_io_uring_register => &[
            NO_MEMORY,
            Errno(libc::EFAULT),
            Errno(libc::EINVAL),
            Errno(libc::EBUSY),
            Errno(libc::EOPNOTSUPP),
            Errno(libc::EINTR),
        ],
        libc::SYS_socket => &[Errno(libc::EMFILE), Errno(libc::EPERM), Errno(libc::EAFNOSUPPORT)],
        libc::SYS_setsockopt => &[Errno(libc::ENOBUFS), NO_MEMORY, Errno(libc::EFAULT), Errno(libc::EBUSY)],
        libc::SYS_eventfd2 | libc::SYS_memfd_create => &[Errno(libc::EMFILE), NO_MEMORY],
        libc::SYS_ftruncate => &[Errno(libc::EINVAL), Errno(libc::EINTR)],
        libc::SYS_clone3 | libc::SYS_clone => &[Errno(libc::EAGAIN), NO_MEMORY],
        libc::SYS_poll | libc::SYS_ppoll => &[NO_MEMORY, Errno(libc::EINTR)],
        libc::SYS_getrandom => &[Errno(libc::EINTR), Errno(libc::ENOSYS)],
        libc::SYS_capget => &[Errno(libc::EPERM)],
        libc::SYS_prctl => &[Errno(libc::EINVAL)],
        _ => &[],
    }
}

/// The calls that a signal can end early, which then have done nothing.
fn interruptions(nr: c_long, _: bool) -> &'static [Fault] {
    match nr {
        libc::SYS_openat
        | libc::SYS_read
        | libc::SYS_pread64
        | libc::SYS_write
        | libc::SYS_ioctl
        | libc::SYS_close
        | libc::SYS_madvise
        | libc::SYS_io_uring_register
        | libc::SYS_poll
        | libc::SYS_ppoll
        | libc::SYS_getrandom => &[Errno(libc::EINTR)],
        _ => &[],
    }
}

/// Calls that cannot fail, or whose failure is nobody's to notice: they ask for a number, yield, or wait for another thread.
const HARMLESS: &[c_long] = &[
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_uname,
    libc::SYS_clock_nanosleep,
    libc::SYS_prlimit64,
];

#[test]
fn every_call_fails_in_turn() {
    const NAME: &str = concat!(module_path!(), "::every_call_fails_in_turn");
    in_turn(NAME, PinChoice::Best, failures, check);
}

#[test]
fn every_call_fails_in_turn_where_sockets_pin() {
    const NAME: &str = concat!(module_path!(), "::every_call_fails_in_turn_where_sockets_pin");
    in_turn(NAME, PinChoice::AfXdp, failures, check);
}

/// The first life of a process makes calls of its own, and nothing has been kept for it: each in a process of its own.
#[test]
fn every_call_of_a_first_life_fails() {
    const NAME: &str = concat!(module_path!(), "::every_call_of_a_first_life_fails");
    if let Some(call) = told() {
        return alone(NAME, || first_life_failing(call.parse().unwrap()));
    }
    if !can_pin(PinChoice::Best) {
        return;
    }
    let mut ended = 0;
    for call in 0.. {
        let output = again(NAME, &call.to_string()).output().unwrap();
        let said = both(&output);
        if said.contains("not reached") {
            println!(
                "{call} calls of a first life; {ended} times the standard library ended the process for want of memory"
            );
            assert!(call > 50, "only {call} calls");
            return;
        }
        if !output.status.success() {
            assert!(ended_for_want_of_memory(&output), "{call}, {}: {said}", output.status);
            ended += 1;
        }
    }
}

fn first_life_failing(call: u64) {
    supervisor::supervise(failures);
    let before = counts::pinned();
    supervisor::arm(call, 0, false);
    let result = live(PinChoice::Best);
    match supervisor::disarm() {
        None => {
            result.unwrap();
            println!("\nnot reached");
        }
        Some(failed) => {
            check(&result);
            assert_eq!(Counts::settled(before).pinned, before, "{failed:?}, answered by {result:?}");
            live(PinChoice::Best).unwrap_or_else(|early| panic!("after {failed:?}: {early:?}"));
        }
    }
}

#[test]
fn a_signal_in_any_call_changes_nothing() {
    const NAME: &str = concat!(module_path!(), "::a_signal_in_any_call_changes_nothing");
    in_turn(NAME, PinChoice::Best, interruptions, |result| {
        assert!(result.is_ok(), "{result:?}");
    });
}

/// An answer that is one; whatever else is to hold has been seen by the life itself.
fn check(result: &Result<(), Early>) {
    match result {
        Ok(()) | Err(Early::Own(_)) => {}
        Err(Early::Kit(error)) => life::check(error),
    }
}

/// Has a process of its own live with the first call failing, the second one, and so on; where the standard library ended it for
/// want of memory, another goes on from there.
fn in_turn(name: &str, choice: PinChoice, plan: Plan, check: fn(&Result<(), Early>)) {
    if let Some(place) = told() {
        alone(name, || fail_in_turn(&place, choice, plan, check));
        return;
    }
    let place = format!("noiommu-{}-{}", name.replace("::", "-"), std::process::id());
    let place = std::env::temp_dir().join(place);
    let progress = File::options().read(true).write(true).create(true).truncate(true).open(&place).unwrap();
    let (mut next, mut ended) = (Progress::default(), 0);
    let output = loop {
        next.put(&progress);
        let output = again(name, place.to_str().unwrap()).output().unwrap();
        if output.status.success() {
            break output;
        }
        let at = Progress::get(&progress);
        assert!(ended_for_want_of_memory(&output), "{}, {at:?}\n{}", output.status, both(&output));
        ended += 1;
        next = Progress { variant: at.variant + 1, ..at };
    };
    std::fs::remove_file(&place).unwrap();
    tell(&output);
    if ended > 0 {
        println!("{ended} times the standard library ended the process for want of memory");
    }
}

/// How far a process has come: kept in a file, as it may end at any time.
#[derive(Clone, Copy, Default, Debug)]
struct Progress {
    /// Whose calls fail: those of the thread that lives, then those of the device.
    of_device: bool,
    call: u64,
    variant: u32,
}

impl Progress {
    fn get(file: &File) -> Self {
        let mut bytes = [0; 13];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let (call, rest) = bytes.split_first_chunk().unwrap();
        let (variant, of_device) = rest.split_first_chunk().unwrap();
        Self {
            of_device: of_device[0] != 0,
            call: u64::from_ne_bytes(*call),
            variant: u32::from_ne_bytes(*variant),
        }
    }

    fn put(&self, file: &File) {
        let mut bytes = self.call.to_ne_bytes().to_vec();
        bytes.extend(self.variant.to_ne_bytes());
        bytes.push(self.of_device.into());
        file.write_all_at(&bytes, 0).unwrap();
    }
}

/// The same in this process, from where the one before has come to.
fn fail_in_turn(place: &str, choice: PinChoice, plan: Plan, check: fn(&Result<(), Early>)) {
    if !can_pin(choice) {
        return;
    }
    let progress = File::options().read(true).write(true).open(place).unwrap();
    let mut at = Progress::get(&progress);
    supervisor::supervise(plan);
    for _ in 0..3 {
        live(choice).unwrap();
    }
    let mut before = Counts::now();
    let mut failed = BTreeMap::<c_long, u32>::new();
    let mut calls = [0; 2];
    loop {
        at.put(&progress);
        supervisor::arm(at.call, at.variant, at.of_device);
        let result = live(choice);
        let call = supervisor::disarm();
        let Some(call) = call else {
            result.unwrap();
            calls[usize::from(at.of_device)] = at.call;
            // All ways of one call have been gone, or all calls.
            match (supervisor::count() > at.call, at.of_device) {
                (true, _) => (at.call, at.variant) = (at.call + 1, 0),
                (false, false) => at = Progress { of_device: true, call: 0, variant: 0 },
                (false, true) => break,
            }
            continue;
        };
        *failed.entry(call.nr).or_default() += 1;
        check(&result);
        let now = Counts::settled(before.pinned);
        if let Some(difference) = now.differs(&before, leaves_a_mapping(call)) {
            panic!("{at:?}, {call:?}, answered by {result:?}: {difference}");
        }
        live(choice).unwrap_or_else(|early| panic!("after {call:?}: {early:?}"));
        if leaves_a_mapping(call) {
            before = Counts::now();
        }
        at.variant += 1;
    }
    println!(
        "{} calls and {} of the device, failed in {} ways: {failed:?}",
        calls[0],
        calls[1],
        failed.values().sum::<u32>()
    );
    // Every kind of call is either made to fail, or known to be harmless.
    let spared: BTreeSet<_> = supervisor::spared().into_iter().filter(|nr| !HARMLESS.contains(nr)).collect();
    let forgotten: Vec<_> = spared.into_iter().filter(|nr| failures(*nr, false).is_empty()).collect();
    assert!(forgotten.is_empty(), "calls that nobody has thought of: {forgotten:?}");
    assert!(calls[0] > 20 && calls[1] > 5, "only {calls:?} calls");
}

/// Whether memory stays mapped after such a failure, as nobody can unmap it then; or the heap has grown elsewhere.
fn leaves_a_mapping(call: Failed) -> bool {
    matches!(call.nr, libc::SYS_munmap | libc::SYS_brk)
}
