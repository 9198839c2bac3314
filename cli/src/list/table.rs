//! The table of `noiommu list`, as wide as the terminal.

use std::env;
use std::io::IsTerminal as _;

use anstyle::{AnsiColor, Style};
use noiommu::Provider;

use super::Row;
use crate::ui::{Cells, styled};

/// The columns.
const HEADINGS: [&str; 7] = ["ADDRESS", "DEVICE", "DRIVER", "PROVIDER", "IOMMU", "NUMA", "USE"];
/// The one that gives way, then the one that is long, too.
const DEVICE: usize = 1;
const USE: usize = 6;
/// Narrower than this a name says nothing.
const NARROWEST: usize = 16;
/// Between columns.
const GAP: &str = "  ";

/// The columns of the terminal; none where there is none: whoever reads a file can scroll.
pub(super) fn width() -> Option<usize> {
    let stdout = std::io::stdout();
    let asked = env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let terminal = || rustix::termios::tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col));
    if stdout.is_terminal() { asked.or_else(terminal).filter(|width| *width > 0) } else { None }
}

/// The table, and what it leaves to say.
pub(super) fn lines(rows: &[Row], width: Option<usize>, known: bool) -> Vec<String> {
    if rows.is_empty() {
        return vec!["No PCI device but bridges is there: noiommu list --all".to_owned()];
    }
    let utf8 = Cells::of_locale().full != Cells::ASCII.full;
    let cells: Vec<_> = rows.iter().map(|row| texts(row, utf8)).collect();
    let widest = |column: usize| {
        cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(HEADINGS[column].len())
    };
    let mut widths: [usize; 7] = std::array::from_fn(widest);
    // A column that says nothing is left out.
    let shown: Vec<usize> =
        (0..7).filter(|&column| column != USE || cells.iter().any(|row| row[USE] != "-")).collect();
    if let Some(width) = width {
        for column in [USE, DEVICE] {
            let total: usize =
                shown.iter().map(|&it| widths[it]).sum::<usize>() + GAP.len() * (shown.len() - 1);
            let spare = total.saturating_sub(width);
            widths[column] = widths[column].saturating_sub(spare).max(NARROWEST.min(widths[column]));
        }
    }
    let line = |texts: &[String; 7], style: &dyn Fn(usize) -> Style| {
        let cell = |&column: &usize| {
            let text = format!("{:<1$}", cut(&texts[column], widths[column], utf8), widths[column]);
            styled(style(column), &text)
        };
        shown.iter().map(cell).collect::<Vec<_>>().join(GAP).trim_end().to_owned()
    };
    let headings = HEADINGS.map(str::to_owned);
    let mut lines = vec![line(&headings, &|_| Style::new().bold())];
    for (row, texts) in rows.iter().zip(&cells) {
        let style = |column| match column {
            3 if row.has.is_some_and(Provider::is_confined) => AnsiColor::Green.on_default(),
            3 if row.has.is_some() => AnsiColor::Yellow.on_default(),
            3 => Style::new().dimmed(),
            USE => AnsiColor::Red.on_default(),
            _ => Style::new(),
        };
        lines.push(line(texts, &style));
    }
    lines.push(String::new());
    let mut notes = Vec::new();
    if cells.iter().any(|row| row[3].starts_with('(')) {
        notes.push("(in parentheses): after `noiommu bind ADDRESS`; --dry-run says how");
    }
    if !known {
        notes.push("names of devices: install the package pci.ids (Debian) or hwdata");
    }
    lines.extend(notes.into_iter().map(|note| styled(Style::new().dimmed(), note)));
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

/// The cells of a device.
fn texts(row: &Row, utf8: bool) -> [String; 7] {
    let device = &row.device;
    let nothing = || "-".to_owned();
    let name = row.name.clone().unwrap_or_else(|| format!("{:04x}:{:04x}", device.vendor, device.device));
    let provider = match (row.has, row.would_get()) {
        (Some(has), _) => has.name().to_owned(),
        (None, Some(would)) => format!("({})", would.name()),
        (None, None) => nothing(),
    };
    let uses = row.uses.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    [
        device.address.clone(),
        plain(&format!("{}: {name}", row.class), utf8),
        device.driver.clone().unwrap_or_else(nothing),
        provider,
        device.iommu.to_string(),
        device.numa_node.map_or_else(nothing, |node| node.to_string()),
        if uses.is_empty() { nothing() } else { plain(&uses, utf8) },
    ]
}

/// Text that the terminal can show.
fn plain(text: &str, utf8: bool) -> String {
    let shows = |letter: char| !letter.is_control() && (utf8 || letter.is_ascii());
    text.chars().map(|letter| if shows(letter) { letter } else { '?' }).collect()
}

/// At most `width` columns of a text.
fn cut(text: &str, width: usize, utf8: bool) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mark = if utf8 { "\u{2026}" } else { "~" };
    text.chars().take(width.saturating_sub(1)).chain(mark.chars()).collect()
}
