//! Commands that are shown and not run name subcommands and options that there are.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::page::Page;
use crate::command;
use crate::project::Project;

/// What the pages name that does not exist.
pub(super) fn check(project: &Project, pages: &[Page]) -> Result<Vec<String>> {
    // As other steps of the tests start it, so that it is built once.
    command::output(project.cargo().args(["run", "--quiet", "--release", "--", "--version"]))?;
    let mut helps = Helps {
        noiommu: project.target.join("release/noiommu"),
        xtask: env::current_exe().context("where this program is")?,
        known: BTreeMap::new(),
    };
    let mut faults = Vec::new();
    for page in pages {
        for block in page.blocks.iter().filter(|block| block.mark.starts_with("shown")) {
            for line in block.text.lines().filter_map(|line| line.strip_prefix("$ ")) {
                if let Some(what) = helps.unknown(line) {
                    faults.push(format!(
                        "{}:{}: `{line}`: there is no {what}",
                        page.path.display(),
                        block.line
                    ));
                }
            }
        }
    }
    Ok(faults)
}

/// What programs say of themselves.
struct Helps {
    noiommu: PathBuf,
    xtask: PathBuf,
    known: BTreeMap<Vec<String>, String>,
}

impl Helps {
    /// The first word of a command of ours that its program does not know; `None`: it knows all, or it is no command of ours.
    fn unknown(&mut self, line: &str) -> Option<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let program = words.iter().position(|word| matches!(*word, "noiommu" | "xtask"))?;
        let mut path = vec![words[program].to_owned()];
        let mut help = self.help(&path);
        // What follows a bare `--` is somebody else's.
        for word in words[program + 1..].iter().take_while(|word| **word != "--") {
            if let Some(option) = word.strip_prefix("--") {
                let name = option.split('=').next().unwrap_or_default();
                let known = help.split(|c: char| !(c.is_alphanumeric() || c == '-'));
                if !known.into_iter().any(|known| known.strip_prefix("--") == Some(name)) {
                    return Some(format!("--{name}"));
                }
            } else if help
                .lines()
                .any(|line| line.strip_prefix("  ").is_some_and(|line| first(line) == *word))
            {
                path.push((*word).to_owned());
                help = self.help(&path);
            } else if path.len() == 1 {
                return Some(format!("subcommand {word}"));
            }
        }
        None
    }

    fn help(&mut self, path: &[String]) -> String {
        let program = if path[0] == "noiommu" { &self.noiommu } else { &self.xtask };
        let ask = || {
            let asked = Command::new(program).args(&path[1..]).arg("--help").output();
            asked
                .map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        self.known.entry(path.to_vec()).or_insert_with(ask).clone()
    }
}

/// The first word of a line; empty where it is indented further.
fn first(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}
