//! How contiguous memory is in physical space, drawn: one cell per equal share of the buffer.

use crate::ui::Cells;

/// Cells of a line.
const WIDTH: usize = 64;

/// The picture of segments of these lengths: neighbouring ones in two kinds of blocks, and the light kind where a cell has
/// parts of several.
pub(super) fn draw(lengths: impl Iterator<Item = u64>, size: u64, cells: Cells) -> String {
    let share = share(size);
    // Where each segment ends, counted from the beginning of the buffer.
    let ends: Vec<u64> = lengths
        .scan(0, |end, length| {
            *end += length;
            Some(*end)
        })
        .collect();
    (0..size)
        .step_by(usize::try_from(share).unwrap_or(usize::MAX))
        .map(|start| {
            let last = (start + share).min(size) - 1;
            let (first, final_one) =
                (ends.partition_point(|&end| end <= start), ends.partition_point(|&end| end <= last));
            match (first == final_one, first % 2) {
                (false, _) => cells.empty,
                (true, 0) => cells.full,
                (true, _) => cells.other,
            }
        })
        .collect()
}

/// Bytes that a cell stands for.
pub(super) fn share(size: u64) -> u64 {
    size.div_ceil(WIDTH as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn one_segment_is_solid_and_many_are_light() {
        let draw = |lengths: &[u64]| draw(lengths.iter().copied(), lengths.iter().sum(), Cells::ASCII);
        assert_eq!(draw(&[6400]), "#".repeat(64));
        assert_eq!(draw(&[3200, 3200]), "#".repeat(32) + &"=".repeat(32));
        assert_eq!(draw(&[3250, 3150]), "#".repeat(32) + "." + &"=".repeat(31));
        assert_eq!(draw(&[1; 640]), ".".repeat(64));
        assert_eq!(draw(&[1, 1, 1]), "#=#");
    }
}
