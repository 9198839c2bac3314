//! `cargo xtask vm nvme`: the NVMe driver and the kernel's own, on one controller in one guest.
//!
//! What our driver writes to the whole namespace the kernel's reads back, every byte compared, and the other way round; through
//! every provider that each kernel has. `cargo xtask vm bench` measures both.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::grounds::{self, CONFINED, Ground, Row, expect};
use super::guest::{self, Options, Scenario};
use super::pack::{self, Tree};
use super::{HOST_PACKAGES, NVME, STOCK_PROGRAMS, UNSAFE_NOIOMMU, apt, modules};
use crate::project::Project;

/// Options of the guests.
#[derive(Args, Debug)]
pub(crate) struct Nvme {
    /// Run only these guests, separated by commas
    #[arg(long, value_name = "GUESTS", value_delimiter = ',', value_parser = grounds::names())]
    kernel: Vec<String>,

    /// The short form, as `cargo xtask test` runs it: ours writes, the kernel's reads
    #[arg(long)]
    short: bool,

    /// Print JSON, a line for each provider, and nothing else on stdout
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    run: Options,
}

/// The short form, of all guests.
impl Default for Nvme {
    fn default() -> Self {
        let run = Options::default();
        Self { kernel: Vec::new(), short: true, json: false, run }
    }
}

/// The IOMMU has to come first.
const CONFINED_DEVICES: [&str; 2] = ["intel-iommu", NVME];

/// Bytes of the namespace.
const BYTES: u64 = 16 << 20;

/// Runs the guests, and judges.
pub(crate) fn nvme(project: &Project, options: &Nvme) -> Result<()> {
    apt::install(&HOST_PACKAGES)?;
    let form = if options.short { "short" } else { "long" };
    let chosen = grounds::chosen(&options.kernel);
    let (mut faults, mut bytes) = (Vec::new(), 0);
    for guest in &chosen {
        let words = ["verify", form].into_iter().chain(guest.rows.iter().map(|(asked, ..)| *asked));
        match boot(project, options, guest, words.collect()) {
            Ok(accounts) => {
                for account in &accounts {
                    if options.json {
                        println!("{}", json!({"guest": guest.name, "account": account}));
                    }
                }
                faults.extend(judge(guest, &accounts, options.short));
                bytes += accounts.iter().map(compared).sum::<u64>();
            }
            // The others tell something even so.
            Err(error) => faults.push(format!("{}: {error:#}", guest.name)),
        }
    }
    if !faults.is_empty() {
        bail!("the two drivers do not agree:\n  - {}", faults.join("\n  - "));
    }
    if !options.json {
        let rows: usize = chosen.iter().map(|guest| guest.rows.len()).sum();
        println!(
            "{} guests, {rows} providers: {bytes} bytes compared, written by one driver and read by the other",
            chosen.len()
        );
    }
    Ok(())
}

/// Runs a guest; answers what it leaves: lines of JSON.
fn boot(
    project: &Project,
    options: &Nvme,
    guest: &Ground,
    arguments: Vec<&'static str>,
) -> Result<Vec<Value>> {
    let kernel = guest.kernel(project)?;
    let mut files = Tree::default();
    files.add_programs(&pack::build_static(project, &STOCK_PROGRAMS)?)?;
    modules::add(&kernel, &["uio_pci_generic"], &mut files)?;
    let scenario = Scenario {
        name: "nvme",
        arguments,
        devices: if guest.confined { &CONFINED_DEVICES } else { &CONFINED_DEVICES[1..] },
        drives: &["nvme"],
        nets: &[],
        append: if guest.confined { &CONFINED } else { &[UNSAFE_NOIOMMU] },
        witnessed: false,
    };
    let mut run = options.run.clone();
    run.apart = options.json;
    run.at_least(300);
    let output = guest::run(project, &scenario, &kernel, files, &run)?;
    let text = fs::read_to_string(output.join("nvme")).context("the guest left no account")?;
    let line = |line: &str| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"));
    text.lines().map(line).collect()
}

/// Bytes that were written by one driver and compared by the other.
fn compared(account: &Value) -> u64 {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    number(&account["kernel_verified"]) + number(&account["ours_verified"]["read"])
}

/// What is not as it has to be.
fn judge(ground: &Ground, accounts: &[Value], short: bool) -> Vec<String> {
    ground.judge(accounts, |row, account| judge_row(row, account, short))
}

fn judge_row((asked, provider): &Row, account: &Value, short: bool) -> Result<()> {
    expect(&account["asked"], json!(asked), "what was asked for")?;
    expect(&account["size"], json!(BYTES), "the size of the namespace")?;
    let ours = &account["ours_wrote"];
    expect(&ours["provider"], json!(provider), "the provider")?;
    expect(&ours["serial"], json!("noiommu-nvme"), "the serial number")?;
    for what in ["written", "read"] {
        expect(&ours[what], json!(BYTES), what)?;
    }
    let count = |what: &str| ours[what].as_u64().with_context(|| format!("{what} is missing"));
    ensure!(
        count("done_before_reset")? + count("lost_by_reset")? == 63,
        "not all commands ended by the reset"
    );
    expect(&account["kernel_verified"], json!(BYTES), "what the kernel's driver compared")?;
    if short {
        return Ok(());
    }
    expect(&account["kernel_wrote"], json!(BYTES), "what the kernel's driver wrote")?;
    let ours = &account["ours_verified"];
    expect(&ours["provider"], json!(provider), "the provider of the second time")?;
    expect(&ours["interrupts"], json!(grounds::interrupts(provider)), "the interrupt")?;
    expect(&ours["read"], json!(BYTES), "what ours compared")
}

#[cfg(test)]
mod tests {
    use super::super::grounds::GROUNDS;
    use super::*;

    fn right(row: &Row) -> Value {
        json!({
            "asked": row.0, "size": BYTES, "kernel_verified": BYTES, "kernel_wrote": BYTES,
            "ours_wrote": {
                "provider": row.1, "serial": "noiommu-nvme", "written": BYTES, "read": BYTES,
                "done_before_reset": 60, "lost_by_reset": 3,
            },
            "ours_verified": {"provider": row.1, "interrupts": grounds::interrupts(row.1), "read": BYTES},
        })
    }

    #[test]
    fn only_what_is_expected_passes() {
        for guest in &GROUNDS {
            let accounts: Vec<Value> = guest.rows.iter().map(right).collect();
            for short in [true, false] {
                assert_eq!(judge(guest, &accounts, short), Vec::<String>::new());
                assert_eq!(judge(guest, &accounts[1..], short).is_empty(), accounts.is_empty());
            }
            let members = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            for key in members(&accounts[0]) {
                let mut wrong = accounts.clone();
                wrong[0][&key] = json!("other");
                assert_eq!(judge(guest, &wrong, false).len(), 1, "{key}");
                for inner in
                    accounts[0][&key].as_object().map(|_| members(&accounts[0][&key])).unwrap_or_default()
                {
                    let mut wrong = accounts.clone();
                    wrong[0][&key][&inner] = json!("other");
                    assert_eq!(judge(guest, &wrong, false).len(), 1, "{key} {inner}");
                }
            }
        }
    }
}
