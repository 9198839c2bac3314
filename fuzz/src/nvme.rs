//! The NVMe driver on a controller that does what it likes (`noiommu_nvme` against its simulated controller).
//!
//! The controller answers late, wrongly, twice, or not at all, and puts any bytes where completions are. Whatever it does: nothing
//! panics, every command that was taken ends once, with the token that it was given; memory comes back when all have ended; and
//! the sanitizer sees the controller reach nothing but what it was given.

use std::collections::HashSet;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use noiommu::Context;
use noiommu::sim::{Pace, Slot};
use noiommu_nvme::sim::{self, Fault};
use noiommu_nvme::{Completion, Controller, Namespace, Queue, Region, Settings, Stopped, Token};

use crate::steps;

/// The most steps of one sequence.
const MOST: usize = 200;
/// Bytes of memory.
const MEMORY: usize = 64 << 10;
/// Queues at once.
const QUEUES: usize = 3;

#[derive(Arbitrary, Debug)]
enum Wrong {
    Late,
    Status(u8, u8),
    Silence,
    Deaf,
    Identifier(u16),
    Twice,
    Queue(u16),
    Head(u16),
    Fatal,
    Stall,
    Right,
}

impl Wrong {
    fn fault(&self) -> Fault {
        match *self {
            Self::Late => Fault::Late,
            Self::Status(kind, code) => Fault::Status(kind & 7, code),
            Self::Silence => Fault::Silence,
            Self::Deaf => Fault::Deaf,
            Self::Identifier(bits) => Fault::WrongIdentifier(bits),
            Self::Twice => Fault::Twice,
            Self::Queue(queue) => Fault::WrongQueue(queue),
            Self::Head(by) => Fault::WrongHead(by),
            Self::Fatal => Fault::Fatal,
            Self::Stall => Fault::Stall,
            Self::Right => Fault::None,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    Submit {
        queue: u8,
        write: bool,
        first: u16,
        count: u8,
        offset: u16,
    },
    Flush {
        queue: u8,
    },
    Ring {
        queue: u8,
    },
    Poll {
        queue: u8,
    },
    Recover {
        queue: u8,
    },
    /// A blocking transfer.
    Read {
        queue: u8,
        first: u16,
        count: u8,
    },
    /// A queue goes, with all that is outstanding, and another takes its place.
    Renew {
        queue: u8,
    },
    Reset,
    Inject(Wrong),
    /// Any bytes where the next completion comes, or bytes that are nearly one.
    Scribble {
        queue: u8,
        bytes: [u8; 16],
        near: bool,
        valid: bool,
    },
    Unplug,
}

struct World {
    slot: Slot<sim::Controller>,
    controller: Controller,
    namespace: Namespace,
    region: Region,
    queues: Vec<Option<Queue>>,
    /// What is outstanding in each.
    given: Vec<HashSet<Token>>,
    done: Vec<Completion>,
}

impl World {
    /// What has ended was outstanding, and is no more.
    fn settle(&mut self, index: usize) {
        for completion in self.done.drain(..) {
            assert!(self.given[index].remove(&completion.token), "{completion:?} ends what was not given");
        }
        let outstanding = self.queues[index].as_ref().map_or(0, Queue::outstanding);
        assert!(outstanding <= self.given[index].len(), "a command is lost");
    }

    fn each(&mut self, step: &Step) {
        match *step {
            Step::Submit { queue, write, first, count, offset } => {
                let index = usize::from(queue) % QUEUES;
                let Some(queue) = &mut self.queues[index] else { return };
                let (first, count, offset) = (first.into(), count.into(), usize::from(offset));
                let submitted = match write {
                    true => queue.submit_write(&self.namespace, first, count, &self.region, offset),
                    false => queue.submit_read(&self.namespace, first, count, &self.region, offset),
                };
                if let Ok(token) = submitted {
                    assert!(token.index() < queue.depth());
                    assert!(self.given[index].insert(token), "{token:?} is outstanding already");
                }
            }
            Step::Flush { queue } => {
                let index = usize::from(queue) % QUEUES;
                let Some(queue) = &mut self.queues[index] else { return };
                if let Ok(token) = queue.submit_flush(&self.namespace) {
                    assert!(self.given[index].insert(token));
                }
            }
            Step::Ring { queue } => {
                if let Some(queue) = &mut self.queues[usize::from(queue) % QUEUES] {
                    let _ = queue.ring();
                }
            }
            Step::Poll { queue } => {
                let index = usize::from(queue) % QUEUES;
                if let Some(queue) = &mut self.queues[index] {
                    queue.poll(&mut self.done);
                }
                self.settle(index);
            }
            Step::Recover { queue } => {
                let index = usize::from(queue) % QUEUES;
                if let Some(queue) = &mut self.queues[index] {
                    let _ = queue.recover(&mut self.done);
                }
                self.settle(index);
            }
            Step::Read { queue, first, count } => {
                let index = usize::from(queue) % QUEUES;
                if let Some(queue) = &mut self.queues[index] {
                    let before = queue.outstanding();
                    let _ = queue.read(&self.namespace, first.into(), count.into(), &self.region, 0);
                    assert_eq!(queue.outstanding(), before, "a blocking call leaves others' commands alone");
                }
                self.settle(index);
            }
            Step::Renew { queue } => {
                let index = usize::from(queue) % QUEUES;
                self.queues[index] = None;
                self.given[index].clear();
                self.queues[index] = self.controller.queue().ok();
            }
            Step::Reset => {
                let _ = self.controller.reset();
            }
            Step::Inject(ref wrong) => self.slot.act(|model, _| model.inject([wrong.fault()])),
            Step::Scribble { queue, mut bytes, near, valid } => {
                let number = u16::from(queue) % (QUEUES as u16 + 1);
                if near {
                    let slot = bytes[12] & 63;
                    bytes[8..].copy_from_slice(&[0, 0, number as u8, 0, slot, bytes[13] & 3, 0, 0]);
                }
                self.slot.act(|model, bus| model.scribble(number, bytes, valid, bus));
            }
            Step::Unplug => self.slot.unplug(),
        }
    }
}

/// Plays the steps that `bytes` say.
///
/// # Panics
/// Where a command does not end once, memory does not come back, or the controller reaches what it was not given.
pub fn run(bytes: &[u8], tell: bool) -> usize {
    let context = Context::simulated();
    let sanitizer = context.sanitizer().expect("simulated memory").clone();
    let mut settings = Settings::default();
    // It works at once: what is not there at the first look does not come.
    settings.timeout = Duration::ZERO;
    settings.queues = QUEUES as u16 + 1;
    let ioas = context.ioas().expect("an IOAS");
    let model = sim::Controller::new(1000, 512);
    // The first byte, which the steps have too.
    let odd = bytes.first().is_some_and(|byte| byte % 2 == 1);
    let model = if odd { model.with_shadow_doorbells() } else { model };
    let slot = context.sim_device_at(model, Pace::AtOnce).expect("a device");
    let stopped = Stopped::new(slot.open().expect("the device"), &ioas).expect("a controller");
    // SAFETY: nobody else writes to the device; the driver keeps the rest of the promise.
    unsafe { stopped.device().enable_bus_master().expect("bus mastering") };
    let controller = stopped.start(&settings).expect("a controller that runs");
    let namespace = controller.namespace(1).expect("its namespace");
    let region = controller.region(MEMORY).expect("memory");
    let queues = (0..QUEUES).map(|_| Some(controller.queue().expect("a queue"))).collect();
    let given = vec![HashSet::new(); QUEUES];
    let mut world = World { slot, controller, namespace, region, queues, given, done: Vec::new() };
    let count = steps::each(Unstructured::new(bytes), tell, MOST, |step: &Step| world.each(step));
    for index in 0..QUEUES {
        if let Some(queue) = &mut world.queues[index] {
            let _ = queue.ring();
            while queue.outstanding() > 0 {
                queue.poll(&mut world.done);
            }
            queue.poll(&mut world.done);
        }
        world.settle(index);
        assert!(world.given[index].is_empty(), "{:?} never ended", world.given[index]);
    }
    let World { controller, region, queues, .. } = world;
    drop(queues);
    assert!(region.into_buffer().is_ok(), "memory does not come back");
    controller.close().expect("a device that becomes quiet");
    assert_eq!(ioas.quarantined(), 0);
    assert_eq!(sanitizer.reports(), [], "it reached what it was not given");
    count
}
