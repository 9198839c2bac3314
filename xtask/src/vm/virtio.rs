//! `cargo xtask vm virtio`: virtio devices by the drivers of `virtio-drivers` on the kit, against the kernel's own.
//!
//! What ours writes to a whole disk the kernel's reads back, every byte compared, and the other way round. A card of ours is a host with
//! an address, which the kernel pings and fetches a page from through a card of its own on the same wire. Through every provider that
//! each kernel has, with an IOMMU and without.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::grounds::{self, CONFINED, Ground, Row, expect};
use super::guest::{self, Options, Scenario};
use super::pack::{self, Tree};
use super::{HOST_PACKAGES, STOCK_PROGRAMS, UNSAFE_NOIOMMU, apt, modules};
use crate::project::Project;

/// Options of the guests.
#[derive(Args, Debug)]
pub(crate) struct Virtio {
    /// Run only these guests, separated by commas
    #[arg(long, value_name = "GUESTS", value_delimiter = ',', value_parser = grounds::names())]
    kernel: Vec<String>,

    /// The short form, as `cargo xtask test` runs it: of the disk one way round
    #[arg(long)]
    short: bool,

    /// Print JSON, a line for each provider, and nothing else on stdout
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    run: Options,
}

/// The short form, of all guests.
impl Default for Virtio {
    fn default() -> Self {
        Self { kernel: Vec::new(), short: true, json: false, run: Options::default() }
    }
}

/// The disk, our card and the kernel's, in this order.
const DEVICES: [&str; 3] = [
    "virtio-blk-pci,drive=blk,serial=noiommu-blk,disable-legacy=on",
    "virtio-net-pci,netdev=ours,mac=52:54:00:00:00:02,disable-legacy=on",
    "virtio-net-pci,netdev=theirs,mac=52:54:00:00:00:03,disable-legacy=on",
];

/// The same behind an IOMMU, which has to come first, and through which virtio goes only when it is told to.
const CONFINED_DEVICES: [&str; 4] = [
    "intel-iommu",
    "virtio-blk-pci,drive=blk,serial=noiommu-blk,disable-legacy=on,iommu_platform=on",
    "virtio-net-pci,netdev=ours,mac=52:54:00:00:00:02,disable-legacy=on,iommu_platform=on",
    "virtio-net-pci,netdev=theirs,mac=52:54:00:00:00:03,disable-legacy=on,iommu_platform=on",
];

/// What a stock kernel has to load for its own drivers, and for user space.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_net", "uio_pci_generic"];

/// Bytes of the disk, and the most of a piece of a transfer.
const BYTES: u64 = 16 << 20;
const PIECES: std::ops::RangeInclusive<u64> = 4096..=64 << 10;

/// Our card, as the machine was told of it.
const MAC: &str = "52:54:00:00:00:02";

/// Pings, fetches, and bytes of the page: the guest's program has the same.
const PINGS: u64 = 6;
const FETCHES: u64 = 2;
const PAGE: u64 = 100_003;

/// Runs the guests, and judges.
pub(crate) fn virtio(project: &Project, options: &Virtio) -> Result<()> {
    apt::install(&HOST_PACKAGES)?;
    let chosen = grounds::chosen(&options.kernel);
    let (mut faults, mut bytes, mut replies) = (Vec::new(), 0, 0);
    for ground in &chosen {
        match boot(project, options, ground) {
            Ok(accounts) => {
                for account in &accounts {
                    if options.json {
                        println!("{}", json!({"guest": ground.name, "account": account}));
                    }
                }
                faults.extend(judge(ground, &accounts, options.short));
                bytes += accounts.iter().map(compared).sum::<u64>();
                replies += accounts.iter().map(|account| number(&account["net"]["replies"])).sum::<u64>();
            }
            // The others tell something even so.
            Err(error) => faults.push(format!("{}: {error:#}", ground.name)),
        }
    }
    if !faults.is_empty() {
        bail!("our drivers and the kernel's do not agree:\n  - {}", faults.join("\n  - "));
    }
    if !options.json {
        let rows: usize = chosen.iter().map(|ground| ground.rows.len()).sum();
        println!(
            "{} guests, {rows} providers: {bytes} bytes compared, written by one driver and read by the other; {replies} pings \
             answered, {} pages fetched",
            chosen.len(),
            rows as u64 * FETCHES
        );
    }
    Ok(())
}

/// Runs a guest; answers what it leaves: lines of JSON.
fn boot(project: &Project, options: &Virtio, ground: &Ground) -> Result<Vec<Value>> {
    let kernel = ground.kernel(project)?;
    let mut files = Tree::default();
    files.add_programs(&pack::build_static(project, &STOCK_PROGRAMS)?)?;
    modules::add(&kernel, &MODULES, &mut files)?;
    let form = if options.short { "short" } else { "long" };
    let scenario = Scenario {
        name: "virtio",
        arguments: [form].into_iter().chain(ground.rows.iter().map(|(asked, _)| *asked)).collect(),
        devices: if ground.confined { &CONFINED_DEVICES } else { &DEVICES },
        drives: &["blk"],
        nets: &["hub:ours", "hub:theirs"],
        append: if ground.confined { &CONFINED } else { &[UNSAFE_NOIOMMU] },
        witnessed: false,
    };
    let mut run = options.run.clone();
    run.apart = options.json;
    run.at_least(300);
    let output = guest::run(project, &scenario, &kernel, files, &run)?;
    let text = fs::read_to_string(output.join("virtio")).context("the guest left no account")?;
    let line = |line: &str| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"));
    text.lines().map(line).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// Bytes that were written by one driver and compared by the other.
fn compared(account: &Value) -> u64 {
    let disk = &account["disk"];
    number(&disk["kernel_verified"]) + number(&disk["ours_verified"]["read"])
}

/// What is not as it has to be.
fn judge(ground: &Ground, accounts: &[Value], short: bool) -> Vec<String> {
    ground.judge(accounts, |row, account| judge_row(row, account, short))
}

fn judge_row((asked, provider): &Row, account: &Value, short: bool) -> Result<()> {
    expect(&account["asked"], json!(asked), "what was asked for")?;

    let disk = &account["disk"];
    expect(&disk["size"], json!(BYTES), "the size of the disk")?;
    let ours = &disk["ours_wrote"];
    expect(&ours["provider"], json!(provider), "the disk's provider")?;
    expect(&ours["serial"], json!("noiommu-blk"), "the serial number")?;
    ensure!(PIECES.contains(&number(&ours["piece"])), "a piece has {} bytes", ours["piece"]);
    for what in ["written", "read"] {
        expect(&ours[what], json!(BYTES), what)?;
    }
    expect(&disk["kernel_verified"], json!(BYTES), "what the kernel's driver compared")?;
    if !short {
        expect(&disk["kernel_wrote"], json!(BYTES), "what the kernel's driver wrote")?;
        let ours = &disk["ours_verified"];
        expect(&ours["provider"], json!(provider), "the disk's provider of the second time")?;
        expect(&ours["read"], json!(BYTES), "what ours compared")?;
    }

    let net = &account["net"];
    for (what, wanted) in [("pings", PINGS), ("replies", PINGS), ("fetched", FETCHES), ("page", PAGE)] {
        expect(&net[what], json!(wanted), what)?;
    }
    let ours = &net["ours"];
    expect(&ours["provider"], json!(provider), "the card's provider")?;
    expect(&ours["mac"], json!(MAC), "the card's address")?;
    expect(&ours["echoes"], json!(PINGS), "the pings that our host answered")?;
    expect(&ours["pages"], json!(FETCHES), "the pages that our host served")?;
    // A page takes as many frames, both ways, if it went over the wire.
    for what in ["received", "sent"] {
        ensure!(number(&ours[what]) >= 2 * PINGS, "{what} are {} frames", ours[what]);
    }
    ensure!(number(&ours["sent"]) > FETCHES * PAGE / 1514, "{} frames are no {FETCHES} pages", ours["sent"]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::grounds::GROUNDS;
    use super::*;

    fn right(row: &Row) -> Value {
        json!({
            "asked": row.0,
            "disk": {
                "size": BYTES, "kernel_verified": BYTES, "kernel_wrote": BYTES,
                "ours_wrote": {
                    "provider": row.1, "serial": "noiommu-blk", "piece": 65536, "written": BYTES, "read": BYTES,
                },
                "ours_verified": {"provider": row.1, "read": BYTES},
            },
            "net": {
                "pings": PINGS, "replies": PINGS, "fetched": FETCHES, "page": PAGE,
                "ours": {
                    "provider": row.1, "mac": MAC, "received": 200, "sent": 200, "echoes": PINGS, "pages": FETCHES,
                },
            },
        })
    }

    /// Every place in a value that holds no object.
    fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
        match value.as_object() {
            Some(members) => {
                members.iter().for_each(|(key, inner)| leaves(inner, &format!("{path}/{key}"), found));
            }
            None => found.push(path.to_owned()),
        }
    }

    #[test]
    fn only_what_is_expected_passes() {
        for ground in &GROUNDS {
            let accounts: Vec<Value> = ground.rows.iter().map(right).collect();
            for short in [true, false] {
                assert_eq!(judge(ground, &accounts, short), Vec::<String>::new());
                assert_eq!(
                    judge(ground, &accounts[1..], short).len(),
                    if accounts.len() == 1 { 1 } else { 2 }
                );
            }
            let mut places = Vec::new();
            leaves(&accounts[0], "", &mut places);
            assert_eq!(places.len(), 21);
            for place in places {
                let mut wrong = accounts.clone();
                *wrong[0].pointer_mut(&place).unwrap() = json!("other");
                assert_eq!(judge(ground, &wrong, false).len(), 1, "{place}");
            }
        }
    }
}
