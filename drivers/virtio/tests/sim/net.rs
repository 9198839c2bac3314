//! Network cards.

use noiommu_virtio::sim::{Card, Fault};
use noiommu_virtio::{ErrorKind, FRAME, Net};

use crate::common::{Random, card};

fn receive(net: &mut Net) -> Option<Vec<u8>> {
    let mut frame = vec![0xee; FRAME + 100];
    let length = net.receive(&mut frame).unwrap()?;
    assert!(frame[length..].iter().all(|byte| *byte == 0xee), "no more than the frame");
    frame.truncate(length);
    Some(frame)
}

#[test]
fn frames_go_out_and_come_in() {
    let machine = card();
    let mut net = machine.net();
    assert_eq!(net.mac(), Card::MAC);
    let waiting = net.shared();
    let mut random = Random::new(1);
    // More than there are buffers of each kind.
    for _ in 0..40 {
        let frames: Vec<_> = (0..20)
            .map(|_| {
                let length = 1 + random.below(FRAME as u64) as usize;
                random.bytes(length)
            })
            .collect();
        for frame in &frames {
            assert!(net.send(frame).unwrap());
        }
        assert_eq!(net.sending().unwrap(), 0);
        assert!(machine.model(|model| std::mem::take(&mut model.kind.sent) == frames));
        machine.arrive(frames.clone());
        assert!(frames.iter().all(|frame| receive(&mut net).as_ref() == Some(frame)));
        assert_eq!(receive(&mut net), None);
    }
    assert_eq!(net.shared(), waiting, "what was shared was taken back");
    net.close().unwrap();
    machine.assert_clean();
}

#[test]
fn what_there_is_no_room_for_waits() {
    let machine = card();
    let mut net = machine.net();
    machine.slot.hang();
    let mut sent = 0;
    while net.send(&[sent as u8; 60]).unwrap() {
        sent += 1;
    }
    assert_eq!((sent, net.sending().unwrap()), (256, 256));
    machine.slot.resume();
    while machine.slot.step() {}
    assert_eq!(net.sending().unwrap(), 0);
    assert_eq!(machine.model(|model| model.kind.sent.len()), 256);
    // More than the card has memory for: it keeps the rest.
    machine.arrive((0..300).map(|number| vec![number as u8; 60]));
    for number in 0..300 {
        if number == 256 {
            machine.arrive([]);
        }
        assert_eq!(receive(&mut net), Some(vec![number as u8; 60]));
    }
    drop(net);
    machine.assert_clean();
}

#[test]
fn arguments_are_looked_at() {
    let machine = card();
    let mut net = machine.net();
    assert_eq!(net.receive(&mut [0; FRAME - 1]).unwrap_err().kind(), ErrorKind::Argument);
    for length in [0, FRAME + 1] {
        assert_eq!(net.send(&vec![0; length]).unwrap_err().kind(), ErrorKind::Argument);
    }
    assert!(net.send(&[0; FRAME]).unwrap());
}

#[test]
fn a_card_that_is_pulled_out() {
    let machine = card();
    let mut net = machine.net();
    machine.slot.unplug();
    let error = (0..10_000).find_map(|_| net.receive(&mut [0; FRAME]).err()).unwrap();
    assert_eq!(error.kind(), ErrorKind::Gone);
    drop(net);
    machine.assert_clean();
}

#[test]
fn a_frame_is_as_long_as_one_can_be() {
    // Of no header, of a header alone, and of more than any.
    for (length, good) in [
        (0, false),
        (11, false),
        (12, true),
        (12 + FRAME as u32, true),
        (13 + FRAME as u32, false),
        (u32::MAX, false),
    ] {
        let machine = card();
        let mut net = machine.net();
        machine.model(|model| model.inject([Fault::Length(length)]));
        machine.arrive([vec![1; 60]]);
        let received = net.receive(&mut [0; FRAME]);
        match received {
            Ok(received) => assert_eq!((received, good), (Some(length as usize - 12), true)),
            Err(error) => {
                assert_eq!((error.kind(), good), (ErrorKind::Violation, false), "{length}: {error}")
            }
        }
        drop(net);
        machine.assert_clean();
    }
}

#[test]
fn numbers_that_were_not_given() {
    for fault in [
        Fault::WrongId(1),
        Fault::WrongId(0x100),
        Fault::WrongId(0x8000),
        Fault::Twice,
        Fault::Jump(1),
        Fault::Jump(300),
    ] {
        for incoming in [false, true] {
            let machine = card();
            let mut net = machine.net();
            if incoming {
                machine.model(|model| model.inject([fault]));
                machine.arrive([vec![1; 60]]);
            } else {
                machine.model(|model| model.inject([fault]));
                let _ = net.send(&[1; 60]);
            }
            let mut frame = [0; FRAME];
            let ended = (0..1000).find_map(|_| net.sending().and_then(|_| net.receive(&mut frame)).err());
            // Of the receive queue all buffers are the card's, so any of them may be said to be done: its contents are of no meaning,
            // and no harm.
            if let Some(error) = ended {
                assert_eq!(error.kind(), ErrorKind::Violation, "{fault:?}: {error}");
                assert_eq!(net.send(&[1; 60]).unwrap_err(), error);
                assert!(!machine.model(|model| model.is_running()));
            } else {
                assert!(
                    matches!(fault, Fault::WrongId(1) | Fault::Twice) && incoming,
                    "{fault:?} {incoming}"
                );
            }
            drop(net);
            machine.assert_clean();
        }
    }
}
