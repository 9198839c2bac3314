//! What follows the options in the help, as sections of a page.
//!
//! The help is written for a terminal: paragraphs, and lines that are indented because their columns count. A paragraph that
//! begins with "Examples:" or "Exit status:" is a section of its own in a page.

use clap_mangen::roff::{Roff, roman};

/// Sets all of it.
pub(super) fn set(roff: &mut Roff, help: &str) {
    let (mut notes, mut others) = (Vec::new(), Vec::new());
    for paragraph in paragraphs(help) {
        match section(&paragraph) {
            Some((heading, rest)) => others.push((heading, rest)),
            None => notes.push(paragraph),
        }
    }
    if !notes.is_empty() {
        roff.control("SH", ["NOTES"]);
        for (index, paragraph) in notes.iter().enumerate() {
            if index > 0 {
                roff.control("PP", []);
            }
            self::paragraph(roff, paragraph);
        }
    }
    // The order of man-pages(7).
    for wanted in ["EXIT STATUS", "EXAMPLES"] {
        for (heading, rest) in &others {
            if *heading == wanted {
                roff.control("SH", [wanted]);
                paragraph(roff, rest);
            }
        }
    }
}

/// The lines between empty ones. Indented ones after an empty line belong to what stands before, if that ends with a colon.
fn paragraphs(help: &str) -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = Vec::new();
    let mut is_open = false;
    for line in help.lines().map(str::trim_end) {
        if line.is_empty() {
            is_open = false;
            continue;
        }
        let continues = line.starts_with(' ')
            && all.last().and_then(|lines| lines.last()).is_some_and(|last| last.ends_with(':'));
        match all.last_mut() {
            Some(last) if is_open || continues => last.push(line.to_owned()),
            _ => all.push(vec![line.to_owned()]),
        }
        is_open = true;
    }
    all
}

/// The section that a paragraph is, and the paragraph without the words that say so.
fn section(paragraph: &[String]) -> Option<(&'static str, Vec<String>)> {
    let (first, rest) = paragraph.split_first()?;
    let (heading, left) =
        [("Examples:", "EXAMPLES"), ("Exit status:", "EXIT STATUS"), ("Exit codes:", "EXIT STATUS")]
            .iter()
            .find_map(|(words, heading)| Some((*heading, first.strip_prefix(words)?.trim())))?;
    let left = (!left.is_empty()).then(|| left.to_owned());
    Some((heading, left.into_iter().chain(rest.iter().cloned()).collect()))
}

/// Sets a paragraph: what is indented stays as it is.
fn paragraph(roff: &mut Roff, lines: &[String]) {
    let mut verbatim = false;
    for line in lines {
        let indented = line.starts_with(' ');
        if indented != verbatim {
            verbatim = indented;
            roff.control(if verbatim { "nf" } else { "fi" }, []);
        }
        roff.text([roman(line.as_str())]);
    }
    if verbatim {
        roff.control("fi", []);
    }
}
