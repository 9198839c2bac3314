//! Figures as people read them.

use crate::row::Unit;

/// A figure with its unit, at three digits.
#[must_use]
pub fn value(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Ratio => format!("{}x", digits(value)),
        Unit::Count => digits(value),
        Unit::Nanoseconds => time(value),
        Unit::Microseconds => time(value * 1000.0),
        Unit::Bytes => {
            const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
            scaled(value, 1024.0, &UNITS)
        }
    }
}

fn time(nanoseconds: f64) -> String {
    scaled(nanoseconds, 1000.0, &["ns", "us", "ms", "s"])
}

/// In the largest unit of which there is one at least.
fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut units = units.iter().peekable();
    while let Some(unit) = units.next() {
        // 999.7 would be told as 1000.
        if value.abs() < step - 0.5 || units.peek().is_none() {
            return format!("{} {unit}", digits(value));
        }
        value /= step;
    }
    digits(value)
}

/// Three digits that count; no zeros behind the point that tell nothing but how it was computed.
fn digits(value: f64) -> String {
    if !value.is_finite() {
        return "?".to_owned();
    }
    let places = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.1 || size == 0.0 => 2,
        size => 1 + (-size.log10()).ceil() as usize,
    };
    let text = format!("{value:.places$}");
    if value.fract() == 0.0 { text.split('.').next().unwrap_or_default().to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits() {
        for (number, unit, text) in [
            (1.0449, Unit::Ratio, "1.04x"),
            (0.00412, Unit::Ratio, "0.0041x"),
            (23.46, Unit::Ratio, "23.5x"),
            (812.4, Unit::Nanoseconds, "812 ns"),
            (999.7, Unit::Nanoseconds, "1.00 us"),
            (4_912_000.0, Unit::Nanoseconds, "4.91 ms"),
            (1500.0, Unit::Microseconds, "1.50 ms"),
            (8.031, Unit::Bytes, "8.03 B"),
            (4096.0, Unit::Bytes, "4 KiB"),
            (2.0, Unit::Count, "2"),
            (0.0, Unit::Count, "0"),
            (f64::NAN, Unit::Ratio, "?x"),
        ] {
            assert_eq!(value(number, unit), text);
        }
    }
}
