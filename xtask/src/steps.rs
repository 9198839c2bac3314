//! `cargo xtask test`: everything that must hold before a change goes in, step by step.
//!
//! A new step is one line in [`STEPS`] and a function that runs it.

use std::fs;
use std::process::{self, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::project::Project;
use crate::ui::{self, Look, Work, paint};
use crate::{command, guide, lookup_code, msrv, package, vm};

/// The checker of licenses and sources, in the version whose rules `deny.toml` is written for.
const CARGO_DENY: &str = "0.20.2";

/// What to run.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Leave out the steps that boot a guest
    #[arg(long)]
    no_vm: bool,

    /// Run the steps that are left out else, too: those that make what seldom changes, and take minutes for it
    #[arg(long)]
    long: bool,

    /// Run the later steps too when one fails
    #[arg(long)]
    keep_going: bool,

    /// Run only the steps with these names, separated by commas
    #[arg(long, value_name = "STEPS", value_delimiter = ',', value_parser = step_names())]
    #[arg(hide_possible_values = true)]
    only: Vec<String>,
}

/// One step.
struct Step {
    /// Its name in the table and for `--only`.
    name: &'static str,
    /// Whether it boots a guest.
    vm: bool,
    /// Runs it.
    run: fn(&Project) -> Result<Outcome>,
}

/// How a step that did not fail ended.
enum Outcome {
    Passed,
    /// It could not run here, for this reason. That is no failure, but it is told.
    NotRun(String),
}

/// The steps, the quickest to fail first.
const STEPS: &[Step] = &[
    Step { name: "fmt", vm: false, run: fmt },
    Step { name: "clippy", vm: false, run: clippy },
    Step { name: "doc", vm: false, run: doc },
    Step { name: "test", vm: false, run: test },
    Step { name: "no-panic", vm: false, run: no_panic },
    Step { name: "fuzz-corpus", vm: false, run: fuzz_corpus },
    Step { name: "loom", vm: false, run: loom },
    Step { name: "demo", vm: false, run: demo },
    Step { name: "guide", vm: false, run: guide },
    Step { name: "proof", vm: false, run: proof },
    Step { name: "conformance", vm: false, run: conformance },
    Step { name: "bench", vm: false, run: bench },
    Step { name: "lookup-code", vm: false, run: lookup_code },
    Step { name: "deny", vm: false, run: deny },
    Step { name: "crates", vm: false, run: crates },
    Step { name: "msrv", vm: false, run: msrv },
    Step { name: "miri", vm: false, run: miri },
    Step { name: "vm-stock-edu", vm: true, run: vm_stock_edu },
    Step { name: "vm-driver", vm: true, run: vm_driver },
    Step { name: "vm-backports", vm: true, run: vm_backports },
    Step { name: "vm-iommu", vm: true, run: vm_iommu },
    Step { name: "vm-mixed", vm: true, run: vm_mixed },
    Step { name: "vm-doctor", vm: true, run: vm_doctor },
    Step { name: "vm-nvme-identify", vm: true, run: vm_nvme_identify },
    Step { name: "vm-matrix", vm: true, run: vm_matrix },
    Step { name: "vm-nvme", vm: true, run: vm_nvme },
    Step { name: "vm-virtio", vm: true, run: vm_virtio },
    Step { name: "vm-package", vm: true, run: vm_package },
    Step { name: "vm-bench", vm: true, run: vm_bench },
    Step { name: "vm-soak-guardian", vm: true, run: vm_soak_guardian },
    Step { name: "vm-soak-storms", vm: true, run: vm_soak_storms },
    Step { name: "vm-conformance-reference", vm: true, run: vm_conformance_reference },
    Step { name: "vm-conformance-legacy", vm: true, run: vm_conformance_legacy },
    Step { name: "vm-fuzz-uapi", vm: true, run: vm_fuzz_uapi },
];

/// Steps of `--long`, or by their names. With nothing cached, a compiler, a tool and the disk of a whole Debian are made for them.
const LONG: &[&str] = &["msrv", "vm-driver", "vm-package"];

/// The longest name of a step, and so the width of its column.
const WIDTH: usize = 24;

/// What became of a step.
enum Fate {
    Passed,
    Failed,
    NotRun(String),
}

/// Runs the steps and ends with a table; an error when one failed.
pub(crate) fn run(project: &Project, options: &Options) -> Result<()> {
    let chosen: Vec<&Step> = STEPS
        .iter()
        .filter(|step| options.only.is_empty() || options.only.iter().any(|name| name == step.name))
        .collect();
    let began = Instant::now();
    let mut fates: Vec<(&Step, Fate, Duration)> = Vec::new();
    for (number, step) in chosen.iter().enumerate() {
        let failed = fates.iter().any(|(_, fate, _)| matches!(fate, Fate::Failed));
        if step.vm && options.no_vm {
            fates.push((step, Fate::NotRun("--no-vm".to_owned()), Duration::ZERO));
            continue;
        }
        if LONG.contains(&step.name) && !options.long && options.only.is_empty() {
            fates.push((step, Fate::NotRun("--long".to_owned()), Duration::ZERO));
            continue;
        }
        if failed && !options.keep_going {
            fates.push((step, Fate::NotRun("an earlier step failed".to_owned()), Duration::ZERO));
            continue;
        }
        println!("\n{}", paint(format_args!("[{}/{}] {}", number + 1, chosen.len(), step.name), Look::Bold));
        let step_began = Instant::now();
        let fate = match (step.run)(project) {
            Ok(Outcome::Passed) => Fate::Passed,
            Ok(Outcome::NotRun(why)) => {
                println!("{}", paint(format_args!("not run: {why}"), Look::Yellow));
                Fate::NotRun(why)
            }
            Err(error) => {
                println!("{}", paint(format_args!("{} failed: {error:#}", step.name), Look::Red));
                Fate::Failed
            }
        };
        fates.push((step, fate, step_began.elapsed()));
    }

    println!();
    for (step, fate, time) in &fates {
        let (word, look) = match fate {
            Fate::Passed => ("passed".to_owned(), Look::Green),
            Fate::Failed => ("FAILED".to_owned(), Look::Red),
            Fate::NotRun(why) => (format!("not run: {why}"), Look::Yellow),
        };
        println!("{:<WIDTH$} {:>12}  {}", step.name, ui::seconds(*time), paint(word, look));
    }
    println!("{:<WIDTH$} {:>12}", "all", ui::seconds(began.elapsed()));

    let failed: Vec<&str> = fates
        .iter()
        .filter(|(_, fate, _)| matches!(fate, Fate::Failed))
        .map(|(step, ..)| step.name)
        .collect();
    if !failed.is_empty() {
        bail!("failed: {}; once more: cargo xtask test --only {}", failed.join(", "), failed.join(","));
    }
    Ok(())
}

fn step_names() -> Vec<&'static str> {
    STEPS.iter().map(|step| step.name).collect()
}

fn cargo(project: &Project, arguments: &[&str]) -> Result<Outcome> {
    command::inherit(project.cargo().args(arguments))?;
    Ok(Outcome::Passed)
}

fn fmt(project: &Project) -> Result<Outcome> {
    // rustfmt knows neither NO_COLOR nor whether it writes to a terminal.
    let colour = if ui::colours() { "always" } else { "never" };
    cargo(project, &["fmt", "--all", "--check", "--", "--color", colour])
}

fn clippy(project: &Project) -> Result<Outcome> {
    cargo(project, &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])
}

fn test(project: &Project) -> Result<Outcome> {
    cargo(project, &["test", "--workspace", "--locked"])
}

/// The documentation, without a broken link in it.
fn doc(project: &Project) -> Result<Outcome> {
    command::inherit(
        project
            .cargo()
            .args(["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    Ok(Outcome::Passed)
}

/// A program that links only if nothing in the core can panic; and that the check can fail.
fn no_panic(project: &Project) -> Result<Outcome> {
    let build = |features: &[&str]| {
        let mut cargo = project.cargo();
        cargo.current_dir(project.root.join("noiommu-core/no-panic"));
        cargo.args(["build", "--release", "--locked", "--target-dir"]).arg(project.target.join("no-panic"));
        cargo.args(features);
        cargo
    };
    command::inherit(&mut build(&[]))?;
    let broken = build(&["--features", "break"]).output().context("cargo build")?;
    let told = String::from_utf8_lossy(&broken.stderr);
    if broken.status.success() || !told.contains("noiommu_core_can_panic") {
        bail!("the check does not see a panic put in on purpose:\n{}", command::tail(&told, 20));
    }
    println!("links; with a panic put in on purpose it does not");
    Ok(Outcome::Passed)
}

/// The readers' protocol in every interleaving and memory order.
fn loom(project: &Project) -> Result<Outcome> {
    command::inherit(
        project
            .cargo()
            .args(["test", "--release", "--locked", "--package", "noiommu-core", "--test", "readers"])
            .arg("--target-dir")
            .arg(project.target.join("loom"))
            .env("CARGO_ENCODED_RUSTFLAGS", "--cfg\u{1f}loom"),
    )?;
    Ok(Outcome::Passed)
}

/// The program as a script calls it; answers its exit code and its JSON.
fn program(project: &Project, arguments: &[&str]) -> Result<(Option<i32>, serde_json::Value)> {
    let mut cargo = project.cargo();
    cargo
        .args(["run", "--quiet", "--release", "--locked", "--"])
        .args(arguments)
        .stderr(process::Stdio::inherit());
    let output = cargo.output().context("cargo run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{:.300}", text.trim_end());
    let json =
        serde_json::from_str(&text).with_context(|| format!("no JSON from {}", arguments.join(" ")))?;
    Ok((output.status.code(), json))
}

/// What a newcomer's first command says, read by a program.
fn demo(project: &Project) -> Result<Outcome> {
    for arguments in [&["demo", "--json"][..], &["demo", "--json", "--pages"]] {
        let (code, json) = program(project, arguments)?;
        if code != Some(0) || json["verified"] != true {
            bail!("{}: exit code {code:?}, not verified", arguments.join(" "));
        }
        if json["missing"].is_object() {
            return Ok(Outcome::NotRun(format!("on real memory: {}", json["missing"]["cause"])));
        }
        if json["pin"] != "io_uring" || json["simulated_memory"] != false {
            bail!("{}: not on memory pinned by io_uring", arguments.join(" "));
        }
    }
    let (code, json) = program(project, &["demo", "--json", "--simulated", "--size", "100K"])?;
    if code != Some(0) || json["verified"] != true || json["pin"] != "simulated" {
        bail!("demo on simulated memory: exit code {code:?}");
    }
    Ok(Outcome::Passed)
}

/// What the guide has its readers do is done, and says what it shows; guests are another step.
fn guide(project: &Project) -> Result<Outcome> {
    guide::guide(project, &guide::Options::default())?;
    Ok(Outcome::Passed)
}

/// Pinned pages stay while mlocked ones move, on this machine.
fn proof(project: &Project) -> Result<Outcome> {
    /// The exit code of a run that moved too few mlocked pages to prove anything, which may be bad luck.
    const TOO_LITTLE: i32 = 3;
    for turn in 1.. {
        let (code, json) = program(project, &["proof", "pins", "--json"])?;
        match code {
            Some(0) if json["moved"]["pinned"] == 0 => return Ok(Outcome::Passed),
            Some(TOO_LITTLE) if turn < 3 => println!("too few pages moved; once more"),
            // Whoever may not read physical addresses cannot prove anything; root must be able to.
            Some(1) if json["error"].is_object() && !rustix::process::geteuid().is_root() => {
                return Ok(Outcome::NotRun(json["error"]["cause"].to_string()));
            }
            _ => break,
        }
    }
    bail!("pinned pages were not proved to stay");
}

/// Lookups take no lock and write to nothing that others read.
fn lookup_code(project: &Project) -> Result<Outcome> {
    command::inherit(project.cargo().args(["build", "--release", "--locked", "--package", "noiommu-cli"]))?;
    match lookup_code::check(&project.target.join("release/noiommu"))? {
        Some(told) => {
            println!("{told}; what is in on purpose is found");
            Ok(Outcome::Passed)
        }
        None => Ok(Outcome::NotRun("the machine code of this processor is not known".to_owned())),
    }
}

/// The short form of `noiommu bench`: no mark is missed by more than the noise that the measurement saw in itself.
fn bench(project: &Project) -> Result<Outcome> {
    /// What the rows with reserved huge pages need.
    const HUGE_PAGES: u64 = 512;
    let _reserved = HugePages::reserve(HUGE_PAGES);
    // What fails is measured again, alone: a neighbour on the machine slows one side of a comparison for longer than its rounds tell.
    let mut again: Vec<String> = Vec::new();
    let mut not_measured: Vec<String> = Vec::new();
    for _ in 0..TRIES {
        let only = again.iter().flat_map(|name| ["--only", name]);
        let arguments: Vec<_> = ["bench", "--short", "--json"].into_iter().chain(only).collect();
        let (code, json) = program(project, &arguments)?;
        let rows = json["rows"].as_array().cloned().unwrap_or_default();
        let names = |which: &dyn Fn(&serde_json::Value) -> bool| {
            let chosen = rows.iter().filter(|row| which(row));
            chosen.map(|row| row["name"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        if rows.is_empty() {
            bail!("exit code {code:?}, and no rows");
        }
        let in_noise = names(&|row| row["met"] == false && row["fails"] == false && row["value"].is_number());
        println!("{} rows; over the mark within their noise: {in_noise:?}", rows.len());
        if again.is_empty() {
            let without = rows.iter().filter(|row| row["not_measured"].is_string());
            not_measured = without.map(|row| format!("{}: {}", row["name"], row["not_measured"])).collect();
        }
        again = names(&|row| row["fails"] == true && !is_open(row));
        if again.is_empty() {
            return Ok(match not_measured.is_empty() {
                true => Outcome::Passed,
                false => Outcome::NotRun(not_measured.join("; ")),
            });
        }
    }
    bail!("over the mark by more than the noise, {TRIES} times: {}", again.join(", "))
}

/// How often a row may be measured until it keeps its mark.
const TRIES: usize = 3;

/// Rows whose marks are not kept yet, and what they keep meanwhile: docs/performance.md says why.
const OPEN: &[(&str, f64)] = &[("map/2m/thp/unmap", 1.5), ("map/2m/hugetlb/unmap", 1.5)];

/// Whether a row that fails is one of those, and keeps what it is to keep.
fn is_open(row: &serde_json::Value) -> bool {
    OPEN.iter()
        .any(|&(name, most)| row["name"] == name && row["value"].as_f64().is_some_and(|value| value <= most))
}

/// Reserved huge pages, given back at the end.
struct HugePages {
    before: String,
}

impl HugePages {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    /// Has the kernel reserve so many where there are fewer; `None` where there are enough, or it is not to be had.
    fn reserve(count: u64) -> Option<Self> {
        let before = fs::read_to_string(Self::FILE).ok()?;
        if before.trim().parse::<u64>().ok()? >= count {
            return None;
        }
        fs::write(Self::FILE, count.to_string()).ok()?;
        Some(Self { before })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Err(error) = fs::write(Self::FILE, self.before.trim()) {
            eprintln!("{} could not be set to {} again: {error}", Self::FILE, self.before.trim());
        }
    }
}

/// Licenses, banned crates and sources. Not advisories: their database comes over the network and changes by the day,
/// and what passed yesterday should pass today.
fn deny(project: &Project) -> Result<Outcome> {
    let home = project.cache.join("tools").join(format!("cargo-deny-{CARGO_DENY}"));
    let program = home.join("bin/cargo-deny");
    if !program.is_file() {
        install_cargo_deny(project)?;
    }
    command::inherit(Command::new(program).current_dir(&project.root).args([
        "--locked",
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ]))?;
    Ok(Outcome::Passed)
}

fn install_cargo_deny(project: &Project) -> Result<()> {
    let tools = project.cache.join("tools");
    let (home, scratch) =
        (tools.join(format!("cargo-deny-{CARGO_DENY}")), tools.join(format!("partial-{}", process::id())));
    let work = Work::start(format!("installing cargo-deny {CARGO_DENY} (once; some minutes)"));
    // Built beside its place and moved there when it is whole; outside of the tree, so that `cargo clean` keeps it.
    let built = command::output(
        project
            .cargo()
            .args(["install", "cargo-deny", "--locked", "--version", CARGO_DENY, "--root"])
            .arg(&scratch)
            .arg("--target-dir")
            .arg(scratch.join("target")),
    );
    let moved = built.and_then(|_| {
        let _ = fs::remove_dir_all(scratch.join("target"));
        let _ = fs::remove_dir_all(&home);
        fs::rename(&scratch, &home).context("moving cargo-deny to its place")
    });
    let _ = fs::remove_dir_all(&scratch);
    moved?;
    work.finish();
    Ok(())
}

/// The engine's unit tests under Miri, which sees undefined behaviour and leaks.
fn miri(project: &Project) -> Result<Outcome> {
    const NIGHTLY: &str = "nightly";
    let Some(rustup) = command::which("rustup") else {
        return Ok(Outcome::NotRun("miri is not available (no rustup)".to_owned()));
    };
    let nightly = |program: &[&str]| {
        let mut command = Command::new(&rustup);
        // This process was started by cargo, which tells its children which toolchain and which cargo are meant.
        command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC").env_remove("RUSTDOC");
        command.args(["run", NIGHTLY]).args(program).current_dir(&project.root);
        command
    };
    if !command::succeeds(&mut nightly(&["cargo", "miri", "--version"])) {
        let work = Work::start("adding miri to the nightly toolchain");
        let add = ["component", "add", "miri", "rust-src", "--toolchain", NIGHTLY];
        let added = command::output(Command::new(&rustup).args(add));
        if added.is_err() || !command::succeeds(&mut nightly(&["cargo", "miri", "--version"])) {
            return Ok(Outcome::NotRun("miri is not available (rustup cannot add it)".to_owned()));
        }
        work.finish();
    }
    // The interpreter's own standard library is built once, which may need what this machine has not.
    let work = Work::start("preparing miri");
    if let Err(error) = command::output(&mut nightly(&["cargo", "miri", "setup"])) {
        drop(work);
        eprintln!("{error:#}");
        return Ok(Outcome::NotRun("miri is not available (cargo miri setup fails)".to_owned()));
    }
    work.finish();
    // What has unsafe code, atomics or failing allocations; not what a property test generates, which takes hours there.
    let parts: [&[&str]; 5] = [
        &["--lib", "--", "table::"],
        &["--test", "threads"],
        &["--test", "allocation"],
        &["--test", "context", "--", "--skip", "agrees"],
        &["--test", "table", "--", "bad", "border", "grown", "specification"],
    ];
    for part in parts {
        let test = ["cargo", "miri", "test", "--package", "noiommu-core", "--locked", "--target-dir"];
        command::inherit(nightly(&test).arg(project.target.join("miri")).args(part))?;
    }
    Ok(Outcome::Passed)
}

fn vm_stock_edu(project: &Project) -> Result<Outcome> {
    vm::stock_edu(project, &vm::Stock::default())?;
    Ok(Outcome::Passed)
}

/// The same on the newer stock kernel, which tells huge pages by PAGEMAP_SCAN.
fn vm_backports(project: &Project) -> Result<Outcome> {
    vm::stock_edu(project, &vm::Stock::of_suite("backports"))?;
    Ok(Outcome::Passed)
}

/// A device behind a real IOMMU is refused.
fn vm_iommu(project: &Project) -> Result<Outcome> {
    vm::stock_iommu(project, &vm::Stock::default())?;
    Ok(Outcome::Passed)
}

/// One IOAS for devices behind an IOMMU and without one, by cdev and by group.
fn vm_mixed(project: &Project) -> Result<Outcome> {
    for variant in [vm::Variant::Reference, vm::Variant::Legacy] {
        vm::mixed(project, &vm::OnKernel::new(vm::Choice::Built(variant), false))?;
    }
    Ok(Outcome::Passed)
}

/// What is set wrongly on purpose is found, and the remedies that are told work: on both stock kernels and on the reference.
fn vm_doctor(project: &Project) -> Result<Outcome> {
    for options in [
        vm::OnKernel::new(vm::Choice::Stock, false),
        vm::OnKernel::of_suite("backports"),
        vm::OnKernel::new(vm::Choice::Built(vm::Variant::Reference), false),
    ] {
        vm::doctor(project, &options)?;
    }
    Ok(Outcome::Passed)
}

/// One C program of the uAPI: on the kernel that has it, on one that has half of it, and on one that has nothing of it.
fn vm_nvme_identify(project: &Project) -> Result<Outcome> {
    for (kernel, preload) in [
        (vm::Choice::Built(vm::Variant::Reference), false),
        (vm::Choice::Built(vm::Variant::Legacy), true),
        (vm::Choice::Stock, true),
    ] {
        vm::nvme_identify(project, &vm::OnKernel::new(kernel, preload))?;
    }
    Ok(Outcome::Passed)
}

/// Every device on every kernel, through whatever provides it there.
fn vm_matrix(project: &Project) -> Result<Outcome> {
    vm::matrix(project, &vm::Matrix::default())?;
    Ok(Outcome::Passed)
}

/// What our NVMe driver writes the kernel's reads, and the other way round, on every provider: the short form.
fn vm_nvme(project: &Project) -> Result<Outcome> {
    vm::nvme(project, &vm::Nvme::default())?;
    Ok(Outcome::Passed)
}

/// What would be published is complete.
fn crates(project: &Project) -> Result<Outcome> {
    package::crates(project)?;
    Ok(Outcome::Passed)
}

/// Nothing is used that came after the compiler that is promised.
fn msrv(project: &Project) -> Result<Outcome> {
    Ok(msrv::check(project)?.map_or(Outcome::Passed, Outcome::NotRun))
}

/// The package on a fresh Debian: installed, devices bound at boot, used, removed without a trace.
fn vm_package(project: &Project) -> Result<Outcome> {
    vm::package(project, &vm::Stock::default())?;
    Ok(Outcome::Passed)
}

/// The tutorial's driver, by the command that its reader types.
fn vm_driver(project: &Project) -> Result<Outcome> {
    vm::driver(project, &vm::Driver::of("noiommu-edu"))?;
    Ok(Outcome::Passed)
}

/// A disk and a network card by virtio-drivers on the kit, on every provider, beside the kernel's own: the short form.
fn vm_virtio(project: &Project) -> Result<Outcome> {
    vm::virtio(project, &vm::Virtio::default())?;
    Ok(Outcome::Passed)
}

/// The rows that need a guest, in the short form: no mark is missed by more than the noise. What fails is measured again, as in `bench`.
fn vm_bench(project: &Project) -> Result<Outcome> {
    for rows in ["guest/map", "guest/get-pa", "guest/nvme"] {
        let once = || vm::bench_holds(project, &vm::Bench::short_of(rows));
        let mut held = once();
        for _ in 1..TRIES {
            if let Err(error) = &held {
                println!("once more: {error:#}");
                held = once();
            }
        }
        held?;
    }
    Ok(Outcome::Passed)
}

/// Drivers die in the middle of DMA, and nobody's memory is written: the short form, with its control.
fn vm_soak_guardian(project: &Project) -> Result<Outcome> {
    vm::soak::guardian(project, &vm::soak::Guardian::default())?;
    Ok(Outcome::Passed)
}

/// DMA stays right while the kernel moves all of memory: the short form.
fn vm_soak_storms(project: &Project) -> Result<Outcome> {
    vm::soak::storms(project, &vm::soak::Storms::default())?;
    Ok(Outcome::Passed)
}

/// The engine answers as the real kernel did, with real devices.
fn vm_conformance_legacy(project: &Project) -> Result<Outcome> {
    vm::conformance(project, &vm::OnKernel::new(vm::Choice::Built(vm::Variant::Legacy), true))?;
    Ok(Outcome::Passed)
}

/// Random sequences of calls, answered by the real kernel and by the engine: the short form.
fn vm_fuzz_uapi(project: &Project) -> Result<Outcome> {
    const SEQUENCES: u64 = 1000;
    vm::fuzz(project, &vm::Fuzz::of(SEQUENCES))?;
    Ok(Outcome::Passed)
}

/// What fuzzing has found is answered as it was, against the models.
fn fuzz_corpus(project: &Project) -> Result<Outcome> {
    let mut cargo = project.cargo();
    cargo.current_dir(project.root.join("fuzz"));
    cargo.args(["test", "--locked", "--target-dir"]).arg(project.target.join("fuzz"));
    command::inherit(&mut cargo)?;
    Ok(Outcome::Passed)
}

/// The engine answers as Linux 7.3 did, on this machine, with simulated devices.
fn conformance(project: &Project) -> Result<Outcome> {
    let (code, json) = program(project, &["conformance", "--json"])?;
    // Whoever may not read physical addresses cannot be served; root must be.
    if json["error"].is_object() && !rustix::process::geteuid().is_root() {
        return Ok(Outcome::NotRun(json["error"]["cause"].to_string()));
    }
    let count = |key: &str| json[key].as_array().map_or(0, Vec::len);
    if code != Some(0) || json["differences"] != 0 || count("different") != 0 {
        bail!("exit code {code:?}, {} differences: {:.2000}", json["differences"], json["different"]);
    }
    let (cases, skipped) = (json["cases"].as_u64().unwrap_or(0), count("skipped") as u64);
    // Simulated devices lack some things that real ones have, but not most.
    if cases == 0 || skipped * 2 > cases {
        bail!("{skipped} of {cases} cases did not run");
    }
    println!("{cases} cases, 0 differences, {} listed, {skipped} skipped", count("listed"));
    Ok(Outcome::Passed)
}

/// The recorded answers are still those of the real kernel.
fn vm_conformance_reference(project: &Project) -> Result<Outcome> {
    vm::conformance(project, &vm::OnKernel::new(vm::Choice::Built(vm::Variant::Reference), false))?;
    Ok(Outcome::Passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_of_their_own() {
        for (at, step) in STEPS.iter().enumerate() {
            assert!(step.name.len() <= WIDTH, "{} overflows its column", step.name);
            assert!(!step.name.contains([',', ' ']));
            assert!(STEPS[..at].iter().all(|other| other.name != step.name));
        }
    }
}
