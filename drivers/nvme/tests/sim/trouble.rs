//! Controllers that fail, are late, or go: every command is answered, no memory is lost, and what can go on does.

use crate::common::{Machine, drain, impatient, settings};
use noiommu::Context;
use noiommu::sim::Pace;
use noiommu_nvme::sim::{self, Fault};
use noiommu_nvme::{ErrorKind, Failure, Stopped, Violation};

/// Five reads on one queue, of which the third meets with `fault`, and one on another queue; what became of them.
fn meet(fault: Fault) -> (Machine, Vec<Result<(), Failure>>, Result<(), Failure>) {
    let machine = Machine::new(sim::Controller::new(1000, 512), Pace::AtOnce, &impatient());
    let namespace = machine.controller.namespace(1).unwrap();
    let region = machine.controller.region(8192).unwrap();
    let (mut queue, mut other) = (machine.controller.queue().unwrap(), machine.controller.queue().unwrap());
    // One that the controller keeps to itself, on the other queue, and can be aborted: so it ends by itself.
    machine.slot.act(|model, _| {
        model.inject([Fault::Silence, Fault::None, Fault::None, fault]);
    });
    other.submit_read(&namespace, 9, 1, &region, 4096).unwrap();
    other.ring().unwrap();
    let tokens: Vec<_> = (0..5)
        .map(|block| queue.submit_read(&namespace, block, 1, &region, block as usize * 512).unwrap())
        .collect();
    queue.ring().unwrap();
    // What is outstanding has a share of its memory.
    let region = region.into_buffer().unwrap_err();
    let done = drain(&mut queue);
    assert_eq!(done.len(), 5);
    let outcomes = tokens.iter().map(|token| {
        let mut of = done.iter().filter(|completion| completion.token == *token);
        let outcome = of.next().unwrap().outcome;
        assert!(of.next().is_none(), "answered twice");
        outcome
    });
    let outcomes: Vec<_> = outcomes.collect();
    let elsewhere = drain(&mut other)[0].outcome;
    // It goes on, after a recovery where there was a reset.
    for queue in [&mut queue, &mut other] {
        queue.write(&namespace, 77, 2, &region, 0).unwrap();
        assert!(!queue.is_lost());
    }
    drop((queue, other));
    region.into_buffer().unwrap().unwrap();
    machine.assert_clean();
    (machine, outcomes, elsewhere)
}

#[test]
fn an_error_is_one_command_s() {
    let (machine, outcomes, elsewhere) = meet(Fault::Status(2, 0x81));
    let failed: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.err()).collect();
    let [Failure::Status(status)] = failed[..] else { panic!("{outcomes:?}") };
    assert_eq!((status.code_type(), status.code(), status.text()), (2, 0x81, "unrecovered read error"));
    assert_eq!(outcomes[2], Err(failed[0]), "the third");
    assert_eq!(elsewhere, Err(Failure::TimedOut), "aborted");
    assert_eq!(machine.slot.act(|model, _| model.resets()), 0);
}

#[test]
fn a_late_command_is_aborted_and_nothing_else() {
    let (machine, outcomes, elsewhere) = meet(Fault::Silence);
    assert_eq!(outcomes, [Ok(()), Ok(()), Err(Failure::TimedOut), Ok(()), Ok(())]);
    assert_eq!(elsewhere, Err(Failure::TimedOut));
    assert_eq!(machine.slot.act(|model, _| model.resets()), 0);
}

#[test]
fn a_command_that_cannot_be_aborted_resets_the_controller() {
    let (machine, outcomes, elsewhere) = meet(Fault::Deaf);
    assert_eq!(outcomes, [Ok(()), Ok(()), Err(Failure::TimedOut), Ok(()), Ok(())]);
    assert_eq!(elsewhere, Err(Failure::Reset), "not its own fault");
    assert_eq!(machine.slot.act(|model, _| model.resets()), 1);
}

#[test]
fn a_late_command_is_found_though_others_come_all_the_time() {
    let machine = Machine::new(sim::Controller::new(1000, 512), Pace::AtOnce, &impatient());
    let namespace = machine.controller.namespace(1).unwrap();
    let region = machine.controller.region(4096).unwrap();
    let mut queue = machine.controller.queue().unwrap();
    machine.slot.act(|model, _| model.inject([Fault::Silence]));
    let late = queue.submit_read(&namespace, 0, 1, &region, 0).unwrap();
    let mut done = Vec::new();
    let outcome = loop {
        queue.submit_read(&namespace, 1, 1, &region, 0).unwrap();
        queue.ring().unwrap();
        assert!(queue.poll(&mut done) > 0, "there is always something");
        if let Some(found) = done.drain(..).find(|completion| completion.token == late) {
            break found.outcome;
        }
    };
    assert_eq!(outcome, Err(Failure::TimedOut));
    machine.assert_clean();
}

#[test]
fn a_controller_that_fails_or_stands_still_is_reset() {
    for fault in [Fault::Fatal, Fault::Stall] {
        let (machine, outcomes, elsewhere) = meet(fault);
        assert_eq!(outcomes[..2], [Ok(()), Ok(())], "what it had done before");
        let mut ended: Vec<_> = outcomes[2..].iter().map(|outcome| outcome.unwrap_err()).collect();
        ended.sort_by_key(|failure| *failure != Failure::TimedOut);
        assert_eq!(ended, [Failure::TimedOut, Failure::Reset, Failure::Reset], "{fault:?}");
        assert_eq!(elsewhere, Err(Failure::Reset));
        assert_eq!(machine.slot.act(|model, _| model.resets()), 1);
    }
}

#[test]
fn a_controller_that_breaks_the_protocol_is_reset() {
    for (fault, violations) in [
        (Fault::WrongIdentifier(0x8000), 3),
        (Fault::WrongIdentifier(0x003f), 3),
        (Fault::WrongQueue(2), 3),
        (Fault::WrongQueue(0), 3),
        (Fault::WrongQueue(0xffff), 3),
        (Fault::WrongHead(0), 3),
        (Fault::WrongHead(0xffff), 3),
        (Fault::Twice, 2),
    ] {
        let (machine, outcomes, elsewhere) = meet(fault);
        let done = 5 - violations;
        assert!(outcomes[..done].iter().all(Result::is_ok), "{fault:?}: {outcomes:?}");
        for outcome in &outcomes[done..] {
            let Err(Failure::Violation(violation)) = outcome else { panic!("{fault:?}: {outcomes:?}") };
            let fits = match fault {
                Fault::WrongQueue(queue) => *violation == Violation::WrongQueue { queue },
                Fault::WrongHead(_) => matches!(violation, Violation::HeadOutOfRange { head } if *head >= 64),
                _ => matches!(violation, Violation::UnknownCommand { .. }),
            };
            assert!(fits, "{fault:?}: {violation}");
        }
        assert_eq!(elsewhere, Err(Failure::Reset));
        assert_eq!(machine.slot.act(|model, _| model.resets()), 1, "{fault:?}");
    }
}

#[test]
fn a_controller_that_does_not_stop_is_reset_by_its_device() {
    let machine = Machine::new(sim::Controller::new(1000, 512), Pace::AtOnce, &impatient());
    let namespace = machine.controller.namespace(1).unwrap();
    let region = machine.controller.region(4096).unwrap();
    let mut queue = machine.controller.queue().unwrap();
    machine.slot.act(|model, _| model.inject([Fault::Stuck]));
    queue.submit_read(&namespace, 0, 1, &region, 0).unwrap();
    queue.ring().unwrap();
    assert_eq!(drain(&mut queue)[0].outcome, Err(Failure::TimedOut));
    // The device is quiet, so the memory is nobody else's.
    let region =
        region.into_buffer().unwrap().map(|buffer| machine.controller.region_of(buffer).unwrap()).unwrap();
    let mut done = Vec::new();
    assert_eq!(queue.recover(&mut done).unwrap_err().failure(), Some(Failure::Dead));
    assert_eq!(queue.submit_flush(&namespace).unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(machine.controller.namespace(1).unwrap_err().failure(), Some(Failure::Dead));
    // Bus mastering is off, and that is for the caller to say.
    let error = machine.controller.reset().unwrap_err();
    assert!(error.remedy().unwrap().contains("enable_bus_master"), "{error}");
    // SAFETY: nobody else writes to the device.
    unsafe { machine.controller.device().enable_bus_master().unwrap() };
    machine.controller.reset().unwrap();
    queue.read(&namespace, 0, 1, &region, 0).unwrap();
    machine.assert_clean();
}

#[test]
fn what_cannot_be_stopped_keeps_its_memory() {
    let machine = Machine::new(sim::Controller::new(1000, 512).without_reset(), Pace::AtOnce, &impatient());
    let namespace = machine.controller.namespace(1).unwrap();
    let region = machine.controller.region(4096).unwrap();
    let mut queue = machine.controller.queue().unwrap();
    machine.slot.act(|model, _| model.inject([Fault::Stuck]));
    queue.submit_read(&namespace, 0, 1, &region, 0).unwrap();
    queue.ring().unwrap();
    assert_eq!(drain(&mut queue)[0].outcome, Err(Failure::TimedOut));
    let region = region.into_buffer().unwrap_err();
    drop(queue);
    let region = region.into_buffer().unwrap_err();
    assert_eq!(machine.controller.queue().unwrap_err().failure(), Some(Failure::Dead));
    assert_eq!(machine.controller.close().unwrap_err().kind(), ErrorKind::Kit(noiommu::ErrorKind::NotQuiet));
    // Not even now.
    region.into_buffer().unwrap_err();
    assert_eq!(machine.context.sanitizer().unwrap().reports(), []);
}

#[test]
fn a_device_that_is_pulled_out() {
    let machine = Machine::new(sim::Controller::new(1000, 512), Pace::AtOnce, &impatient());
    let namespace = machine.controller.namespace(1).unwrap();
    let region = machine.controller.region(4096).unwrap();
    let mut queue = machine.controller.queue().unwrap();
    machine.slot.act(|model, _| model.inject([Fault::Silence, Fault::Silence]));
    let [first, second] = [0, 1].map(|block| queue.submit_read(&namespace, block, 1, &region, 0).unwrap());
    queue.ring().unwrap();
    machine.slot.unplug();
    let done = drain(&mut queue);
    let of = |token| done.iter().find(|completion| completion.token == token).unwrap().outcome;
    let mut outcomes = [of(first), of(second)];
    outcomes.sort_by_key(|outcome| *outcome != Err(Failure::TimedOut));
    assert_eq!(outcomes, [Err(Failure::TimedOut), Err(Failure::Gone)]);
    region.into_buffer().unwrap().unwrap();
    assert!(queue.recover(&mut Vec::new()).is_err());
    drop(queue);
    assert_eq!(machine.controller.queue().unwrap_err().failure(), Some(Failure::Gone));
    machine.controller.close().unwrap();
    assert_eq!(machine.ioas.quarantined(), 0);
}

#[test]
fn a_reset_on_request_ends_all() {
    let machine = Machine::new(sim::Controller::new(1000, 512), Pace::AtOnce, &settings());
    let namespace = machine.controller.namespace(1).unwrap();
    let region = machine.controller.region(4096).unwrap();
    let mut queue = machine.controller.queue().unwrap();
    machine.slot.act(|model, _| model.inject([Fault::None, Fault::Deaf]));
    let tokens = [0, 1].map(|block| queue.submit_read(&namespace, block, 1, &region, 0).unwrap());
    queue.ring().unwrap();
    machine.controller.reset().unwrap();
    assert!(queue.is_lost());
    // What was completed before is told as such; what is submitted now is not for the controller of today.
    let late = queue.submit_read(&namespace, 2, 1, &region, 0).unwrap();
    queue.ring().unwrap();
    let mut done = Vec::new();
    queue.recover(&mut done).unwrap();
    let of = |token| done.iter().find(|completion| completion.token == token).unwrap().outcome;
    assert_eq!(tokens.map(of), [Ok(()), Err(Failure::Reset)]);
    assert_eq!((of(late), done.len()), (Err(Failure::Reset), 3));
    queue.read(&namespace, 0, 1, &region, 0).unwrap();
    machine.assert_clean();
}

#[test]
fn a_queue_that_is_dropped_takes_its_commands_along() {
    let machine = Machine::new(sim::Controller::new(1000, 512), Pace::AtOnce, &settings());
    let namespace = machine.controller.namespace(1).unwrap();
    let region = machine.controller.region(4096).unwrap();
    for _ in 0..20 {
        let mut queue = machine.controller.queue().unwrap();
        machine.slot.act(|model, _| model.inject([Fault::Deaf, Fault::Silence]));
        for block in 0..5 {
            queue.submit_read(&namespace, block, 1, &region, 0).unwrap();
        }
        queue.ring().unwrap();
        assert_eq!(queue.number(), 1);
    }
    region.into_buffer().unwrap().unwrap();
    assert_eq!(machine.slot.act(|model, _| model.resets()), 0);
    machine.assert_clean();
}

#[test]
fn blocking_calls_leave_others_commands_alone_and_tell_the_first_failure() {
    let machine = Machine::new(sim::Controller::new(1000, 512), Pace::AtOnce, &settings());
    let namespace = machine.controller.namespace(1).unwrap();
    let region = machine.controller.region(256 << 10).unwrap();
    let mut queue = machine.controller.queue().unwrap();
    queue.submit_flush(&namespace).unwrap();
    assert_eq!(queue.read(&namespace, 0, 1, &region, 0).unwrap_err().kind(), ErrorKind::Busy);
    queue.ring().unwrap();
    assert!(drain(&mut queue)[0].outcome.is_ok());
    machine.slot.act(|model, _| model.inject([Fault::Status(2, 0x80)]));
    let error = queue.write(&namespace, 0, 500, &region, 0).unwrap_err();
    assert!(
        matches!(error.failure(), Some(Failure::Status(status)) if status.text() == "write fault"),
        "{error}"
    );
    assert_eq!(queue.outstanding(), 0);
    queue.write(&namespace, 0, 500, &region, 0).unwrap();
}

#[test]
fn no_start_without_the_promise_or_with_another_device() {
    let context = Context::simulated();
    let ioas = context.ioas().unwrap();
    let slot = context.sim_device_at(sim::Controller::new(8, 512), Pace::AtOnce).unwrap();
    let stopped = Stopped::new(slot.open().unwrap(), &ioas).unwrap();
    let error = stopped.start(&settings()).unwrap_err();
    assert!(error.remedy().unwrap().contains("enable_bus_master"), "{error}");
    let error = Stopped::new(context.sim_edu().unwrap(), &ioas).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Kit(noiommu::ErrorKind::NoDevice));
    assert_eq!(context.sanitizer().unwrap().reports(), []);
}
