//! What a run looks like: for people while it runs, and as JSON.

use anstyle::{AnsiColor, Style};
use serde_json::{Value, json};

use crate::ui::{Cells, PatientBar, styled};

use super::rounds::{Progress, Report, Round, Setup};
use super::tally::{Class, PerClass, Verdict, percent};

/// Cells of a bar.
const CELLS: usize = 8;

/// Tells nobody.
#[derive(Debug)]
pub(crate) struct Silent;

impl Progress for Silent {
    fn step(&mut self, _done: usize, _total: usize, _what: &str) {}
    fn started(&mut self, _setup: &Setup) {}
    fn round(&mut self, _setup: &Setup, _round: &Round) {}
}

/// Tells a person, line by line.
#[derive(Debug)]
pub(crate) struct Human {
    bar: PatientBar,
    /// What bars are drawn with.
    cells: Cells,
}

impl Human {
    /// Starts the clock.
    pub(crate) fn new() -> Self {
        Self { bar: PatientBar::new(), cells: Cells::of_locale() }
    }

    /// Prints the verdict.
    pub(crate) fn finished(&self, report: &Report) {
        self.bar.finish();
        self.bar.print(&closing(report));
    }
}

impl Progress for Human {
    fn step(&mut self, done: usize, total: usize, what: &str) {
        self.bar.step(done as u64, total as u64, what);
    }

    fn started(&mut self, setup: &Setup) {
        self.bar.print(&opening(setup));
    }

    fn round(&mut self, setup: &Setup, round: &Round) {
        self.bar.print(&[round_line(setup, round, self.cells)]);
    }
}

/// The style of a class whose pages moved: bad for a pin, a point made for the others.
fn style_of(class: Class, moved: usize) -> Style {
    match (class, moved) {
        (Class::Pinned, 0) => AnsiColor::Green.on_default(),
        (Class::Pinned, _) => AnsiColor::Red.on_default().bold(),
        (_, 0) => Style::new().dimmed(),
        _ => AnsiColor::Yellow.on_default(),
    }
}

/// The title lines.
fn opening(setup: &Setup) -> Vec<String> {
    let heading = styled(Style::new().bold(), "Do pages stay where a device was told they are?");
    let mut lines = vec![
        heading,
        format!("  kernel  Linux {} {}", setup.kernel, setup.machine),
        format!(
            "  pool    {} MiB of {} KiB pages, {} per class, {}",
            setup.pool_mib,
            setup.page_size / 1024,
            setup.pages,
            setup.zone
        ),
        format!("  recipe  {}", setup.recipe.name()),
        format!("  pin     {}", setup.pin),
    ];
    lines.extend(setup.notes.iter().map(|note| format!("  note    {note}")));
    lines.push(String::new());
    lines.push("  Pages that moved to another physical address:".to_owned());
    lines.push(format!("  {:<8}{:<15}{:<15}{:<15}by", "round", "plain", "mlock", "pinned"));
    lines
}

/// The line of one round.
fn round_line(setup: &Setup, round: &Round, cells: Cells) -> String {
    let mut line = format!("  {:<8}", format!("{}/{}", round.number, setup.rounds));
    for class in Class::ALL {
        let moved = *round.moved.get(class);
        let share = percent(moved, setup.pages);
        line += &format!("{} {share:>3}%  ", styled(style_of(class, moved), &bar(share, cells)));
    }
    line + &how(round)
}

/// A bar of a percentage; one cell at least when there is anything at all, and all of them only for all.
fn bar(percent: usize, cells: Cells) -> String {
    let full = match percent {
        0 => 0,
        100.. => CELLS,
        some => (some * CELLS / 100).clamp(1, CELLS - 1),
    };
    (0..CELLS).map(|cell| if cell < full { cells.full } else { cells.empty }).collect()
}

/// What made the pages of a round move.
fn how(round: &Round) -> String {
    let compaction = match round.compactions {
        0 => None,
        1 => Some("compaction".to_owned()),
        times => Some(format!("compaction x{times}")),
    };
    let collapse = round.collapsed.then(|| "collapse".to_owned());
    compaction.into_iter().chain(collapse).collect::<Vec<_>>().join(", ")
}

/// The verdict, and what the exit code says.
fn closing(report: &Report) -> Vec<String> {
    let PerClass { plain, mlock, pinned } = report.moved;
    let pages = report.setup.pages;
    let (style, text) = match report.verdict {
        Verdict::Proven => (
            AnsiColor::Green.on_default().bold(),
            vec![
                format!("mlock is no pin: {mlock} of {pages} mlocked pages changed their physical address."),
                format!("Of the {pages} pinned pages, {pinned} did."),
            ],
        ),
        Verdict::TooLittle => (
            AnsiColor::Yellow.on_default().bold(),
            vec![
                format!("Too little to prove anything: just {mlock} of {pages} mlocked pages moved."),
                "No pinned page did, but that says nothing now.".to_owned(),
                "Run it again, with a larger --pool-mib, and with --recipe auto.".to_owned(),
            ],
        ),
        Verdict::PinMoved => (
            AnsiColor::Red.on_default().bold(),
            vec![
                format!("PINNED PAGES MOVED: {pinned} of {pages} changed their physical address."),
                "Do no DMA on this machine with this way of pinning.".to_owned(),
            ],
        ),
    };
    let meaning = match report.verdict {
        Verdict::Proven => "proven",
        Verdict::TooLittle => "too few pages moved, nothing proved",
        Verdict::PinMoved => "a pinned page moved",
    };
    let mut lines = vec![String::new()];
    lines.extend(text.iter().map(|line| styled(style, line)));
    lines.push(format!("Of {pages} plain pages, {plain} moved. No page lost its bytes."));
    lines.push(styled(
        Style::new().dimmed(),
        &format!("{:.1} s, exit code {}: {meaning}", report.took.as_secs_f64(), report.verdict.exit_code()),
    ));
    lines
}

/// The counts of the classes.
fn counts(moved: &PerClass<usize>) -> Value {
    json!({ "plain": moved.plain, "mlock": moved.mlock, "pinned": moved.pinned })
}

/// The report as JSON.
pub(crate) fn json(report: &Report) -> Value {
    let setup = &report.setup;
    json!({
        "rounds": setup.rounds,
        "pages": setup.pages,
        "moved": counts(&report.moved),
        "verdict": report.verdict.name(),
        "kernel": setup.kernel,
        "machine": setup.machine,
        "page_size": setup.page_size,
        "pool_mib": setup.pool_mib,
        "zone": setup.zone,
        "recipe": setup.recipe.name(),
        "pin": setup.pin,
        "notes": setup.notes,
        "per_round": report.rounds.iter().map(|round| json!({
            "moved": counts(&round.moved),
            "compactions": round.compactions,
            "collapsed": round.collapsed,
            "milliseconds": round.took.as_millis() as u64,
        })).collect::<Vec<_>>(),
        "milliseconds": report.took.as_millis() as u64,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::recipes::Recipe;
    use super::*;

    /// A report of two rounds with as long lines as there can be.
    fn report(moved: PerClass<usize>) -> Report {
        let setup = Setup {
            kernel: "6.12.0-127-generic-amd64".to_owned(),
            machine: "x86_64".to_owned(),
            pool_mib: 4096,
            page_size: 4096,
            zone: "node 0, zone Normal".to_owned(),
            pages: 4096,
            rounds: 100,
            recipe: Recipe::Compaction,
            pin: "io_uring registered buffers (FOLL_LONGTERM)".to_owned(),
            notes: vec!["vm.compact_unevictable_allowed=0: compaction spares mlocked pages".to_owned()],
        };
        let took = Duration::from_millis(1500);
        let round = |number, compactions, collapsed| Round { number, compactions, collapsed, moved, took };
        let rounds = vec![round(1, 1, false), round(100, 3, true)];
        Report { verdict: Verdict::of(&moved, setup.pages), setup, rounds, moved, took }
    }

    /// The text without its colours.
    fn plain(line: &str) -> String {
        anstream::adapter::strip_str(line).to_string()
    }

    #[test]
    fn a_bar_is_empty_only_for_none_and_full_only_for_all() {
        assert_eq!(bar(0, Cells::ASCII), "........");
        assert_eq!(bar(1, Cells::ASCII), "#.......");
        assert_eq!(bar(50, Cells::ASCII), "####....");
        assert_eq!(bar(99, Cells::ASCII), "#######.");
        assert_eq!(bar(100, Cells::ASCII), "########");
    }

    #[test]
    fn all_lines_fit_80_columns() {
        for pinned in [0, 1] {
            for mlock in [0, 4096] {
                let report = report(PerClass { plain: 4096, mlock, pinned });
                let rounds =
                    report.rounds.iter().map(|round| round_line(&report.setup, round, Cells::BLOCKS));
                for line in opening(&report.setup).into_iter().chain(rounds).chain(closing(&report)) {
                    assert!(plain(&line).chars().count() <= 80, "{line}");
                }
            }
        }
    }

    #[test]
    fn columns_stand_under_their_titles() {
        let report = report(PerClass { plain: 4096, mlock: 2048, pinned: 0 });
        let titles = opening(&report.setup).pop().unwrap();
        let line = plain(&round_line(&report.setup, &report.rounds[1], Cells::ASCII));
        assert!(line.starts_with("  100/100 ######## 100%"));
        for (title, cell) in
            [("plain", "######## 100%"), ("mlock", "####....  50%"), ("pinned", "........   0%")]
        {
            assert_eq!(titles.find(title), line.find(cell), "{title}: {line}");
        }
        assert!(line.ends_with("compaction x3, collapse"));
    }

    #[test]
    fn the_verdict_names_the_numbers_and_the_exit_code() {
        let text =
            |moved| closing(&report(moved)).iter().map(|line| plain(line)).collect::<Vec<_>>().join("\n");
        let proven = text(PerClass { plain: 4000, mlock: 3999, pinned: 0 });
        assert!(proven.contains("mlock is no pin: 3999 of 4096 mlocked pages changed"));
        assert!(proven.contains("Of the 4096 pinned pages, 0 did.") && proven.contains("exit code 0"));
        assert!(text(PerClass { plain: 4000, mlock: 12, pinned: 0 }).contains("exit code 3"));
        let broken = text(PerClass { plain: 4000, mlock: 3999, pinned: 7 });
        assert!(broken.contains("PINNED PAGES MOVED: 7 of 4096") && broken.contains("exit code 4"));
    }

    #[test]
    fn json_holds_what_scripts_ask_for() {
        let value = json(&report(PerClass { plain: 4000, mlock: 3999, pinned: 0 }));
        assert_eq!(value["rounds"], 100);
        assert_eq!(value["pages"], 4096);
        assert_eq!(value["moved"], json!({ "plain": 4000, "mlock": 3999, "pinned": 0 }));
        assert_eq!(value["verdict"], "proven");
        assert_eq!(value["per_round"][1]["compactions"], 3);
    }
}
