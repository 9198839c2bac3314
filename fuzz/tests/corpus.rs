//! What libFuzzer found worth keeping, once more: on any toolchain, in seconds.

use std::fs;
use std::panic;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// One target at a time: some count what this process has open.
static ONE: Mutex<()> = Mutex::new(());

/// Replays a target's corpus; `least`: files and steps that there are at least.
fn holds(target: &str, run: fn(&[u8], bool) -> usize, least: (usize, usize)) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let (mut files, mut steps) = (0, 0);
    for entry in fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        files += 1;
        match panic::catch_unwind(|| run(&bytes, false)) {
            Ok(more) => steps += more,
            Err(_) => panic!("{} fails", path.display()),
        }
    }
    println!("{target}: {files} files, {steps} steps");
    assert!(files >= least.0 && steps >= least.1, "the corpus is gone: {files} files, {steps} steps");
}

#[test]
fn ioctl() {
    holds("ioctl", noiommu_fuzz::ioctl::run, (100, 1000));
}

#[test]
fn table() {
    holds("table", noiommu_fuzz::table::run, (50, 1500));
}

#[test]
fn space() {
    holds("space", noiommu_fuzz::space::run, (50, 5000));
}

#[test]
fn pci() {
    holds("pci", noiommu_fuzz::pci::run, (50, 3000));
}

#[test]
fn config() {
    holds("config", noiommu_fuzz::config::run, (20, 20));
}

#[test]
fn serve() {
    holds("serve", noiommu_fuzz::serve::run, (50, 1000));
}

#[test]
fn nvme() {
    holds("nvme", noiommu_fuzz::nvme::run, (20, 1000));
}

#[test]
fn guardian() {
    holds("guardian", noiommu_fuzz::guardian::run, (20, 40));
}
