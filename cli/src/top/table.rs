//! A look, for people: a line for each process, as wide as the terminal.

use anstyle::{AnsiColor, Style};
use noiommu::guardian::Status;
use noiommu::stats::ProcessStats;

use super::sample::Sample;
use crate::ui::{bytes, styled};

/// What processes are sorted by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Sort {
    /// The bytes that are pinned.
    Pinned,
    /// The bytes that are mapped.
    Mapped,
    /// The areas.
    Areas,
    /// Maps and unmaps in a second.
    Rate,
    /// Addresses asked for in a second.
    Lookups,
    /// The process's id, the lowest first.
    Pid,
}

impl Sort {
    /// The one after it.
    pub(super) fn next(self) -> Self {
        match self {
            Self::Pinned => Self::Mapped,
            Self::Mapped => Self::Areas,
            Self::Areas => Self::Rate,
            Self::Rate => Self::Lookups,
            Self::Lookups => Self::Pid,
            Self::Pid => Self::Pinned,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::Mapped => "mapped",
            Self::Areas => "areas",
            Self::Rate => "maps and unmaps",
            Self::Lookups => "GET_PA",
            Self::Pid => "pid",
        }
    }

    /// What comes first is the largest of this.
    fn weight(self, stats: &ProcessStats, sample: &Sample) -> f64 {
        let rates = sample.rates.get(&stats.process);
        match self {
            Self::Pinned => stats.pin_bytes.max(stats.charged.unwrap_or(0)) as f64,
            Self::Mapped => stats.bytes() as f64,
            Self::Areas => stats.areas() as f64,
            Self::Rate => rates.map_or(0.0, |rates| rates.maps + rates.unmaps),
            Self::Lookups => rates.map_or(0.0, |rates| rates.lookups),
            Self::Pid => -f64::from(stats.process),
        }
    }
}

/// The columns: heading, how early it gives way where there is no room (0: never), and whether it stands at the left.
const COLUMNS: [(&str, u8, bool); 14] = [
    ("PID", 0, false),
    ("NAME", 0, true),
    ("CTX", 8, false),
    ("AREAS", 0, false),
    ("MAPPED", 0, false),
    ("PINNED", 1, false),
    ("SLOTS", 7, false),
    ("VMPIN", 6, false),
    ("TABLE", 9, false),
    ("MAP/s", 4, false),
    ("UNMAP/s", 4, false),
    ("GET_PA/s", 5, false),
    ("DEV", 3, false),
    ("GUARDIAN", 2, true),
];
/// Between columns.
const GAP: usize = 2;

/// The heading, the table, and what there is to say. `width`: of the terminal; `None`: as wide as it is.
pub(super) fn lines(sample: &Sample, sort: Sort, reversed: bool, width: Option<usize>) -> Vec<String> {
    let mut processes: Vec<_> = sample.seen.processes.iter().collect();
    processes.sort_by(|one, other| {
        let order = sort.weight(other, sample).total_cmp(&sort.weight(one, sample));
        let order = if reversed { order.reverse() } else { order };
        order.then(one.process.cmp(&other.process))
    });
    let mut lines = vec![summary(sample, sort)];
    if processes.is_empty() {
        lines.push(
            "No process uses the engine".to_owned()
                + if sample.seen.hidden > 0 { ", as far as can be seen." } else { "." },
        );
    } else {
        lines.push(String::new());
        let cells: Vec<_> = processes.iter().map(|stats| texts(stats, sample)).collect();
        lines.extend(table(&cells, width));
    }
    lines.extend(notes(sample));
    lines.into_iter().map(|line| fit(line, width)).collect()
}

fn summary(sample: &Sample, sort: Sort) -> String {
    let all = &sample.seen.processes;
    let sum = |what: fn(&ProcessStats) -> u64| all.iter().map(what).fold(0, u64::saturating_add);
    let rescues = &sample.rescues;
    let mut text = format!(
        "{}  {} mapped, {} pinned, {} open",
        styled(Style::new().bold(), &count(all.len() as u64, "process", "processes")),
        bytes(sum(ProcessStats::bytes)),
        bytes(sum(|stats| stats.pin_bytes)),
        count(sum(|stats| stats.devices), "device", "devices"),
    );
    text += &format!("; {}", count(rescues.quiet as u64, "rescue", "rescues"));
    for (number, what) in [(rescues.not_quiet, "not quiet at first"), (rescues.lost, "lost")] {
        if number > 0 {
            text += &styled(AnsiColor::Red.on_default(), &format!(", {number} {what}"));
        }
    }
    text + &styled(Style::new().dimmed(), &format!("; by {}", sort.name()))
}

fn count(number: u64, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

/// The cells of a process.
fn texts(stats: &ProcessStats, sample: &Sample) -> [String; 14] {
    let rates = sample.rates.get(&stats.process);
    let rate = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), short);
    let more = if stats.contexts_untold > 0 { "+" } else { "" };
    [
        stats.process.to_string(),
        stats.name.chars().map(|letter| if letter.is_ascii_graphic() { letter } else { '?' }).collect(),
        format!("{}{more}", stats.contexts_untold.saturating_add(stats.contexts.len() as u64)),
        format!("{}{more}", stats.areas()),
        bytes(stats.bytes()),
        bytes(stats.pin_bytes),
        stats.pin_slots.to_string(),
        stats.charged.map_or_else(|| "-".to_owned(), bytes),
        bytes(stats.table_frames().saturating_mul(4096)),
        rate(rates.map(|rates| rates.maps)),
        rate(rates.map(|rates| rates.unmaps)),
        rate(rates.map(|rates| rates.lookups)),
        stats.devices.to_string(),
        match &stats.guardian {
            Status::Own { process, apart: true } => format!("own {process}"),
            Status::Own { process, apart: false } => format!("own {process}!"),
            Status::Service => "service".to_owned(),
            Status::Dead => "DEAD".to_owned(),
            _ => "-".to_owned(),
        },
    ]
}

/// A rate in at most five characters.
fn short(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        _ if value < 9.95 => format!("{value:.1}"),
        _ if value < 99_999.5 => format!("{value:.0}"),
        _ if value < 999_500.0 => format!("{:.0}k", value / 1e3),
        _ if value < 99_950_000.0 => format!("{:.1}M", value / 1e6),
        _ => format!("{:.0}M", value / 1e6),
    }
}

fn table(rows: &[[String; 14]], width: Option<usize>) -> Vec<String> {
    let widths: [usize; 14] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(COLUMNS[column].0.len())
    });
    let shown = shown(&widths, width);
    let line = |texts: &[String; 14], style: &dyn Fn(usize) -> Style| {
        let cell = |&column: &usize| {
            let (text, width) = (&texts[column], widths[column]);
            let text = match COLUMNS[column].2 {
                // Nothing follows the last one.
                true if shown.last() == Some(&column) => text.clone(),
                true => format!("{text:<width$}"),
                false => format!("{text:>width$}"),
            };
            styled(style(column), &text)
        };
        shown.iter().map(cell).collect::<Vec<_>>().join(&" ".repeat(GAP))
    };
    let headings = COLUMNS.map(|(name, ..)| name.to_owned());
    let mut lines = vec![line(&headings, &|_| Style::new().bold())];
    for row in rows {
        let style = |column: usize| match (COLUMNS[column].0, row[column].as_str()) {
            ("GUARDIAN", "DEAD") => AnsiColor::Red.on_default().bold(),
            ("GUARDIAN", text) if text.ends_with('!') => AnsiColor::Yellow.on_default(),
            ("GUARDIAN", text) if text != "-" => AnsiColor::Green.on_default(),
            ("PINNED", _) => AnsiColor::Cyan.on_default(),
            (_, "0" | "-" | "0 B") => Style::new().dimmed(),
            _ => Style::new(),
        };
        lines.push(line(row, &style));
    }
    lines
}

/// The columns that have room, in order.
fn shown(widths: &[usize; 14], width: Option<usize>) -> Vec<usize> {
    let mut shown: Vec<usize> = (0..COLUMNS.len()).collect();
    let Some(width) = width else { return shown };
    loop {
        let total: usize = shown.iter().map(|&it| widths[it] + GAP).sum::<usize>() - GAP;
        let Some(weakest) = shown.iter().map(|&it| COLUMNS[it].1).max().filter(|it| *it > 0 && total > width)
        else {
            return shown;
        };
        shown.retain(|&it| COLUMNS[it].1 != weakest);
    }
}

/// What else there is to know.
fn notes(sample: &Sample) -> Vec<String> {
    let seen = &sample.seen;
    let mut notes = Vec::new();
    for guardian in seen.guardians.iter().filter(|guardian| guardian.rescuing) {
        let (loose, driver, process) = (guardian.loose, guardian.driver, guardian.process);
        let devices = count(loose.into(), "device", "devices");
        let text = format!(
            "process {driver} is gone; its guardian {process} is making {devices} quiet, and holds their memory"
        );
        notes.push(styled(AnsiColor::Yellow.on_default(), &text));
    }
    if let Some(rescue) = &sample.rescues.last
        && let (Some(device), Some(process), Some(how)) = (&rescue.device, rescue.process, &rescue.how)
    {
        let text = format!("last rescue: {device} of process {process}: {}: {how}", rescue.outcome.name());
        notes.push(styled(Style::new().dimmed(), &text));
    }
    if seen.processes.iter().any(|stats| stats.contexts_untold > 0) {
        notes.push(
            "+: contexts beyond the 127 that a process tells of; their areas are not in the figures"
                .to_owned(),
        );
    }
    if seen.hidden > 0 {
        let root = rustix::process::geteuid().is_root();
        let processes = count(seen.hidden.into(), "process", "processes");
        let help = if root { ", not even by root here" } else { ": run it as root" };
        notes.push(styled(Style::new().dimmed(), &format!("{processes} cannot be looked at{help}")));
    }
    if seen.other_versions > 0 {
        let text = format!(
            "{} with another version of the kit, not shown",
            count(seen.other_versions.into(), "process", "processes")
        );
        notes.push(styled(AnsiColor::Yellow.on_default(), &text));
    }
    if !notes.is_empty() {
        notes.insert(0, String::new());
    }
    notes
}

/// A line without what is too wide for the terminal. Styled ones are cut where no style would be left open.
fn fit(line: String, width: Option<usize>) -> String {
    let Some(width) = width else { return line };
    let plain = anstream::adapter::strip_str(&line).to_string();
    if plain.chars().count() <= width { line } else { plain.chars().take(width).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (12.0, "12"),
            (99_999.0, "99999"),
            (100_000.0, "100k"),
            (2.5e6, "2.5M"),
        ] {
            assert_eq!(short(value), text);
        }
        for power in 0..10 {
            assert!(short(9.999 * 10f64.powi(power)).len() <= 6, "{}", short(9.999 * 10f64.powi(power)));
        }
    }

    #[test]
    fn columns_give_way_and_the_first_stay() {
        let widths = [8; 14];
        assert_eq!(shown(&widths, None).len(), 14);
        assert_eq!(shown(&widths, Some(1000)).len(), 14);
        let narrow = shown(&widths, Some(60));
        assert!(narrow.len() < 14 && narrow.starts_with(&[0, 1]), "{narrow:?}");
        assert_eq!(shown(&widths, Some(1)), [0, 1, 3, 4]);
    }

    #[test]
    fn every_order_comes_round() {
        let mut sort = Sort::Pinned;
        for _ in 0..6 {
            sort = sort.next();
        }
        assert_eq!(sort, Sort::Pinned);
    }
}
