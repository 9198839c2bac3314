//! Cells as blocks on a terminal. What they are is told by the block and by its colour, so that either is enough.

use anstyle::{AnsiColor, Style};

use super::class::Class;
use super::grid::{Cell, Grid};
use crate::ui::{bytes, styled};

/// Columns before the cells of a row: an address and a space.
const GUTTER: usize = 15;
/// The most cells of a row: more are hard to count.
const MOST: usize = 128;

/// What the terminal can show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) width: usize,
    pub(super) utf8: bool,
}

impl Look {
    /// Cells of a row: a multiple of 16, so that rows begin at round addresses.
    pub(super) fn columns(self) -> usize {
        (self.width.saturating_sub(GUTTER) / 16 * 16).clamp(16, MOST)
    }

    fn block(self, class: Option<Class>) -> char {
        match (class, self.utf8) {
            (None, true) => '\u{b7}',
            (None, false) => '.',
            (Some(Class::Scattered), true) => '\u{2591}',
            (Some(Class::Scattered), false) => '-',
            (Some(Class::Short), true) => '\u{2592}',
            (Some(Class::Short), false) => '+',
            (Some(Class::Huge), true) => '\u{2593}',
            (Some(Class::Huge), false) => '*',
            (Some(Class::Long), true) => '\u{2588}',
            (Some(Class::Long), false) => '#',
        }
    }
}

fn style(class: Option<Class>) -> Style {
    match class {
        None => Style::new().dimmed(),
        Some(Class::Scattered) => AnsiColor::Red.on_default(),
        Some(Class::Short) => AnsiColor::Yellow.on_default(),
        Some(Class::Huge) => AnsiColor::Cyan.on_default(),
        Some(Class::Long) => AnsiColor::Green.on_default(),
    }
}

/// The rows of a grid. Several that are empty are told in one line.
pub(super) fn rows(grid: &Grid, look: Look) -> Vec<String> {
    let mut lines = Vec::new();
    let mut empty = 0u64;
    let row_bytes = grid.columns as u64 * grid.share;
    let tell_empty = |lines: &mut Vec<String>, empty: &mut u64| {
        if *empty > 0 {
            let text = format!("{:GUTTER$}({} with nothing of it)", "", bytes(*empty * row_bytes));
            lines.push(styled(Style::new().dimmed(), &text));
        }
        *empty = 0;
    };
    for (label, cells) in grid.rows() {
        if cells.iter().all(|cell| cell.bytes() == 0) {
            empty += 1;
            continue;
        }
        tell_empty(&mut lines, &mut empty);
        lines.push(format!("{label:>#14x} {}", blocks(cells, look)));
    }
    tell_empty(&mut lines, &mut empty);
    lines
}

/// Neighbours of one colour are written in one go.
fn blocks(cells: &[Cell], look: Look) -> String {
    let same = |one: &Cell, other: &Cell| one.class() == other.class();
    let pieces = cells.chunk_by(same).map(|cells| {
        let class = cells.first().and_then(Cell::class);
        styled(style(class), &look.block(class).to_string().repeat(cells.len()))
    });
    pieces.collect()
}

/// What blocks mean.
pub(super) fn legend(look: Look) -> String {
    let entry = |class: Option<Class>, name: &str| {
        format!("{} {name}", styled(style(class), &look.block(class).to_string()))
    };
    let runs = Class::ALL.into_iter().map(|class| entry(Some(class), class.short_name()));
    runs.chain([entry(None, "nothing")]).collect::<Vec<_>>().join("  ")
}

/// A bar for a part of 1, as long as `width` at the most; what is there at all has a mark.
pub(super) fn bar(share: f64, width: usize, class: Class, look: Look) -> String {
    let length = (share * width as f64).round() as usize;
    let length = if share > 0.0 { length.clamp(1, width) } else { 0 };
    styled(style(Some(class)), &look.block(Some(class)).to_string().repeat(length))
        + &" ".repeat(width - length)
}

#[cfg(test)]
mod tests {
    use noiommu::PhysAddr;
    use noiommu::frames::Run;

    use super::*;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn rows_fit_and_empty_ones_are_one_line() {
        let look = Look { width: 80, utf8: false };
        assert_eq!(look.columns(), 64);
        assert_eq!(
            (Look { width: 20, utf8: false }.columns(), Look { width: 1000, utf8: true }.columns()),
            (16, MOST)
        );
        let run = |address, length| Run {
            start: address,
            address: PhysAddr(address),
            length,
            huge: 0,
            shared: false,
        };
        let runs = [run(0, 0x20_0000), run(0x1000_0000, 0x1000)];
        let lines: Vec<_> =
            rows(&Grid::physical(&runs, 16, 8), look).iter().map(|line| plain(line)).collect();
        assert_eq!(lines.len(), 3, "{lines:#?}");
        assert_eq!(lines[0], "           0x0 *...............");
        assert!(lines[1].contains("with nothing of it") && lines[2].ends_with(" -"), "{lines:#?}");
        assert!(lines.iter().all(|line| line.chars().count() <= 80 && line.is_ascii()));
    }

    #[test]
    fn bars() {
        let look = Look { width: 80, utf8: false };
        for (share, text) in [(0.0, "    "), (0.001, "#   "), (0.5, "##  "), (1.0, "####")] {
            assert_eq!(plain(&bar(share, 4, Class::Long, look)), text);
        }
    }

    #[test]
    fn the_legend_tells_all_blocks_apart() {
        for utf8 in [false, true] {
            let look = Look { width: 80, utf8 };
            let legend = plain(&legend(look));
            let blocks: std::collections::BTreeSet<_> =
                Class::ALL.into_iter().map(Some).chain([None]).map(|class| look.block(class)).collect();
            assert!(blocks.len() == 5 && blocks.iter().all(|block| legend.contains(*block)), "{legend}");
        }
    }
}
