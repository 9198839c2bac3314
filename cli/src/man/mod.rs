//! `noiommu man`: the manual pages, made from the same words as the help. Those who build packages call it.
//!
//! [`text`] sets what follows the options in the help, [`around`] knows what the help has no place for.

mod around;
#[cfg(test)]
mod tests;
mod text;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// How it is called.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The directory that they are written to
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Writes them.
pub(crate) fn run(options: &Options) -> ExitCode {
    match write(&options.directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = format!("writing to {}: {error}", options.directory.display());
            let remedy = Some("name a directory that can be written");
            crate::tell_failure(false, &crate::Failure { kind: "System", errno: None, cause: &cause, remedy })
        }
    }
}

fn write(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    pages().iter().try_for_each(|page| fs::write(directory.join(format!("{}.1", page.name)), &page.roff))
}

/// A page, of section 1.
struct Page {
    /// Its name: the words of the command, with dashes.
    name: String,
    roff: String,
}

/// A page for each command that is not hidden.
fn pages() -> Vec<Page> {
    let mut root = crate::Cli::command().disable_help_subcommand(true);
    root.build();
    let mut pages = Vec::new();
    add(&mut pages, &root, None);
    pages
}

fn add(pages: &mut Vec<Page>, command: &Command, parent: Option<&str>) {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let shown = || command.get_subcommands().filter(|command| !command.is_hide_set());
    let below = shown().map(|it| format!("{name}-{}", it.get_name())).collect::<Vec<_>>();
    pages.push(Page { roff: render(command, &name, parent, &below), name: name.clone() });
    for command in shown() {
        add(pages, command, Some(&name));
    }
}

fn render(command: &Command, name: &str, parent: Option<&str>, below: &[String]) -> String {
    let source = format!("noiommu {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).manual("noiommu").source(source);
    let mut page = Vec::new();
    // Writing to memory does not fail.
    let _ = man.render_title(&mut page);
    let _ = man.render_name_section(&mut page);
    let _ = man.render_synopsis_section(&mut page);
    let _ = man.render_description_section(&mut page);
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        let _ = man.render_options_section(&mut page);
    }
    if !below.is_empty() {
        let _ = man.render_subcommands_section(&mut page);
    }
    let mut roff = Roff::new();
    let help = command.get_after_long_help().or_else(|| command.get_after_help());
    text::set(&mut roff, &help.map(ToString::to_string).unwrap_or_default());
    for (heading, entries) in around::sections(name) {
        roff.control("SH", [heading]);
        for (what, told) in entries {
            roff.control("TP", []);
            roff.text([bold(what)]);
            roff.text([roman(told)]);
        }
    }
    see_also(&mut roff, name, parent, below);
    let mut page = String::from_utf8_lossy(&page).into_owned();
    page.push_str(&roff.render());
    page
}

/// The pages around a page.
fn see_also(roff: &mut Roff, name: &str, parent: Option<&str>, below: &[String]) {
    let pages = parent.into_iter().map(|name| (name, "1"));
    let pages = pages.chain(below.iter().map(|name| (name.as_str(), "1"))).chain(around::neighbours(name));
    let pages: Vec<_> = pages.collect();
    if pages.is_empty() {
        return;
    }
    roff.control("SH", ["SEE ALSO"]);
    for (index, (name, section)) in pages.iter().enumerate() {
        let end = if index + 1 == pages.len() { "" } else { "," };
        roff.control("BR", [*name, &format!("({section}){end}")]);
    }
}
