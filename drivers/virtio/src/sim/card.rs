//! A network card (5.1) on a wire that the test holds.

use std::collections::VecDeque;

use noiommu::sim::{Aborted, Bus};

use super::model::Kind;
use super::queue::Chain;

/// 5.1.6: what is before each frame.
const HEADER: usize = 12;
const RECEIVE: usize = 0;
/// 5.1.3: it has an address and tells whether it is linked.
const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_STATUS: u64 = 1 << 16;

/// A network card.
#[derive(Default)]
pub struct Card {
    /// Frames that have been sent.
    pub sent: Vec<Vec<u8>>,
    /// Frames that are to be received, one after the other.
    pub coming: VecDeque<Vec<u8>>,
    /// What is sent is received again.
    pub loops: bool,
}

impl Card {
    /// The address of all of them.
    pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
}

impl Kind for Card {
    const NAME: (&'static str, u16) = ("virtio-net", 1);
    const QUEUES: (usize, u16) = (2, 256);
    const FEATURES: u64 = FEATURE_MAC | FEATURE_STATUS;

    fn configuration(&self) -> Vec<u8> {
        // Linked.
        [&Self::MAC[..], &[1, 0]].concat()
    }

    fn wants(&self, queue: usize) -> bool {
        queue != RECEIVE || !self.coming.is_empty()
    }

    fn request(&mut self, queue: usize, chain: &Chain, bus: &mut Bus<'_>) -> Result<u32, Aborted> {
        if queue == RECEIVE {
            let frame = self.coming.pop_front().unwrap_or_default();
            return chain.write(0, &[&[0; HEADER][..], &frame].concat(), bus);
        }
        let given = chain.read(bus)?;
        let frame = given.get(HEADER..).unwrap_or_default().to_vec();
        if self.loops {
            self.coming.push_back(frame.clone());
        }
        self.sent.push(frame);
        Ok(0)
    }
}
