//! `noiommu map`: what it draws and tells of memory that is known.

use std::process::{Command, Output};

use noiommu::{Context, Contiguity, DmaBuffer, PinChoice};
use serde_json::Value;

fn noiommu(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_noiommu"));
    command.args(arguments).env_remove("NO_COLOR").env_remove("LC_ALL").env_remove("LC_CTYPE");
    command.envs(variables.iter().copied()).output().unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = noiommu(arguments, &[]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Of this very process, in which memory is pinned, the program tells the runs that the engine has.
#[test]
fn another_process_is_told_run_for_run() {
    let Ok(context) = Context::with_pins(PinChoice::Best) else {
        eprintln!("not run: no memory can be pinned here");
        return;
    };
    let ioas = context.ioas().unwrap();
    let mapping = ioas.map(DmaBuffer::new(4 << 20, Contiguity::Best).unwrap()).unwrap();
    let start = mapping.buffer().unwrap().address() as u64;
    let range = format!("{start:x}-{:x}", start + (4 << 20));
    let process = std::process::id().to_string();
    let seen = json(&["map", &process, "--range", &range, "--json", "--runs"]);
    let segments = mapping.segments().unwrap();
    let longest = segments.iter().map(|it| it.length).max().unwrap();
    assert_eq!((&seen["bytes"], &seen["absent"]), (&(4u64 << 20).into(), &0.into()));
    assert_eq!((&seen["runs"], &seen["longest_run"]), (&(segments.len() as u64).into(), &longest.into()));
    let told = seen["run_list"].as_array().unwrap();
    for (told, known) in told.iter().zip(&segments) {
        assert_eq!((&told["address"], &told["length"]), (&known.address.0.into(), &known.length.into()));
    }
    let histogram = seen["histogram"].as_array().unwrap();
    assert_eq!(histogram.iter().map(|bin| bin["bytes"].as_u64().unwrap()).sum::<u64>(), 4 << 20);
    // All of the process has this among its parts.
    let seen = json(&["map", &process, "--json"]);
    let parts = seen["parts"].as_array().unwrap();
    let inside = |part: &&Value| part["start"].as_u64() <= Some(start) && Some(start) < part["end"].as_u64();
    assert!(parts.iter().find(inside).is_some_and(|part| part["bytes"].as_u64() >= Some(4 << 20)));
}

#[test]
fn a_picture_is_a_file_and_a_terminal_without_blocks_gets_letters() {
    let path = std::env::temp_dir().join(format!("noiommu-map-{}.svg", std::process::id()));
    let arguments = ["map", "--buffer", "1M", "--simulated", "--svg", path.to_str().unwrap()];
    let plain = text(&noiommu(&arguments, &[("LC_ALL", "C"), ("NO_COLOR", "1")]));
    assert!(plain.is_ascii() && !plain.contains('\u{1b}'), "{plain}");
    assert!(plain.contains("1 MiB in 256 pages") && plain.contains("simulated memory"), "{plain}");
    let picture = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("prefers-color-scheme: dark"));
    let blocks = text(&noiommu(&arguments[..4], &[("LC_ALL", "C.UTF-8")]));
    assert!(blocks.contains('\u{2591}'), "{blocks}");
}

#[test]
fn what_cannot_be_looked_at_is_told_with_what_helps() {
    for (arguments, said) in [
        (&["map", "4194303999"][..], "there is no process"),
        (&["map", "--range", "1000-2000"], "nothing mapped"),
        // The kernel's own second thread, where one may look at it; where not, that it may not.
        (&["map", "2"], "process 2"),
    ] {
        let output = noiommu(arguments, &[]);
        let text = String::from_utf8_lossy(&output.stderr);
        let refused = text.contains("Permission denied") && text.contains("root")
            || text.contains("there is no process");
        assert!(output.status.code() == Some(1) && (text.contains(said) || refused), "{arguments:?}: {text}");
    }
    let output = noiommu(&["map", "--buffer", "4K", "--simulated", "--svg", "/nonexistent/x.svg"], &[]);
    assert_eq!(output.status.code(), Some(1));
    for wrong in [&["map", "1", "--buffer", "4K"][..], &["map", "--contiguity", "pages"], &["map", "--runs"]]
    {
        assert_eq!(noiommu(wrong, &[]).status.code(), Some(2), "{wrong:?}");
    }
}
