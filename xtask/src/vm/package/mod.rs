//! `cargo xtask vm package`: the package on a fresh Debian. It is installed and configured at the first boot of a disk; at the second
//! one the devices are bound by its unit, used, and given back by its removal.

mod disk;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::guest::{self, Scenario};
use super::pack::Tree;
use super::{EDU, HOST_PACKAGES, NVME, Stock, apt, kernel, modules, qemu};
use crate::package;
use crate::project::Project;

/// What makes the disk.
const DISK_PACKAGES: [&str; 2] = ["mmdebstrap", "e2fsprogs"];

/// Seconds of a guest: a whole Debian boots, on a machine that may be busy.
const TIMEOUT: u64 = 600;

/// Boots twice.
pub(crate) fn package(project: &Project, options: &Stock) -> Result<()> {
    apt::install(&HOST_PACKAGES)?;
    apt::install(&DISK_PACKAGES)?;
    let kernel = kernel::stock(project, options.suite.as_deref())?;
    let fresh = disk::get(project, &kernel)?;
    let deb = package::build(project)?;
    let place = project.run_dir("package");
    fs::create_dir_all(&place)?;
    let root = place.join("root.img");
    disk::copy(&fresh, &root)?;

    let more = [
        "-drive".to_owned(),
        format!("if=none,id=root,format=raw,cache=unsafe,file={}", qemu::value(&root)?),
        "-device".to_owned(),
        "virtio-blk-pci,drive=root".to_owned(),
    ];
    let mut run = options.run.clone();
    run.at_least(TIMEOUT);
    let boot = |part: &'static str| {
        let own = project.root.join("xtask/guest/package");
        let mut files = Tree::default();
        files.add("init", 0o755, &own.join("init"))?;
        files.add("package/run", 0o644, &own.join("run"))?;
        files.add("package/noiommu.deb", 0o644, &deb)?;
        modules::add(&kernel, &["virtio_pci", "virtio_blk"], &mut files)?;
        let scenario = Scenario {
            name: "package",
            arguments: vec![part],
            devices: &[NVME, EDU],
            drives: &["nvme"],
            nets: &[],
            // A login prompt is nothing that anybody waits for.
            append: &["systemd.mask=serial-getty@ttyS0.service", "systemd.show_status=false"],
            witnessed: false,
        };
        guest::run_with(project, &scenario, &kernel, files, &run, &more)
    };
    installed(&boot("install")?)?;
    used(&boot("use")?)?;
    fs::remove_file(&root)?;
    Ok(())
}

fn read(output: &Path, name: &str) -> Result<Value> {
    let text = fs::read_to_string(output.join(name)).with_context(|| format!("the guest left no {name}"))?;
    serde_json::from_str(&text).with_context(|| format!("{name} is no JSON: {text:.300}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// What the first boot has shown.
fn installed(output: &Path) -> Result<()> {
    let served = fs::read_to_string(output.join("served")).context("the guest left no served")?;
    ensure!(served.contains("noiommu-vfio0"), "what is served are no devices: {served}");

    let wrong = read(output, "mistakes.json")?;
    let lines: Vec<_> = list(&wrong["error"], "mistakes").iter().map(|mistake| &mistake["line"]).collect();
    ensure!(lines == [3, 4], "mistakes in other lines than those that are wrong: {wrong}");
    let others = read(output, "others.json")?;
    ensure!(
        others["error"]["remedy"].as_str().is_some_and(|remedy| remedy.contains("chmod go-w")),
        "a file that anybody can write is not refused for that: {others}"
    );

    let dry = read(output, "dry-run.json")?;
    let devices = list(&dry, "devices");
    ensure!(devices.len() == 2, "not two devices are named: {dry}");
    ensure!(devices.iter().all(|device| !list(device, "steps").is_empty()), "nothing would be done: {dry}");
    ensure!(list(&dry, "absent").len() == 1, "the device that is not there is not told: {dry}");
    Ok(())
}

/// What the second boot has shown.
fn used(output: &Path) -> Result<()> {
    let doctor = read(output, "doctor.json")?;
    let checks = list(&doctor, "checks");
    ensure!(checks.len() > 10, "doctor has hardly looked: {doctor}");
    let of = |status: &str| {
        let those = checks.iter().filter(|check| check["status"] == status);
        those.map(|check| check["name"].as_str().unwrap_or_default()).collect::<Vec<_>>()
    };
    ensure!(of("problem").is_empty(), "doctor finds problems: {:?}", of("problem"));
    ensure!(
        !of("note").contains(&"device-override"),
        "doctor takes what bind has done for a fault: {doctor}"
    );
    println!("doctor: {} ok, notes: {}", of("ok").len(), of("note").join(", "));

    let devices = read(output, "list.json")?;
    for (vendor, device, providers) in
        [("1b36", "0010", ["uio", "sysfs"]), ("1234", "11e8", ["sysfs", "uio"])]
    {
        let row =
            list(&devices, "devices").iter().find(|it| it["vendor"] == vendor && it["device"] == device);
        let row = row.with_context(|| format!("{vendor}:{device} is not listed"))?;
        ensure!(row["bound"] == true, "{vendor}:{device} is not bound: {row}");
        ensure!(
            providers.iter().any(|name| row["provider"] == *name),
            "{vendor}:{device} is not reached: {row}"
        );
    }
    for name in ["identify.json", "identify-again.json", "guardian.json"] {
        let identify = read(output, name)?;
        ensure!(
            identify.to_string().contains("noiommu-nvme"),
            "not the controller's serial number: {identify}"
        );
    }
    let demo = read(output, "demo.json")?;
    ensure!(
        demo["verified"] == true && demo["simulated_memory"] == false,
        "no DMA by the edu device: {demo}"
    );
    let again = read(output, "again.json")?;
    ensure!(
        list(&again, "devices").iter().all(|device| device["error"].is_null()),
        "what is bound is not bound again: {again}"
    );
    Ok(())
}
