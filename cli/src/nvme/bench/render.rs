//! What was measured: for people, and as JSON.

use anstyle::Style;
use serde_json::{Map, Value, json};

use super::{Options, Report};
use crate::ui::{self, Cells, styled};

/// The percentiles that are told.
const PERCENTILES: [(&str, f64); 6] =
    [("p50", 50.0), ("p90", 90.0), ("p95", 95.0), ("p99", 99.0), ("p99.9", 99.9), ("p99.99", 99.99)];
/// Blocks of the longest bar.
const WIDTH: f64 = 40.0;

fn what(options: &Options) -> String {
    let way = if options.sequential { "sequential" } else { "random" };
    format!("{way} {}", if options.write { "writes" } else { "reads" })
}

/// The report as JSON.
pub(super) fn json(options: &Options, report: &Report) -> Value {
    let mut latency = Map::new();
    latency.insert("min".to_owned(), report.latency.min().into());
    latency.insert("mean".to_owned(), (report.latency.mean().round() as u64).into());
    for (name, percentile) in PERCENTILES {
        latency.insert(name.to_owned(), report.latency.value_at_percentile(percentile).into());
    }
    latency.insert("max".to_owned(), report.latency.max().into());
    json!({
        "device": report.device,
        "provider": report.provider,
        "namespace": report.namespace,
        "what": what(options),
        "size": options.size,
        "depth": options.depth,
        "queues": options.queues,
        "interrupts": report.interrupts,
        "seconds": report.took.as_secs_f64(),
        "operations": report.operations(),
        "iops": report.per_second(),
        "bytes_per_second": report.per_second() * options.size as f64,
        "latency_ns": latency,
    })
}

/// The report for people.
pub(super) fn lines(options: &Options, report: &Report) -> Vec<String> {
    let heading = format!(
        "{} of {}, depth {}, {} queue{}",
        what(options),
        ui::bytes(options.size),
        options.depth,
        options.queues,
        if options.queues == 1 { "" } else { "s" }
    );
    let mut lines = vec![styled(Style::new().bold(), &heading)];
    let mut row = |title: &str, text: String| lines.push(format!("  {title:<11}{text}"));
    row("device", format!("{} by {}", report.device, report.provider));
    row("waits", report.interrupts.map_or_else(|| "by polling".to_owned(), |kind| format!("for {kind}")));
    row("done", format!("{} operations in {:.1} s", report.operations(), report.took.as_secs_f64()));
    row("IOPS", styled(Style::new().bold(), &format!("{:.0}", report.per_second())));
    let bandwidth = (report.per_second() * options.size as f64) as u64;
    row("bandwidth", format!("{}/s", ui::bytes(bandwidth)));
    row("latency", "share of operations that took no longer".to_owned());
    let longest = report.latency.value_at_percentile(99.99).max(1) as f64;
    let full = Cells::of_locale().full;
    for (name, percentile) in PERCENTILES {
        let value = report.latency.value_at_percentile(percentile);
        // By the logarithm: the tail is many times the middle.
        let share = ((value.max(1) as f64).ln() / longest.ln().max(1.0)).clamp(0.0, 1.0);
        let bar: String = std::iter::repeat_n(full, (share * WIDTH).round() as usize).collect();
        row(&format!("  {name}"), format!("{:>10}  {bar}", duration(value)));
    }
    row("  longest", format!("{:>10}", duration(report.latency.max())));
    lines
}

/// Nanoseconds for people.
fn duration(nanoseconds: u64) -> String {
    match nanoseconds {
        0..10_000 => format!("{nanoseconds} ns"),
        10_000..10_000_000 => format!("{:.1} us", nanoseconds as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} ms", nanoseconds as f64 / 1e6),
        _ => format!("{:.1} s", nanoseconds as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (nanoseconds, text) in [
            (0, "0 ns"),
            (9_999, "9999 ns"),
            (10_000, "10.0 us"),
            (12_345_678, "12.3 ms"),
            (60_000_000_000, "60.0 s"),
        ] {
            assert_eq!(duration(nanoseconds), text);
        }
    }
}
