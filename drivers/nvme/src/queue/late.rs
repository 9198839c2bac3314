//! Commands that are late: aborted, and with a reset if that does not help.

use std::time::Instant;

use super::{Parts, Queue};
use crate::command::Command;
use crate::error::Failure;
use crate::slots::Late;

/// What is to be done about a late command.
enum Remedy {
    Abort(u16),
    Reset(u16),
}

impl Queue {
    /// Looks for commands that are late, and does what is to be done about them. The time of a command begins with the first look
    /// after it was submitted, so that submitting need not ask for the time.
    pub(super) fn look(&mut self) {
        self.polls = 0;
        let timeout = self.core.settings.timeout;
        let Some(Parts { pair, .. }) = &mut self.parts else { return };
        if !self.alive || pair.slots.outstanding() == 0 {
            return;
        }
        // Where the device is gone, so is the reason to.
        let _ = pair.ring_again();
        let now = Instant::now();
        let mut remedy = None;
        for (identifier, late) in pair.slots.late() {
            match *late {
                Late::Unseen => *late = Late::Seen(now),
                Late::Seen(since) if now.duration_since(since) >= timeout && remedy.is_none() => {
                    *late = Late::Aborted(now);
                    remedy = Some(Remedy::Abort(identifier));
                }
                Late::Aborted(since) if now.duration_since(since) >= timeout => {
                    remedy = Some(Remedy::Reset(identifier));
                    break;
                }
                Late::Seen(_) | Late::Aborted(_) => {}
            }
        }
        match remedy {
            None => {}
            // What has failed or is gone does not abort anything.
            Some(Remedy::Abort(identifier)) if !matches!(self.core.has_failed(), Ok(false)) => {
                self.give_up(identifier);
            }
            Some(Remedy::Abort(identifier)) => {
                let command = Command::abort(self.number(), identifier);
                let core = self.core.clone();
                let aborted = core.admin().command(&core, "aborting a command", &command);
                match aborted {
                    // 5.1: bit 0 is clear if the command was aborted; then its completion is there, or comes. If it is set,
                    // the command may come to its end by itself.
                    Ok(_) => {}
                    // It may have been done before.
                    Err(error) if matches!(error.failure(), Some(Failure::Status(_))) => {}
                    // It was reset.
                    Err(_) => self.culprit = Some(identifier),
                }
            }
            Some(Remedy::Reset(identifier)) => self.give_up(identifier),
        }
    }

    /// Resets the controller because of a command, unless somebody else has.
    fn give_up(&mut self, identifier: u16) {
        self.culprit = Some(identifier);
        // Whether it helps or not is found where the queue is lost.
        let _ = self.core.reset(self.generation);
    }
}
