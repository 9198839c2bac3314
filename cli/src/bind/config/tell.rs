//! What was done with a file, line by line, for people and for programs.

use std::io::Write as _;

use anstyle::{AnsiColor, Style};
use noiommu::optin;
use serde_json::{Value, json};

use super::file::{Config, Line, Mistake};
use super::{Given, Row, Wanted};
use crate::ui::{self, styled};

/// The mistakes of a file.
pub(super) fn mistakes(wanted: &Wanted<'_>, mistakes: &[Mistake]) {
    let path = wanted.path.display();
    if wanted.json {
        let all =
            mistakes.iter().map(|it| json!({ "line": it.line, "cause": it.cause, "remedy": it.remedy }));
        let cause = format!("{path} has mistakes, and so nothing of it is done");
        let error = json!({
            "kind": "Argument", "errno": "EINVAL", "cause": cause, "remedy": "write the lines anew",
            "mistakes": all.collect::<Vec<_>>(),
        });
        let _ = writeln!(std::io::stdout(), "{}", json!({ "error": error }));
        return;
    }
    let mut out = anstream::stderr();
    let heading = styled(AnsiColor::Red.on_default().bold(), "noiommu:");
    for Mistake { line, cause, remedy } in mistakes {
        let _ = writeln!(out, "{heading} {path}:{line}: {cause}");
        let _ = writeln!(out, "  {} {remedy}", styled(Style::new().bold(), "try:"));
    }
    let _ = writeln!(out, "Nothing of it is done.");
}

/// Each line of the file with its devices.
pub(super) fn rows<T>(
    wanted: &Wanted<'_>,
    config: &Config,
    rows: &[Row<'_, T>],
    absent: &[&Line],
    value: fn(&T) -> Value,
    lines: fn(&T) -> Vec<String>,
) {
    if wanted.json {
        let devices = rows.iter().map(|row| {
            let mut told = match &row.result {
                Ok(done) => value(done),
                Err(error) => json!({ "address": row.address, "error": crate::error_json(error) }),
            };
            told["line"] = row.line.number.into();
            told
        });
        let absent = absent.iter().map(|line| json!({ "line": line.number, "text": line.text() }));
        let value = json!({
            "file": wanted.path.display().to_string(),
            "enable": config.enable,
            "enabled": optin::is_enabled(),
            "devices": devices.collect::<Vec<_>>(),
            "absent": absent.collect::<Vec<_>>(),
        });
        let _ = writeln!(std::io::stdout(), "{value}");
        return;
    }
    if config.enable {
        let state = match (optin::is_enabled(), wanted.dry_run) {
            (true, _) => "The unsafe no-IOMMU mode is enabled",
            (false, true) => {
                "The unsafe no-IOMMU mode would be enabled first, which may offer better ways than these"
            }
            (false, false) => "The unsafe no-IOMMU mode is not enabled",
        };
        ui::print_lines(&[state]);
    }
    for row in rows {
        match &row.result {
            Ok(done) => ui::print_lines(&lines(done)),
            Err(error) => {
                crate::failed(false, error);
            }
        }
    }
    let path = wanted.path.display();
    for line in absent {
        ui::print_lines(&[format!("{path}:{}: no such device is there now: {}", line.number, line.text())]);
    }
    if config.lines.is_empty() {
        ui::print_lines(&[format!("{path} names no device.")]);
    }
}

/// A device that was given back.
pub(super) fn given_lines(given: &Given) -> Vec<String> {
    let address = styled(Style::new().bold(), &given.address);
    vec![match &given.driver {
        _ if given.is_gone => format!("{address} is gone, and forgotten"),
        Some(driver) => format!("{address} is given back: the driver {driver} has it"),
        None => format!("{address} is given back: no driver wants it"),
    }]
}

/// The same for programs.
pub(super) fn given_json(given: &Given) -> Value {
    json!({ "address": given.address, "driver": given.driver, "gone": given.is_gone })
}
