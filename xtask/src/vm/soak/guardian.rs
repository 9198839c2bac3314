//! `cargo xtask soak guardian`: drivers are killed in the middle of DMA, with a guardian and without.
//!
//! With one, nobody finds a byte in his memory that is not his own. Without one, the same schedule corrupts memory: so the test can
//! fail. Both are judged.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::shares::shares;
use crate::project::Project;
use crate::ui::{Look, paint};
use crate::vm::guest::{self, Options, Scenario};
use crate::vm::kernel::{self, Kernel};
use crate::vm::pack::{self, Tree};
use crate::vm::{EDU, HOST_PACKAGES, STOCK_PROGRAMS, apt, modules};

/// Options of the soak.
#[derive(Args, Debug)]
pub(crate) struct Guardian {
    /// How many drivers are killed while a guardian is there
    #[arg(long, default_value_t = 1000)]
    kills: u32,

    /// How many are killed without one
    #[arg(long, default_value_t = 60)]
    controls: u32,

    /// The short form, as `cargo xtask test` runs it
    #[arg(long, conflicts_with_all = ["kills", "controls"])]
    short: bool,

    /// Boot the kernel of this suite of the machine's mirror, such as `backports`
    #[arg(long)]
    suite: Option<String>,

    /// What is left to chance follows from it; a new one each time, and told
    #[arg(long)]
    seed: Option<u64>,

    /// Print the result as one JSON object, and nothing else on stdout
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    run: Options,
}

/// Kills of the short form: with a guardian, and without.
const SHORT: (u32, u32) = (48, 12);

impl Guardian {
    /// How many are killed with a guardian, and without.
    fn numbers(&self) -> (u32, u32) {
        if self.short { SHORT } else { (self.kills, self.controls) }
    }
}

/// The short form: each way to die, and more of the usual one.
impl Default for Guardian {
    fn default() -> Self {
        let (kills, controls) = SHORT;
        Self { kills, controls, short: true, suite: None, seed: None, json: false, run: Options::default() }
    }
}

/// A row of the table: whose driver dies, and how.
#[derive(Debug, PartialEq)]
struct Row {
    device: &'static str,
    provider: &'static str,
    /// Who guards it: a process of its `own`, or the `service`.
    guard: &'static str,
    /// How: `kill` is SIGKILL, `cgroup` that of all processes in its cgroup, `exit` without a close, `exec` another program, `oom` want of memory in its cgroup, `both` driver and
    /// guardian in the same instant.
    way: &'static str,
    /// Its share of the kills.
    weight: u32,
    /// The guardian has nothing to do: the driver drops its device as it goes, or the guardian is dead, too.
    is_rescued: bool,
}

impl Row {
    const fn of(device: &'static str, provider: &'static str, way: &'static str, weight: u32) -> Self {
        let is_rescued = !matches!(way.as_bytes(), b"both" | b"panic");
        Self { device, provider, guard: "own", way, weight, is_rescued }
    }

    const fn by_service(mut self) -> Self {
        self.guard = "service";
        self
    }

    /// Whether there is the same without a guardian.
    fn has_control(&self) -> bool {
        self.guard == "own" && self.way != "both"
    }

    /// Without a guardian, nobody stops the device: not the driver, nor the kernel's last close of uio_pci_generic.
    fn must_corrupt(&self) -> bool {
        self.guard == "own" && self.provider == "sysfs" && self.way == "kill"
    }
}

/// What is killed. An NVMe controller is not killed together with its guardian: what it has begun to read, turning bus mastering off
/// does not take back, and uio's last close does no more.
const ROWS: [Row; 32] = [
    Row::of("edu", "sysfs", "kill", 200),
    Row::of("edu", "sysfs", "exit", 22),
    Row::of("edu", "sysfs", "abort", 22),
    Row::of("edu", "sysfs", "panic", 10),
    Row::of("edu", "sysfs", "exec", 22),
    Row::of("edu", "sysfs", "oom", 20),
    Row::of("edu", "sysfs", "cgroup", 22),
    Row::of("edu", "sysfs", "kill", 22).by_service(),
    Row::of("edu", "sysfs", "exec", 6).by_service(),
    Row::of("edu", "uio", "kill", 24),
    Row::of("edu", "uio", "both", 30),
    Row::of("ohci", "sysfs", "kill", 200),
    Row::of("ohci", "sysfs", "exit", 22),
    Row::of("ohci", "sysfs", "abort", 22),
    Row::of("ohci", "sysfs", "panic", 10),
    Row::of("ohci", "sysfs", "exec", 22),
    Row::of("ohci", "sysfs", "oom", 20),
    Row::of("ohci", "sysfs", "cgroup", 22),
    Row::of("ohci", "sysfs", "kill", 22).by_service(),
    Row::of("ohci", "sysfs", "exec", 6).by_service(),
    Row::of("ohci", "uio", "kill", 24),
    Row::of("ohci", "uio", "both", 30),
    Row::of("nvme", "sysfs", "kill", 100),
    Row::of("nvme", "sysfs", "exit", 14),
    Row::of("nvme", "sysfs", "abort", 14),
    Row::of("nvme", "sysfs", "panic", 8),
    Row::of("nvme", "sysfs", "exec", 14),
    Row::of("nvme", "sysfs", "oom", 12),
    Row::of("nvme", "sysfs", "cgroup", 14),
    Row::of("nvme", "sysfs", "kill", 8).by_service(),
    Row::of("nvme", "sysfs", "exec", 2).by_service(),
    Row::of("nvme", "uio", "kill", 14),
];

/// What is killed without a guardian: the same, but that nobody can be killed who is not there. Few kills are all of the kind that
/// has to corrupt memory.
fn rows_of_control(kills: u32) -> Vec<&'static Row> {
    let all = ROWS.iter().filter(|row| row.has_control());
    if kills as usize >= 2 * all.clone().count() {
        all.collect()
    } else {
        all.filter(|row| row.must_corrupt()).collect()
    }
}

/// The guard of a driver without one.
const WAIVED: &str = "waived";

/// So many kills without a guardian corrupt memory for sure: edu, which writes once and 100 ms after it was told to, may have been done
/// before its driver was dead, on a busy machine.
const ENOUGH: u32 = 3;

/// What a guardian says of a device that it has made quiet; of another one it says the contrary.
const QUIET: &str = "made quiet";

/// Of so many kills without a guardian, one at least has to corrupt memory.
const ONE_OF: usize = 100;

/// The devices. The drive does 100 requests a second, so that reads queue up.
const DEVICES: [&str; 3] = [EDU, "nvme,drive=nvme,serial=noiommu-nvme", "pci-ohci"];
const DRIVES: [&str; 1] = ["nvme,throttling.iops-total=100"];

/// Seconds that a kill may take at most, on a busy machine: a few times what it does.
const SLOWEST: u64 = 5;

/// Kills, and judges.
pub(crate) fn guardian(project: &Project, options: &Guardian) -> Result<()> {
    let (kills, controls) = options.numbers();
    apt::install(&HOST_PACKAGES)?;
    let kernel = kernel::stock(project, options.suite.as_deref())?;
    let seed = options.seed.map_or_else(draw, Ok)?;
    let guarded: Vec<&Row> = ROWS.iter().collect();
    let waived = rows_of_control(controls);
    // Shared out before anything is run: too few are told at once.
    let guarded = plan(&guarded, kills).context("--kills")?;
    let waived = plan(&waived, controls).context("--controls")?;
    // Built once: both are to run the same.
    let programs = pack::build_static(project, &STOCK_PROGRAMS)?;
    let soak = Soak { project, options, kernel: &kernel, programs: &programs, seed };
    let (with, left) = soak.run("guarded", &guarded, |row| row.guard)?;
    let (without, _) = soak.run("waived", &waived, |_| WAIVED)?;

    let mut faults = judge_guarded(&guarded, &with);
    faults.extend(judge_left(&left));
    faults.extend(judge_waived(&waived, &without));
    let report = json!({
        "passed": faults.is_empty(),
        "faults": faults,
        "kernel": kernel.origin,
        "seed": seed,
        "guarded": sums(&guarded, &with),
        "waived": sums(&waived, &without),
        "rows": rows(&guarded, &with, &waived, &without),
        "left": left,
    });
    let logs = project.run_dir("soak-guardian");
    fs::create_dir_all(&logs)?;
    fs::write(logs.join("report.json"), format!("{report:#}\n"))?;
    if options.json {
        println!("{report}");
    } else {
        print!("{}", table(&report));
    }
    if !faults.is_empty() {
        bail!("memory was not guarded as it has to be (seed {seed}):\n  - {}", faults.join("\n  - "));
    }
    Ok(())
}

/// Rows, and how often each of them is killed.
type Plan<'a> = Vec<(&'a Row, u32)>;

fn plan<'a>(rows: &[&'a Row], kills: u32) -> Result<Plan<'a>> {
    let weights: Vec<u32> = rows.iter().map(|row| row.weight).collect();
    Ok(rows.iter().copied().zip(shares(kills, &weights)?).collect())
}

/// What both guests have in common.
struct Soak<'a> {
    project: &'a Project,
    options: &'a Guardian,
    kernel: &'a Kernel,
    programs: &'a [PathBuf],
    seed: u64,
}

impl Soak<'_> {
    /// Runs a guest through a plan; answers what it says of each kill.
    fn run(
        &self,
        what: &'static str,
        plan: &Plan<'_>,
        guard: fn(&Row) -> &str,
    ) -> Result<(Vec<Value>, Value)> {
        let mut files = Tree::default();
        files.add_programs(self.programs)?;
        modules::add(self.kernel, &["uio_pci_generic"], &mut files)?;
        let mut text = format!("{}\n", self.seed);
        for (row, kills) in plan {
            writeln!(text, "{} {} {} {} {kills}", row.device, row.provider, guard(row), row.way)?;
        }
        files.add_text("plan", &text);
        let scenario = Scenario {
            name: "soak-guardian",
            arguments: vec![what],
            devices: &DEVICES,
            drives: &DRIVES,
            nets: &[],
            append: &[],
            witnessed: false,
        };
        let mut run = self.options.run.clone();
        run.apart = self.options.json;
        run.at_least(120 + SLOWEST * plan.iter().map(|(_, kills)| u64::from(*kills)).sum::<u64>());
        let output = guest::run(self.project, &scenario, self.kernel, files, &run)?;
        let told = |file: &str| {
            let text = fs::read_to_string(output.join(file));
            let text = text.with_context(|| format!("the guest left no account of {file}"))?;
            let line = |line| serde_json::from_str(line).context("the guest's account is no JSON");
            text.lines().map(line).collect::<Result<Vec<Value>>>()
        };
        Ok((told("kills")?, told("left")?.pop().unwrap_or_default()))
    }
}

/// A seed that no earlier run had.
fn draw() -> Result<u64> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")?.read_exact(&mut bytes).context("/dev/urandom")?;
    Ok(u32::from_le_bytes(bytes).into())
}

/// The kills of a row: with the guardian that it says, or with none.
fn of_row<'a>(row: &Row, guard: &'a str, kills: &'a [Value]) -> impl Iterator<Item = &'a Value> {
    let wanted = [("device", row.device), ("provider", row.provider), ("guard", guard), ("way", row.way)];
    kills.iter().filter(move |kill| wanted.iter().all(|(key, word)| kill[key] == *word))
}

fn foreign(kill: &Value) -> u64 {
    // What is not told counts as the worst.
    kill["foreign"].as_u64().unwrap_or(u64::MAX)
}

fn list<'a>(kill: &'a Value, key: &str) -> &'a [Value] {
    kill[key].as_array().map_or(&[], Vec::as_slice)
}

/// Whether all that was to be killed was.
fn judge_numbers(plan: &Plan<'_>, kills: &[Value], guard: fn(&Row) -> &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (row, wanted) in plan {
        let found = of_row(row, guard(row), kills).count();
        if found != *wanted as usize {
            faults.push(format!("{}: {found} kills, not {wanted}", name(row)));
        }
    }
    let wanted: usize = plan.iter().map(|(_, kills)| *kills as usize).sum();
    if kills.len() != wanted {
        faults.push(format!("{} kills in all, not {wanted}", kills.len()));
    }
    faults
}

/// With a guardian: no byte of anybody else's, and a line in the log for each rescue.
fn judge_guarded(plan: &Plan<'_>, kills: &[Value]) -> Vec<String> {
    let mut faults = judge_numbers(plan, kills, |row| row.guard);
    for (row, _) in plan {
        for kill in of_row(row, row.guard, kills) {
            let (bytes, process) = (foreign(kill), &kill["process"]);
            if bytes != 0 {
                faults.push(format!(
                    "{}, process {process}: {bytes} foreign bytes: {}",
                    name(row),
                    kill["first"]
                ));
            }
            let (lines, wanted) = (list(kill, "rescues"), usize::from(row.is_rescued));
            let quiet = |line: &Value| line.as_str().is_some_and(|line| line.contains(QUIET));
            if lines.len() != wanted || !lines.iter().all(quiet) {
                faults.push(format!("{}, process {process}: rescues are {lines:?}, not {wanted}", name(row)));
            }
            let others = list(kill, "others");
            if !others.is_empty() {
                faults.push(format!("{}, process {process}: a guardian says besides: {others:?}", name(row)));
            }
        }
    }
    faults
}

/// And when all is over, guardians have ended, and no memory is pinned.
fn judge_left(left: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    if left["processes"].as_array().is_none_or(|processes| !processes.is_empty()) {
        faults.push(format!("processes that have not ended: {}", left["processes"]));
    }
    if left["pins"] != 0 {
        faults.push(format!("memory that was not given back: {} pins", left["pins"]));
    }
    faults
}

/// Without one: memory is corrupted, by each device and often enough, and nobody claims a rescue.
fn judge_waived(plan: &Plan<'_>, kills: &[Value]) -> Vec<String> {
    let mut faults = judge_numbers(plan, kills, |_| WAIVED);
    let corrupted = kills.iter().filter(|kill| foreign(kill) > 0).count();
    if corrupted * ONE_OF < kills.len() || corrupted == 0 {
        faults.push(format!(
            "without a guardian, {corrupted} of {} kills corrupted memory: this test would see nothing",
            kills.len()
        ));
    }
    for (row, _) in plan.iter().filter(|(row, kills)| row.must_corrupt() && *kills >= ENOUGH) {
        if of_row(row, WAIVED, kills).all(|kill| foreign(kill) == 0) {
            faults.push(format!("{}: no kill corrupted memory without a guardian", name(row)));
        }
    }
    for kill in kills {
        for line in list(kill, "rescues").iter().chain(list(kill, "others")) {
            faults.push(format!("there was to be no guardian, but one says {line}"));
        }
    }
    faults
}

fn name(row: &Row) -> String {
    format!("{} by {}, guard {}, {}", row.device, row.provider, row.guard, row.way)
}

/// The figures of some kills.
fn figures<'a>(kills: impl Iterator<Item = &'a Value>) -> Value {
    let (mut count, mut corrupted, mut bytes, mut rescues, mut time) = (0_u64, 0_u64, 0_u64, 0, 0);
    for kill in kills {
        count += 1;
        corrupted += u64::from(foreign(kill) > 0);
        bytes = bytes.saturating_add(foreign(kill));
        rescues += list(kill, "rescues").len();
        time += kill["ms"].as_u64().unwrap_or_default();
    }
    let each = if count == 0 { 0.0 } else { time as f64 / count as f64 / 1000.0 };
    json!({
        "kills": count,
        "corrupted": corrupted,
        "foreign_bytes": bytes,
        "rescues": rescues,
        "seconds_per_kill": each,
    })
}

/// Of all kills, and of each device.
fn sums(plan: &Plan<'_>, kills: &[Value]) -> Value {
    let mut devices = serde_json::Map::new();
    for (row, _) in plan {
        let own = kills.iter().filter(|kill| kill["device"] == row.device);
        devices.entry(row.device).or_insert_with(|| figures(own));
    }
    json!({"all": figures(kills.iter()), "devices": devices})
}

/// The table's rows.
fn rows(guarded: &Plan<'_>, with: &[Value], waived: &Plan<'_>, without: &[Value]) -> Vec<Value> {
    let row = |(row, _): &(&Row, u32)| {
        let control = waived.iter().any(|(other, _)| other == row);
        json!({
            "device": row.device,
            "provider": row.provider,
            "way": row.way,
            "guard": row.guard,
            "guarded": figures(of_row(row, row.guard, with)),
            "waived": if control { figures(of_row(row, WAIVED, without)) } else { Value::Null },
        })
    };
    guarded.iter().map(row).collect()
}

/// What the table's words mean.
const NOTE: &str = "
kills: drivers that died while their device was writing their memory; corrupt: so many of these after
which other processes found bytes in their memory that are not their own; rescued: guardians' lines in
the kernel's log. guard: own, a process of the driver's; service, one for all. dies: kill, SIGKILL;
exec, becomes another program; oom, out of its cgroup's memory; cgroup, all processes in its cgroup
are killed; both, driver and guardian in the same instant. A driver that panics stops its device.
";

/// The report, for people.
fn table(report: &Value) -> String {
    let mut text = format!("\n{:<28}{:>40}{:>22}\n", "", "with a guardian", "without");
    let heads = ["kills", "corrupt", "bytes", "rescued", "s/kill", "kills", "corrupt", "bytes"];
    let words = heads.map(|head| format!("{head:>8}")).concat();
    text += &paint(format_args!("{:<7}{:<6}{:<8}{:<7}{words}", "device", "by", "guard", "dies"), Look::Bold);
    text.push('\n');
    for row in report["rows"].as_array().into_iter().flatten() {
        let word = |key: &str| row[key].as_str().unwrap_or_default();
        text +=
            &format!("{:<7}{:<6}{:<8}{:<7}", word("device"), word("provider"), word("guard"), word("way"));
        text += &line(&row["guarded"], &row["waived"]);
    }
    text += &format!("{:<28}", "all");
    text += &line(&report["guarded"]["all"], &report["waived"]["all"]);
    text += NOTE;
    text += &format!(
        "in the end {} guardians had not ended, and {} pins were left\n",
        report["left"]["processes"].as_array().map_or(0, Vec::len),
        report["left"]["pins"]
    );
    text += &format!("{}, seed {}\n", report["kernel"].as_str().unwrap_or_default(), report["seed"]);
    text
}

fn line(guarded: &Value, waived: &Value) -> String {
    let number = |figures: &Value, key: &str| {
        format!("{:>8}", figures[key].as_u64().map_or("-".to_owned(), |number| number.to_string()))
    };
    let judged = |figures: &Value, key: &str, good: bool| {
        paint(number(figures, key), if good { Look::Green } else { Look::Red })
    };
    let is_zero = |key: &str| guarded[key] == 0;
    let mut text = number(guarded, "kills");
    text += &judged(guarded, "corrupted", is_zero("corrupted"));
    text += &judged(guarded, "foreign_bytes", is_zero("foreign_bytes"));
    text += &number(guarded, "rescues");
    text += &format!("{:>8.2}", guarded["seconds_per_kill"].as_f64().unwrap_or_default());
    text += &["kills", "corrupted", "foreign_bytes"].map(|key| number(waived, key)).concat();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An account in which everything is as it has to be.
    fn account(plan: &Plan<'_>, guarded: bool) -> Vec<Value> {
        let kill = |row: &Row| {
            let bytes = if guarded || !row.must_corrupt() { 0 } else { 8 };
            let lines = if guarded && row.is_rescued {
                vec!["noiommu-guardian: it is made quiet"]
            } else {
                Vec::new()
            };
            json!({
                "device": row.device, "provider": row.provider, "way": row.way, "process": 7,
                "guard": if guarded { row.guard } else { WAIVED },
                "foreign": bytes, "first": null, "rescues": lines, "others": [], "ms": 500,
            })
        };
        plan.iter().flat_map(|(row, kills)| (0..*kills).map(|_| kill(row))).collect()
    }

    fn plans() -> (Plan<'static>, Plan<'static>) {
        let (all, some): (Vec<&Row>, Vec<&Row>) = (ROWS.iter().collect(), rows_of_control(48));
        (plan(&all, 100).unwrap(), plan(&some, 48).unwrap())
    }

    #[test]
    fn only_what_has_to_be_passes() {
        let (guarded, waived) = plans();
        let (with, without) = (account(&guarded, true), account(&waived, false));
        assert_eq!(judge_guarded(&guarded, &with), Vec::<String>::new());
        assert_eq!(judge_waived(&waived, &without), Vec::<String>::new());
        for at in 0..with.len() {
            let mut wrong = with.clone();
            wrong[at]["foreign"] = 1.into();
            assert_eq!(judge_guarded(&guarded, &wrong).len(), 1);
            wrong[at]["foreign"] = Value::Null;
            assert_eq!(judge_guarded(&guarded, &wrong).len(), 1, "what is not told is no good sign");
            let mut wrong = with.clone();
            let lines = wrong[at]["rescues"].as_array_mut().unwrap();
            if lines.pop().is_none() {
                lines.push("noiommu-guardian: it is made quiet".into());
            }
            assert_eq!(judge_guarded(&guarded, &wrong).len(), 1);
            let mut wrong = with.clone();
            wrong[at]["rescues"] = json!(["noiommu-guardian: it is NOT QUIET"]);
            assert_eq!(judge_guarded(&guarded, &wrong).len(), 1);
            let mut wrong = with.clone();
            wrong.remove(at);
            assert_eq!(judge_guarded(&guarded, &wrong).len(), 2);
        }
    }

    #[test]
    fn nothing_is_left() {
        assert!(judge_left(&json!({"processes": [], "pins": 0})).is_empty());
        assert_eq!(judge_left(&json!({"processes": ["noiommu-guard"], "pins": 1})).len(), 2);
        assert_eq!(judge_left(&Value::Null).len(), 2);
    }

    #[test]
    fn a_control_that_shows_nothing_fails() {
        assert_eq!(rows_of_control(3).len(), 3);
        let (_, waived) = plans();
        let right = account(&waived, false);
        for device in ["edu", "ohci", "nvme"] {
            let mut wrong = right.clone();
            wrong
                .iter_mut()
                .filter(|kill| kill["device"] == device)
                .for_each(|kill| kill["foreign"] = 0.into());
            assert_eq!(judge_waived(&waived, &wrong).len(), 1, "{device}");
        }
        let mut wrong = right.clone();
        wrong.iter_mut().for_each(|kill| kill["foreign"] = 0.into());
        assert_eq!(judge_waived(&waived, &wrong).len(), 4);
        let mut wrong = right;
        wrong[0]["rescues"] = json!(["noiommu-guardian: it"]);
        assert_eq!(judge_waived(&waived, &wrong).len(), 1);
    }

    #[test]
    fn weights_are_those_of_a_thousand() {
        assert_eq!(ROWS.iter().map(|row| row.weight).sum::<u32>(), 1000);
    }

    #[test]
    fn the_table_fits() {
        let (guarded, waived) = plans();
        let (with, without) = (account(&guarded, true), account(&waived, false));
        let report = json!({
            "guarded": sums(&guarded, &with), "waived": sums(&waived, &without), "kernel": "k", "seed": 1, "left": {"processes": [], "pins": 0},
            "rows": rows(&guarded, &with, &waived, &without),
        });
        let text = table(&report);
        assert_eq!(report["guarded"]["all"]["kills"], 100);
        assert_eq!(report["guarded"]["devices"]["nvme"]["corrupted"], 0);
        let all: Vec<&str> =
            text.lines().find(|line| line.starts_with("all")).unwrap().split_whitespace().collect();
        assert_eq!(all[1..4], ["100", "0", "0"]);
        assert!(
            text.lines()
                .take_while(|line| !line.starts_with("kills:"))
                .all(|line| line.chars().count() <= 94),
            "{text}"
        );
    }
}
