//! A reader who does what the pages say.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::page::{Block, Page};
use super::{compare, room};
use crate::command;
use crate::project::Project;
use crate::ui::{self, Work};

/// How much of a command's output an error carries.
const TAIL: usize = 40;

/// A command that takes longer is told, so that it is known where the time goes.
const SLOW: Duration = Duration::from_secs(5);

/// The reader, in a clone.
pub(super) struct Reader {
    target: PathBuf,
    /// The clone.
    clone: PathBuf,
    /// Where the next command is run.
    place: PathBuf,
    vm: bool,
    /// Commands that were run.
    pub(super) run: usize,
    /// Commands that were not, by the reason.
    pub(super) left: BTreeMap<String, usize>,
}

impl Reader {
    /// Makes the clone.
    pub(super) fn new(project: &Project, vm: bool) -> Result<Self> {
        let clone = room::make(project)?;
        let (target, place) = (project.target.clone(), clone.clone());
        Ok(Self { target, clone, place, vm, run: 0, left: BTreeMap::new() })
    }

    /// Where the tutorial's files are now.
    pub(super) fn clone_of_the_tree(&self) -> &Path {
        &self.clone
    }

    /// Does what a page says, from its beginning to its end.
    pub(super) fn follow(&mut self, page: &Page, work: &Work) -> Result<()> {
        // Every page is read in the clone, but for one that has it made.
        self.place = self.clone.clone();
        if page.blocks.iter().any(|block| block.text.contains("$ git clone ")) {
            self.place.pop();
        }
        for block in &page.blocks {
            let at = || format!("{}:{}", page.path.display(), block.line);
            work.set_message(at());
            self.block(block, work).with_context(at)?;
        }
        Ok(())
    }

    fn block(&mut self, block: &Block, work: &Work) -> Result<()> {
        let (kind, rest) = block.mark.split_once([' ', ':']).unwrap_or((&block.mark, ""));
        let rest = rest.trim();
        match kind {
            "run" => self.commands(block, rest, work),
            "shown" => {
                self.leave(block, rest);
                Ok(())
            }
            "file" => self.write(rest, &block.text),
            "append" => self.append(rest, &block.text),
            "edit" => self.edit(rest, &block.text),
            _ => Ok(()),
        }
    }

    fn commands(&mut self, block: &Block, how: &str, work: &Work) -> Result<()> {
        let how: Vec<&str> = how.split_whitespace().collect();
        if let Some(word) = how.iter().find(|word| !["guest", "root", "fails"].contains(word)) {
            bail!("no such way to run it: {word}");
        }
        if how.contains(&"guest") && !self.vm {
            self.leave(block, "since they boot a guest (--vm)");
            return Ok(());
        }
        if how.contains(&"root") && !rustix::process::geteuid().is_root() {
            self.leave(block, "since they want root");
            return Ok(());
        }
        let commands = commands(&block.text)?;
        let last = commands.len().saturating_sub(1);
        for (index, (line, shown)) in commands.iter().enumerate() {
            let began = Instant::now();
            self.command(line, shown, how.contains(&"fails") && index == last)
                .with_context(|| format!("$ {line}"))?;
            self.run += 1;
            if began.elapsed() > SLOW {
                work.print(format_args!("{}: $ {line}", ui::seconds(began.elapsed())));
            }
        }
        Ok(())
    }

    fn command(&mut self, line: &str, shown: &[&str], fails: bool) -> Result<()> {
        if let Some(to) = line.strip_prefix("cd ") {
            self.place.push(to);
            ensure!(self.place.is_dir(), "there is no directory {}", self.place.display());
            return Ok(());
        }
        if line.starts_with("git clone ") {
            // It is made of this tree and not of what is published: what is to be checked is here.
            return Ok(());
        }
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec 2>&1\n{line}")]).current_dir(&self.place).stdin(Stdio::null());
        // `noiommu` is the program that the quick start has built.
        let path = [self.target.join("release").into_os_string(), env::var_os("PATH").unwrap_or_default()];
        shell.env("PATH", path.join(OsStr::new(":")));
        shell.env("CARGO_TARGET_DIR", &self.target).env("CARGO_TERM_COLOR", "never").env("NO_COLOR", "1");
        // A reader's shell has none, and panics that are meant would fill the screen.
        shell.env_remove("RUST_BACKTRACE");
        let output = shell.output().context("sh")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let came: Vec<&str> = said.lines().collect();
        if output.status.success() == fails {
            bail!("{} ({}):\n{}", if fails { "did not fail" } else { "failed" }, output.status, {
                command::tail(&said, TAIL)
            });
        }
        if !shown.is_empty() && !compare::is_like(shown, &came) {
            bail!("the page shows\n{}\nbut there came\n{}", shown.join("\n"), command::tail(&said, TAIL));
        }
        Ok(())
    }

    fn leave(&mut self, block: &Block, why: &str) {
        let count = block.text.lines().filter(|line| line.starts_with("$ ")).count();
        *self.left.entry(why.to_owned()).or_default() += count;
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.clone.join(path);
        fs::create_dir_all(path.parent().context("a file without a directory")?)?;
        fs::write(&path, text).with_context(|| format!("{}", path.display()))
    }

    fn append(&self, path: &str, text: &str) -> Result<()> {
        let path = self.clone.join(path);
        let file = File::options().append(true).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("{}", path.display()))
    }

    fn edit(&self, path: &str, diff: &str) -> Result<()> {
        let path = self.clone.join(path);
        let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        fs::write(&path, edited(&text, diff)?)?;
        Ok(())
    }
}

/// The commands of a block, each with the output that is shown.
fn commands(text: &str) -> Result<Vec<(String, Vec<&str>)>> {
    let mut commands: Vec<(String, Vec<&str>)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => commands.push((command.to_owned(), Vec::new())),
            (None, Some((command, shown))) if shown.is_empty() && command.ends_with('\\') => {
                command.push('\n');
                command.push_str(line);
            }
            (None, Some((_, shown))) => shown.push(line),
            (None, None) => bail!("output before any command: {line}"),
        }
    }
    Ok(commands)
}

/// The text with the lines of a diff replaced: those that begin with a space or `-` are looked for, and must be there once.
fn edited(text: &str, diff: &str) -> Result<String> {
    let side = |gone: char| -> String {
        let kept = diff.lines().filter(|line| !line.starts_with(gone));
        kept.flat_map(|line| [line.get(1..).unwrap_or_default(), "\n"]).collect()
    };
    let (before, after) = (side('+'), side('-'));
    let places = text.match_indices(&before).filter(|(at, _)| *at == 0 || text[..*at].ends_with('\n'));
    match places.collect::<Vec<_>>().as_slice() {
        [(at, _)] => Ok([&text[..*at], &after, &text[at + before.len()..]].concat()),
        places => bail!("the lines to be changed are there {} times:\n{before}", places.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_output_are_told_apart() {
        let found = commands("$ a \\\n  b\nsays\n$ c\n").unwrap();
        assert_eq!(found, [("a \\\n  b".to_owned(), vec!["says"]), ("c".to_owned(), Vec::new())]);
        assert!(commands("says\n").is_err());
    }

    #[test]
    fn edits_are_made_where_they_fit_once() {
        assert_eq!(edited("a\nb\nc\n", " a\n-b\n+x\n+y\n").unwrap(), "a\nx\ny\nc\n");
        assert!(edited("a\na\n", "-a\n+b\n").is_err() && edited("a\n", "-b\n").is_err());
        assert_eq!(edited("xa\na\n", "-a\n+b\n").unwrap(), "xa\nb\n", "whole lines");
    }
}
