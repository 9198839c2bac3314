//! `noiommu nvme` as people and scripts call it, on the simulated controller.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

fn noiommu(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_noiommu"));
    command.arg("nvme").args(arguments).env("NO_COLOR", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that reads no input may be gone by now.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn identifies() {
    let output = noiommu(&["identify", "sim", "--json"], b"");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let found = json(&output);
    assert_eq!((&found["serial"], &found["version"]), (&"sim-1".into(), &"1.4.0".into()));
    assert_eq!(found["namespaces"][0]["bytes"], 32 << 20);
    let output = noiommu(&["identify", "sim"], b"");
    assert!(text(&output.stdout).contains("32 MiB: 65536 blocks of 512 B"), "{}", text(&output.stdout));
    let output = noiommu(&["identify", "0000:ff:1f.7", "--json"], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(json(&output)["error"]["cause"].is_string());
}

#[test]
fn reads_to_standard_output_and_files() {
    let output = noiommu(&["read", "sim", "--block", "65530", "--count", "6"], b"");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 6 * 512), "{}", text(&output.stderr));
    let output = noiommu(&["read", "sim", "--block", "65530", "--count", "7"], b"");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(text(&output.stderr).contains("7 blocks from 65530 on, of a namespace of 65536"));
    let path = std::env::temp_dir().join(format!("noiommu-nvme-{}", std::process::id()));
    let file = path.to_str().unwrap();
    let output = noiommu(&["read", "sim", "--output", file, "--json"], b"");
    assert_eq!(json(&output)["read"], 32 << 20);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 32 << 20);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn writes_nothing_that_is_not_confirmed() {
    let output = noiommu(&["write", "sim", "--block", "7", "--json"], b"some bytes");
    assert_eq!(output.status.code(), Some(1));
    let error = json(&output)["error"].clone();
    assert!(error["cause"].as_str().unwrap().contains("would be overwritten"), "{error}");
    assert!(error["remedy"].as_str().unwrap().contains("--yes-overwrite"));
    let output = noiommu(&["write", "sim", "--block", "7", "--yes-overwrite", "--json"], &[1; 1000]);
    assert_eq!(json(&output), serde_json::json!({"written": 1000, "blocks": 2, "first": 7}));
    // More than fits.
    let output = noiommu(&["write", "sim", "--block", "65535", "--yes-overwrite"], &[1; 513]);
    assert_eq!(output.status.code(), Some(1));
    let output = noiommu(&["bench", "sim", "--write", "--seconds", "1"], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--yes-overwrite"));
}

#[test]
fn measures() {
    for more in [
        &["--depth", "1"][..],
        &["--queues", "2", "--size", "64K", "--sequential", "--write", "--yes-overwrite"],
    ] {
        let words = [&["bench", "sim", "--seconds", "1", "--json"], more].concat();
        let output = noiommu(&words, b"");
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let report = json(&output);
        let latency = |key: &str| report["latency_ns"][key].as_u64().unwrap();
        assert!(report["operations"].as_u64().unwrap() > 0 && report["iops"].as_f64().unwrap() > 0.0);
        let order = ["min", "p50", "p90", "p95", "p99", "p99.9", "p99.99", "max"].map(latency);
        assert!(order[0] > 0 && order.is_sorted(), "{report}");
    }
    let output = noiommu(&["bench", "sim", "--seconds", "1", "--depth", "4"], b"");
    assert!(
        text(&output.stdout).contains("random reads of 4 KiB, depth 4, 1 queue"),
        "{}",
        text(&output.stdout)
    );
    for wrong in [["--size", "100"], ["--size", "4M"]] {
        assert_eq!(noiommu(&["bench", "sim", wrong[0], wrong[1]], b"").status.code(), Some(1));
    }
}
