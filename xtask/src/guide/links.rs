//! Links within the project lead to files that are there, and to headings that they have.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::PAGES;
use super::page::Page;
use crate::project::Project;

/// Texts outside of the guide.
const TEXTS: [&str; 6] =
    ["README.md", "SOUNDNESS.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/performance.md"];

/// What leads nowhere, and pages that nothing leads to.
pub(super) fn check(project: &Project, pages: &[Page]) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let directory = project.root.join(PAGES);
    for entry in fs::read_dir(&directory).with_context(|| format!("{}", directory.display()))? {
        let path = entry?.path();
        let is_page = path.extension().is_some_and(|extension| extension == "md");
        let is_named = path.ends_with("SUMMARY.md") || pages.iter().any(|page| page.path == path);
        if is_page && !is_named {
            faults.push(format!("{}: SUMMARY.md does not name it", path.display()));
        }
    }
    let texts: Vec<Page> =
        TEXTS.iter().map(|name| Page::read(&project.root.join(name))).collect::<Result<_>>()?;
    for page in pages.iter().chain(&texts) {
        for (line, target) in &page.links {
            if let Err(why) = leads(page, target) {
                faults.push(format!("{}:{line}: {target}: {why}", page.path.display()));
            }
        }
    }
    Ok(faults)
}

/// Whether a link leads somewhere. Those to other machines are not asked.
fn leads(page: &Page, target: &str) -> Result<(), String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(());
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { page.path.clone() } else { beside(&page.path, file) };
    if !path.exists() {
        return Err("there is no such file".to_owned());
    }
    if anchor.is_empty() {
        return Ok(());
    }
    let there = Page::read(&path).map_err(|error| format!("{error:#}"))?;
    let found = there.anchors.iter().any(|known| known == anchor);
    if found { Ok(()) } else { Err("the file has no such heading".to_owned()) }
}

fn beside(page: &Path, file: &str) -> PathBuf {
    page.parent().unwrap_or(Path::new("")).join(file)
}
