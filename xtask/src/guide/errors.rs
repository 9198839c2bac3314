//! Every kind of error that the kit has is explained.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::page::Page;
use crate::project::Project;

/// Where the kinds are.
const SOURCE: &str = "noiommu/src/error.rs";

/// The page that explains them, a heading for each.
const PAGE: &str = "trouble.md";

/// Kinds without a heading.
pub(super) fn check(project: &Project, pages: &[Page]) -> Result<Vec<String>> {
    let source = fs::read_to_string(project.root.join(SOURCE)).context(SOURCE)?;
    let kinds = kinds(&source);
    // Else the source is written in another way than it is read here.
    ensure!(kinds.len() > 10, "{SOURCE}: {} kinds found", kinds.len());
    let page = pages.iter().find(|page| page.path.ends_with(PAGE)).with_context(|| format!("no {PAGE}"))?;
    let missing = kinds.iter().filter(|kind| !page.anchors.contains(&kind.to_lowercase()));
    Ok(missing.map(|kind| format!("{}: no heading for ErrorKind::{kind}", page.path.display())).collect())
}

/// The variants of the enumeration, in order.
fn kinds(source: &str) -> Vec<&str> {
    let body = source.split_once("pub enum ErrorKind {").map_or("", |(_, rest)| rest);
    let lines = body.lines().map(str::trim).take_while(|line| *line != "}");
    lines.filter_map(|line| line.strip_suffix(',')).filter(|line| !line.starts_with("//")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_read() {
        let source = "enum Other {\n    A,\n}\npub enum ErrorKind {\n    /// One,\n    Rule,\n    /// Two.\n    Dax,\n}\n";
        assert_eq!(kinds(source), ["Rule", "Dax"]);
    }
}
