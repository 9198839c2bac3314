//! Every call of a scenario failing in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use libc::c_long;

use crate::alone::{again, alone, both, ended_for_want_of_memory, tell, told};
use crate::calls::{HARMLESS, failures};
use crate::counts::Counts;
use crate::life::Early;
use crate::supervisor::{self, Failed, Plan};

/// What is done with calls failing.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    /// How calls fail.
    pub(crate) plan: Plan,
    /// Makes it ready, in the process that it is done in; says why where it cannot be done here.
    pub(crate) ready: fn() -> bool,
    /// Does it.
    pub(crate) run: fn() -> Result<(), Early>,
    /// Whether that is an answer; whatever else is to hold has been seen by the scenario itself.
    pub(crate) check: fn(&Result<(), Early>),
}

/// Has a process of its own go through a scenario with the first call failing, the second one, and so on; where the standard library ended it for
/// want of memory, another goes on from there.
pub(crate) fn in_turn(name: &str, scenario: Scenario) {
    if let Some(place) = told() {
        alone(name, || fail_in_turn(&place, scenario));
        return;
    }
    let place = format!("noiommu-{}-{}", name.replace("::", "-"), std::process::id());
    let place = std::env::temp_dir().join(place);
    let _gone = Gone(&place);
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
    tell(&output);
    if ended > 0 {
        println!("{ended} times the standard library ended the process for want of memory");
    }
}

/// A file that is removed with this.
struct Gone<'a>(&'a Path);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}

/// How far a process has come: kept in a file, as it may end at any time.
#[derive(Clone, Copy, Default, Debug)]
struct Progress {
    /// Whose calls fail: those of the first thread, then those of the device.
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
fn fail_in_turn(place: &str, Scenario { plan, ready, run, check }: Scenario) {
    if !ready() {
        return;
    }
    let progress = File::options().read(true).write(true).open(place).unwrap();
    let mut at = Progress::get(&progress);
    supervisor::supervise(plan);
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}\nafter {:?}, number {}", supervisor::disarm(), supervisor::count());
    }));
    for _ in 0..3 {
        run().unwrap();
    }
    let mut before = Counts::now();
    let mut failed = BTreeMap::<c_long, u32>::new();
    let (mut calls, mut fine) = ([0; 2], 0);
    loop {
        at.put(&progress);
        supervisor::arm(at.call, at.variant, at.of_device);
        let result = run();
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
        fine += u32::from(result.is_ok());
        let now = Counts::settled(before.pinned);
        if let Some(difference) = now.differs(&before, leaves_a_mapping(call)) {
            panic!("{at:?}, {call:?}, answered by {result:?}: {difference}");
        }
        run().unwrap_or_else(|early| panic!("after {call:?}: {early:?}"));
        if leaves_a_mapping(call) {
            before = Counts::now();
        }
        at.variant += 1;
    }
    println!(
        "{} calls and {} of the device, failed in {} ways, {fine} of which did no harm; by number: {failed:?}",
        calls[0],
        calls[1],
        failed.values().sum::<u32>()
    );
    // Every kind of call is either made to fail, or known to be harmless.
    let spared: BTreeSet<_> = supervisor::spared().into_iter().filter(|nr| !HARMLESS.contains(nr)).collect();
    let forgotten: Vec<_> = spared.into_iter().filter(|nr| failures(*nr, false).is_empty()).collect();
    assert!(forgotten.is_empty(), "calls that nobody has thought of: {forgotten:?}");
    assert!(calls[0] > 20, "only {calls:?} calls");
}

/// Whether memory stays mapped after such a failure, as nobody can unmap it then; or the heap has grown elsewhere.
fn leaves_a_mapping(call: Failed) -> bool {
    matches!(call.nr, libc::SYS_munmap | libc::SYS_brk)
}
