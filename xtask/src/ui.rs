//! What a person sees: a spinner or bar for long work, colours where they are wanted.

use std::borrow::Cow;
use std::env;
use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A piece of work that takes longer than a glance.
///
/// On a terminal it shows a spinner (or a bar) that goes away with it; elsewhere, one line when it begins. Either way one
/// line with the time it took remains when it is finished.
pub(crate) struct Work {
    what: Cow<'static, str>,
    bar: ProgressBar,
    began: Instant,
}

impl Work {
    /// Begins work of unknown length.
    pub(crate) fn start(what: impl Into<Cow<'static, str>>) -> Self {
        Self::with(what.into(), ProgressBar::new_spinner(), "{spinner} {msg} {elapsed}")
    }

    /// Begins work on a known number of bytes.
    pub(crate) fn bytes(what: impl Into<Cow<'static, str>>, total: u64) -> Self {
        Self::with(
            what.into(),
            ProgressBar::new(total),
            "{spinner} {msg} [{bar:12}] {bytes}/{total_bytes} {eta}",
        )
    }

    /// Begins work that says about so many lines.
    pub(crate) fn lines(what: impl Into<Cow<'static, str>>, about: u64) -> Self {
        Self::with(what.into(), ProgressBar::new(about), "{spinner} {msg} [{bar:12}] {percent} % {elapsed}")
    }

    fn with(what: Cow<'static, str>, bar: ProgressBar, template: &str) -> Self {
        if bar.is_hidden() {
            // No terminal (or one that cannot move its cursor): a log wants to show what a stuck run is stuck in.
            eprintln!("{what} ...");
        }
        bar.set_style(ProgressStyle::with_template(template).expect("the templates are constants"));
        bar.set_message(what.clone());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { what, bar, began: Instant::now() }
    }

    /// Says how far it is.
    pub(crate) fn set_position(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Says what is happening, on a terminal only.
    pub(crate) fn set_message(&self, message: String) {
        self.bar.set_message(message);
    }

    /// Prints a line without disturbing the spinner.
    pub(crate) fn print(&self, line: impl Display) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    /// Ends it and leaves a line with the time it took.
    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
        eprintln!("{} ({})", self.what, seconds(self.began.elapsed()));
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // Work that fails leaves no spinner behind in front of the error.
        self.bar.finish_and_clear();
    }
}

/// A duration as people read it.
pub(crate) fn seconds(time: Duration) -> String {
    let tenths = (time.as_millis() + 50) / 100;
    if tenths < 600 {
        format!("{}.{} s", tenths / 10, tenths % 10)
    } else {
        let seconds = (tenths + 5) / 10;
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

/// How a word on stdout looks.
#[derive(Clone, Copy)]
pub(crate) enum Look {
    /// A heading.
    Bold,
    /// What went well.
    Green,
    /// What failed.
    Red,
    /// What did not happen.
    Yellow,
}

/// Whether stdout takes colours: it is a terminal and NO_COLOR is not set.
pub(crate) fn colours() -> bool {
    let forbidden = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !forbidden && io::stdout().is_terminal()
}

/// The terminal's columns; 80 where there is none.
pub(crate) fn width() -> usize {
    const USUAL: usize = 80;
    let columns = rustix::termios::tcgetwinsize(io::stdout());
    columns.map_or(0, |size| usize::from(size.ws_col)).max(USUAL)
}

/// Prints a line that has styles in it, without them if stdout takes none.
pub(crate) fn print_styled(line: &str) {
    if colours() {
        println!("{line}");
    } else {
        println!("{}", anstream::adapter::strip_str(line));
    }
}

/// `text` for stdout, coloured if it takes colours.
pub(crate) fn paint(text: impl Display, look: Look) -> String {
    if !colours() {
        return text.to_string();
    }
    let code = match look {
        Look::Bold => 1,
        Look::Green => 32,
        Look::Red => 31,
        Look::Yellow => 33,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_once() {
        let text = |millis| seconds(Duration::from_millis(millis));
        assert_eq!(text(0), "0.0 s");
        assert_eq!(text(49), "0.0 s");
        assert_eq!(text(12_349), "12.3 s");
        assert_eq!(text(59_949), "59.9 s");
        assert_eq!(text(59_950), "1 min 00 s");
        assert_eq!(text(125_600), "2 min 06 s");
    }
}
