//! Bytes that no other place of a drive has, and no other time.

/// What a drive has from byte `start` on, in the pattern of `seed`. Both are multiples of 8.
pub(crate) fn fill(seed: u64, start: u64, bytes: &mut [u8]) {
    for (word, index) in bytes.chunks_mut(8).zip(start / 8..) {
        // splitmix64 (Steele, Lea, Flood 2014), of the place.
        let mut z = seed.wrapping_add(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(z ^ z >> 31).to_le_bytes()[..word.len()]);
    }
}

/// Where the first byte is that is not in the pattern.
pub(crate) fn first_wrong(seed: u64, start: u64, bytes: &[u8]) -> Option<u64> {
    let mut right = vec![0; bytes.len()];
    fill(seed, start, &mut right);
    bytes.iter().zip(&right).position(|(found, right)| found != right).map(|at| start + at as u64)
}
