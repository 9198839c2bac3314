//! The conformance cases in guests: asked of the kernel itself or of the preload library, and recorded anew.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::guest::{self, Scenario};
use super::pack;
use super::{Choice, EDU, NVME, OnKernel, UNSAFE_NOIOMMU, Variant};
use crate::project::Project;

/// The runner: package and file.
pub(super) const RUNNER: (&str, &str) = ("noiommu-conformance", "noiommu-conformance");

/// Where the cases are, in the tree.
const CASES: &str = "conformance/cases";

/// How many differences are told one by one.
const MOST_TOLD: usize = 10;

/// Runs all cases; an error when an answer differs, or when a case did not run that can run on this kernel.
pub(crate) fn conformance(project: &Project, options: &OnKernel) -> Result<()> {
    let report = report(&run(project, options, "run")?)?;
    // Without a group some things cannot be asked; the preload library has one for every device.
    judge(&report, matches!(options.kernel, Choice::Built(Variant::CdevOnly)) && !options.preload)?;
    let count = |key: &str| report[key].as_array().map_or(0, Vec::len);
    println!(
        "{} cases, 0 differences, {} listed, {} skipped",
        report["cases"],
        count("listed"),
        count("skipped")
    );
    Ok(())
}

/// Records the answers of the reference kernel into the tree.
pub(crate) fn golden(project: &Project, options: &guest::Options) -> Result<()> {
    let mut on = OnKernel::native(Choice::Built(Variant::Reference));
    on.stock.run = options.clone();
    let output = run(project, &on, "record")?;
    let report = report(&output)?;
    // A case that did not run has no answers to keep.
    ensure_ran(&report)?;
    let mut changed = 0;
    for section in directory(&output.join("cases"))? {
        for file in directory(&output.join("cases").join(&section))? {
            let place = Path::new(&section).join(&file);
            let (old, new) = (project.root.join(CASES).join(&place), output.join("cases").join(&place));
            let new = fs::read(&new).with_context(|| format!("{}", new.display()))?;
            // The guest was given these files: another name is none of ours.
            if fs::read(&old).with_context(|| format!("{}", old.display()))? != new {
                fs::write(&old, new).with_context(|| format!("{}", old.display()))?;
                println!("changed: {CASES}/{}", place.display());
                changed += 1;
            }
        }
    }
    println!("{} cases recorded, {changed} files changed; to be reviewed with git diff", report["cases"]);
    Ok(())
}

/// Runs the scenario with this word for its script; answers the directory that it leaves.
fn run(project: &Project, options: &OnKernel, word: &'static str) -> Result<PathBuf> {
    let kernel = options.kernel(project)?;
    let (mut files, arguments) = options.prepare(project, &[word])?;
    files.add_programs(&pack::build(project, &[RUNNER])?)?;
    let cases = project.root.join(CASES);
    for section in directory(&cases)? {
        for file in directory(&cases.join(&section))? {
            files.add(format!("cases/{section}/{file}"), 0o644, &cases.join(&section).join(&file))?;
        }
    }
    files.add("cases/listed.txt", 0o644, &project.root.join("conformance/listed.txt"))?;
    let scenario = Scenario {
        name: "conformance",
        arguments,
        devices: &[EDU, EDU, NVME, "e1000e,netdev=net"],
        drives: &["nvme"],
        nets: &["net"],
        append: &[UNSAFE_NOIOMMU],
        witnessed: false,
    };
    guest::run(project, &scenario, &kernel, files, &options.stock.run)
}

fn report(output: &Path) -> Result<Value> {
    let text = fs::read_to_string(output.join("report.json")).context("the guest left no report")?;
    serde_json::from_str(&text).context("the guest's report is no JSON")
}

/// An error that tells the first differences.
fn judge(report: &Value, may_skip: bool) -> Result<()> {
    let different = report["different"].as_array().context("the report tells no differences")?;
    if report["differences"] != 0 || !different.is_empty() {
        let tell = |one: &Value| {
            let [case, step, expected, got] =
                ["case", "step", "expected", "got"].map(|key| one[key].as_str().unwrap_or_default());
            format!("{case}: {step}\n      expected {expected}\n      got      {got}")
        };
        let told: Vec<String> = different.iter().take(MOST_TOLD).map(tell).collect();
        bail!("{} of {} cases differ:\n    {}", report["differences"], report["cases"], told.join("\n    "));
    }
    if !may_skip {
        ensure_ran(report)?;
    }
    Ok(())
}

/// An error when a case was left out, or all were.
fn ensure_ran(report: &Value) -> Result<()> {
    let skipped = report["skipped"].as_array().context("the report tells nothing of skipped cases")?;
    if let Some(first) = skipped.first() {
        bail!("{} cases did not run, such as {}: {}", skipped.len(), first["case"], first["reason"]);
    }
    ensure!(report["cases"].as_u64().is_some_and(|cases| cases > 0), "no case ran");
    Ok(())
}

/// The names in a directory, in order, of those that are directories or files of cases.
fn directory(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("{}", path.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() || name.ends_with(".txt") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_whole_run_without_differences_passes() {
        let report = |differences: u32, skipped: Value, different: Value| json!({"cases": 2, "differences": differences, "skipped": skipped, "different": different});
        let skip = json!([{"case": "a/b", "reason": "no edu here"}]);
        assert!(judge(&report(0, json!([]), json!([])), false).is_ok());
        assert!(judge(&report(0, skip.clone(), json!([])), false).is_err());
        assert!(judge(&report(0, skip, json!([])), true).is_ok());
        assert!(judge(&report(1, json!([]), json!([{"case": "a/c"}])), true).is_err());
        assert!(judge(&json!({}), true).is_err());
        assert!(
            judge(&json!({"cases": 0, "differences": 0, "skipped": [], "different": []}), false).is_err()
        );
    }
}
