//! What all subcommands show people with: a progress bar that waits, blocks that the terminal can draw, styles, sizes.

use std::env;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anstyle::Style;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work shorter than this needs no progress bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// A progress bar on standard error that appears when the work has taken a while, and only on a terminal.
#[derive(Debug)]
pub(crate) struct PatientBar {
    begin: Instant,
    bar: ProgressBar,
}

impl PatientBar {
    /// Starts the clock.
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        // The template is a constant; the default style is fine should it ever be wrong.
        if let Ok(style) = ProgressStyle::with_template("  [{bar:30}] {percent:>3} %  {msg}") {
            bar.set_style(style.progress_chars("#>."));
        }
        Self { begin: Instant::now(), bar }
    }

    /// How far the work is.
    pub(crate) fn step(&self, done: u64, total: u64, what: &str) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        if self.bar.message() != what {
            self.bar.set_message(what.to_owned());
        }
        if self.bar.is_hidden() && self.begin.elapsed() > PATIENCE && std::io::stderr().is_terminal() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }

    /// Prints lines above the bar.
    pub(crate) fn print<L: std::fmt::Display>(&self, lines: &[L]) {
        self.bar.suspend(|| print_lines(lines));
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for PatientBar {
    fn drop(&mut self) {
        // Also when the work failed: the error message wants a line of its own.
        self.finish();
    }
}

/// The characters that blocks are drawn with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cells {
    /// For what counts.
    pub(crate) full: char,
    /// The same, told apart from its neighbour.
    pub(crate) other: char,
    /// For the rest.
    pub(crate) empty: char,
}

impl Cells {
    /// Blocks, where the terminal can show them.
    pub(crate) const BLOCKS: Self = Self { full: '\u{2588}', other: '\u{2593}', empty: '\u{2591}' };
    /// Plain ASCII.
    pub(crate) const ASCII: Self = Self { full: '#', other: '=', empty: '.' };

    /// What the locale allows.
    pub(crate) fn of_locale() -> Self {
        if locale_has_blocks() { Self::BLOCKS } else { Self::ASCII }
    }
}

/// Whether the locale's characters include blocks to draw with.
pub(crate) fn locale_has_blocks() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(|name| env::var(name).ok());
    let utf8 = |name: String| name.to_ascii_uppercase().replace('-', "").contains("UTF8");
    locale.into_iter().find(|value| !value.is_empty()).is_some_and(utf8)
}

/// Prints lines. A reader that went away is no reason to fail: the exit code still tells.
pub(crate) fn print_lines<L: std::fmt::Display>(lines: &[L]) {
    let mut out = anstream::stdout();
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
}

/// The terminal's columns; 80 where there is none.
pub(crate) fn width() -> usize {
    const USUAL: usize = 80;
    const NARROWEST: usize = 60;
    let columns =
        rustix::termios::tcgetwinsize(rustix::stdio::stdout()).map_or(0, |size| usize::from(size.ws_col));
    if columns == 0 { USUAL } else { columns.max(NARROWEST) }
}

/// Text in a style.
pub(crate) fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Bytes for people: the largest unit that divides them, else one decimal.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (count.max(1).ilog2() as usize / 10).min(UNITS.len() - 1);
    let size = 1u64 << (10 * unit);
    if count.is_multiple_of(size) {
        format!("{} {}", count / size, UNITS[unit])
    } else {
        format!("{:.1} {}", count as f64 / size as f64, UNITS[unit])
    }
}

/// A size as people write it: `4096`, `64K`, `8M`, `1G` (powers of 1024).
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        unit => return Err(format!("unknown unit {unit:?}: write 4096, 64K, 8M or 1G")),
    };
    let number: u64 = digits.parse().map_err(|_| "write 4096, 64K, 8M or 1G".to_owned())?;
    number.checked_mul(1 << shift).filter(|&size| size > 0).ok_or_else(|| "that is no size".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (count, text) in [(0, "0 B"), (1, "1 B"), (4096, "4 KiB"), (1536, "1.5 KiB"), (8 << 20, "8 MiB")]
        {
            assert_eq!(bytes(count), text);
        }
        for (text, count) in [("4096", 4096), ("64K", 65536), ("8m", 8 << 20), ("1GiB", 1 << 30), (" 2 B", 2)]
        {
            assert_eq!(parse_bytes(&text.replace(' ', "")), Ok(count), "{text}");
        }
        for wrong in ["", "K", "-1", "0", "12Q", "99999999999G"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
