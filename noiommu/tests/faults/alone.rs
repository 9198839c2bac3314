//! A test in a process of its own: this program once more, told to run that test alone.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

/// Set in such a process; other values than "" are the test's own.
const VARIABLE: &str = "NOIOMMU_FAULTS";

/// What this process was told by whoever started it; `None`: it is the one that `cargo test` started.
pub(crate) fn told() -> Option<String> {
    let told = std::env::var(VARIABLE).ok()?;
    // None of them outlives the test that it is of.
    // SAFETY: plain numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    Some(told)
}

/// This program, to run the test `name` (its path without the crate's name) and to find `told` there.
pub(crate) fn again(name: &str, told: &str) -> Command {
    let name = name.split_once("::").map_or(name, |(_, rest)| rest);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(VARIABLE, told);
    // The C library keeps what it has got from the kernel, in one place: what comes and goes then is the kit's own.
    command.env("MALLOC_ARENA_MAX", "1");
    command.env("MALLOC_MMAP_THRESHOLD_", "33554432").env("MALLOC_TRIM_THRESHOLD_", "1073741824");
    // To print one takes memory, of which there may be none, and longer than most tests here.
    command.env("RUST_BACKTRACE", "0");
    command
}

/// Runs `test`, which is the body of the test `name`, in a process of its own.
pub(crate) fn alone(name: &str, test: impl FnOnce()) {
    if told().is_some() {
        return test();
    }
    let output = again(name, "").output().unwrap();
    assert!(output.status.success(), "{}\n{}", output.status, both(&output));
    tell(&output);
}

/// Prints what the test had to say, so that it is seen where tests' output is.
pub(crate) fn tell(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines() {
        // The harness begins a line that the test goes on with.
        let line = line
            .strip_prefix("test ")
            .and_then(|line| line.split_once(" ... "))
            .map_or(line, |(_, said)| said);
        if !matches!(line, "" | "ok") && !line.starts_with("running ") && !line.starts_with("test result") {
            println!("{line}");
        }
    }
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().for_each(|line| eprintln!("{line}"));
}

pub(crate) fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Whether it ended as the standard library ends a process whose memory has run out.
pub(crate) fn ended_for_want_of_memory(output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    // By an allocation of ours, or by a thread that finds no room for its signal stack.
    let reason = said.contains("memory allocation of") || said.contains("alternative stack");
    output.status.signal() == Some(libc::SIGABRT) && reason
}
