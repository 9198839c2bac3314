//! What the result looks like: for people, as wide as their terminal, and as JSON.

use anstyle::{AnsiColor, Style};
use serde_json::{Value, json};

use super::checks::{Check, Status};
use crate::ui::styled;

/// The width of the column of names.
const NAMES: usize = 17;
/// That of statuses.
const STATUSES: usize = 9;
/// Where the third column begins.
const INDENT: usize = 2 + STATUSES + NAMES;

/// The result as JSON.
pub(super) fn json(checks: &[Check]) -> Value {
    let one = |check: &Check| {
        json!({
            "name": check.name,
            "status": check.status.name(),
            "found": check.found,
            "why": check.why,
            "remedy": check.remedy,
        })
    };
    json!({ "checks": checks.iter().map(one).collect::<Vec<_>>(), "problems": problems(checks) })
}

pub(super) fn problems(checks: &[Check]) -> usize {
    checks.iter().filter(|check| check.is_problem()).count()
}

/// The result for people, in so many columns. Remedies are never broken: they are to be copied.
pub(super) fn lines(checks: &[Check], width: usize) -> Vec<String> {
    let dimmed = |text: &str| styled(Style::new().dimmed(), text);
    let mut lines = Vec::new();
    for check in checks {
        let (word, style) = match check.status {
            Status::Ok => ("ok", AnsiColor::Green.on_default()),
            Status::Note => ("note", AnsiColor::Cyan.on_default()),
            Status::Problem => ("problem", AnsiColor::Red.on_default().bold()),
            Status::NotApplicable => ("-", Style::new().dimmed()),
        };
        let status = styled(style, &format!("{word:<STATUSES$}"));
        let mut texts = wrap(&check.found, width.saturating_sub(INDENT));
        let first = if texts.is_empty() { String::new() } else { texts.remove(0) };
        lines.push(format!("  {status}{:<NAMES$}{first}", check.name));
        lines.extend(texts.into_iter().map(|text| indented(&text)));
        if matches!(check.status, Status::Problem | Status::Note) {
            let why = wrap(check.why, width.saturating_sub(INDENT));
            lines.extend(why.iter().map(|text| indented(&dimmed(text))));
            if let Some(remedy) = &check.remedy {
                let words = styled(Style::new().bold(), "try:");
                lines.push(format!("  {:STATUSES$}{words} {remedy}", ""));
            }
        }
    }
    lines.push(String::new());
    let notes = checks.iter().filter(|check| check.status == Status::Note).count();
    let count = |number: usize, what: &str| match number {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    };
    lines.push(format!("{}, {}", count(problems(checks), "problem"), count(notes, "note")));
    lines
}

fn indented(text: &str) -> String {
    format!("{:INDENT$}{text}", "")
}

/// Breaks text between words; a word that is longer than a line stays whole.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_ascii_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("a-word-that-is-too-long b", 5), ["a-word-that-is-too-long", "b"]);
        assert!(wrap("", 5).is_empty());
    }
}
