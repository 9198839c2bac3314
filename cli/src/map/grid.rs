//! Memory divided into cells of equal size, row by row.

use noiommu::frames::Run;

use super::class::Class;

/// What is in a cell.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Cell {
    /// Bytes, by [`Class`].
    by_class: [u64; 4],
}

impl Cell {
    fn add(&mut self, class: Class, bytes: u64) {
        self.by_class[class as usize] += bytes;
    }

    /// Bytes in it.
    pub(super) fn bytes(&self) -> u64 {
        self.by_class.iter().sum()
    }

    /// The class that most of it is of; `None`: nothing is in it.
    pub(super) fn class(&self) -> Option<Class> {
        let most = Class::ALL.into_iter().max_by_key(|class| self.by_class[*class as usize])?;
        (self.by_class[most as usize] > 0).then_some(most)
    }
}

/// Cells, from `start` on.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Grid {
    /// The address that the first cell begins with; 0 where places are no addresses.
    pub(super) start: u64,
    /// Bytes of a cell.
    pub(super) share: u64,
    pub(super) columns: usize,
    pub(super) cells: Vec<Cell>,
    /// What each row begins with, where that is not `start` and so many shares.
    labels: Vec<u64>,
}

impl Grid {
    /// Runs where they are in physical space.
    pub(super) fn physical(runs: &[Run], columns: usize, rows: usize) -> Self {
        let first = runs.iter().map(|run| run.address.0).min().unwrap_or(0);
        let end = runs.iter().map(|run| run.address.0 + run.length).max().unwrap_or(first + 1);
        let cells = (columns * rows) as u64;
        let mut share = (end - first).div_ceil(cells).max(4096).next_power_of_two();
        let mut start = first / share * share;
        // Rounding down may have made the last one stick out.
        if (end - start).div_ceil(share) > cells {
            share *= 2;
            start = first / share * share;
        }
        let count = (end - start).div_ceil(share) as usize;
        let mut grid =
            Self { start, share, columns, cells: vec![Cell::default(); count], labels: Vec::new() };
        for run in runs {
            grid.fill(run.address.0 - start, run.length, Class::of(run.length));
        }
        grid
    }

    /// Runs one behind the other, as the process has them, with nothing where there are none.
    pub(super) fn in_order(runs: &[Run], columns: usize, rows: usize) -> Self {
        let total: u64 = runs.iter().map(|run| run.length).sum();
        let share = total.div_ceil((columns * rows) as u64).max(4096).next_power_of_two();
        let count = total.div_ceil(share).max(1) as usize;
        let mut grid =
            Self { start: 0, share, columns, cells: vec![Cell::default(); count], labels: Vec::new() };
        let row = share * columns as u64;
        let mut at = 0;
        for run in runs {
            grid.fill(at, run.length, Class::of(run.length));
            // Rows that begin in this run.
            while (grid.labels.len() as u64 * row) < at + run.length {
                let begins = grid.labels.len() as u64 * row;
                grid.labels.push(run.start + begins.saturating_sub(at));
            }
            at += run.length;
        }
        grid
    }

    fn fill(&mut self, mut at: u64, mut length: u64, class: Class) {
        while length > 0 {
            let cell = at / self.share;
            let here = length.min((cell + 1) * self.share - at);
            if let Some(cell) = self.cells.get_mut(cell as usize) {
                cell.add(class, here);
            }
            (at, length) = (at + here, length - here);
        }
    }

    /// The rows: what each begins with, and its cells.
    pub(super) fn rows(&self) -> impl Iterator<Item = (u64, &[Cell])> {
        self.cells.chunks(self.columns).enumerate().map(|(row, cells)| {
            let address = self.start + row as u64 * self.columns as u64 * self.share;
            (self.labels.get(row).copied().unwrap_or(address), cells)
        })
    }
}

#[cfg(test)]
mod tests {
    use noiommu::PhysAddr;

    use super::*;

    fn run(start: u64, address: u64, length: u64) -> Run {
        Run { start, address: PhysAddr(address), length, huge: 0, shared: false }
    }

    #[test]
    fn nothing_is_lost_and_nothing_sticks_out() {
        for seed in 1..200u64 {
            let mut state = seed;
            let mut next = |below: u64| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % below
            };
            let runs: Vec<_> = (0..1 + next(50))
                .map(|n| run(n << 32, (next(1 << 20)) * 4096, (1 + next(600)) * 4096))
                .collect();
            let total: u64 = runs.iter().map(|run| run.length).sum();
            for grid in [Grid::physical(&runs, 16, 4), Grid::in_order(&runs, 16, 4)] {
                assert!(grid.cells.len() <= 64, "{}", grid.cells.len());
                assert_eq!(grid.cells.iter().map(Cell::bytes).sum::<u64>(), total);
                assert!(grid.share.is_power_of_two());
            }
        }
    }

    #[test]
    fn a_cell_is_of_what_most_of_it_is() {
        let runs = [run(0, 0x20_0000, 0x20_0000), run(0x20_0000, 0, 0x1000)];
        let grid = Grid::in_order(&runs, 4, 1);
        assert_eq!(grid.share, 0x10_0000);
        let classes: Vec<_> = grid.cells.iter().map(Cell::class).collect();
        assert_eq!(classes, [Some(Class::Huge), Some(Class::Huge), Some(Class::Scattered)]);
        let grid = Grid::physical(&runs, 4, 1);
        let classes: Vec<_> = grid.cells.iter().map(Cell::class).collect();
        assert_eq!(classes, [Some(Class::Scattered), None, Some(Class::Huge), Some(Class::Huge)]);
    }

    #[test]
    fn rows_say_what_they_begin_with() {
        let runs = [run(0x7000_0000, 0, 0x3000), run(0x9000_0000, 0x10_0000, 0x3000)];
        let grid = Grid::in_order(&runs, 2, 3);
        let labels: Vec<_> = grid.rows().map(|(label, _)| label).collect();
        assert_eq!(labels, [0x7000_0000, 0x7000_2000, 0x9000_1000]);
        assert_eq!(Grid::in_order(&[], 2, 3).rows().count(), 1);
    }
}
