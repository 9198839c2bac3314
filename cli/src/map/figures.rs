//! The figures of a picture.

use std::collections::BTreeMap;

use noiommu::frames::Run;

use super::subject::{Part, Subject};
use crate::ui::bytes;

/// A huge page.
const HUGE: u64 = 2 << 20;

/// Runs of about one length.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Bin {
    pub(super) runs: u64,
    pub(super) bytes: u64,
}

/// What there is, and how contiguous it is.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Figures {
    pub(super) bytes: u64,
    pub(super) pages: u64,
    pub(super) runs: u64,
    pub(super) longest: u64,
    /// Bytes in runs of a huge page and more.
    pub(super) in_huge_runs: u64,
    /// Bytes that huge pages map.
    pub(super) huge_pages: u64,
    /// Bytes of files, or of memory that others may map.
    pub(super) shared: u64,
    pub(super) swapped: u64,
    pub(super) zero: u64,
    pub(super) absent: u64,
    /// Runs by length: the power of two that they have at least, and twice that they have not.
    pub(super) histogram: BTreeMap<u32, Bin>,
}

impl Figures {
    /// What else there is to be said of the memory, a few words for each: nothing of what there is none of.
    pub(super) fn beside(&self) -> Vec<String> {
        [
            (self.huge_pages, "mapped by huge pages"),
            (self.shared, "of files or shared"),
            (self.swapped, "swapped out"),
            (self.zero, "the page of zeros"),
            (self.absent, "never touched, or given back"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", bytes(count)))
        .collect()
    }

    /// Those of all parts. A run that goes on in the next part is one there too, as a device would be given it.
    pub(super) fn of(subject: &Subject) -> Self {
        Self::of_parts(subject.parts.iter())
    }

    /// Those of a part.
    pub(super) fn of_part(part: &Part) -> Self {
        Self::of_parts(std::iter::once(part))
    }

    fn of_parts<'a>(parts: impl Iterator<Item = &'a Part>) -> Self {
        let page = rustix::param::page_size() as u64;
        let mut figures = Self::default();
        let mut runs: Vec<Run> = Vec::new();
        for part in parts {
            figures.swapped += part.frames.swapped;
            figures.zero += part.frames.zero;
            figures.absent += part.frames.absent;
            for run in &part.frames.runs {
                figures.huge_pages += run.huge;
                figures.shared += if run.shared { run.length } else { 0 };
                match runs.last_mut() {
                    Some(last) if follows(last, run) => last.length += run.length,
                    _ => runs.push(*run),
                }
            }
        }
        for run in &runs {
            figures.bytes += run.length;
            figures.runs += 1;
            figures.longest = figures.longest.max(run.length);
            if run.length >= HUGE {
                figures.in_huge_runs += run.length;
            }
            let bin = figures.histogram.entry(run.length.max(1).ilog2()).or_default();
            bin.runs += 1;
            bin.bytes += run.length;
        }
        figures.pages = figures.bytes.div_ceil(page);
        figures
    }

    /// The part of the memory, of 1, that is in runs of 2 MiB and more.
    pub(super) fn share_in_huge_runs(&self) -> f64 {
        if self.bytes == 0 { 0.0 } else { self.in_huge_runs as f64 / self.bytes as f64 }
    }

    /// The histogram without holes: from the shortest to the longest there is.
    pub(super) fn bins(&self) -> Vec<(u32, Bin)> {
        let Some((&first, &last)) = self.histogram.keys().next().zip(self.histogram.keys().next_back())
        else {
            return Vec::new();
        };
        (first..=last).map(|power| (power, self.histogram.get(&power).copied().unwrap_or_default())).collect()
    }
}

fn follows(before: &Run, run: &Run) -> bool {
    before.start + before.length == run.start && before.address.0 + before.length == run.address.0
}

#[cfg(test)]
mod tests {
    use noiommu::PhysAddr;
    use noiommu::frames::Frames;

    use super::*;

    fn part(runs: &[(u64, u64, u64)]) -> Part {
        let mut frames = Frames::default();
        let run = |&(start, address, length): &(u64, u64, u64)| Run {
            start,
            address: PhysAddr(address),
            length,
            huge: 0,
            shared: false,
        };
        frames.runs = runs.iter().map(run).collect();
        Part { start: 0, end: 1 << 40, name: String::new(), frames }
    }

    #[test]
    fn they_add_up() {
        let parts = [
            part(&[(0, 0x10_0000, 0x1000), (0x1000, 0x20_0000, 0x40_0000)]),
            // Goes on where the last one ended, in both.
            part(&[(0x40_1000, 0x60_0000, 0x40_0000), (0x90_0000, 0, 0x3000)]),
        ];
        let figures = Figures::of_parts(parts.iter());
        assert_eq!((figures.bytes, figures.runs, figures.longest), (0x80_4000, 3, 0x80_0000));
        assert_eq!((figures.in_huge_runs, figures.pages), (0x80_0000, 0x80_4000 / 4096));
        let bins = figures.bins();
        assert_eq!((bins.first().unwrap().0, bins.last().unwrap().0, bins.len()), (12, 23, 12));
        assert_eq!(bins[1], (13, Bin { runs: 1, bytes: 0x3000 }));
        assert_eq!(bins[2], (14, Bin::default()));
        assert!((figures.share_in_huge_runs() - 0x80_0000 as f64 / 0x80_4000 as f64).abs() < 1e-9);
        assert_eq!(Figures::default().share_in_huge_runs(), 0.0);
    }
}
