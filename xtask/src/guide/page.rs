//! A page as a reader and a checker see it: blocks with their marks, headings, links.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A page of the guide, or another text of the project.
pub(super) struct Page {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Blocks between fences, in order.
    pub(super) blocks: Vec<Block>,
    /// Headings, as anchors that links name.
    pub(super) anchors: Vec<String>,
    /// Targets of links, with their lines.
    pub(super) links: Vec<(usize, String)>,
}

/// What is between two fences.
pub(super) struct Block {
    /// The line of its first fence, from 1.
    pub(super) line: usize,
    /// What is behind the fence: the language, and more behind commas.
    pub(super) info: String,
    /// What the comment before it says; empty: there is none.
    pub(super) mark: String,
    /// Its lines.
    pub(super) text: String,
}

impl Block {
    /// The language.
    pub(super) fn language(&self) -> &str {
        self.info.split(',').next().unwrap_or_default()
    }
}

impl Page {
    /// Reads one.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        Ok(Self::parse(path, &text))
    }

    fn parse(path: &Path, text: &str) -> Self {
        let mut page =
            Self { path: path.to_owned(), blocks: Vec::new(), anchors: Vec::new(), links: Vec::new() };
        let (mut mark, mut open): (String, Option<Block>) = (String::new(), None);
        for (line, number) in text.lines().zip(1..) {
            match (&mut open, line.trim_start().strip_prefix("```")) {
                (Some(_), Some(_)) => page.blocks.extend(open.take()),
                (Some(block), None) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, Some(info)) => {
                    let (info, mark) = (info.trim().to_owned(), std::mem::take(&mut mark));
                    open = Some(Block { line: number, info, mark, text: String::new() });
                }
                (None, None) => {
                    mark = line
                        .strip_prefix("<!--")
                        .and_then(|rest| rest.strip_suffix("-->"))
                        .map_or_else(String::new, |mark| mark.trim().to_owned());
                    page.text_line(line, number);
                }
            }
        }
        page.blocks.extend(open);
        page
    }

    /// A line outside of blocks.
    fn text_line(&mut self, line: &str, number: usize) {
        if let Some(heading) = line.strip_prefix('#') {
            let slug = slug(heading.trim_start_matches('#'));
            let earlier = self.anchors.iter().filter(|anchor| **anchor == slug).count();
            self.anchors.push(if earlier == 0 { slug } else { format!("{slug}-{earlier}") });
        }
        // What is between backquotes is no link.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("``");
        for (at, _) in prose.match_indices("](") {
            let target = prose[at + 2..].split(')').next().unwrap_or_default();
            self.links.push((number, target.to_owned()));
        }
    }

    /// What is wrong with its marks.
    pub(super) fn faults(&self) -> Vec<String> {
        let fault = |block: &Block, what: &str| format!("{}:{}: {what}", self.path.display(), block.line);
        let mut faults = Vec::new();
        for block in &self.blocks {
            let kind = block.mark.split([' ', ':']).next().unwrap_or_default();
            let fits = match block.language() {
                "console" => matches!(kind, "run" | "shown"),
                "diff" => kind == "edit",
                "sh" | "bash" | "shell" => {
                    faults.push(fault(block, "commands are `console`, each behind `$ `"));
                    continue;
                }
                "rust" if block.info.contains("ignore") => matches!(kind, "file" | "append"),
                _ => matches!(kind, "" | "file" | "append"),
            };
            if !fits {
                let (mark, info) = (&block.mark, &block.info);
                faults.push(fault(block, &format!("a block of {info:?} with the mark {mark:?}")));
            }
            if kind == "shown" && block.mark.trim_start_matches("shown").trim_matches([':', ' ']).is_empty() {
                faults.push(fault(block, "shown, but no reason why it is not run"));
            }
        }
        faults
    }
}

/// The pages that the summary names, in its order. A page that it does not name is a fault of [`super::links`].
pub(super) fn read_all(directory: &Path) -> Result<Vec<Page>> {
    let summary = Page::read(&directory.join("SUMMARY.md"))?;
    summary.links.iter().map(|(_, target)| Page::read(&directory.join(target))).collect()
}

/// A heading as an anchor: as mdBook and GitHub make it.
fn slug(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# A `b`, c\n\ntext [link](other.md#x) and `[no](link)`\n<!-- run -->\n```console\n$ true\n```\n\
                        ## A b c\n```rust,ignore\nfn main() {}\n```\n";

    #[test]
    fn pages_are_taken_apart() {
        let page = Page::parse(Path::new("page.md"), TEXT);
        assert_eq!(page.anchors, ["a-b-c", "a-b-c-1"]);
        assert_eq!(page.links, [(3, "other.md#x".to_owned())]);
        let [console, rust] = page.blocks.as_slice() else { panic!("{}", page.blocks.len()) };
        assert_eq!((console.line, console.language(), console.mark.as_str()), (5, "console", "run"));
        assert_eq!((console.text.as_str(), rust.mark.as_str()), ("$ true\n", ""));
        // Code that is no documentation test must be a file of the tutorial's.
        assert_eq!(page.faults().len(), 1);
    }

    #[test]
    fn blocks_without_a_mark_are_told() {
        for text in
            ["```console\n$ true\n```\n", "```sh\ntrue\n```\n", "<!-- shown: -->\n```console\n$ x\n```\n"]
        {
            assert_eq!(Page::parse(Path::new("page.md"), text).faults().len(), 1, "{text}");
        }
    }
}
