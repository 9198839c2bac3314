//! Where a command's data is: its PRPs, followed as the specification has it (4.3), lists that go on in others included.

use noiommu::sim::Bus;

/// The pieces of memory of `length` bytes in pages of `page` bytes, by address and length; `None`: entries that cannot be, or that nobody answers for.
pub(super) fn pieces(prp: [u64; 2], length: u64, page: u64, bus: &mut Bus<'_>) -> Option<Vec<(u64, u64)>> {
    let [first, second] = prp;
    if first & 3 != 0 {
        return None;
    }
    let mut pieces = vec![(first, length.min(page - first % page))];
    let mut left = length - pieces[0].1;
    if left == 0 {
        return Some(pieces);
    }
    if left <= page {
        // A page by itself.
        if second % page != 0 {
            return None;
        }
        pieces.push((second, left));
        return Some(pieces);
    }
    let mut at = second;
    while left > 0 {
        let entry = u64::from_le_bytes(bus.fetch(at).ok()?);
        // The last place of a page of a list tells where it goes on, unless it ends there.
        if at % page == page - 8 && left > page {
            at = entry;
            continue;
        }
        if entry % page != 0 {
            return None;
        }
        let part = left.min(page);
        pieces.push((entry, part));
        (left, at) = (left - part, at + 8);
    }
    Some(pieces)
}
