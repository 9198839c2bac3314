//! `noiommu serve` as people and scripts call it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn serve(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_noiommu"));
    command.arg("serve").args(arguments).env("NO_COLOR", "1").env_remove("LD_PRELOAD").output().unwrap()
}

/// What it says when it does not start the program.
fn refusal(arguments: &[&str]) -> String {
    let output = serve(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("try:"), "{said}");
    assert_eq!(output.stdout, b"");
    said
}

fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()))
}

#[test]
fn the_program_takes_its_place() {
    let script = |script: &str| serve(&["--provider", "sim", "--", "sh", "-c", script]);
    let output = script("echo $0 $NOIOMMU_SERVE $LD_PRELOAD; exit 7");
    assert_eq!(output.status.code(), Some(7));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("sh sim /") && said.trim_end().ends_with("/libnoiommu_preload.so"), "{said}");
    assert_eq!(output.stderr, b"", "no node was opened");
    assert_eq!(script("kill -9 $$").status.signal(), Some(9));
    let output =
        serve(&["-v", "--provider", "sim", "--device", "0000:00:04.0", "--", "printenv", "NOIOMMU_SERVE"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "sim,verbose,device=0000:00:04.0\n");
}

#[test]
fn what_cannot_be_served_is_refused_with_a_remedy() {
    let sim = |program: &str| refusal(&["--provider", "sim", "--", program]);
    assert!(sim("/nothing").contains("/nothing: no such program"));
    assert!(sim("nothing-by-this-name").contains("no such program"));
    assert!(sim("/etc/passwd").contains("no such program"));

    let text = place("text");
    fs::write(&text, "echo\n").unwrap();
    fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(sim(text.to_str().unwrap()).contains("neither a program nor a script"));
    fs::remove_file(text).unwrap();

    let source = place("static").with_extension("c");
    let program = place("static-program");
    fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let built = Command::new("cc").arg("-static").arg("-o").args([&program, &source]).status().unwrap();
    fs::remove_file(source).unwrap();
    assert!(built.success());
    assert!(sim(program.to_str().unwrap()).contains("statically linked"));
    fs::remove_file(&program).unwrap();

    if rustix::process::geteuid().is_root() {
        let other = place("other");
        fs::copy("/bin/true", &other).unwrap();
        std::os::unix::fs::chown(&other, Some(65534), None).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o4755)).unwrap();
        assert!(sim(other.to_str().unwrap()).contains("more rights than you have"));
        fs::remove_file(other).unwrap();
    }
    let library = Command::new(env!("CARGO_BIN_EXE_noiommu"))
        .args(["serve", "--", "true"])
        .env("NOIOMMU_PRELOAD_LIBRARY", "/nothing.so")
        .output()
        .unwrap();
    assert_eq!(library.status.code(), Some(125));
    assert!(String::from_utf8(library.stderr).unwrap().contains("NOIOMMU_PRELOAD_LIBRARY=/nothing.so"));
}
