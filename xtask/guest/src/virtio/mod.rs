//! Virtio devices by our drivers against the kernel's: a disk that both have in turns, and two network cards on one wire.
//!
//! `noiommu-guest virtio short|long PROVIDER...` goes once through each provider and leaves a line of JSON in [`ACCOUNTS`] for each.
//! `noiommu-guest virtio ours ...` is a driver in a process of its own, from taking the device to giving it back.

mod disk;
mod host;
mod ours;
mod peer;
mod wire;

use std::fs::File;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use noiommu::optin;
use serde_json::{Value, json};

use crate::matrix;

/// Vendor and device ids of what QEMU has.
const BLOCK: (u16, u16) = (0x1af4, 0x1042);
const NET: (u16, u16) = (0x1af4, 0x1041);

/// Where the accounts go, a line of JSON each.
const ACCOUNTS: &str = "/output/virtio";

/// The provider that a program is to use, if not the best.
const PROVIDER: &str = "NOIOMMU_PROVIDER";

/// Runs what the words ask for.
pub(crate) fn run(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["ours", what, address, seed] => ours::run(what, address, seed.parse()?),
        ["short", ref providers @ ..] => verify(providers, false),
        ["long", ref providers @ ..] => verify(providers, true),
        _ => bail!("usage: virtio short|long PROVIDER..."),
    }
}

/// Once through each provider. The short form is one way round for the disk: ours writes, the kernel's reads.
fn verify(providers: &[&str], both: bool) -> Result<()> {
    ensure!(!providers.is_empty(), "no provider was named");
    optin::enable()?;
    let disk = matrix::addresses(BLOCK)?.into_iter().next().context("no virtio disk in this machine")?;
    // One for us and one for the kernel, on one wire.
    let cards = matrix::addresses(NET)?;
    let [ours, theirs] = &cards[..] else { bail!("{} virtio cards in this machine, not two", cards.len()) };
    let mut accounts = File::create(ACCOUNTS).context(ACCOUNTS)?;
    for (provider, turn) in providers.iter().zip(1..) {
        let account = json!({
            "asked": provider,
            "disk": disk::both_drivers(&disk, provider, turn, both)?,
            "net": peer::talk(ours, theirs, provider, turn)?,
        });
        println!("{account}");
        writeln!(accounts, "{account}").context(ACCOUNTS)?;
    }
    Ok(())
}

/// A program of its own that drives the device, which `provider` has.
fn driver(provider: &str, what: &str, address: &str, seed: u64) -> Command {
    let mut program = Command::new("/proc/self/exe");
    program.args(["virtio", "ours", what, address, &seed.to_string()]);
    program.stdout(Stdio::piped()).stderr(Stdio::piped());
    if provider != "auto" {
        program.env(PROVIDER, provider);
    }
    program
}

/// Has it drive the device to its end; answers what it tells.
fn drive(provider: &str, what: &str, address: &str, seed: u64) -> Result<Value> {
    let ran = driver(provider, what, address, seed).output().context("running a driver")?;
    ensure!(ran.status.success(), "{what} by {provider}: {}", String::from_utf8_lossy(&ran.stderr).trim());
    serde_json::from_slice(&ran.stdout).context("what a driver tells is no JSON")
}
