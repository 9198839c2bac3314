//! Benchmarks that need a kernel of choice: what they find is one line of JSON for the host, which makes rows of it.

mod bare;
mod iommufd;
mod map;
mod scatter;

use anyhow::{Result, bail};

/// Runs what the words ask for: `map ADDRESS ROUNDS`.
pub(crate) fn run(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["map", address, rounds] => map::run(address, rounds.parse()?),
        _ => bail!("bench what? {words:?}"),
    }
}
