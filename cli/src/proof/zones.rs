//! Memory zones: the kernel compacts each one on its own, so pages and the holes they move to must share a zone.

use std::fs;

/// The frames of one zone of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Zone {
    /// Like "node 0, zone Normal".
    pub(crate) name: String,
    /// Its first frame.
    pub(crate) first: u64,
    /// Its last frame.
    pub(crate) last: u64,
}

impl Zone {
    /// Whether the frame lies in it.
    pub(crate) fn holds(&self, frame: u64) -> bool {
        (self.first..=self.last).contains(&frame)
    }
}

/// The zones of this machine. A kernel that does not tell them is taken to have a single one.
pub(crate) fn zones() -> Vec<Zone> {
    let found = parse(&fs::read_to_string("/proc/zoneinfo").unwrap_or_default());
    if found.is_empty() {
        vec![Zone { name: "unknown zone".into(), first: 0, last: u64::MAX }]
    } else {
        found
    }
}

/// Fragments below this order are small: 128 KiB of 4 KiB pages, as much as a read-ahead brings in at once.
const SMALL: usize = 5;

/// Pages of the zone in small free fragments that movable pages are given from; none when the kernel does not tell.
pub(crate) fn small_fragments(zone: &Zone) -> usize {
    fragments(&fs::read_to_string("/proc/pagetypeinfo").unwrap_or_default(), &zone.name)
}

/// Reads the format of /proc/pagetypeinfo, where a list of free fragments per order ends with ">100000" when long.
fn fragments(pagetypeinfo: &str, zone: &str) -> usize {
    let wanted = format!("{zone}, type Movable").to_lowercase();
    let words = |line: &str| line.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
    let line = pagetypeinfo.lines().map(words).find(|line| line.starts_with(&wanted)).unwrap_or_default();
    let counts = line.trim_start_matches(&wanted).split_whitespace().take(SMALL);
    counts
        .enumerate()
        .filter_map(|(order, count)| Some(count.trim_start_matches('>').parse::<usize>().ok()? << order))
        .sum()
}

/// Reads the format of /proc/zoneinfo; empty zones are left out.
fn parse(zoneinfo: &str) -> Vec<Zone> {
    let mut zones = Vec::new();
    let (mut name, mut spanned) = (String::new(), 0);
    for line in zoneinfo.lines() {
        if let Some(title) = line.strip_prefix("Node ") {
            // "Node 0, zone   Normal"
            name = format!("node {}", title.split_whitespace().collect::<Vec<_>>().join(" "));
            spanned = 0;
        } else if let Some(pages) = line.trim().strip_prefix("spanned") {
            spanned = pages.trim().parse().unwrap_or(0);
        } else if let Some(first) = line.trim().strip_prefix("start_pfn:")
            && let Ok(first) = first.trim().parse::<u64>()
            && spanned > 0
        {
            zones.push(Zone { name: name.clone(), first, last: first + (spanned - 1) });
        }
    }
    zones
}

/// The zone that holds most of the given runs of pages entirely, with the indices of those runs.
pub(crate) fn fullest<'a>(
    zones: &[Zone],
    runs: impl Iterator<Item = &'a [u64]>,
) -> Option<(Zone, Vec<usize>)> {
    let mut members = vec![Vec::new(); zones.len()];
    for (index, frames) in runs.enumerate() {
        if let Some(zone) = zones.iter().position(|zone| frames.iter().all(|frame| zone.holds(*frame))) {
            members[zone].push(index);
        }
    }
    zones.iter().cloned().zip(members).max_by_key(|(_, runs)| runs.len()).filter(|(_, runs)| !runs.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZONEINFO: &str = "Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 1217
  pages free     2816
        spanned  4095
        present  3998
  start_pfn:           1
Node 0, zone    DMA32
        spanned  1044480
  start_pfn:           4096
Node 0, zone  Movable
  pages free     0
        spanned  0
        present  0
  start_pfn:           0
";

    #[test]
    fn zoneinfo_is_read_without_empty_zones() {
        let zones = parse(ZONEINFO);
        assert_eq!(zones.len(), 2);
        assert_eq!(zones[0], Zone { name: "node 0, zone DMA".into(), first: 1, last: 4095 });
        assert_eq!(zones[1], Zone { name: "node 0, zone DMA32".into(), first: 4096, last: 1_048_575 });
    }

    #[test]
    fn small_fragments_of_movable_pages_are_summed() {
        let info = "Page block order: 9\n\
            Node    0, zone      DMA, type      Movable      9      9      9      9      9      9\n\
            Node    0, zone    DMA32, type    Unmovable      9      9      9      9      9      9\n\
            Node    0, zone    DMA32, type      Movable      1      2      0      1      >10    7\n";
        assert_eq!(fragments(info, "node 0, zone DMA32"), 1 + 4 + 8 + 160);
        assert_eq!(fragments(info, "node 1, zone DMA32"), 0);
        assert_eq!(fragments("", "node 0, zone DMA32"), 0);
    }

    #[test]
    fn runs_that_straddle_zones_are_left_out() {
        let zones = parse(ZONEINFO);
        let runs: [&[u64]; 4] = [&[1, 2], &[4095, 4096], &[5000, 6000], &[1_048_575, 4096]];
        let (zone, members) = fullest(&zones, runs.into_iter()).unwrap();
        assert_eq!(zone.name, "node 0, zone DMA32");
        assert_eq!(members, [2, 3]);
        assert!(fullest(&zones, [[u64::MAX].as_slice()].into_iter()).is_none());
    }
}
