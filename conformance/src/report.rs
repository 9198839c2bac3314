//! What came out, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::cases::Source;
use crate::listed::Listed;
use crate::parse::{self, Block, Step};

/// Differences that are shown whole.
const SHOWN: usize = 20;

/// One step's answer that is not the kernel's.
#[derive(Clone, Debug)]
struct Difference {
    line: usize,
    step: String,
    expected: String,
    got: String,
}

/// What came out of a case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    identity: String,
    differences: Vec<Difference>,
    /// Entries of the list that came true.
    listed: Vec<Listed>,
    /// Entries of the list where the kernel's own answer came.
    obsolete: Vec<Listed>,
}

impl Verdict {
    /// Compares answers with the recorded ones, and with the list for that provider.
    pub(crate) fn new(
        identity: &str,
        provider: &str,
        case: &Block,
        answers: &BTreeMap<usize, String>,
        listed: &[Listed],
    ) -> Self {
        let mut verdict = Self { identity: identity.to_owned(), ..Self::default() };
        for step in parse::flatten(&case.steps) {
            let got = answers.get(&step.line).map_or("", String::as_str);
            let entry = listed.iter().find(|entry| {
                entry.providers.iter().any(|name| name == provider)
                    && entry.case == identity
                    && entry.line == step.line
            });
            match entry {
                Some(entry) if got == entry.answer => verdict.listed.push(entry.clone()),
                Some(entry) if got == step.answer => verdict.obsolete.push(entry.clone()),
                None if got == step.answer => {}
                _ => verdict.differences.push(Difference {
                    line: step.line,
                    step: step.text.clone(),
                    expected: entry.map_or(&step.answer, |entry| &entry.answer).clone(),
                    got: got.to_owned(),
                }),
            }
        }
        verdict
    }

    /// In one word.
    pub(crate) fn word(&self) -> &'static str {
        match (self.differences.is_empty(), self.listed.is_empty()) {
            (false, _) => "different",
            (true, false) => "as listed",
            (true, true) => "same",
        }
    }
}

/// Counts of a section.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    cases: usize,
    same: usize,
    listed: usize,
    different: usize,
    skipped: usize,
}

/// What came out of a run.
#[derive(Debug)]
pub(crate) struct Report {
    provider: String,
    sections: Vec<(String, Counts)>,
    skipped: Vec<(String, String)>,
    verdicts: Vec<(Verdict, String)>,
}

impl Report {
    pub(crate) fn new(provider: String) -> Self {
        Self { provider, sections: Vec::new(), skipped: Vec::new(), verdicts: Vec::new() }
    }

    fn section(&mut self, name: &str) -> &mut Counts {
        let at = match self.sections.iter().position(|(section, _)| section == name) {
            Some(at) => at,
            None => {
                self.sections.push((name.to_owned(), Counts::default()));
                self.sections.len() - 1
            }
        };
        &mut self.sections[at].1
    }

    /// Notes a case that could not run.
    pub(crate) fn skipped(&mut self, section: &str, identity: &str, why: &str) {
        let counts = self.section(section);
        counts.cases += 1;
        counts.skipped += 1;
        self.skipped.push((identity.to_owned(), why.to_owned()));
    }

    /// Notes what came out of one that ran.
    pub(crate) fn add(&mut self, section: &str, source: &Source, case: &Block, verdict: Verdict) {
        let counts = self.section(section);
        counts.cases += 1;
        match verdict.word() {
            "same" => counts.same += 1,
            "as listed" => counts.listed += 1,
            _ => counts.different += 1,
        }
        let text =
            if verdict.differences.is_empty() { String::new() } else { case_text(source, case, &verdict) };
        self.verdicts.push((verdict, text));
    }

    /// The number of cases with an answer that is neither the kernel's nor listed.
    pub(crate) fn differences(&self) -> usize {
        self.verdicts.iter().filter(|(verdict, _)| !verdict.differences.is_empty()).count()
    }

    fn total(&self) -> Counts {
        let mut total = Counts::default();
        for (_, counts) in &self.sections {
            total.cases += counts.cases;
            total.same += counts.same;
            total.listed += counts.listed;
            total.different += counts.different;
            total.skipped += counts.skipped;
        }
        total
    }

    /// For programs.
    pub(crate) fn json(&self) -> String {
        let entry = |entry: &Listed| json!({ "case": entry.case, "step": entry.step, "answer": entry.answer, "reason": entry.reason });
        let listed: Vec<Value> =
            self.verdicts.iter().flat_map(|(verdict, _)| &verdict.listed).map(entry).collect();
        let obsolete: Vec<Value> =
            self.verdicts.iter().flat_map(|(verdict, _)| &verdict.obsolete).map(entry).collect();
        let different: Vec<Value> = self
            .verdicts
            .iter()
            .flat_map(|(verdict, _)| verdict.differences.iter().map(|d| (&verdict.identity, d)))
            .map(|(identity, d)| {
                json!({ "case": identity, "line": d.line, "step": d.step, "expected": d.expected, "got": d.got })
            })
            .collect();
        let skipped: Vec<Value> =
            self.skipped.iter().map(|(case, why)| json!({ "case": case, "reason": why })).collect();
        let sections: serde_json::Map<String, Value> = self
            .sections
            .iter()
            .map(|(name, c)| {
                let counts = json!({ "cases": c.cases, "same": c.same, "listed": c.listed,
                    "different": c.different, "skipped": c.skipped });
                (name.clone(), counts)
            })
            .collect();
        let report = json!({
            "cases": self.total().cases,
            "differences": self.differences(),
            "listed": listed,
            "obsolete": obsolete,
            "skipped": skipped,
            "provider": self.provider,
            "sections": sections,
            "different": different,
        });
        format!("{report}\n")
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        for (_, text) in self.verdicts.iter().filter(|(_, text)| !text.is_empty()).take(SHOWN) {
            let _ = writeln!(out, "{text}");
        }
        if self.differences() > SHOWN {
            let _ = writeln!(out, "... and {} more cases that differ\n", self.differences() - SHOWN);
        }
        let _ = writeln!(
            out,
            "{:<10} {:>6} {:>6} {:>6} {:>9} {:>7}",
            "section", "cases", "same", "listed", "different", "skipped"
        );
        let mut row = |name: &str, c: &Counts| {
            let _ = writeln!(
                out,
                "{name:<10} {:>6} {:>6} {:>6} {:>9} {:>7}",
                c.cases, c.same, c.listed, c.different, c.skipped
            );
        };
        for (name, counts) in &self.sections {
            row(name, counts);
        }
        row("all", &self.total());
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, why) in &self.skipped {
            *reasons.entry(why).or_default() += 1;
        }
        for (why, count) in reasons {
            let _ = writeln!(out, "skipped {count}: {why}");
        }
        for entry in self.verdicts.iter().flat_map(|(verdict, _)| &verdict.obsolete) {
            let _ = writeln!(out, "listed, but the kernel's own answer came: {}: {}", entry.case, entry.step);
        }
        out
    }
}

/// The case's text with, under the steps that differ, what was expected and what came.
fn case_text(source: &Source, case: &Block, verdict: &Verdict) -> String {
    let mut out = format!("{} ({}/{}.txt:{})\n", verdict.identity, source.section, source.topic, case.line);
    tell_steps(&mut out, &case.steps, verdict, 1);
    out
}

fn tell_steps(out: &mut String, steps: &[Step], verdict: &Verdict, depth: usize) {
    let shown = |answer: &str| if answer.is_empty() { "(nothing)".to_owned() } else { answer.to_owned() };
    for step in steps {
        let indent = "  ".repeat(depth);
        match verdict.differences.iter().find(|difference| difference.line == step.line) {
            None => {
                let _ = writeln!(out, "  {indent}{}", step.text);
            }
            Some(difference) => {
                let _ = writeln!(out, "! {indent}{}", step.text);
                let _ = writeln!(out, "    {indent}expected {}", shown(&difference.expected));
                let _ = writeln!(out, "    {indent}got      {}", shown(&difference.got));
            }
        }
        tell_steps(out, &step.body, verdict, depth + 1);
    }
}
