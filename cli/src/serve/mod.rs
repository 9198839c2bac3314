//! `noiommu serve`: another program, with /dev/iommu and the nodes of VFIO served inside it by the preload library.

mod library;
mod program;

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use noiommu::serve::{Provider, Settings, VARIABLE};

use crate::Failure;

/// How it is called.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The program needs no change and no new build, but it must be dynamically linked with the C library of this machine. It
finds /dev/iommu, /dev/vfio/devices/noiommu-vfioN and, for older programs, /dev/vfio/vfio and /dev/vfio/noiommu-N. Where
the kernel has the first two itself, these are used, and nothing is served.

Real devices need `noiommu enable` once (root), and the program CAP_SYS_ADMIN (physical addresses) and CAP_SYS_RAWIO.

Examples:
  noiommu serve -- ./my-nvme-driver 0000:00:04.0
  noiommu serve --device 0000:00:04.0 -- ./my-nvme-driver 0000:00:04.0
  noiommu serve --provider sim -- ls -l /dev/vfio/devices    # no device, no privilege: simulated ones

The program takes the place of this one: its exit status, its signals and its terminal are its own. When it cannot
be started, the status is 125.")]
pub(crate) struct Options {
    /// What is served: real devices, or simulated ones
    #[arg(long, value_enum, default_value_t = Served::Auto)]
    provider: Served,

    /// Serve this PCI device only; can be given more than once. Without it: all that have no driver and no IOMMU
    #[arg(long, value_name = "BDF")]
    device: Vec<String>,

    /// Leave out groups and the container, as a kernel built without them
    #[arg(long)]
    no_group: bool,

    /// Leave out /dev/vfio/devices and /dev/iommu, as a kernel built without them
    #[arg(long, conflicts_with = "no_group")]
    no_cdev: bool,

    /// Say why, too, when nothing is served
    #[arg(short, long)]
    verbose: bool,

    /// The program and its arguments, after `--`
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// The providers, as the command line has them.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Served {
    /// Real devices, by the best way there is
    Auto,
    /// Simulated devices: nothing unsafe
    Sim,
}

/// Why the program was not started, and what helps.
pub(crate) struct Refusal {
    cause: String,
    remedy: Option<String>,
}

impl Refusal {
    fn new(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { cause: cause.into(), remedy: Some(remedy.into()) }
    }

    /// What the system refused.
    pub(crate) fn system(doing: &str, error: &std::io::Error) -> Self {
        Self { cause: format!("{doing}: {error}"), remedy: None }
    }

    /// Says so, in the form asked for.
    pub(crate) fn tell(&self, json: bool) {
        let (cause, remedy) = (&self.cause, self.remedy.as_deref());
        crate::tell_failure(json, &Failure { kind: "NotStarted", errno: None, cause, remedy });
    }
}

impl From<noiommu::Error> for Refusal {
    fn from(error: noiommu::Error) -> Self {
        Self { cause: error.cause().to_owned(), remedy: error.remedy().map(str::to_owned) }
    }
}

/// Runs the program; comes back only when it could not be started.
pub(crate) fn run(options: &Options) -> ExitCode {
    /// What `env` and others answer when it is they who failed, and not the program.
    const NOT_STARTED: u8 = 125;
    let Err(refusal) = start(options);
    refusal.tell(false);
    ExitCode::from(NOT_STARTED)
}

fn start(options: &Options) -> Result<std::convert::Infallible, Refusal> {
    let settings = Settings {
        provider: match options.provider {
            Served::Auto => Provider::Auto,
            Served::Sim => Provider::Sim,
        },
        devices: options.device.clone(),
        verbose: options.verbose,
        no_group: options.no_group,
        no_cdev: options.no_cdev,
    };
    let (name, arguments) =
        options.program.split_first().ok_or_else(|| Refusal::new("no program", "name one"))?;
    let program = program::find(name)?;
    let mut command = Command::new(&program);
    serve_in(&mut command, &settings)?;
    program::check(&program)?;
    check(&settings)?;
    let error = command.arg0(name).args(arguments).exec();
    Err(Refusal { cause: format!("{} cannot be started: {error}", program.display()), remedy: None })
}

/// Has a program served.
pub(crate) fn serve_in(command: &mut Command, settings: &Settings) -> Result<(), Refusal> {
    let library = library::find()?;
    command.env("LD_PRELOAD", library::before_others(&library)?).env(VARIABLE, settings.to_string());
    Ok(())
}

/// Whether the program will find what it needs, as far as that can be seen before.
fn check(settings: &Settings) -> Result<(), Refusal> {
    if settings.provider == Provider::Sim {
        return Ok(());
    }
    noiommu::serve::check(settings)?;
    if let Some(check) = crate::doctor::in_the_way() {
        return Err(Refusal::new(
            format!("opening a device without an IOMMU: {}", check.found),
            "run it as root of the machine (`noiommu doctor` tells more), or try simulated devices: --provider sim",
        ));
    }
    Ok(())
}
