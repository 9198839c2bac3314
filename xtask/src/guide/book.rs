//! The book: HTML out of the pages, by mdBook.

use std::fs;
use std::path::PathBuf;
use std::process::{self, Command};

use anyhow::{Context, Result};

use crate::command;
use crate::project::Project;
use crate::ui::Work;

/// The version that `docs/guide/book.toml` is written for.
const MDBOOK: &str = "0.5.4";

/// Makes it, and answers where it begins.
pub(super) fn build(project: &Project) -> Result<PathBuf> {
    let home = project.cache.join("tools").join(format!("mdbook-{MDBOOK}"));
    let program = home.join("bin/mdbook");
    if !program.is_file() {
        install(project, &home)?;
    }
    let to = project.target.join("guide/book");
    command::output(
        Command::new(program).arg("build").arg(project.root.join("docs/guide")).arg("--dest-dir").arg(&to),
    )?;
    Ok(to.join("index.html"))
}

fn install(project: &Project, home: &PathBuf) -> Result<()> {
    let scratch = project.cache.join("tools").join(format!("partial-{}", process::id()));
    let work = Work::start(format!("installing mdbook {MDBOOK} (once; some minutes)"));
    // Built beside its place and moved there when it is whole. Without the features that serve the book while it is written.
    let built = command::output(
        project
            .cargo()
            .args([
                "install",
                "mdbook",
                "--locked",
                "--no-default-features",
                "--features",
                "search",
                "--version",
                MDBOOK,
                "--root",
            ])
            .arg(&scratch)
            .arg("--target-dir")
            .arg(scratch.join("target")),
    );
    let moved = built.and_then(|_| {
        let _ = fs::remove_dir_all(scratch.join("target"));
        let _ = fs::remove_dir_all(home);
        fs::rename(&scratch, home).context("moving mdbook to its place")
    });
    let _ = fs::remove_dir_all(&scratch);
    moved?;
    work.finish();
    Ok(())
}
