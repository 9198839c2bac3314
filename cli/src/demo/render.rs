//! What a run of the demo looks like: for people, and as JSON.

use anstyle::{AnsiColor, Style};
use noiommu::{PinKind, Provider};
use serde_json::{Value, json};

use super::picture;
use super::{Report, WRONG};
use crate::ui::{Cells, bytes, styled};

/// Segments listed; the rest is counted.
const LISTED: usize = 6;

/// The report as JSON.
pub(super) fn json(report: &Report) -> Value {
    let segments: Vec<_> = report
        .segments
        .iter()
        .map(|segment| {
            json!({
                "iova": format!("{:#x}", report.iova.0 + segment.offset),
                "address": segment.address.to_string(),
                "length": segment.length,
            })
        })
        .collect();
    json!({
        "verified": report.is_verified(),
        "pin": report.pin.name(),
        "provider": report.provider.name(),
        "device": report.device,
        "kernel": report.kernel,
        "simulated_memory": report.pin == PinKind::Simulated,
        "missing": report.missing.as_ref().map(|error| json!({ "cause": error.cause(), "remedy": error.remedy() })),
        "pages": report.pages.name(),
        "bytes": report.size,
        "wrong_bytes": report.wrong,
        "moved_pages": report.moved,
        "compacted": report.compacted,
        "iova": format!("{:#x}", report.iova),
        "table_frames": report.table_frames,
        "segments": segments,
        "milliseconds": report.took.as_millis() as u64,
    })
}

/// The report for people.
pub(super) fn lines(report: &Report) -> Vec<String> {
    let bold = |text: &str| styled(Style::new().bold(), text);
    let mut lines = vec![bold("Memory pinned, mapped, looked up, and moved by a device")];
    let mut row = |title: &str, text: String| lines.push(format!("  {title:<9}{text}"));
    let engine = if report.pin == PinKind::Kernel { "the kernel maps" } else { "engine in user space" };
    row("host", format!("Linux {}, {engine}", report.kernel));
    row(
        "memory",
        match report.pin {
            PinKind::IoUring => "real, pinned by io_uring registered buffers (FOLL_LONGTERM)".to_owned(),
            PinKind::AfXdp => "real, pinned by an AF_XDP umem (FOLL_LONGTERM)".to_owned(),
            PinKind::Kernel => "real, pinned by the kernel (iommufd or VFIO)".to_owned(),
            _ => "simulated: scattered, made-up physical addresses".to_owned(),
        },
    );
    row(
        "device",
        match report.provider {
            Provider::Sim => format!("{} (simulated; knows physical addresses alone)", report.device),
            provider => format!("{} through {}", report.device, provider.name()),
        },
    );
    row("buffers", format!("2 x {}, {}", bytes(report.size), report.pages.name()));
    let table = match report.table_frames {
        0 => String::new(),
        frames => format!(", {} of page table", bytes(frames * 4096)),
    };
    row("mapped", format!("at IOVA {:#x}{table}", report.iova));
    lines.push(String::new());
    lines.extend(contiguity(report));
    lines.push(String::new());
    if report.compacted {
        lines.push("  The kernel was made to compact memory between map and DMA.".to_owned());
    }
    lines.push(verdict(report));
    let code = if report.is_verified() { 0 } else { WRONG };
    lines.push(styled(
        Style::new().dimmed(),
        &format!("  {:.1} s, exit code {code}", report.took.as_secs_f64()),
    ));
    if let Some(missing) = &report.missing {
        lines.push(String::new());
        lines.push(styled(AnsiColor::Yellow.on_default().bold(), "Not on real memory:"));
        lines.extend(wrap(missing.cause(), "  "));
        lines.extend(missing.remedy().into_iter().flat_map(|remedy| wrap(remedy, "  try: ")));
    }
    lines
}

/// The picture, and the list of segments.
fn contiguity(report: &Report) -> Vec<String> {
    let cells = Cells::of_locale();
    let size = report.size;
    let mut lines = vec![
        format!("  The first buffer as the device finds it, {} a cell:", bytes(picture::share(size))),
        format!(
            "  {}",
            styled(
                AnsiColor::Cyan.on_default(),
                &picture::draw(report.segments.iter().map(|segment| segment.length), size, cells)
            )
        ),
        format!(
            "  {}{} contiguous, changing with each segment   {} several segments in a cell",
            cells.full, cells.other, cells.empty
        ),
        String::new(),
    ];
    let count = report.segments.len();
    let largest = report.segments.iter().map(|segment| segment.length).max().unwrap_or(0);
    lines.push(format!(
        "  {count} contiguous segment{}, the largest {}",
        if count == 1 { "" } else { "s" },
        bytes(largest)
    ));
    for segment in report.segments.iter().take(LISTED) {
        lines.push(format!(
            "    IOVA {:<14} -> {} {:<14} {}",
            format!("{:#x}", report.iova.0 + segment.offset),
            if report.provider.is_confined() { "the same, behind the IOMMU," } else { "physical" },
            segment.address.to_string(),
            bytes(segment.length)
        ));
    }
    if count > LISTED {
        lines.push(format!("    and {} more (--json lists all)", count - LISTED));
    }
    lines
}

fn verdict(report: &Report) -> String {
    let moved = bytes(report.size);
    if report.is_verified() {
        styled(
            AnsiColor::Green.on_default().bold(),
            &format!("  {moved} moved to the device and back: every byte verified."),
        )
    } else {
        styled(
            AnsiColor::Red.on_default().bold(),
            &format!(
                "  WRONG: {} of {} bytes did not arrive, {} pages changed their address.",
                report.wrong, report.size, report.moved
            ),
        )
    }
}

/// Text in lines of at most 80 columns, the first after `lead`, the others below it.
fn wrap(text: &str, lead: &str) -> Vec<String> {
    let indent = " ".repeat(lead.len());
    let mut lines = vec![lead.to_owned()];
    for word in text.split_ascii_whitespace() {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        let begun = line.len() > indent.len();
        if begun && line.len() + 1 + word.len() > 80 {
            lines.push(format!("{indent}{word}"));
        } else {
            if begun {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped() {
        let text = "word ".repeat(40);
        let lines = wrap(&text, "  try: ");
        assert!(lines.len() > 2 && lines.iter().all(|line| line.len() <= 80));
        assert!(lines[0].starts_with("  try: word word") && lines[1].starts_with("       word"));
    }
}
