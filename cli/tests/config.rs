//! `noiommu config` as people and scripts call it.

use std::process::{Command, Output};

fn config(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_noiommu"));
    command.arg("config").args(arguments).env("NO_COLOR", "1").env("CLICOLOR_FORCE", "1").output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn resolves_explains_and_refuses() {
    // The machine's own, whatever it is: told from where.
    let output = config(&["--json"]);
    let value = json(&output);
    if output.status.code() == Some(0) {
        assert!(value["source"]["options"].is_string() && value["options"]["group"].is_boolean(), "{value}");
    } else {
        assert_eq!(output.status.code(), Some(1));
        assert!(value["error"]["cause"].is_string(), "{value}");
    }

    let output = config(&["--preset", "merged"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.contains("| IOMMUFD IOAS      | No                  | Yes*                 |"), "{text}");
    assert!(!text.contains('\x1b'), "colours in spite of NO_COLOR: {text:?}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");

    let value = json(&config(&["--preset", "merged", "--no-group", "--json"]));
    assert_eq!(value["merged_case"], 5);
    assert_eq!(
        value["device_without_iommu"]["nodes"],
        serde_json::json!(["/dev/vfio/devices/noiommu-vfioN"])
    );

    // Refused, never only warned about.
    let output = config(&["--preset", "merged", "--cdev-noiommu", "--generic-atomic64"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("CONFIG_VFIO_CDEV_NOIOMMU needs CONFIG_GENERIC_ATOMIC64 to be off"), "{text}");
    assert!(text.contains("try:") && text.contains("--no-cdev-noiommu"), "{text}");
    let output = config(&["--preset", "merged", "--no-cdev", "--cdev-noiommu", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(json(&output)["error"]["kind"], "Configuration");

    assert_eq!(config(&["--preset", "7.3"]).status.code(), Some(2));
}
