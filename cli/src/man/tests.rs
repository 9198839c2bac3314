//! Every command has its page, every page has what belongs in it, and those who set pages have nothing to say against them.

use std::fs;
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};

use super::*;

#[test]
fn every_command_has_its_page() {
    let pages = pages();
    let names: Vec<_> = pages.iter().map(|page| page.name.as_str()).collect();
    for name in ["noiommu", "noiommu-bind", "noiommu-nvme", "noiommu-nvme-identify", "noiommu-proof-pins"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(!names.iter().any(|name| name.ends_with("-man") || name.ends_with("-help")), "{names:?}");
    let shown = crate::Cli::command();
    let shown = shown.get_subcommands().filter(|command| !command.is_hide_set());
    assert!(shown.map(|command| format!("noiommu-{}", command.get_name())).all(|it| names.contains(&&*it)));
    for page in &pages {
        let heading = |words: &str| page.roff.lines().any(|line| line == format!(".SH {words}"));
        for words in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "\"SEE ALSO\""] {
            assert!(heading(words), "{} has no {words}:\n{}", page.name, page.roff);
        }
        // Each page that is referred to is made, or is somebody else's.
        for line in page.roff.lines().filter_map(|line| line.strip_prefix(".BR ")) {
            let name = line.split(' ').next().unwrap_or_default().replace('\\', "");
            assert!(!name.starts_with("noiommu-") || names.contains(&&*name), "{}: {name}", page.name);
        }
    }
}

#[test]
fn the_help_becomes_sections() {
    let page = pages().into_iter().find(|page| page.name == "noiommu-bind").unwrap().roff;
    let at = |words: &str| page.find(words).unwrap_or_else(|| panic!("no {words} in\n{page}"));
    assert!(at(".SH NOTES") < at(".SH \"EXIT STATUS\"") && at(".SH \"EXIT STATUS\"") < at(".SH EXAMPLES"));
    assert!(at(".SH EXAMPLES") < at(".SH FILES") && at(".SH FILES") < at(".SH \"SEE ALSO\""));
    let examples = &page[at(".SH EXAMPLES")..at(".SH FILES")];
    assert!(examples.contains(".nf") && examples.contains("noiommu bind 0000:00:04.0"), "{examples}");
    assert!(!page.contains("Exit status:") && !page.contains("Examples:"));
}

/// groff is on every machine that has pages to show; its warnings are about wrong macros and lines that cannot be set.
#[test]
fn groff_has_nothing_to_say() {
    let directory = std::env::temp_dir().join(format!("noiommu-man-{}", std::process::id()));
    write(&directory).unwrap();
    let mut files: Vec<PathBuf> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.push(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/man/noiommu.conf.5")));
    assert!(files.len() > 15);
    let mut checked = 0;
    for file in &files {
        let mut groff = Process::new("groff");
        groff.args(["-man", "-Tutf8", "-ww", "-rLL=100n", "-z"]).arg(file).stdin(Stdio::null());
        match groff.output() {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success() && said.is_empty(), "{}: {said}", file.display());
                checked += 1;
            }
            // Where there is none, the guest's packages are made on a machine that has it.
            Err(error) => eprintln!("groff is not here, so {} is not checked: {error}", file.display()),
        }
    }
    eprintln!("{checked} pages checked");
    fs::remove_dir_all(&directory).unwrap();
}
