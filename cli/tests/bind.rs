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

/// A file of ours alone, with this text.
fn configuration(name: &str, text: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("noiommu-conf-{name}-{}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    path
}

#[test]
fn a_file_with_mistakes_is_no_file() {
    let path = configuration("wrong", "enable\nbind id=ffff:ffff\nbnid class=01\nbind id=1\n");
    let file = path.to_str().unwrap();
    for more in [&[][..], &["--dry-run"]] {
        let output = noiommu(&[&["bind", "--config", file, "--json"], more].concat());
        assert_eq!(output.status.code(), Some(2));
        let value = json(&output);
        let mistakes = value["error"]["mistakes"].as_array().unwrap();
        let lines: Vec<_> = mistakes.iter().map(|mistake| mistake["line"].as_u64().unwrap()).collect();
        assert_eq!(lines, [3, 4], "{value}");
        assert!(mistakes.iter().all(|mistake| mistake["cause"].is_string() && mistake["remedy"].is_string()));
    }
    let output = noiommu(&["bind", "--config", file]);
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    assert!(said.contains(&format!("{file}:3: ")) && said.contains("try:"), "{said}");

    // What others can write is not done as root.
    std::fs::write(&path, "bind id=ffff:ffff\n").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let output = noiommu(&["bind", "--config", file, "--dry-run", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(json(&output)["error"]["remedy"].as_str().unwrap().contains("chmod go-w"));
    std::fs::remove_file(&path).unwrap();
    let output = noiommu(&["bind", "--config", file, "--dry-run", "--json"]);
    assert_eq!((output.status.code(), json(&output)["error"]["cause"].is_string()), (Some(2), true));
}

#[test]
fn a_file_names_devices_that_are_there_and_not() {
    // The ids of nobody: no device is meant, wherever this runs.
    let path = configuration("absent", "# nothing\nbind id=ffff:ffff provider=sysfs\n");
    let file = path.to_str().unwrap();
    let output = noiommu(&["bind", "--config", file, "--dry-run", "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let value = json(&output);
    assert_eq!(value["absent"][0]["line"], 2, "{value}");
    assert_eq!(value["absent"][0]["text"], "bind id=ffff:ffff provider=sysfs");
    assert_eq!(value["devices"].as_array().map(Vec::len), Some(0));
    // A device that is plugged in and that no line means is nothing to speak of.
    let entries = std::fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten();
    if let Some(address) = entries.map(|entry| entry.file_name().into_string().unwrap()).next() {
        let output = noiommu(&["bind", "--config", file, "--dry-run", "--device", &address]);
        assert_eq!((output.status.code(), output.stdout.len(), output.stderr.len()), (Some(0), 0, 0));
    }
    std::fs::write(&path, "").unwrap();
    assert_eq!(noiommu(&["bind", "--config", file, "--dry-run", "--json"]).status.code(), Some(0));
    std::fs::remove_file(&path).unwrap();

    for wrong in [
        &["bind", "--config", file, "00:04.0"][..],
        &["bind", "--config", file, "--force"],
        &["bind", "--config", file, "--provider", "sysfs"],
        &["bind", "--device", "00:04.0"],
        &["unbind", "--config", "--all"],
        &["unbind", "--config", "00:04.0"],
    ] {
        assert_eq!(noiommu(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

/// The file that the package has says nothing, and as an example it says what is right.
#[test]
fn the_file_of_the_package_is_right() {
    let shipped = include_str!("../../packaging/noiommu.conf");
    let lines = shipped.lines().map(|line| match line.strip_prefix('#') {
        Some(command) if command.starts_with("enable") || command.starts_with("bind") => command,
        _ => line,
    });
    let examples: Vec<_> = lines.collect();
    for (name, text, absent) in [("shipped", shipped.to_owned(), 0), ("examples", examples.join("\n"), 3)] {
        let path = configuration(name, &text);
        let output = noiommu(&["bind", "--config", path.to_str().unwrap(), "--dry-run", "--json"]);
        std::fs::remove_file(&path).unwrap();
        let value = json(&output);
        assert!(value["error"].is_null(), "{value}");
        assert_eq!(value["enable"], absent > 0, "{value}");
        let told = value["absent"].as_array().unwrap().len() + value["devices"].as_array().unwrap().len();
        assert!(told >= absent, "{value}");
    }
}

#[test]
fn completions_for_each_shell() {
    for (shell, words) in
        [("bash", "complete -F"), ("zsh", "#compdef noiommu"), ("fish", "complete -c noiommu")]
    {
        let output = noiommu(&["completions", shell]);
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0));
        assert!(
            said.contains(words) && said.contains("doctor") && said.contains("dry-run"),
            "{shell}: {said}"
        );
    }
    assert_eq!(noiommu(&["completions", "powershell"]).status.code(), Some(2));
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
