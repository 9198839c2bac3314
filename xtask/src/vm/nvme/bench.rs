//! The figures of both drivers, and their ratio.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Nvme, boot};
use crate::project::Project;
use crate::ui::{Look, paint};
use crate::vm::grounds::GROUNDS;

/// The depths, and how many times as fast as the kernel's driver ours is to be there.
const MARKS: [(u64, f64); 2] = [(1, 1.0), (32, 1.2)];

/// Reads in a second: for each way, a number for each round.
type Rates = BTreeMap<String, Vec<f64>>;

/// Boots one guest, and prints a line for each depth. A mark that is not met is told, and fails nothing: that is for whoever calls.
pub(super) fn run(project: &Project, options: &Nvme) -> Result<()> {
    let name = options.kernel.first().map_or("stock", String::as_str);
    ensure!(options.kernel.len() <= 1, "one guest is measured at a time");
    let guest = GROUNDS.iter().find(|guest| guest.name == name).context("no such guest")?;
    // Words live as long as the program.
    let word = |number: u64| -> &'static str { number.to_string().leak() };
    let words = vec!["bench", word(options.rounds), word(options.milliseconds)];
    // Thirteen measurements a round, and the taking and giving of the device.
    let seconds = options.rounds * (13 * options.milliseconds / 1000 + 20);
    let accounts = boot(project, options, guest, words, seconds)?;
    for account in accounts.iter().filter(|account| account["impossible"].is_string()) {
        eprintln!("not measured: {account}");
    }
    for (depth, mark) in MARKS {
        let figure = figure(&accounts, depth, mark, name)?;
        if options.json {
            println!("{figure}");
        } else {
            print(&figure);
        }
    }
    Ok(())
}

/// The figure of a depth: medians of the rounds, and of the ratio in each of them of the best ways of both.
fn figure(accounts: &[Value], depth: u64, mark: f64, guest: &str) -> Result<Value> {
    let (ours, kernel) = (rates(accounts, depth, "ours")?, rates(accounts, depth, "kernel")?);
    let (our_way, our_rates) = best(&ours).context("no figure of ours")?;
    let (their_way, their_rates) = best(&kernel).context("no figure of the kernel's")?;
    let rounds = (our_rates.len(), their_rates.len());
    ensure!(rounds.0 == rounds.1, "{} rounds of ours, {} of the kernel's", rounds.0, rounds.1);
    let ratios: Vec<f64> = our_rates.iter().zip(their_rates).map(|(ours, theirs)| ours / theirs).collect();
    let ratio = median(&ratios);
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    let medians =
        |rates: &Rates| json!(rates.iter().map(|(way, of)| (way, median(of))).collect::<BTreeMap<_, _>>());
    Ok(json!({
        "name": format!("nvme 4 KiB random reads, depth {depth}"),
        "guest": guest,
        "depth": depth,
        "rounds": rounds.0,
        "ours": median(our_rates),
        "our_way": our_way,
        "our_ways": medians(&ours),
        "kernel": median(their_rates),
        "kernel_way": their_way,
        "kernel_ways": medians(&kernel),
        "unit": "reads/s",
        "value": ratio,
        "spread": [least, most],
        "mark": mark,
        "met": ratio >= mark,
    }))
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

fn print(figure: &Value) {
    let number = |key: &str| figure[key].as_f64().unwrap_or_default();
    let met = figure["met"] == true;
    let text = format!(
        "depth {:>2}: ours {:>7.0} reads/s, the kernel's {:>7.0} ({}): {:.2}x ({:.2} to {:.2}), mark {:.1}x",
        figure["depth"],
        number("ours"),
        number("kernel"),
        figure["kernel_way"].as_str().unwrap_or_default(),
        number("value"),
        figure["spread"][0].as_f64().unwrap_or_default(),
        figure["spread"][1].as_f64().unwrap_or_default(),
        number("mark"),
    );
    println!("{}", paint(text, if met { Look::Green } else { Look::Red }));
}

/// The middle one, or the mean of the two in the middle.
fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2) {
        (Some(one), 1) => *one,
        (Some(one), _) => (one + sorted[middle - 1]) / 2.0,
        (None, _) => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
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
        let figure = figure(&accounts, 1, 1.2, "stock").unwrap();
        assert_eq!((&figure["kernel_way"], &figure["ours"]), (&json!("io_uring"), &json!(30.0)));
        assert_eq!((&figure["value"], &figure["spread"]), (&json!(2.2), &json!([1.0, 3.0])));
        assert_eq!(figure["met"], true);
        assert!(super::figure(&accounts, 32, 1.2, "stock").is_err(), "nothing of the kernel's");
    }

    #[test]
    fn medians() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0])), (2.0, 2.5));
        assert!(median(&[]).is_nan());
    }
}
