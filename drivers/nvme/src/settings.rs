//! How a controller is to be driven.

use std::time::Duration;

/// How a controller is to be driven; [`Settings::default`] suits most.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// How many I/O queues are asked for, at least 1; the controller may grant fewer. 64.
    pub queues: u16,
    /// Entries of an I/O queue: a power of two from 2 to 4096. One less commands can be outstanding. A controller that has shorter
    /// queues, or memory that is not as contiguous, makes it fewer. 64, which fits into a page.
    pub entries: u16,
    /// The most bytes of one command, a multiple of 4 KiB from 4 KiB to 2 MiB; the controller may want fewer. Longer
    /// transfers of the blocking calls are split. 512 KiB.
    pub max_transfer: u32,
    /// Whether queues interrupt, for [`Queue::wait`](crate::Queue::wait). Without, they are polled. `false`.
    pub interrupts: bool,
    /// How long a command may take before it is aborted, and the abort after that before the controller is reset. 30 s.
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queues: 64,
            entries: 64,
            max_transfer: 512 << 10,
            interrupts: false,
            timeout: Duration::from_secs(30),
        }
    }
}
