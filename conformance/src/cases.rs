//! The cases: those built in, or those of a directory.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::parse::{self, Block};
use crate::world::Setups;

/// Section, topic and text of every file in `cases/`.
const FILES: &[(&str, &str, &str)] = include!(concat!(env!("OUT_DIR"), "/cases.rs"));

/// The differences that user space cannot close.
pub(crate) const LISTED: &str = include_str!("../listed.txt");

/// One file of cases.
#[derive(Debug)]
pub(crate) struct Source {
    /// The directory it lies in: which part of the uAPI it asks about.
    pub(crate) section: String,
    /// Its name without `.txt`.
    pub(crate) topic: String,
    /// Its text.
    pub(crate) text: String,
    /// Its cases.
    pub(crate) cases: Vec<Block>,
}

/// All cases, and the setups that they share.
#[derive(Debug)]
pub(crate) struct Library {
    /// The files, in the order of sections.
    pub(crate) sources: Vec<Source>,
    /// The setups of all files.
    pub(crate) setups: Setups,
}

/// The sections in the order in which they are asked and told.
pub(crate) const SECTIONS: &[&str] = &[
    "abi",
    "objects",
    "iova",
    "map",
    "map-file",
    "copy",
    "unmap",
    "option",
    "vfio-ioas",
    "hwpt",
    "get-pa",
    "memlock",
    "cdev",
    "group",
    "fork",
    "info",
    "dma",
];

/// The section whose setups are for all.
const SHARED: &str = "setups";

fn is_wanted(section: &str, only: Option<&str>) -> bool {
    section == SHARED || only.is_none_or(|only| only == section)
}

impl Library {
    /// Those built in; only those of one section, with the setups for all, where one is named.
    ///
    /// # Errors
    /// What is wrong in the text, and where.
    pub(crate) fn embedded(only: Option<&str>) -> Result<Self, String> {
        let wanted = FILES.iter().filter(|(section, ..)| is_wanted(section, only));
        let owned = |(section, topic, text): &(&str, &str, &str)| {
            ((*section).to_owned(), (*topic).to_owned(), (*text).to_owned())
        };
        Self::from_texts(wanted.map(owned))
    }

    /// The same of a directory: `SECTION/TOPIC.txt`.
    ///
    /// # Errors
    /// A file that cannot be read; what is wrong in the text, and where.
    pub(crate) fn from_directory(directory: &Path, only: Option<&str>) -> Result<Self, String> {
        let mut texts = Vec::new();
        let read = |path: &Path| fs::read_dir(path).map_err(|e| format!("{}: {e}", path.display()));
        for section in read(directory)?.flatten().filter(|entry| entry.path().is_dir()) {
            if !is_wanted(&section.file_name().to_string_lossy(), only) {
                continue;
            }
            for file in read(&section.path())?.flatten() {
                let (path, name) = (file.path(), file.file_name().to_string_lossy().into_owned());
                if let Some(topic) = name.strip_suffix(".txt") {
                    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                    texts.push((section.file_name().to_string_lossy().into_owned(), topic.to_owned(), text));
                }
            }
        }
        Self::from_texts(texts.into_iter())
    }

    fn from_texts(texts: impl Iterator<Item = (String, String, String)>) -> Result<Self, String> {
        let mut sources = Vec::new();
        let mut setups = Setups::new();
        let mut known = BTreeSet::new();
        for (section, topic, text) in texts {
            let file = format!("{section}/{topic}.txt");
            if !SECTIONS.contains(&section.as_str()) && section != SHARED {
                return Err(format!("{file}: no section `{section}`"));
            }
            let mut cases = Vec::new();
            for block in parse::parse(&text).map_err(|e| format!("{file}: {e}"))? {
                if block.setup {
                    if setups.insert(block.name.clone(), block.steps).is_some() {
                        return Err(format!("{file}: a second setup `{}`", block.name));
                    }
                } else if known.insert((section.clone(), block.name.clone())) {
                    cases.push(block);
                } else {
                    return Err(format!("{file}: a second case `{}`", block.name));
                }
            }
            sources.push(Source { section, topic, text, cases });
        }
        sources.sort_by_key(|source| {
            (SECTIONS.iter().position(|section| *section == source.section), source.topic.clone())
        });
        Ok(Self { sources, setups })
    }

    /// The case of that identity, `section/name`.
    pub(crate) fn case(&self, identity: &str) -> Option<&Block> {
        let (section, name) = identity.split_once('/')?;
        let sources = self.sources.iter().filter(|source| source.section == section);
        sources.flat_map(|source| &source.cases).find(|case| case.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps;

    #[test]
    fn all_sections_are_asked_about() {
        let library = Library::embedded(None).unwrap();
        let count = |section: &str| -> usize {
            library
                .sources
                .iter()
                .filter(|source| source.section == section)
                .map(|source| source.cases.len())
                .sum()
        };
        for section in SECTIONS {
            assert!(count(section) > 0, "section {section} is empty");
        }
        let total: usize = SECTIONS.iter().map(|section| count(section)).sum();
        assert!(total >= 650, "{total} cases");
        assert!(total - count("abi") - count("info") >= 400);
    }

    #[test]
    fn every_setup_that_is_used_is_there_and_every_answer_was_recorded() {
        // Section by section: setups of one are not there for the others.
        for section in SECTIONS {
            let library = Library::embedded(Some(section)).unwrap();
            for case in library.sources.iter().flat_map(|source| &source.cases) {
                for step in parse::flatten(&case.steps) {
                    let told = format!("{section}/{}: {} => {}", case.name, step.text, step.answer);
                    assert!(!step.answer.starts_with(steps::MISTAKE), "{told}");
                    // An ioctl always answers something.
                    assert!(crate::ioctl::call(step.verb()).is_none() || !step.answer.is_empty(), "{told}");
                    assert!(
                        step.verb() != "use" || library.setups.contains_key(&step.arguments()[0]),
                        "{told}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_list_speaks_of_cases_that_are_there() {
        let library = Library::embedded(None).unwrap();
        crate::listed::parse(LISTED, &library).unwrap();
    }
}
