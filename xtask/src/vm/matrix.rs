//! The matrix: every device on every kernel, driven by the same program through whatever provides it there.
//!
//! A guest tells for each cell what became of each step. Here is what must have become of it: a step that fails where it was
//! to be done, or is done where it was taken for impossible, fails the run. So nothing is ever skipped without a word.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::guest::{self, Options, Scenario};
use super::kernel::{self, Kernel};
use super::pack::{self, Tree};
use super::witness::to_hex;
use super::{
    Choice, EDU, HOST_PACKAGES, NVME, STOCK_PROGRAMS, UNSAFE_NOIOMMU, Variant, apt, modules, refkernel,
};
use crate::project::Project;
use crate::ui::{Look, paint};

/// Options of the matrix.
#[derive(Args, Debug, Default)]
pub(crate) struct Matrix {
    /// Run only these guests, separated by commas
    #[arg(long, value_name = "GUESTS", value_delimiter = ',', value_parser = names())]
    only: Vec<String>,

    #[command(flatten)]
    run: Options,
}

/// A guest: a kernel, and what is expected to provide devices there.
struct Guest {
    name: &'static str,
    kernel: Choice,
    /// Whether it has an IOMMU.
    confined: bool,
    /// For each row of the table: the provider that is asked for, and the one that is got.
    rows: &'static [(&'static str, &'static str)],
    /// The words for its script: its name, then what is asked for in each row.
    words: &'static [&'static str],
    /// The kinds of [`REFUSALS`] that depend on the provider.
    kinds: &'static [&'static str],
}

const GUESTS: [Guest; 6] = [
    Guest {
        name: "stock",
        kernel: Choice::Stock,
        confined: false,
        rows: &[("auto", "uio"), ("sysfs", "sysfs")],
        words: &["stock", "auto", "sysfs"],
        kinds: &["NoPhysicalAddresses", "Busy", "Busy", "NoDevice", "Kept"],
    },
    Guest {
        name: "legacy",
        kernel: Choice::Built(Variant::Legacy),
        confined: false,
        rows: &[("auto", "group-noiommu")],
        words: &["legacy", "auto"],
        // What the kernel is taking away it lets nobody reset.
        kinds: &["NoPhysicalAddresses", "Busy", "Busy", "Removal", "Kept"],
    },
    Guest {
        name: "reference",
        kernel: Choice::Built(Variant::Reference),
        confined: false,
        rows: &[("auto", "cdev-noiommu"), ("group-noiommu", "group-noiommu")],
        words: &["reference", "auto", "group-noiommu"],
        kinds: &["NotPermitted", "Busy", "Busy", "Removal", "Kept"],
    },
    Guest {
        name: "cdev-only",
        kernel: Choice::Built(Variant::CdevOnly),
        confined: false,
        rows: &[("auto", "cdev-noiommu")],
        words: &["cdev-only", "auto"],
        kinds: &["NotPermitted", "Busy", "Busy", "Removal", "Kept"],
    },
    Guest {
        name: "reference+iommu",
        kernel: Choice::Built(Variant::Reference),
        confined: true,
        rows: &[("auto", "cdev")],
        words: &["reference+iommu", "auto"],
        kinds: &[],
    },
    Guest {
        name: "legacy+iommu",
        kernel: Choice::Built(Variant::Legacy),
        confined: true,
        rows: &[("auto", "group")],
        words: &["legacy+iommu", "auto"],
        kinds: &[],
    },
];

/// The devices, one for each column, and what they are told to be; and one that can leave.
const DEVICES: [&str; 7] = [
    EDU,
    NVME,
    "e1000e,netdev=e1000e,mac=52:54:00:00:00:01",
    "virtio-blk-pci,drive=blk,serial=noiommu-blk,disable-legacy=on",
    "virtio-net-pci,netdev=virtio,mac=52:54:00:00:00:02,disable-legacy=on",
    "pcie-root-port,id=root,chassis=1",
    "edu,id=leaving,bus=root,dma_mask=0xffffffffffff",
];

/// The same behind an IOMMU, which has to come first, and through which virtio goes only when it is told to.
const CONFINED_DEVICES: [&str; 6] = [
    "intel-iommu",
    EDU,
    NVME,
    "e1000e,netdev=e1000e,mac=52:54:00:00:00:01",
    "virtio-blk-pci,drive=blk,serial=noiommu-blk,disable-legacy=on,iommu_platform=on",
    "virtio-net-pci,netdev=virtio,mac=52:54:00:00:00:02,disable-legacy=on,iommu_platform=on",
];

/// Words for kernels with an IOMMU. Interrupts are not remapped in these kernels.
const CONFINED: [&str; 3] =
    ["intel_iommu=on", "iommufd.allow_unsafe_interrupts=1", "vfio_iommu_type1.allow_unsafe_interrupts=1"];

/// What a stock kernel has to load for its own drivers, and for user space. It has a driver for NVMe built in, and none for
/// e1000e or edu.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_net", "uio_pci_generic"];

/// A column.
struct Column {
    kind: &'static str,
    /// Words in what the device says of itself, in its registers and by DMA.
    identity: &'static str,
    transfer: &'static str,
    /// How it interrupts where VFIO has it.
    message: &'static str,
    /// Whether it has a BAR that may be prefetched.
    prefetchable: bool,
    /// Whether it has a reset.
    reset: bool,
    /// The driver that it belongs to, in a stock kernel and in one built for this.
    stock_driver: &'static str,
    driver: &'static str,
}

const COLUMNS: [Column; 5] = [
    Column {
        kind: "edu",
        identity: "1234:11e8, edu 1.0",
        transfer: "2048 bytes there and back",
        message: "MSI came",
        prefetchable: false,
        reset: false,
        stock_driver: "none",
        driver: "none",
    },
    Column {
        kind: "nvme",
        identity: "1b36:0010, NVMe 1.4",
        transfer: "serial noiommu-nvme",
        message: "MSI-X came",
        prefetchable: false,
        reset: true,
        stock_driver: "nvme",
        driver: "nvme",
    },
    Column {
        kind: "e1000e",
        identity: "8086:10d3, MAC 52:54:00:00:00:01",
        transfer: "52:55:0a:00:02:02 answered",
        message: "MSI-X came",
        prefetchable: false,
        reset: true,
        stock_driver: "none",
        driver: "e1000e",
    },
    Column {
        kind: "virtio-blk",
        identity: "1af4:1042, 32768 sectors",
        transfer: "serial noiommu-blk",
        message: "MSI-X came",
        prefetchable: true,
        reset: false,
        stock_driver: "virtio-pci",
        driver: "virtio-pci",
    },
    Column {
        kind: "virtio-net",
        identity: "1af4:1041, MAC 52:54:00:00:00:02",
        transfer: "52:55:0a:00:02:02 answered",
        message: "MSI-X came",
        prefetchable: true,
        reset: false,
        stock_driver: "virtio-pci",
        driver: "virtio-pci",
    },
];

/// What is tried in guests without an IOMMU and must be refused, in order, and the kind of error that refuses it. The kind of
/// those that are empty depends on the provider: see [`Guest::kinds`].
const REFUSALS: [(&str, &str); 20] = [
    ("no address", "Argument"),
    ("wrong address", "NoDevice"),
    ("driver bound", "Busy"),
    ("no privilege", ""),
    ("opened twice", ""),
    ("opened by another engine", ""),
    ("no such BAR", "Unsupported"),
    ("BAR out of range", "Unsupported"),
    ("register past the end", "Argument"),
    ("register at no place", "Argument"),
    ("misaligned register", "Argument"),
    ("oversized register", "Argument"),
    ("past config space", "Argument"),
    ("no such kind of interrupt", "Unsupported"),
    ("no such vector", "Argument"),
    ("interrupts enabled twice", "Busy"),
    ("bus mastering without memory", "Argument"),
    ("device leaves", ""),
    // Nothing proves that such a device is quiet, so its memory is kept until the process ends: by every provider.
    ("memory of a device that left", ""),
    ("opened after it left", "NoDevice"),
];

/// The kinds that are no refusals.
const GAPS: [&str; 2] = ["NotRefused", "Kept"];

/// What must become of a step.
#[derive(Debug, PartialEq)]
enum Fate {
    /// Done, and these words are in what it tells.
    Done(&'static str),
    /// Impossible, and these words are in the reason.
    Impossible(&'static str),
}

/// What must become of every step of a cell, in order.
fn expected(provider: &'static str, column: &Column, driver: &'static str) -> [(&'static str, Fate); 9] {
    let interrupt = match provider {
        "sysfs" => Fate::Impossible("sysfs"),
        // One line, by whatever device.
        "uio" => Fate::Done("INTx came"),
        _ => Fate::Done(column.message),
    };
    let combining = match provider {
        "sysfs" | "uio" if column.prefetchable => Fate::Done("BAR "),
        "sysfs" | "uio" => Fate::Impossible("not prefetchable"),
        _ => Fate::Impossible("maps no BAR for combined writes"),
    };
    let reset = if column.reset { Fate::Done("reset") } else { Fate::Impossible("no reset") };
    [
        ("open", Fate::Done(provider)),
        ("bar", Fate::Done("BAR ")),
        ("write-combining", combining),
        ("identity", Fate::Done(column.identity)),
        ("dma", Fate::Done(column.transfer)),
        ("interrupt", interrupt),
        ("reset", reset),
        ("close", Fate::Done("bus mastering off")),
        ("back", Fate::Done(driver)),
    ]
}

/// Runs the guests and prints the table; an error when anything is not as expected.
pub(crate) fn matrix(project: &Project, options: &Matrix) -> Result<()> {
    let chosen: Vec<&Guest> = GUESTS
        .iter()
        .filter(|guest| options.only.is_empty() || options.only.iter().any(|name| name == guest.name))
        .collect();
    let (mut cells, mut refusals, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    for guest in &chosen {
        match run(project, guest, &options.run) {
            Ok((found, refused)) => {
                faults.extend(judge(guest, &found));
                faults.extend(judge_refusals(guest, &refused));
                refusals.push(json!({"guest": guest.name, "refused": refused}));
                cells.push((*guest, found));
            }
            // The others tell something even so.
            Err(error) => faults.push(format!("{}: {error:#}", guest.name)),
        }
    }
    print!("{}{}", table(&cells), gaps(&refusals));
    let report = json!({
        "passed": faults.is_empty(),
        "faults": faults,
        "refusals": refusals,
        "guests": cells.iter().map(|(guest, cells)| json!({"guest": guest.name, "cells": cells})).collect::<Vec<_>>(),
    });
    let logs = project.run_dir("matrix");
    fs::create_dir_all(&logs)?;
    fs::write(logs.join("report.json"), format!("{report:#}\n"))?;
    if !faults.is_empty() {
        bail!("the matrix is not as it has to be:\n  - {}", faults.join("\n  - "));
    }
    let count: usize = cells.iter().map(|(_, cells)| cells.len()).sum();
    println!(
        "{count} cells in {} guests, all as expected: {}",
        chosen.len(),
        logs.join("report.json").display()
    );
    Ok(())
}

/// Runs a guest; answers its cells and what it was refused.
fn run(project: &Project, guest: &Guest, options: &Options) -> Result<(Vec<Value>, Vec<Value>)> {
    let kernel = kernel(project, guest)?;
    let mut files = Tree::default();
    files.add_programs(&pack::build_static(project, &STOCK_PROGRAMS)?)?;
    modules::add(&kernel, &MODULES, &mut files)?;
    let scenario = Scenario {
        name: "matrix",
        arguments: guest.words.to_vec(),
        devices: if guest.confined { &CONFINED_DEVICES } else { &DEVICES },
        drives: &["nvme", "blk"],
        nets: &["e1000e", "virtio"],
        append: if guest.confined { &CONFINED } else { &[UNSAFE_NOIOMMU] },
        // Behind an IOMMU devices are given addresses that say nothing to the host.
        witnessed: !guest.confined,
    };
    let output = guest::run(project, &scenario, &kernel, files, options)?;
    let lines = |file: &str| -> Result<Vec<Value>> {
        let text =
            fs::read_to_string(output.join(file)).with_context(|| format!("the guest left no {file}"))?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("no JSON in {file}")))
            .collect()
    };
    Ok((lines("cells")?, if guest.confined { Vec::new() } else { lines("refusals")? }))
}

fn kernel(project: &Project, guest: &Guest) -> Result<Kernel> {
    apt::install(&HOST_PACKAGES)?;
    match guest.kernel {
        Choice::Stock => kernel::stock(project, None),
        Choice::Built(variant) => refkernel::get(project, variant),
    }
}

/// What was not refused as it has to be.
fn judge_refusals(guest: &Guest, refused: &[Value]) -> Vec<String> {
    if guest.confined {
        return Vec::new();
    }
    let mut kinds = guest.kinds.iter();
    let wanted = REFUSALS.map(|(what, kind)| {
        let kind = if kind.is_empty() { kinds.next().copied().unwrap_or_default() } else { kind };
        (what, kind)
    });
    let found: Vec<(&str, &str)> = refused
        .iter()
        .map(|one| (one["what"].as_str().unwrap_or_default(), one["kind"].as_str().unwrap_or_default()))
        .collect();
    let mut faults: Vec<String> = wanted
        .iter()
        .filter(|wanted| !found.contains(wanted))
        .map(|(what, kind)| format!("{}: {what} was not refused by an error of kind {kind}", guest.name))
        .collect();
    let more = found.iter().filter(|one| !wanted.contains(one));
    faults.extend(more.map(|(what, kind)| format!("{}: nobody expects that {what} is {kind}", guest.name)));
    faults
}

/// What is known to be granted or kept though it should not be: expected, but not to be overlooked.
fn gaps(refusals: &[Value]) -> String {
    let mut text = String::new();
    for guest in refusals {
        let tried = guest["refused"].as_array().map_or(&[][..], Vec::as_slice);
        for one in tried.iter().filter(|one| GAPS.iter().any(|gap| one["kind"] == *gap)) {
            let word = |key: &str| one[key].as_str().unwrap_or_default();
            let name = guest["guest"].as_str().unwrap_or_default();
            text += &format!(
                "{}: {name}: {}: {}\n",
                paint("known gap", Look::Yellow),
                word("what"),
                word("text")
            );
        }
    }
    text
}

/// What is not as expected in the cells of a guest.
fn judge(guest: &Guest, cells: &[Value]) -> Vec<String> {
    let mut faults = Vec::new();
    let wanted = guest.rows.iter().flat_map(|row| COLUMNS.iter().map(move |column| (row, column)));
    let mut found = cells.iter();
    for (&(asked, provider), column) in wanted {
        let place = format!("{} {provider} {}", guest.name, column.kind);
        match found.next() {
            Some(cell) if cell["kind"] == column.kind && cell["asked"] == asked => {
                let stock = matches!(guest.kernel, Choice::Stock);
                let driver = if stock { column.stock_driver } else { column.driver };
                if let Err(error) = judge_cell(cell, &expected(provider, column, driver)) {
                    faults.push(format!("{place}: {error:#}"));
                }
            }
            Some(other) => {
                faults.push(format!("{place}: in its place is {} {}", other["kind"], other["asked"]))
            }
            None => faults.push(format!("{place}: there is no such cell")),
        }
    }
    faults.extend(found.map(|cell| format!("{}: nobody expects the cell {cell}", guest.name)));
    faults
}

fn judge_cell(cell: &Value, expected: &[(&str, Fate)]) -> Result<()> {
    let steps = cell["steps"].as_array().context("it has no steps")?;
    for (at, (name, fate)) in expected.iter().enumerate() {
        let step = steps.get(at).with_context(|| format!("it ended before {name}"))?;
        let (key, words) = match fate {
            Fate::Done(words) => ("done", words),
            Fate::Impossible(words) => ("impossible", words),
        };
        let as_expected =
            step["step"] == *name && step[key].as_str().is_some_and(|text| text.contains(words));
        ensure!(as_expected, "{name}: expected {fate:?}, but it is {step}");
    }
    ensure!(steps.len() == expected.len(), "it goes on after its end: {}", steps[expected.len()]);
    if cell["kind"] == "virtio-blk" {
        let bytes = steps.iter().find(|step| step["step"] == "dma").map(|step| &step["bytes"]);
        ensure!(
            bytes == Some(&to_hex(&guest::stamp("blk")).into()),
            "it read other bytes than are on the drive"
        );
    }
    Ok(())
}

/// The table, and under it what is impossible and why.
fn table(guests: &[(&Guest, Vec<Value>)]) -> String {
    /// Columns of a terminal.
    const FIRST: usize = 16;
    const OTHERS: usize = 13;
    let mut text = format!("\n{:FIRST$}", "");
    for column in &COLUMNS {
        text += &paint(format_args!("{:<OTHERS$}", column.kind), Look::Bold);
    }
    let mut reasons: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for (guest, cells) in guests {
        text += &format!("\n{}", paint(guest.name, Look::Bold));
        for (asked, provider) in guest.rows {
            text += &format!("\n  {provider:<width$}", width = FIRST - 2);
            for column in &COLUMNS {
                let cell = cells.iter().find(|cell| cell["kind"] == column.kind && cell["asked"] == *asked);
                let (word, look) = cell.map_or(("missing".to_owned(), Look::Red), summary);
                text += &paint(format_args!("{word:<OTHERS$}"), look);
                for step in cell.iter().filter_map(|cell| cell["steps"].as_array()).flatten() {
                    if let (Some(name), Some(why)) = (step["step"].as_str(), step["impossible"].as_str()) {
                        let places = reasons.entry((name.to_owned(), general(why))).or_default();
                        places.push(format!("{} {provider} {}", guest.name, column.kind));
                    }
                }
            }
        }
    }
    text += "\n\nEach cell: opened, registers mapped, identified, DMA verified; its interrupt; its reset (rst); closed; its driver back.\n";
    for ((step, why), places) in reasons {
        text += &format!("no {step} in {} cells ({}): {why}\n", places.len(), some(&places));
    }
    text
}

/// A cell in a few letters.
fn summary(cell: &Value) -> (String, Look) {
    let steps = cell["steps"].as_array().map_or(&[][..], Vec::as_slice);
    if let Some(failed) = steps.iter().find(|step| step["failed"].is_string()) {
        return (format!("✗ {}", failed["step"].as_str().unwrap_or_default()), Look::Red);
    }
    let how = |name: &str| {
        let step = steps.iter().find(|step| step["step"] == name);
        step.and_then(|step| step["done"].as_str()).unwrap_or("-")
    };
    let (interrupt, reset) = (how("interrupt"), how("reset"));
    let interrupt = interrupt.split(' ').next().unwrap_or("-");
    let whole = interrupt != "-" && reset != "-";
    let look = if whole { Look::Green } else { Look::Yellow };
    // The width of a column has no place for more.
    (format!("✓ {:<6}{}", interrupt, if reset == "-" { "-" } else { "rst" }), look)
}

/// A reason without the device's address, so that those that are alike are told once.
fn general(why: &str) -> String {
    why.split(' ').filter(|word| !(word.contains(':') && word.contains('.'))).collect::<Vec<_>>().join(" ")
}

/// The first few of a list.
fn some(places: &[String]) -> String {
    const MOST: usize = 3;
    let more = if places.len() > MOST { ", ..." } else { "" };
    format!("{}{more}", places.iter().take(MOST).cloned().collect::<Vec<_>>().join(", "))
}

fn names() -> Vec<&'static str> {
    GUESTS.iter().map(|guest| guest.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cell in which everything is as expected.
    fn cell(asked: &str, provider: &'static str, column: &Column, driver: &'static str) -> Value {
        let steps: Vec<Value> = expected(provider, column, driver)
            .into_iter()
            .map(|(step, fate)| match fate {
                Fate::Done(words) => {
                    json!({"step": step, "done": words, "bytes": to_hex(&guest::stamp("blk"))})
                }
                Fate::Impossible(words) => json!({"step": step, "impossible": words}),
            })
            .collect();
        json!({"kind": column.kind, "asked": asked, "steps": steps})
    }

    fn cells(guest: &Guest) -> Vec<Value> {
        let stock = matches!(guest.kernel, Choice::Stock);
        guest
            .rows
            .iter()
            .flat_map(|&(asked, provider)| {
                COLUMNS.iter().map(move |column| {
                    cell(asked, provider, column, if stock { column.stock_driver } else { column.driver })
                })
            })
            .collect()
    }

    #[test]
    fn words_are_the_rows() {
        for guest in &GUESTS {
            let rows: Vec<&str> = guest.rows.iter().map(|(asked, _)| *asked).collect();
            assert_eq!(guest.words[0], guest.name);
            assert_eq!(guest.words[1..], rows);
        }
    }

    #[test]
    fn only_what_is_expected_passes() {
        for guest in &GUESTS {
            let right = cells(guest);
            assert_eq!(judge(guest, &right), Vec::<String>::new());
            assert_eq!(
                judge(guest, &right[1..]).len(),
                right.len(),
                "one is missing, so all are at the wrong place"
            );
            // Every step of every cell: what was done is not, and the other way round; and a cell that ends too soon.
            for at in 0..right.len() {
                for step in 0..right[at]["steps"].as_array().unwrap().len() {
                    let mut wrong = right.clone();
                    let entry = &mut wrong[at]["steps"][step];
                    let done = entry["done"].is_string();
                    let (from, to) = if done { ("done", "impossible") } else { ("impossible", "done") };
                    entry[to] = entry[from].take();
                    assert_eq!(judge(guest, &wrong).len(), 1, "{guest}: {wrong:?}", guest = guest.name);
                    wrong[at]["steps"].as_array_mut().unwrap().truncate(step);
                    assert_eq!(judge(guest, &wrong).len(), 1);
                }
            }
        }
        let mut wrong = cells(&GUESTS[0]);
        let steps = wrong[3]["steps"].as_array_mut().unwrap();
        let dma = steps.iter_mut().find(|step| step["step"] == "dma").unwrap();
        dma["bytes"] = "00".into();
        assert!(judge(&GUESTS[0], &wrong)[0].contains("other bytes"));
    }

    /// What a guest is refused when everything is as expected.
    fn refused(guest: &Guest) -> Vec<Value> {
        let mut kinds = guest.kinds.iter();
        let kind = |kind: &'static str| if kind.is_empty() { *kinds.next().unwrap() } else { kind };
        let kinds: Vec<&str> = REFUSALS.map(|(_, kind)| kind).into_iter().map(kind).collect();
        REFUSALS.iter().zip(kinds).map(|((what, _), kind)| json!({"what": what, "kind": kind})).collect()
    }

    #[test]
    fn what_is_granted_or_refused_otherwise_fails() {
        for guest in GUESTS.iter().filter(|guest| !guest.confined) {
            let right = refused(guest);
            assert_eq!(judge_refusals(guest, &right), Vec::<String>::new());
            for at in 0..right.len() {
                let mut wrong = right.clone();
                wrong[at]["kind"] = "Timeout".into();
                assert_eq!(judge_refusals(guest, &wrong).len(), 2, "one is missing and one is new");
                wrong.remove(at);
                assert_eq!(judge_refusals(guest, &wrong).len(), 1);
            }
            let told = gaps(&[json!({"guest": guest.name, "refused": right})]);
            let known = guest.kinds.iter().filter(|kind| GAPS.contains(kind)).count();
            assert_eq!(told.lines().count(), known);
        }
    }

    #[test]
    fn the_table_fits_and_tells_reasons_once() {
        let all: Vec<(&Guest, Vec<Value>)> = GUESTS.iter().map(|guest| (guest, cells(guest))).collect();
        let text = table(&all);
        let rows: Vec<&str> = text.lines().take_while(|line| !line.starts_with("Each cell")).collect();
        assert!(rows.iter().all(|row| row.chars().count() <= 84), "{text}");
        assert_eq!(text.matches("no interrupt in").count(), 1);
        assert_eq!(general("0000:00:01.0 has no reset"), "has no reset");
    }
}
