//! Random reads of 4 KiB: the NVMe driver and the kernel's own, on one controller in one guest.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use noiommu_bench::{Group, Mark, Ratio, Row, Subject, Unit};
use serde_json::Value;

use super::{IN_A_GUEST, Scenario};
use crate::project::Project;
use crate::vm::kernel::Kernel;
use crate::vm::pack::{self, Tree};
use crate::vm::{Choice, NVME, STOCK_PROGRAMS, UNSAFE_NOIOMMU, modules};

pub(super) const SCENARIO: Scenario = Scenario {
    group: Group {
        name: "guest/nvme",
        what: "4 KiB random reads from one NVMe controller: our driver, and the kernel's by the best of its ways",
        subjects: || DEPTHS.map(|(subject, _)| subject).to_vec(),
        run: IN_A_GUEST,
    },
    script: "bench-nvme",
    kernel: Choice::Stock,
    devices: &[NVME],
    drives: &["nvme"],
    // The kernel's driver gets a queue that is polled.
    append: &[UNSAFE_NOIOMMU, "nvme.poll_queues=1"],
    pack,
    rows,
};

/// What is measured, and at which depth.
const DEPTHS: [(Subject, u64); 2] = [
    (
        Subject::marked(
            "guest/nvme/depth-1",
            "one read at a time: how many times as many in a second as by the kernel's driver",
            Unit::Ratio,
            Mark::AtLeast(1.0),
        ),
        1,
    ),
    (
        Subject::marked(
            "guest/nvme/depth-32",
            "32 reads at a time: how many times as many in a second as by the kernel's driver",
            Unit::Ratio,
            Mark::AtLeast(1.2),
        ),
        32,
    ),
];

fn pack(project: &Project, kernel: &Kernel, files: &mut Tree) -> Result<()> {
    files.add_programs(&pack::build_static(project, &STOCK_PROGRAMS)?)?;
    modules::add(kernel, &["uio_pci_generic"], files)
}

/// Reads in a second: for each way, a number for each round.
type Rates = BTreeMap<String, Vec<f64>>;

fn rows(accounts: &[Value]) -> Result<Vec<Row>> {
    DEPTHS.iter().map(|(subject, depth)| row(subject, accounts, *depth)).collect()
}

/// The row of a depth: the median of the ratios, round by round, of the best ways of both.
fn row(subject: &Subject, accounts: &[Value], depth: u64) -> Result<Row> {
    let (ours, kernel) = (rates(accounts, depth, "ours")?, rates(accounts, depth, "kernel")?);
    let (our_way, our_rates) = best(&ours).context("no figure of ours")?;
    let (their_way, their_rates) = best(&kernel).context("no figure of the kernel's")?;
    let rounds = (our_rates.len(), their_rates.len());
    ensure!(rounds.0 == rounds.1, "{} rounds of ours, {} of the kernel's", rounds.0, rounds.1);
    let ratios: Vec<f64> = our_rates.iter().zip(their_rates).map(|(ours, theirs)| ours / theirs).collect();
    // A read's share of the time, in which the other rows of a guest are told, too.
    let each = |rates: &[f64]| 1e9 / median(rates);
    let ways: Vec<String> = kernel.iter().map(|(way, rates)| format!("{way} {:.0}", median(rates))).collect();
    Ok(subject
        .ratio(Ratio::of(&ratios))
        .part("ours, each read", each(our_rates))
        .part("the kernel's", each(their_rates))
        .note(format!(
            "ours {our_way}, the kernel's by {their_way}; its ways, in reads a second: {}",
            ways.join(", ")
        )))
}

/// What one side did at a depth.
fn rates(accounts: &[Value], depth: u64, who: &str) -> Result<Rates> {
    let mut rates = Rates::new();
    for account in accounts.iter().filter(|account| account["depth"] == depth && account["who"] == who) {
        let Some(rate) = account["figure"]["rate"].as_f64() else { continue };
        let way = account["way"].as_str().context("a figure without its way")?;
        rates.entry(way.to_owned()).or_default().push(rate);
    }
    Ok(rates)
}

/// The way with the highest median.
fn best(rates: &Rates) -> Option<(&str, &[f64])> {
    let ways = rates.iter().map(|(way, rates)| (way.as_str(), rates.as_slice()));
    ways.max_by(|one, other| median(one.1).total_cmp(&median(other.1)))
}

fn median(numbers: &[f64]) -> f64 {
    Ratio::of(numbers).value
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_ratio_is_to_the_kernel_s_best_way() {
        let account = |who: &str, way: &str, depth: u64, rate: f64| json!({"who": who, "way": way, "depth": depth, "figure": {"rate": rate}});
        let mut accounts =
            vec![json!({"stamped": 1}), json!({"who": "kernel", "depth": 1, "impossible": "no"})];
        for (ours, theirs) in [(30.0, 10.0), (44.0, 20.0), (20.0, 20.0)] {
            accounts.push(account("ours", "polled", 1, ours));
            accounts.push(account("kernel", "pread", 1, 1.0));
            accounts.push(account("kernel", "io_uring", 1, theirs));
            accounts.push(account("ours", "polled", 32, 1e9));
        }
        let row = row(&DEPTHS[0].0, &accounts, 1).unwrap();
        assert_eq!((row.figure.as_ref().unwrap().value, row.met()), (2.2, Some(true)));
        assert!(row.note.as_ref().is_some_and(|note| note.contains("the kernel's by io_uring")));
        assert!(super::row(&DEPTHS[1].0, &accounts, 32).is_err(), "nothing of the kernel's");
        assert!(rows(&accounts).is_err());
    }
}
