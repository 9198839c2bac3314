//! For people: rows with bars.

use anstyle::{AnsiColor, Style};

use super::values::value;
use crate::row::{Mark, Row, Subject};
use crate::suite::Group;

/// The columns of the name, the value, the mark, the verdict and the noise, with the space before them.
const NAME: usize = 30;
const VALUE: usize = 9;
const MARK: usize = 10;
const VERDICT: usize = 13;
/// Where in the bar the mark stands.
const MARK_AT: f64 = 0.6;
/// What stands before the lines below a row.
const INDENT: &str = "    ";

/// What the terminal can show.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Its columns.
    pub width: usize,
    /// What fills bars, what is behind them, and the mark in them.
    pub cells: [char; 3],
}

impl Look {
    /// Blocks, where the terminal can show them, else plain ASCII.
    #[must_use]
    pub fn new(width: usize, blocks: bool) -> Self {
        let cells = if blocks { ['\u{2588}', '\u{2591}', '\u{2502}'] } else { ['#', '.', '|'] };
        // Narrower ones wrap by themselves; in wider ones the eye loses the line.
        Self { width: width.clamp(76, 110), cells }
    }
}

/// The rows of a run, by group.
#[must_use]
pub fn lines(groups: &[(&Group, Vec<Row>)], look: Look) -> Vec<String> {
    let mut lines = Vec::new();
    for (group, rows) in groups {
        lines.push(styled(Style::new().bold(), group.what));
        lines.extend(rows.iter().flat_map(|row| row_lines(row, look)));
        lines.push(String::new());
    }
    lines
}

/// What would be measured.
#[must_use]
pub fn list(groups: &[(&Group, Vec<Subject>)], look: Look) -> Vec<String> {
    let mut lines = Vec::new();
    for (group, subjects) in groups {
        lines.push(styled(Style::new().bold(), group.what));
        for subject in subjects {
            let mark = subject.mark.map_or_else(|| "told".to_owned(), |mark| mark_text(mark, subject));
            lines.push(format!("  {:<NAME$}{mark}", subject.name));
            lines.extend(dim(&wrap(&subject.what, look.width)));
        }
        lines.push(String::new());
    }
    lines
}

/// One line on all of it.
#[must_use]
pub fn verdict(rows: &[Row]) -> String {
    let count = |is: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| is(row)).count();
    let marks = count(&|row| row.subject.mark.is_some());
    let (met, fails) = (count(&|row| row.met() == Some(true)), count(&Row::fails));
    let (not_measured, told) = (count(&|row| !row.is_measured()), rows.len() - marks);
    let mut text = format!("{met} of {marks} marks met");
    for (number, what) in [
        (fails, "missed beyond their noise"),
        (count(&|row| row.met() == Some(false) && row.is_measured()) - fails, "missed within their noise"),
        (not_measured, "not measured"),
        (told, "rows only told"),
    ] {
        if number > 0 {
            text.push_str(&format!(", {number} {what}"));
        }
    }
    let colour = match (fails, not_measured) {
        (0, 0) => AnsiColor::Green,
        (0, _) => AnsiColor::Yellow,
        _ => AnsiColor::Red,
    };
    styled(colour.on_default().bold(), &text)
}

fn row_lines(row: &Row, look: Look) -> Vec<String> {
    let subject = &row.subject;
    let bar_width = look.width.saturating_sub(2 + NAME + VALUE + 2 + MARK + VERDICT).max(8);
    let mut lines = Vec::new();
    match &row.figure {
        Ok(figure) => {
            let bar = match subject.mark {
                Some(mark) => bar(figure.value, mark, bar_width, look.cells),
                None => " ".repeat(bar_width),
            };
            let number = value(figure.value, subject.unit);
            let mark = subject.mark.map_or(String::new(), |mark| mark_text(mark, subject));
            let (verdict, style) = match (row.met(), row.fails()) {
                (None, _) => ("told", Style::new().dimmed()),
                (Some(true), _) => ("met", AnsiColor::Green.on_default()),
                (Some(false), false) => ("in noise", AnsiColor::Yellow.on_default()),
                (Some(false), true) => ("MISSED", AnsiColor::Red.on_default().bold()),
            };
            let noise = format!("~{:.0}%", figure.spread * 100.0);
            lines.push(format!(
                "  {:<NAME$}{}{number:>VALUE$}  {mark:<MARK$}{}{noise:>4}",
                subject.name,
                styled(style, &bar),
                styled(style, &format!("{verdict:<9}")),
            ));
        }
        Err(why) => {
            lines.push(format!(
                "  {:<NAME$}{}",
                subject.name,
                styled(AnsiColor::Yellow.on_default(), "not measured here:")
            ));
            lines.extend(wrap(why, look.width));
        }
    }
    lines.extend(dim(&wrap(&subject.what, look.width)));
    if !row.parts.is_empty() {
        let parts: Vec<_> =
            row.parts.iter().map(|part| format!("{} {}", part.label, value(part.value, part.unit))).collect();
        lines.extend(wrap(&parts.join(", "), look.width));
    }
    lines.extend(row.note.iter().flat_map(|note| wrap(note, look.width)));
    lines
}

fn mark_text(mark: Mark, subject: &Subject) -> String {
    let bound = match mark {
        Mark::AtMost(_) => "<=",
        Mark::AtLeast(_) => ">=",
    };
    format!("{bound} {}", value(mark.number(), subject.unit))
}

/// A value against its mark, which always stands at the same place.
fn bar(value: f64, mark: Mark, width: usize, [full, empty, line]: [char; 3]) -> String {
    let scale = MARK_AT * width as f64 / mark.number().max(f64::MIN_POSITIVE);
    let filled = (value * scale).round() as usize;
    let at = (MARK_AT * width as f64) as usize;
    (0..width)
        .map(|cell| match cell {
            _ if cell == at => line,
            _ if cell < filled => full,
            _ => empty,
        })
        .collect()
}

fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

fn dim(lines: &[String]) -> Vec<String> {
    lines.iter().map(|line| styled(Style::new().dimmed(), line)).collect()
}

/// Text in lines of at most `width` columns, each below a row.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = INDENT.to_owned();
    for word in text.split_ascii_whitespace() {
        let begun = line.len() > INDENT.len();
        if begun && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, format!("{INDENT}{word}")));
        } else {
            if begun {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    if line.len() > INDENT.len() {
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Unit;

    const SUBJECT: Subject = Subject::marked("map/4k", "Touched pages.", Unit::Ratio, Mark::AtMost(1.0));

    fn plain(row: &Row, width: usize) -> Vec<String> {
        row_lines(row, Look::new(width, false)).iter().map(|line| strip(line)).collect()
    }

    fn strip(text: &str) -> String {
        let mut plain = String::new();
        let mut inside = false;
        for character in text.chars() {
            match character {
                '\u{1b}' => inside = true,
                'm' if inside => inside = false,
                _ if !inside => plain.push(character),
                _ => {}
            }
        }
        plain
    }

    #[test]
    fn a_row_fits_and_its_bar_ends_at_its_value() {
        for width in [40, 80, 200] {
            let row = SUBJECT
                .row(0.5, 0.012)
                .part("the engine", 1500.0)
                .part("bare", 3000.0)
                .note("word ".repeat(60));
            let lines = plain(&row, width);
            let fits = Look::new(width, false).width;
            assert!(lines.iter().all(|line| line.len() <= fits), "{lines:#?}");
            assert!(
                lines[0].contains("0.50x  <= 1x") && lines[0].contains("met") && lines[0].ends_with("~1%")
            );
            assert_eq!(lines[2], "    the engine 1.50 us, bare 3 us");
        }
        assert_eq!(bar(0.5, Mark::AtMost(1.0), 20, ['#', '.', '|']), "######......|.......");
        assert_eq!(bar(1.0, Mark::AtMost(1.0), 20, ['#', '.', '|']), "############|.......");
        assert_eq!(bar(9.0, Mark::AtLeast(1.0), 20, ['#', '.', '|']), "############|#######");
    }

    #[test]
    fn what_was_not_measured_says_why() {
        let row = SUBJECT.not_measured("it needs root");
        let lines = plain(&row, 80);
        assert!(lines[0].contains("not measured here") && lines[1].contains("it needs root"));
        assert_eq!(
            strip(&verdict(&[row, SUBJECT.row(2.0, 0.0)])),
            "0 of 2 marks met, 1 missed beyond their noise, 1 not measured"
        );
    }
}
