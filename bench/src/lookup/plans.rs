//! Where the memory of spaces lies.

use super::space::Plan;
use crate::random::Random;

/// Beyond the memory of most machines, and aligned to every size that is used here.
const HIGH: u64 = 1 << 40;

/// So many pieces of a size, in no order.
pub(super) fn scattered(count: u64, size: u64) -> Plan {
    let mut order: Vec<u64> = (0..count).collect();
    Random::new(count).shuffle(&mut order);
    // Every second place stays free, so that no two pieces are adjacent.
    order.into_iter().map(|place| (HIGH + 2 * place * size, size)).collect()
}

/// Pieces from 4 KiB to 16 MiB, aligned to their sizes, in no order: half of the memory in pieces below 2 MiB.
pub(super) fn mixed(bytes: u64) -> Plan {
    const LARGEST: u32 = 24;
    let mut chance = Random::new(bytes);
    let mut plan = Plan::new();
    for _ in 0..bytes >> LARGEST {
        // Halves that are still to be cut, the next one last.
        let mut parts = vec![LARGEST];
        while let Some(size) = parts.pop() {
            if size > 12 && chance.below(100) < 85 {
                parts.extend([size - 1, size - 1]);
            } else {
                plan.push((HIGH + (chance.below(1 << 28) << size), 1 << size));
            }
        }
    }
    plan
}

/// Adjacent memory for IOVAs from `first` on, in leaves of 2 MiB: it is aligned to them in these alone.
pub(super) fn adjacent(first: u64, bytes: u64) -> Plan {
    vec![(HIGH + first + (1 << 21), bytes)]
}

/// Adjacent memory for IOVAs from `first` on, in leaves as large as these allow.
pub(super) fn whole(first: u64, bytes: u64) -> Plan {
    vec![(HIGH + first, bytes)]
}
