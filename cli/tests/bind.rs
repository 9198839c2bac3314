//! `noiommu bind`, `unbind` and `list` as people and scripts call them. Nothing that would change this machine is called.

use std::process::{Command, Output};

fn noiommu(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_noiommu"));
    command.args(arguments).env("NO_COLOR", "1").env("CLICOLOR_FORCE", "1").output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn lists_what_sysfs_has() {
    let output = noiommu(&["list", "--all", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let value = json(&output);
    let listed: Vec<_> = value["devices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["address"].as_str().unwrap().to_owned())
        .collect();
    let entries = std::fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten();
    let mut there: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    there.sort();
    assert_eq!(listed, there);
    for device in value["devices"].as_array().unwrap() {
        let offers = device["offers"].as_array().unwrap();
        assert_eq!(offers.len(), 6, "{device}");
        // Each way is to be had, or said why not.
        for offer in offers {
            let refused = &offer["refused"];
            assert_eq!(offer["available"] == true, refused.is_null(), "{offer}");
            assert!(refused.is_null() || refused["cause"].is_string() && refused["remedy"].is_string());
        }
        let best = offers.iter().find(|offer| offer["available"] == true);
        assert_eq!(
            device["would_get"],
            best.map_or(serde_json::Value::Null, |best| best["provider"].clone())
        );
        // A device that nobody may have offers nothing.
        assert!(device["bridge"] == false || best.is_none(), "{device}");
    }

    let table = text(&noiommu(&["list", "--all"]).stdout);
    assert!(!table.contains('\x1b'), "colours in spite of NO_COLOR: {table:?}");
    assert!(there.iter().all(|address| table.contains(address)), "{table}");
    assert!(there.is_empty() || table.starts_with("ADDRESS "), "{table}");
    assert!(table.lines().all(|line| !line.ends_with(' ')), "{table:?}");
}

#[test]
fn refuses_with_cause_and_remedy() {
    for (address, told) in [("4", "no PCI address"), ("fffe:00:1e.7", "no PCI device")] {
        for arguments in [&["bind", address][..], &["bind", address, "--force"], &["unbind", address]] {
            let output = noiommu(arguments);
            assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{arguments:?}");
            let said = text(&output.stderr);
            assert!(said.contains(told) && said.contains("try:"), "{said}");
        }
    }
    let value = json(&noiommu(&["bind", "4", "--json"]));
    assert_eq!(value["error"]["kind"], "Argument");
    // Each device that is given back has its own answer.
    let output = noiommu(&["unbind", "4", "fffe:00:1e.7", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let value = json(&output);
    assert_eq!(
        (&value["devices"][0]["error"]["kind"], &value["devices"][1]["error"]["kind"]),
        (&"Argument".into(), &"NoDevice".into())
    );

    for wrong in [
        &["bind"][..],
        &["unbind"],
        &["unbind", "--all", "00:04.0"],
        &["bind", "00:04.0", "--provider", "sim"],
        &["bind", "00:04.0", "--provider", "bogus"],
    ] {
        let output = noiommu(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    assert!(text(&noiommu(&["bind", "00:04.0", "--provider", "sim"]).stderr).contains("cdev-noiommu"));
}

#[test]
fn help_teaches() {
    for (command, words) in [
        ("bind", ["cdev-noiommu", "Exit status: 0", "Examples:", "noiommu unbind"]),
        ("unbind", ["--all", "Exit status: 0", "Examples:", "killed half-way"]),
        ("list", ["PROVIDER", "Exit codes:", "Examples:", "--json"]),
        ("enable", ["enable_unsafe_noiommu_mode", "Exit status: 0", "tainted", "/run/noiommu"]),
    ] {
        let help = text(&noiommu(&[command, "--help"]).stdout);
        assert!(words.iter().all(|word| help.contains(word)), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 124), "{help}");
    }
}
