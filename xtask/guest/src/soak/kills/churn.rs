//! Other processes' memory, which nobody but they may write: each takes pages, fills them with a pattern of its own, and checks
//! every byte.
//!
//! One process for each processor, bound to it, since a page that is freed goes first to whoever asks next on the same one. It is
//! told what to do in lines, and answers each by a line:
//!
//! | it is told | it answers | |
//! |---|---|---|
//! | `grow PAGES SALT` | `ok` | takes more pages, and fills them |
//! | `check` | `foreign BYTES PLACE` | how many bytes of all that it has are not its own; the first place with such: a page's offset and 16 bytes |
//! | `release` | `ok` | gives everything back |
//!
//! Nothing is given back before that: a page that a device writes must not go on to somebody who does not look, such as the kernel.

use std::io::{BufRead as _, Write as _, stdin, stdout};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::super::pattern::{Foreign, Pattern};

/// Answers lines until there are no more.
pub(in crate::soak) fn run(cpu: &str) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu.parse().context("the processor's number")?);
    sched_setaffinity(None, &cpus).context("sched_setaffinity")?;
    let mut regions: Vec<Pattern> = Vec::new();
    for line in stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words[..] {
            ["grow", pages, salt] => {
                regions.push(Pattern::of_pages(pages.parse()?, salt.parse()?)?);
                "ok".to_owned()
            }
            ["check"] => {
                let mut found = Foreign::default();
                regions.iter().for_each(|region| region.check(0, region.pages(), &mut found));
                format!("foreign {} {}", found.bytes, found.first.as_deref().unwrap_or("-"))
            }
            ["release"] => {
                regions.clear();
                "ok".to_owned()
            }
            _ => bail!("churn does not know {line:?}"),
        };
        let mut out = stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
