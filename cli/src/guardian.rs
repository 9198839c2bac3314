//! `noiommu guardian`: who keeps memory where it is when drivers die.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use noiommu::guardian::{self, Service};
use serde_json::json;

/// Show who guards drivers on this machine, or guard them
///
/// A driver that dies while its device is doing DMA leaves a device that writes to memory which the kernel gives to others. So each
/// driver on the kit has a guardian, a process of its own, which makes the device quiet first. Where a service manager or a
/// container runtime ends all processes of a driver's cgroup or PID namespace at once, the guardian is to run outside of it, as a
/// service: noiommu guardian --listen. Drivers find it by its socket, or by NOIOMMU_GUARDIAN=service:PATH.
///
/// It needs to fetch io_uring rings from the drivers (CAP_SYS_PTRACE in their user namespace), and no device. When it ends, drivers
/// map nothing any more until there is a guardian again.
#[derive(Debug, Args)]
#[command(after_help = "\
A unit for systemd:

  [Service]
  ExecStart=/usr/bin/noiommu guardian --listen
  Restart=always
  OOMScoreAdjust=-1000

In containers, the directory of the socket is shared with those of the drivers; the guardian's own wants the host's PID
namespace (hostPID) and CAP_SYS_PTRACE.

Exit status: 0 done, 1 it could not be done, 2 wrong usage.")]
pub(crate) struct Options {
    /// Guard drivers until stopped, and listen for them here
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = guardian::SOCKET)]
    listen: Option<PathBuf>,

    /// Who may connect, as the permissions of the socket
    #[arg(long, value_name = "OCTAL", default_value = "600", requires = "listen", value_parser = octal)]
    mode: u32,

    /// Print JSON
    #[arg(long, conflicts_with = "listen")]
    json: bool,
}

fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("permissions are three octal digits, such as 600 or 660".to_owned()),
    }
}

/// Runs the subcommand.
pub(crate) fn run(options: &Options) -> ExitCode {
    match &options.listen {
        Some(path) => listen(path, options.mode),
        None => show(options.json),
    }
}

fn listen(path: &Path, mode: u32) -> ExitCode {
    let service = Service::listen(path, mode);
    let served = service.and_then(|service| {
        let _ = writeln!(anstream::stderr(), "noiommu: guarding drivers that connect to {}", path.display());
        service.run()
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::failed(false, &error),
    }
}

/// A guardian of a driver's own.
struct Guardian {
    process: u32,
    /// Whose it is; `None`: the driver is dead, and a device is not quiet yet.
    driver: Option<u32>,
}

/// Those that this process is shown.
fn guardians() -> Vec<Guardian> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found: Vec<_> = processes.filter_map(guardian_of).collect();
    found.sort_by_key(|guardian| guardian.process);
    found
}

fn guardian_of(process: u32) -> Option<Guardian> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name is in brackets, and may have any in it; after it come the state and the parent.
    let (_, rest) = stat.split_once(" (noiommu-guard) ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let parent: u32 = fields.next()?.parse().ok()?;
    // A child of its driver, which has the same program; of init's when the driver is dead.
    let program = |process: u32| fs::read_link(format!("/proc/{process}/exe")).ok();
    let is_driver = program(parent).is_some() && program(parent) == program(process);
    (state != "Z").then_some(Guardian { process, driver: is_driver.then_some(parent) })
}

fn show(json: bool) -> ExitCode {
    let service = fs::exists(guardian::SOCKET).unwrap_or(false);
    let all = guardians();
    if json {
        let all: Vec<_> =
            all.iter().map(|one| json!({ "process": one.process, "driver": one.driver })).collect();
        let text = json!({ "service": service.then_some(guardian::SOCKET), "guardians": all });
        let _ = writeln!(std::io::stdout(), "{text}");
        return ExitCode::SUCCESS;
    }
    let mut out = anstream::stdout();
    let _ = match service {
        true => writeln!(out, "service: listens on {}", guardian::SOCKET),
        false => writeln!(out, "service: none; each driver has a guardian of its own"),
    };
    for Guardian { process, driver } in &all {
        let _ = match driver {
            Some(driver) => writeln!(out, "process {process}: guards driver {driver}"),
            None => {
                writeln!(out, "process {process}: its driver is dead, and a device is not quiet (see dmesg)")
            }
        };
    }
    if all.is_empty() {
        let _ = writeln!(out, "no driver is guarded by a process of its own");
    }
    ExitCode::SUCCESS
}
