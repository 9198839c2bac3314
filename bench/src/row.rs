//! One figure, its mark, and whether it keeps it.

use std::borrow::Cow;

use crate::measure::Ratio;

/// What a figure counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// How many times as much as what it is compared with.
    Ratio,
    /// Nanoseconds.
    Nanoseconds,
    /// Microseconds.
    Microseconds,
    /// Bytes.
    Bytes,
    /// Things.
    Count,
}

impl Unit {
    /// Its name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ratio => "ratio",
            Self::Nanoseconds => "ns",
            Self::Microseconds => "us",
            Self::Bytes => "bytes",
            Self::Count => "count",
        }
    }
}

/// What a figure has to keep.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Mark {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Mark {
    /// The number alone.
    #[must_use]
    pub const fn number(self) -> f64 {
        match self {
            Self::AtMost(number) | Self::AtLeast(number) => number,
        }
    }

    /// Whether `value` keeps it.
    #[must_use]
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

/// What is measured, known before it is: a row of `noiommu bench --list`.
#[derive(Clone, PartialEq, Debug)]
pub struct Subject {
    /// Its stable name, such as "lookup/2m/16g/dependent".
    pub name: Cow<'static, str>,
    /// What it is, a sentence for people.
    pub what: Cow<'static, str>,
    /// What its figure counts.
    pub unit: Unit,
    /// What it has to keep; `None` for what is only told.
    pub mark: Option<Mark>,
}

impl Subject {
    /// Something with a mark.
    #[must_use]
    pub const fn marked(name: &'static str, what: &'static str, unit: Unit, mark: Mark) -> Self {
        Self { name: Cow::Borrowed(name), what: Cow::Borrowed(what), unit, mark: Some(mark) }
    }

    /// Something that is only told.
    #[must_use]
    pub const fn told(name: &'static str, what: &'static str, unit: Unit) -> Self {
        Self { name: Cow::Borrowed(name), what: Cow::Borrowed(what), unit, mark: None }
    }

    /// A row of it: what was measured.
    #[must_use]
    pub fn row(&self, value: f64, spread: f64) -> Row {
        self.with(Ok(Figure { value, spread }))
    }

    /// The same from a ratio.
    #[must_use]
    pub fn ratio(&self, ratio: Ratio) -> Row {
        self.row(ratio.value, ratio.spread)
    }

    /// A row that says why it was not measured.
    #[must_use]
    pub fn not_measured(&self, why: impl Into<String>) -> Row {
        self.with(Err(why.into()))
    }

    fn with(&self, figure: Result<Figure, String>) -> Row {
        Row { subject: self.clone(), figure, parts: Vec::new(), note: None }
    }
}

/// What was measured.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Figure {
    /// In the subject's unit.
    pub value: f64,
    /// The noise that the measurement saw in itself, relative to the value.
    pub spread: f64,
}

/// A part of what a row is about, told beside it.
#[derive(Clone, PartialEq, Debug)]
pub struct Part {
    /// What it is.
    pub label: Cow<'static, str>,
    /// How much, in `unit`.
    pub value: f64,
    /// What it counts.
    pub unit: Unit,
}

/// A subject, measured or not.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// What it is about.
    pub subject: Subject,
    /// What was measured; or why it was not.
    pub figure: Result<Figure, String>,
    /// What it is made of, or compared with.
    pub parts: Vec<Part>,
    /// What else is to be known.
    pub note: Option<String>,
}

impl Row {
    /// With a part of so many nanoseconds.
    #[must_use]
    pub fn part(self, label: impl Into<Cow<'static, str>>, nanoseconds: f64) -> Self {
        self.part_in(label, nanoseconds, Unit::Nanoseconds)
    }

    /// With a part in a unit of choice.
    #[must_use]
    pub fn part_in(mut self, label: impl Into<Cow<'static, str>>, value: f64, unit: Unit) -> Self {
        self.parts.push(Part { label: label.into(), value, unit });
        self
    }

    /// With a note.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// Whether it keeps its mark, to the letter; `None` where there is none. What was not measured does not.
    #[must_use]
    pub fn met(&self) -> Option<bool> {
        let mark = self.subject.mark?;
        Some(self.figure.as_ref().is_ok_and(|figure| mark.holds(figure.value)))
    }

    /// Whether it misses its mark by more than the noise of its own measurement.
    #[must_use]
    pub fn fails(&self) -> bool {
        match (self.subject.mark, &self.figure) {
            (Some(mark), Ok(figure)) => {
                let kindly = match mark {
                    Mark::AtMost(_) => figure.value * (1.0 - figure.spread.min(1.0)),
                    Mark::AtLeast(_) => figure.value * (1.0 + figure.spread),
                };
                // Not a number keeps no mark.
                !mark.holds(kindly)
            }
            _ => false,
        }
    }

    /// Whether there is a figure.
    #[must_use]
    pub fn is_measured(&self) -> bool {
        self.figure.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Subject = Subject::marked("a/b", "", Unit::Ratio, Mark::AtMost(1.0));
    const LEAST: Subject = Subject::marked("a/c", "", Unit::Ratio, Mark::AtLeast(2.0));

    #[test]
    fn only_what_is_beyond_the_noise_fails() {
        for (row, met, fails) in [
            (MOST.row(0.9, 0.0), Some(true), false),
            (MOST.row(1.0, 0.0), Some(true), false),
            (MOST.row(1.05, 0.06), Some(false), false),
            (MOST.row(1.05, 0.04), Some(false), true),
            (MOST.row(1.05, 7.0), Some(false), false),
            (LEAST.row(2.1, 0.0), Some(true), false),
            (LEAST.row(1.9, 0.06), Some(false), false),
            (LEAST.row(1.9, 0.04), Some(false), true),
            (MOST.row(f64::NAN, 0.1), Some(false), true),
            (MOST.not_measured("no root"), Some(false), false),
            (Subject::told("t", "", Unit::Bytes).row(7.0, 0.0), None, false),
        ] {
            assert_eq!((row.met(), row.fails()), (met, fails), "{row:?}");
        }
    }
}
