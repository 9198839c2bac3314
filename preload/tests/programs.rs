//! C programs in front of the preload library, compiled here: each checks what its first comment says.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// The library with the echo files behind it. Named here so that it is built with these tests.
fn library() -> PathBuf {
    let tests = env::current_exe().unwrap();
    let library = tests.parent().unwrap().join("libnoiommu_preload_echo.so");
    assert!(library.exists(), "{}", library.display());
    library
}

fn compiled(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name).with_extension("c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let done = Command::new("cc")
        .args(["-O2", "-D_FORTIFY_SOURCE=2", "-Wall", "-Wextra", "-Wno-unused-result", "-Wno-nonnull", "-pthread", "-o"])
        .args([&program, &source])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    program
}

/// A program with the library before it, asked to serve by `value`.
fn preloaded(program: &Path, value: &str) -> Command {
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", library()).env("NOIOMMU_SERVE", value);
    command
}

/// Runs a command that must end, and soon.
fn ended(command: &mut Command) -> Output {
    let program = command.get_program().to_owned();
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let id = child.id();
    let waiter = thread::spawn(move || child.wait_with_output().unwrap());
    let begin = Instant::now();
    while !waiter.is_finished() {
        if begin.elapsed() > Duration::from_secs(100) {
            // SAFETY: the child made above, which has not been waited for.
            unsafe { libc::kill(id as i32, libc::SIGKILL) };
            panic!("{} hangs", program.display());
        }
        thread::sleep(Duration::from_millis(5));
    }
    waiter.join().unwrap()
}

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
