//! The picture on a terminal, and the figures below it.

use anstyle::{AnsiColor, Style};

use super::blocks::{self, Look};
use super::class::Class;
use super::figures::Figures;
use super::grid::Grid;
use super::subject::{Part, Subject};
use crate::ui::{bytes, locale_has_blocks, styled};

/// Rows of cells.
const ROWS: usize = 12;
/// Rows of cells in the order of the process.
const ROWS_IN_ORDER: usize = 6;
/// Mappings that are told one by one.
const PARTS: usize = 8;

/// All of it.
pub(super) fn lines(subject: &Subject) -> Vec<String> {
    let look = Look { width: crate::ui::width(), utf8: locale_has_blocks() };
    draw(subject, look)
}

fn draw(subject: &Subject, look: Look) -> Vec<String> {
    let figures = Figures::of(subject);
    let runs: Vec<_> = subject.runs().copied().collect();
    let bold = |text: &str| styled(Style::new().bold(), text);
    let mut lines = vec![format!("{}  {}", bold(&subject.title), subject.detail)];
    if let Some(missing) = &subject.missing {
        lines.push(styled(AnsiColor::Yellow.on_default(), &format!("Simulated, as {}", missing.cause())));
        lines.extend(missing.remedy().map(|remedy| format!("  try: {remedy}")));
    }
    lines.push(String::new());
    if runs.is_empty() {
        lines.push("Nothing of it is in memory.".to_owned());
    } else {
        let order = Grid::in_order(&runs, look.columns(), ROWS_IN_ORDER);
        let heading = bold("As the process has it");
        lines.push(format!("{heading}, without holes; a cell is {}", bytes(order.share)));
        lines.extend(blocks::rows(&order, look));
        let physical = Grid::physical(&runs, look.columns(), ROWS);
        lines.push(String::new());
        let heading =
            bold(if subject.simulated { "In simulated physical space" } else { "In physical space" });
        lines.push(format!("{heading}; a cell is {}", bytes(physical.share)));
        lines.extend(blocks::rows(&physical, look));
        lines.extend([String::new(), format!("Runs: {}", blocks::legend(look))]);
        lines.extend([String::new()]);
        lines.extend(histogram(&figures, look));
        lines.push(String::new());
    }
    lines.extend(summary(&figures));
    if subject.parts.len() > 1 && !runs.is_empty() {
        lines.push(String::new());
        lines.extend(parts(subject, look));
    }
    lines
}

/// The figures in sentences.
fn summary(figures: &Figures) -> Vec<String> {
    let bold = |text: &str| styled(Style::new().bold(), text);
    let percent = 100.0 * figures.share_in_huge_runs();
    let mut lines = vec![format!(
        "{} in {} pages, {}; the longest {}; {} in runs of 2 MiB and more",
        bold(&bytes(figures.bytes)),
        figures.pages,
        bold(&format!("{} {}", figures.runs, if figures.runs == 1 { "run" } else { "runs" })),
        bold(&bytes(figures.longest)),
        bold(&format!("{percent:.0} %")),
    )];
    let more = figures.beside();
    if !more.is_empty() {
        lines.push(more.join("; "));
    }
    lines
}

/// How many runs there are of which length, and how much memory is in them.
fn histogram(figures: &Figures, look: Look) -> Vec<String> {
    let bins = figures.bins();
    let texts: Vec<_> = bins.iter().map(|(_, bin)| format!("{} in {}", bytes(bin.bytes), bin.runs)).collect();
    let longest = texts.iter().map(String::len).max().unwrap_or(0);
    let width = look.width.saturating_sub(14 + longest).clamp(8, 48);
    let mut lines = vec![format!("{} (memory, and runs)", styled(Style::new().bold(), "Length of runs"))];
    for ((power, bin), text) in bins.iter().zip(texts) {
        let share = bin.bytes as f64 / figures.bytes.max(1) as f64;
        let bar = blocks::bar(share, width, Class::of(1 << power), look);
        lines.push(format!("{:>9} + {bar} {text}", bytes(1 << power)));
    }
    lines
}

/// The parts with the most memory.
fn parts(subject: &Subject, look: Look) -> Vec<String> {
    let mut parts: Vec<(&Part, Figures)> = subject
        .parts
        .iter()
        .map(|part| (part, Figures::of_part(part)))
        .filter(|(_, it)| it.bytes > 0)
        .collect();
    parts.sort_by_key(|(part, figures)| (std::cmp::Reverse(figures.bytes), part.start));
    let room = look.width.saturating_sub(60).max(16);
    let mut lines = vec![styled(
        Style::new().bold(),
        &format!("{:>14}  {:>9} {:>8} {:>9} {:>6}  OF", "MAPPING", "BYTES", "RUNS", "LONGEST", ">=2M"),
    )];
    let others = parts.len().saturating_sub(PARTS);
    for (part, figures) in parts.iter().take(PARTS) {
        let name = if part.name.is_empty() { "(anonymous)" } else { &part.name };
        lines.push(format!(
            "{:>#14x}  {:>9} {:>8} {:>9} {:>4.0} %  {}",
            part.start,
            bytes(figures.bytes),
            figures.runs,
            bytes(figures.longest),
            100.0 * figures.share_in_huge_runs(),
            end_of(name, room, look.utf8)
        ));
    }
    if others > 0 {
        let more: u64 = parts.iter().skip(PARTS).map(|(_, figures)| figures.bytes).sum();
        lines.push(format!("and {others} more with {} together", bytes(more)));
    }
    lines
}

/// The last characters of a name, which say the most of a path. What a terminal may take for a command is none of it.
fn end_of(name: &str, width: usize, utf8: bool) -> String {
    let shows = |letter: char| !letter.is_control() && (utf8 || letter.is_ascii());
    let letters: Vec<char> = name.chars().map(|letter| if shows(letter) { letter } else { '?' }).collect();
    if letters.len() <= width {
        return letters.into_iter().collect();
    }
    let mark = if utf8 { "\u{2026}" } else { "~" };
    mark.chars().chain(letters[letters.len() - (width - 1)..].iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use noiommu::frames::{Frames, Run};
    use noiommu::{Contiguity, PhysAddr};

    use super::*;

    #[test]
    fn a_simulated_buffer_is_drawn_within_the_terminal() {
        let subject = Subject::buffer(4 << 20, Contiguity::Pages, true).unwrap();
        for (width, utf8) in [(60, false), (80, true), (200, true)] {
            let lines = draw(&subject, Look { width, utf8 });
            let lines: Vec<_> =
                lines.iter().map(|line| anstream::adapter::strip_str(line).to_string()).collect();
            let rows: Vec<_> = lines.iter().filter(|line| line.trim_start().starts_with("0x")).collect();
            assert!(rows.len() >= 2 && rows.iter().all(|row| row.chars().count() <= width), "{lines:#?}");
            assert!(lines.iter().any(|line| line.contains("4 MiB in 1024 pages")), "{lines:#?}");
            assert!(utf8 || lines.iter().all(|line| line.is_ascii()));
        }
    }

    #[test]
    fn nothing_in_memory_is_said() {
        let part = |frames| Part { start: 0, end: 4096, name: String::new(), frames };
        let subject = |frames| Subject {
            title: "it".to_owned(),
            detail: String::new(),
            missing: None,
            simulated: false,
            parts: vec![part(frames)],
        };
        let look = Look { width: 80, utf8: false };
        let mut swapped = Frames::default();
        swapped.swapped = 4096;
        let lines = draw(&subject(swapped), look);
        assert!(lines.iter().any(|line| line.contains("Nothing of it is in memory")), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("4 KiB swapped out")), "{lines:#?}");
        let mut one = Frames::default();
        one.runs = vec![Run { start: 0, address: PhysAddr(0x1000), length: 4096, huge: 0, shared: true }];
        let lines = draw(&subject(one), look);
        assert!(lines.iter().any(|line| line.contains("4 KiB of files or shared")), "{lines:#?}");
    }

    #[test]
    fn names_are_cut_at_their_beginning() {
        assert_eq!(end_of("/usr/lib/libc.so.6", 10, false), "~libc.so.6");
        assert_eq!(end_of("short", 10, true), "short");
        assert_eq!(end_of("\u{1b}[2J", 10, true), "?[2J");
    }
}
