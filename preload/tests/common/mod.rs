//! Compiling and running C programs in front of the preload library.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

/// The library with the echo files behind it. Named here so that it is built with these tests.
pub(crate) fn library() -> PathBuf {
    let tests = env::current_exe().unwrap();
    let library = tests.parent().unwrap().join("libnoiommu_preload_echo.so");
    assert!(library.exists(), "{}", library.display());
    library
}

/// A program of this directory, compiled.
pub(crate) fn compiled(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name).with_extension("c");
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let program = format!("{name}-{}-{number}", std::process::id());
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(program);
    let done = Command::new("cc")
        .args([
            "-O2",
            "-D_FORTIFY_SOURCE=2",
            "-Wall",
            "-Wextra",
            "-Wno-unused-result",
            "-Wno-nonnull",
            "-pthread",
            "-o",
        ])
        .args([&program, &source])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    program
}

/// A program with the library before it, asked to serve by `value`.
pub(crate) fn preloaded(program: &Path, value: &str) -> Command {
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", library()).env("NOIOMMU_SERVE", value);
    command
}

/// Runs a command that must end, and soon.
pub(crate) fn ended(command: &mut Command) -> Output {
    let program = command.get_program().to_owned();
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
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
