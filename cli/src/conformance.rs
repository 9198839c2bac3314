//! `noiommu conformance`: what Linux 7.3 answers, asked of whatever answers here.

use std::process::{Command, ExitCode};

use noiommu::serve::{Provider, Settings};
use noiommu_conformance::command::Run;

use crate::serve::{self, Refusal};

/// How it is called.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The cases are sequences of calls on /dev/iommu and VFIO, with the answers that Linux 7.3 gave. Where this kernel has
no-IOMMU device nodes it is asked itself; elsewhere the engine is, through the preload library, with simulated devices
(cases that need another kind of device are skipped, and told).

Examples:
  noiommu conformance
  noiommu conformance --section map --section copy
  noiommu conformance --json | jq .differences

Exit status: 0 no answer differs but as listed, 1 some do, 2 it could not be run.")]
pub(crate) struct Options {
    #[command(flatten)]
    run: Run,

    /// Ask the engine about this machine's real devices, not simulated ones (needs `noiommu enable`)
    #[arg(long)]
    real: bool,
}

/// Runs the cases.
pub(crate) fn run(options: &Options) -> ExitCode {
    if noiommu_conformance::command::is_served() || noiommu::serve::kernel_serves() {
        return noiommu_conformance::Command::Run(options.run.clone()).execute();
    }
    match served(options) {
        Ok(code) => code,
        Err(refusal) => {
            refusal.tell(options.run.is_json());
            ExitCode::from(2)
        }
    }
}

/// Runs this program anew, served.
fn served(options: &Options) -> Result<ExitCode, Refusal> {
    let provider = if options.real { Provider::Auto } else { Provider::Sim };
    let settings = Settings { provider, ..Settings::default() };
    noiommu::serve::check(&settings)?;
    let program = std::env::current_exe().map_err(|error| Refusal::system("finding this program", &error))?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1));
    serve::serve_in(&mut command, &settings)?;
    let status = command.status().map_err(|error| Refusal::system("starting this program anew", &error))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}
