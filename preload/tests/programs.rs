//! C programs in front of the preload library, compiled here: each checks what its first comment says.

mod common;

use std::fs;

use common::{compiled, ended, preloaded};

/// The line that says that nodes are served.
const SAID: &str = "noiommu: serving echoes in the kernel's place\n";

/// Runs the program of this name, which must find nothing wrong.
fn run(name: &str) -> String {
    let program = compiled(name);
    let output = ended(&mut preloaded(&program, "sim"));
    fs::remove_file(program).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {said}", output.status);
    assert!(said.starts_with(SAID), "{said}");
    // Once for the program and its forks, and once for each program that it runs.
    let times = said.matches(SAID).count();
    assert_eq!(times, if name == "children" { 4 } else { 1 }, "{said}");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{printed}");
    printed
}

#[test]
fn open() {
    run("open");
}

#[test]
fn metadata() {
    run("metadata");
}

#[test]
fn directory() {
    run("directory");
}

#[test]
fn io() {
    run("io");
}

#[test]
fn descriptor() {
    run("descriptor");
}

#[test]
fn map() {
    run("map");
}

#[test]
fn threads() {
    run("threads");
}

#[test]
fn children() {
    run("children");
}

#[test]
fn faults() {
    run("faults");
}

#[test]
fn number() {
    run("number");
}

#[test]
fn cancel() {
    run("cancel");
}

#[test]
fn early() {
    run("early");
}

#[test]
fn interrupts() {
    run("interrupts");
}

#[test]
fn quick() {
    run("quick");
}
