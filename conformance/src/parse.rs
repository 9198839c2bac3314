//! The case language: text to cases, line by line.
//!
//! A file holds blocks; what belongs to a block is indented below its heading:
//!
//! ```text
//! # What a reader should know.
//! case overlap-left
//!   open /dev/iommu i
//!   IOMMU_IOAS_ALLOC i -> out_ioas_id=$s => 0 out_ioas_id=1
//! ```
//!
//! `setup NAME` instead of `case NAME` makes steps that other cases run by `use NAME`. `needs WHAT ...` stands before the first
//! case and is meant for the whole file, or within a case. What follows `=>` is the answer that the real kernel gave; a step
//! without one answers nothing when all is well. A `#` begins a comment, on lines of their own only.

/// One step of a case.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Its line in the file, counted from 1.
    pub(crate) line: usize,
    /// The step as written, without its answer.
    pub(crate) text: String,
    /// Its words; the first says what to do.
    pub(crate) words: Vec<String>,
    /// The recorded answer, empty where there is none.
    pub(crate) answer: String,
    /// The steps between it and its `end`.
    pub(crate) body: Vec<Step>,
}

impl Step {
    /// What to do.
    pub(crate) fn verb(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The words after the verb.
    pub(crate) fn arguments(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

/// All steps among `steps` and in their bodies, in the order of their lines.
pub(crate) fn flatten(steps: &[Step]) -> Vec<&Step> {
    let mut flat = Vec::new();
    for step in steps {
        flat.push(step);
        flat.extend(flatten(&step.body));
    }
    flat
}

/// A named sequence of steps.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Its name.
    pub(crate) name: String,
    /// Whether it is a setup rather than a case.
    pub(crate) setup: bool,
    /// The line of its heading.
    pub(crate) line: usize,
    /// What it needs, of the file and of its own.
    pub(crate) needs: Vec<String>,
    /// Its steps.
    pub(crate) steps: Vec<Step>,
}

/// Steps that hold others, up to `end`.
const BLOCKS: &[&str] = &["fork", "child", "thread", "repeat", "exec"];

/// Reads a file.
///
/// # Errors
/// A sentence with the line that is wrong.
pub(crate) fn parse(text: &str) -> Result<Vec<Block>, String> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut file_needs: Vec<String> = Vec::new();
    // Steps whose `end` has not come yet.
    let mut open: Vec<Step> = Vec::new();
    for (index, raw) in text.lines().enumerate() {
        let line = index + 1;
        let trimmed = raw.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let (step, answer) = match trimmed.split_once(" => ") {
            Some((step, answer)) => (step.trim_end(), answer.trim()),
            None => (trimmed, ""),
        };
        let words = words(step).map_err(|e| format!("line {line}: {e}"))?;
        let (verb, rest) = match words.split_first() {
            Some((verb, rest)) => (verb.as_str(), rest),
            None => continue,
        };
        if !raw.starts_with([' ', '\t']) {
            if let Some(step) = open.last() {
                return Err(format!("line {line}: `{}` of line {} has no end", step.verb(), step.line));
            }
            match (verb, rest) {
                ("case" | "setup", [name]) => blocks.push(Block {
                    name: name.clone(),
                    setup: verb == "setup",
                    line,
                    needs: file_needs.clone(),
                    steps: Vec::new(),
                }),
                ("needs", [_, ..]) if blocks.is_empty() => file_needs.extend_from_slice(rest),
                _ => return Err(format!("line {line}: `{trimmed}` is no heading")),
            }
            continue;
        }
        let Some(block) = blocks.last_mut() else {
            return Err(format!("line {line}: a step outside of a case"));
        };
        match verb {
            "needs" => block.needs.extend_from_slice(rest),
            "end" => {
                let step = open.pop().ok_or_else(|| format!("line {line}: nothing to end here"))?;
                open.last_mut().map_or(&mut block.steps, |outer| &mut outer.body).push(step);
            }
            _ => {
                let holds = BLOCKS.contains(&verb);
                let text = step.to_owned();
                let step = Step { line, text, answer: answer.to_owned(), body: Vec::new(), words };
                if holds {
                    open.push(step);
                } else {
                    open.last_mut().map_or(&mut block.steps, |outer| &mut outer.body).push(step);
                }
            }
        }
    }
    match open.last() {
        Some(step) => Err(format!("line {}: `{}` has no end", step.line, step.verb())),
        None => Ok(blocks),
    }
}

/// The words of a line; `"..."` is one word, quotes kept.
fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in line.chars() {
        if c == '"' {
            quoted = !quoted;
        }
        if c.is_whitespace() && !quoted {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
        } else {
            word.push(c);
        }
    }
    if quoted {
        return Err("a quote has no end".to_owned());
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

/// The text with the answers in `answers` (line, answer) in the place of those that stand there; nothing else changes.
pub(crate) fn with_answers(text: &str, answers: &std::collections::BTreeMap<usize, String>) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, raw) in text.lines().enumerate() {
        match answers.get(&(index + 1)) {
            Some(answer) => {
                out.push_str(raw.split_once(" => ").map_or(raw, |(step, _)| step).trim_end());
                if !answer.is_empty() {
                    out.push_str(" => ");
                    out.push_str(answer);
                }
            }
            None => out.push_str(raw),
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const TEXT: &str = "needs edu\n# why\ncase one\n  open /dev/iommu i\n  fork => x\n    close i\n  end\n";

    #[test]
    fn steps_nest_and_keep_their_lines() {
        let blocks = parse(TEXT).unwrap();
        assert_eq!(blocks.len(), 1);
        assert_eq!(blocks[0].needs, ["edu"]);
        assert_eq!(blocks[0].steps.len(), 2);
        assert_eq!(blocks[0].steps[1].answer, "x");
        assert_eq!(flatten(&blocks[0].steps).iter().map(|step| step.line).collect::<Vec<_>>(), [4, 5, 6]);
    }

    #[test]
    fn recording_changes_answers_only() {
        let answers = BTreeMap::from([(4, "EPERM".to_owned()), (5, String::new())]);
        let recorded = with_answers(TEXT, &answers);
        assert_eq!(recorded, TEXT.replace("iommu i", "iommu i => EPERM").replace(" => x", ""));
        assert_eq!(with_answers(&recorded, &BTreeMap::from([(4, String::new()), (5, "x".to_owned())])), TEXT);
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (text, line) in [
            ("case a\n  fork\n  close i\n", 2),
            ("case a\n  end\n", 2),
            ("  close i\n", 1),
            ("close i\n", 1),
            ("case a\n  open \"x\n", 2),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(&format!("line {line}:")), "{text}: {error}");
        }
    }
}
