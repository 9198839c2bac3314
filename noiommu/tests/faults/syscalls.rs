//! Every system call of a life of the kit failing in turn, in every way that the kernel has for it.

use noiommu::PinChoice;

use crate::alone::{again, alone, both, ended_for_want_of_memory, told};
use crate::calls::{failures, interruptions};
use crate::counts::{self, Counts};
use crate::life::{self, Early, can_pin, live};
use crate::supervisor;
use crate::turns::{Scenario, in_turn};

#[test]
fn every_call_fails_in_turn() {
    const NAME: &str = concat!(module_path!(), "::every_call_fails_in_turn");
    in_turn(
        NAME,
        Scenario { plan: failures, ready: || can_pin(PinChoice::Best), run: || live(PinChoice::Best), check },
    );
}

#[test]
fn every_call_fails_in_turn_where_sockets_pin() {
    const NAME: &str = concat!(module_path!(), "::every_call_fails_in_turn_where_sockets_pin");
    in_turn(
        NAME,
        Scenario {
            plan: failures,
            ready: || can_pin(PinChoice::AfXdp),
            run: || live(PinChoice::AfXdp),
            check,
        },
    );
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
    let check = |result: &_| assert!(matches!(result, Ok(())), "{result:?}");
    let (ready, run) = (|| can_pin(PinChoice::Best), || live(PinChoice::Best));
    in_turn(NAME, Scenario { plan: interruptions, ready, run, check });
}

/// An answer that is one; whatever else is to hold has been seen by the life itself.
pub(crate) fn check(result: &Result<(), Early>) {
    match result {
        Ok(()) | Err(Early::Own(_)) => {}
        Err(Early::Kit(error)) => life::check(error),
    }
}
