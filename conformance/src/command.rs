//! The command line, which the `noiommu` program has too.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::cases::{self, Library};
use crate::fuzz::Fuzz;
use crate::listed;
use crate::parse::{self, Block};
use crate::process;
use crate::report::{Report, Verdict};
use crate::roles::Roles;
use crate::runner;
use crate::steps;
use crate::world::WITHOUT;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the cases and compare the answers with those of Linux 7.3
    Run(Run),
    /// Print the names of the cases
    List(Choice),
    /// Run random sequences of calls and print a digest of each one's answers
    Fuzz(Fuzz),
}

/// Which cases.
#[derive(Debug, Clone, Args)]
pub struct Choice {
    /// Only cases whose section/name holds this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Only cases of this section (may be given again)
    #[arg(long, value_name = "SECTION")]
    section: Vec<String>,
    /// Cases of this directory instead of those built in
    #[arg(long, value_name = "DIRECTORY")]
    cases: Option<PathBuf>,
}

/// How to run them.
#[derive(Debug, Clone, Args)]
pub struct Run {
    #[command(flatten)]
    choice: Choice,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Write the files of the cases with the answers that came into this directory
    #[arg(long, value_name = "DIRECTORY")]
    record: Option<PathBuf>,
    /// A list of differences instead of the one built in
    #[arg(long, value_name = "FILE")]
    listed: Option<PathBuf>,
    /// Which provider answers: `native`, `preload`, `sim`; found out unless said
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Which device plays which part, as in edu=0000:00:03.0 (may be given again)
    #[arg(long, value_name = "ROLE=ADDRESS", value_parser = role)]
    devices: Vec<(String, String)>,
    /// How long a case may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Print every case as it runs
    #[arg(short, long)]
    verbose: bool,
}

pub(crate) fn role(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').map(|(role, address)| (role.to_owned(), address.to_owned()));
    parts.ok_or_else(|| "a role and an address, as in edu=0000:00:03.0".to_owned())
}

/// Exit code where an answer differs.
const DIFFERENT: u8 = 1;
/// Exit code where nothing could be asked.
const FAILED: u8 = 2;

impl Command {
    /// Does it; 0 where no answer differs.
    #[must_use]
    pub fn execute(&self) -> ExitCode {
        let result = match self {
            Self::Run(run) => run.execute(),
            Self::List(choice) => choice.list(),
            Self::Fuzz(fuzz) => fuzz.execute(),
        };
        result.unwrap_or_else(|problem| {
            let _ = writeln!(std::io::stderr(), "conformance: {problem}");
            ExitCode::from(FAILED)
        })
    }
}

/// Whether this process has the preload library loaded, which answers then.
#[must_use]
pub fn is_served() -> bool {
    std::fs::read_to_string("/proc/self/maps").is_ok_and(|maps| maps.contains("libnoiommu_preload"))
}

impl Run {
    /// Whether the result is printed as JSON.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.json
    }
}

impl Choice {
    /// All cases, or those of the section that a case is in.
    fn library(&self, identity: Option<&str>) -> Result<Library, String> {
        let section = identity.and_then(|identity| Some(identity.split_once('/')?.0));
        match &self.cases {
            None => Library::embedded(section),
            Some(directory) => Library::from_directory(directory, section),
        }
    }

    fn wants(&self, section: &str, identity: &str) -> bool {
        (self.section.is_empty() || self.section.iter().any(|wanted| wanted == section))
            && self.filter.as_ref().is_none_or(|text| identity.contains(text.as_str()))
    }

    fn list(&self) -> Result<ExitCode, String> {
        let library = self.library(None)?;
        let mut out = std::io::stdout().lock();
        for source in &library.sources {
            for case in &source.cases {
                let identity = format!("{}/{}", source.section, case.name);
                if self.wants(&source.section, &identity) {
                    let _ = writeln!(out, "{identity}");
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Run {
    fn execute(&self) -> Result<ExitCode, String> {
        let executed = process::executed();
        let library = self.choice.library(executed.as_ref().map(|executed| executed.identity.as_str()))?;
        let roles = Roles::find_apart(&self.devices)?;
        if let Some(executed) = executed {
            std::process::exit(runner::go_on(&library, &roles, executed));
        }
        let listed = match &self.listed {
            None => cases::LISTED.to_owned(),
            Some(file) => std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?,
        };
        let listed = listed::parse(&listed, &library)?;
        let provider = self.provider.clone().unwrap_or_else(|| provider(&roles).to_owned());
        let obstacle = |case: &Block| runner::obstacle(case, &roles);
        let patience = Duration::from_secs(self.timeout);
        let mut report = Report::new(provider.clone());
        for source in &library.sources {
            let mut recorded = std::collections::BTreeMap::new();
            for case in &source.cases {
                let identity = format!("{}/{}", source.section, case.name);
                if !self.choice.wants(&source.section, &identity) {
                    continue;
                }
                if let Some(why) = obstacle(case) {
                    if self.verbose {
                        let _ = writeln!(std::io::stderr(), "{identity}: skipped, {why}");
                    }
                    report.skipped(&source.section, &identity, &why);
                    continue;
                }
                let answers = runner::run(&library, case, &identity, &roles, patience);
                // What is not there is a difference only where nothing is recorded.
                let wrong = |answer: &str| {
                    answer.starts_with(steps::MISTAKE) || self.record.is_some() && answer.starts_with(WITHOUT)
                };
                if let Some((line, what)) = answers.iter().find(|(_, answer)| wrong(answer)) {
                    return Err(format!("{identity}, line {line}: {what}"));
                }
                let verdict = Verdict::new(&identity, &provider, case, &answers, &listed);
                if self.verbose {
                    let _ = writeln!(std::io::stderr(), "{identity}: {}", verdict.word());
                }
                report.add(&source.section, source, case, verdict);
                recorded.extend(answers);
            }
            if let Some(directory) = &self.record {
                let file = directory.join(&source.section).join(format!("{}.txt", source.topic));
                let write = || {
                    std::fs::create_dir_all(directory.join(&source.section))?;
                    std::fs::write(&file, parse::with_answers(&source.text, &recorded))
                };
                write().map_err(|e| format!("{}: {e}", file.display()))?;
            }
        }
        let _ = write!(std::io::stdout(), "{}", if self.json { report.json() } else { report.text() });
        Ok(if report.differences() == 0 { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) })
    }
}

/// Simulated devices, answered by a preload library.
const SIM: &str = "sim";

/// Who answers here: a preload library that this process has loaded, for real devices or simulated ones, or else the kernel.
fn provider(roles: &Roles) -> &'static str {
    match is_served() {
        true if roles.all().any(|(_, device)| device.simulated) => SIM,
        true => "preload",
        false => "native",
    }
}
