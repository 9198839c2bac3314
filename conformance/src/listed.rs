//! The list of differences that user space cannot close: what comes instead, and why.
//!
//! ```text
//! case map-file/read-only-descriptor
//! on preload
//! step IOMMU_IOAS_MAP_FILE i ...
//! answer EFAULT
//! reason one or more lines
//! ```
//!
//! Blocks are separated by empty lines. `on` may name several providers. `step` is the step's text as in the case; `step 2: TEXT` is the second one of that text.

use crate::cases::Library;
use crate::parse;

/// One difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listed {
    /// `section/name` of the case.
    pub(crate) case: String,
    /// The providers it is about.
    pub(crate) providers: Vec<String>,
    /// The line of the step in its file.
    pub(crate) line: usize,
    /// The step's text.
    pub(crate) step: String,
    /// What comes instead of the kernel's answer.
    pub(crate) answer: String,
    /// Why it cannot be helped.
    pub(crate) reason: String,
}

/// Reads the list.
///
/// # Errors
/// An entry that is not whole, or speaks of a case or step that is not there.
pub(crate) fn parse(text: &str, library: &Library) -> Result<Vec<Listed>, String> {
    let mut all = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for block in lines.split(|line| line.trim().is_empty()).filter(|block| !block.is_empty()) {
        let mut entry = Listed::default();
        let mut occurrence = 1;
        for line in block {
            let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            match word {
                "case" => entry.case = rest.to_owned(),
                "on" => entry.providers = rest.split(' ').map(str::to_owned).collect(),
                "step" => {
                    let counted =
                        rest.split_once(": ").and_then(|(n, text)| Some((n.parse::<usize>().ok()?, text)));
                    let (n, text) = counted.unwrap_or((1, rest));
                    (occurrence, entry.step) = (n, text.to_owned());
                }
                "answer" => entry.answer = rest.to_owned(),
                "reason" => entry.reason = rest.to_owned(),
                _ if !entry.reason.is_empty() => {
                    entry.reason.push(' ');
                    entry.reason.push_str(line.trim());
                }
                _ => return Err(format!("listed: `{line}` says nothing")),
            }
        }
        if entry.providers.is_empty() || entry.reason.is_empty() {
            return Err(format!("listed: the entry of `{}` is not whole", entry.case));
        }
        let Some(case) = library.case(&entry.case) else {
            return Err(format!("listed: no case `{}`", entry.case));
        };
        let steps = parse::flatten(&case.steps);
        let Some(step) =
            steps.iter().filter(|step| step.text == entry.step).nth(occurrence.saturating_sub(1))
        else {
            return Err(format!("listed: `{}` has no step `{}`", entry.case, entry.step));
        };
        entry.line = step.line;
        all.push(entry);
    }
    Ok(all)
}
