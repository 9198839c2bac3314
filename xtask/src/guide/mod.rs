//! `cargo xtask guide`: the guide is followed to the letter.
//!
//! What a reader would type is typed, what a page says comes out is compared, files are written as the page has them, links lead
//! somewhere, and no kind of error lacks its section. A block says what it is by a comment on the line before it, which
//! readers do not see:
//!
//! | mark | block |
//! |---|---|
//! | `run` | `console`: each line behind `$ ` is run; lines that follow it are its output, `...` for any lines, `[..]` for any part of a line |
//! | `run root` | the same, where it is root that runs this |
//! | `run guest` | the same, with `--vm` |
//! | `run fails` | the same; the last command must fail |
//! | `shown: WHY` | `console` that is not run, for this reason; the commands and options that it names must exist |
//! | `file PATH` | becomes this file of the reader's clone |
//! | `append PATH` | goes to the end of it |
//! | `edit PATH` | `diff`: its lines occur once in the file, and are replaced |
//!
//! Rust code without a mark is a documentation test of the package `noiommu-guide`.

mod book;
mod compare;
mod errors;
mod follow;
mod links;
mod named;
mod page;
mod result;
mod room;

use anyhow::{Result, bail};
use clap::Args;

use self::follow::Reader;
use self::page::Page;
use crate::project::Project;
use crate::ui::Work;

/// Where the guide's pages are, below the workspace's root.
const PAGES: &str = "docs/guide/src";

/// What to do.
#[derive(Args, Debug, Default)]
pub(crate) struct Options {
    /// Run the commands that boot a guest, too
    #[arg(long)]
    vm: bool,

    /// Check links, marks and names only: nothing is run
    #[arg(long, conflicts_with = "vm")]
    quick: bool,

    /// Make the book: HTML, with mdBook, which is built once
    #[arg(long)]
    build: bool,
}

/// Checks the guide, and follows it.
pub(crate) fn guide(project: &Project, options: &Options) -> Result<()> {
    let pages = page::read_all(&project.root.join(PAGES))?;
    let mut faults = links::check(project, &pages)?;
    faults.extend(errors::check(project, &pages)?);
    faults.extend(pages.iter().flat_map(Page::faults));
    fail(&faults)?;
    println!("{} pages: links, marks and error kinds are as they should be", pages.len());
    if options.build {
        println!("the book: {}", book::build(project)?.display());
    }
    if options.quick {
        return Ok(());
    }

    let work = Work::start("following the guide");
    fail(&named::check(project, &pages)?)?;
    let mut reader = Reader::new(project, options.vm)?;
    for page in &pages {
        reader.follow(page, &work)?;
    }
    work.finish();
    fail(&result::check(project, reader.clone_of_the_tree())?)?;
    let (run, left) = (reader.run, &reader.left);
    println!("{run} commands run, their output as shown; the tutorial ends with drivers/edu");
    for (why, commands) in left {
        println!("not run, {why}: {commands} commands");
    }
    Ok(())
}

fn fail(faults: &[String]) -> Result<()> {
    if !faults.is_empty() {
        bail!("the guide is not right:\n  - {}", faults.join("\n  - "));
    }
    Ok(())
}
