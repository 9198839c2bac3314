//! `noiommu bind --config` and `noiommu unbind --config`: the devices that a file names, as the system's unit binds them at boot.
//!
//! [`file`] reads what is asked for, [`memory`] keeps what was done, [`tell`] says it.

mod file;
mod memory;
mod tell;

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::ExitCode;

use noiommu::binding::{self, Bound, Options, Plan};
use noiommu::pci::{self, PciDevice};
use noiommu::{Error, ErrorKind, optin};

use self::file::{Config, Line};
use self::memory::Memory;
use crate::{FAILED, Failure};

/// Exit code of a file with mistakes, or one that cannot be read: as for wrong arguments.
const WRONG: u8 = 2;
/// Exit code where nothing failed, but a line means no device that is there.
const ABSENT: u8 = 3;
/// No configuration is longer.
const LONGEST: u64 = 1 << 20;

/// How `bind --config` is called.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// The file.
    pub(super) path: &'a Path,
    /// This device alone, as when it is plugged in.
    pub(super) device: Option<&'a str>,
    /// Nothing is changed.
    pub(super) dry_run: bool,
    /// For programs.
    pub(super) json: bool,
}

/// A device, the line that it is bound by, and what became of it.
struct Row<'a, T> {
    line: &'a Line,
    address: String,
    result: Result<T, Error>,
}

/// Binds what the file names.
pub(super) fn bind(wanted: &Wanted<'_>) -> ExitCode {
    let text = match read(wanted.path) {
        Ok(text) => text,
        Err((cause, remedy)) => return told(wanted.json, &cause, &remedy, WRONG),
    };
    let config = match file::parse(&text) {
        Ok(config) => config,
        Err(mistakes) => {
            tell::mistakes(wanted, &mistakes);
            return ExitCode::from(WRONG);
        }
    };
    let all = match devices(wanted.device) {
        Ok(devices) => devices,
        Err(error) => return crate::failed(wanted.json, &error),
    };
    let chosen: Vec<(&Line, PciDevice)> =
        all.into_iter().filter_map(|device| Some((config.line_for(&device)?, device))).collect();
    // What is plugged in is mostly no concern of ours, and nobody asked.
    if wanted.device.is_some() && chosen.is_empty() {
        return ExitCode::SUCCESS;
    }
    let together: Vec<String> = chosen.iter().map(|(_, device)| device.address.clone()).collect();
    let options =
        |line: &Line| Options { provider: line.provider, together: together.clone(), ..Options::default() };
    if wanted.dry_run {
        let rows = chosen.iter().map(|(line, device)| {
            let result = binding::plan(&device.address, &options(line));
            Row { line, address: device.address.clone(), result }
        });
        return planned(wanted, &config, &rows.collect::<Vec<_>>());
    }
    let memory = match Memory::open() {
        Ok(memory) => memory,
        Err(error) => return told(wanted.json, &not_remembered(&error), RUN_AS_ROOT, FAILED),
    };
    if config.enable
        && let Err(error) = enable(&memory)
    {
        return crate::failed(wanted.json, &error);
    }
    let mut rows = Vec::new();
    for (line, device) in &chosen {
        match bind_one(&memory, &device.address, &options(line)) {
            Ok(result) => rows.push(Row { line, address: device.address.clone(), result }),
            Err(error) => return told(wanted.json, &not_remembered(&error), RUN_AS_ROOT, FAILED),
        }
    }
    bound(wanted, &config, &rows)
}

const RUN_AS_ROOT: &str = "run it as root; /run/noiommu/configured is to be root's alone";

fn not_remembered(error: &io::Error) -> String {
    format!("what is bound could not be written down in /run/noiommu/configured: {error}")
}

/// The devices to choose from.
fn devices(only: Option<&str>) -> Result<Vec<PciDevice>, Error> {
    match only {
        None => pci::devices(),
        Some(address) => pci::device(address).map(|device| vec![device]),
    }
}

/// Gives the opt-in, and remembers if it was not given before.
fn enable(memory: &Memory) -> Result<(), Error> {
    if optin::is_enabled() && optin::kernel_mode() != Some(false) {
        return Ok(());
    }
    // First the memory: what is given and not remembered would stay.
    let new = !optin::is_enabled() && !memory.has_opt_in();
    if new && let Err(error) = memory.add_opt_in() {
        return Err(Error::bad_argument(not_remembered(&error)));
    }
    let given = optin::enable();
    if given.is_err() && new {
        let _ = memory.remove_opt_in();
    }
    given
}

/// Binds a device; the outer error is that it could not be remembered, so that it was left alone.
fn bind_one(memory: &Memory, address: &str, options: &Options) -> io::Result<Result<Bound, Error>> {
    // One that somebody bound by hand is not ours to give back.
    let is_bound = binding::bound().is_ok_and(|bound| bound.iter().any(|bound| bound == address));
    let new = !is_bound && !memory.has_device(address);
    if new {
        memory.add_device(address)?;
    }
    let result = binding::bind(address, options);
    let left = binding::bound().is_ok_and(|bound| bound.iter().any(|bound| bound == address));
    // A bind that failed has put everything back, unless it says otherwise.
    if new && result.is_err() && !left {
        memory.remove_device(address)?;
    }
    Ok(result)
}

/// The file's text. It is what root does at boot, so nobody else may be able to write it.
fn read(path: &Path) -> Result<String, (String, String)> {
    let shown = path.display();
    let failed = |error: io::Error| {
        let remedy = "name a file that is there: /usr/share/doc/noiommu/examples has one";
        (format!("{shown} cannot be read: {error}"), remedy.to_owned())
    };
    let mut file = fs::File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let me = rustix::process::geteuid().as_raw();
    if !metadata.is_file() {
        return Err((format!("{shown} is no regular file"), "name a file".to_owned()));
    }
    if ![0, me].contains(&metadata.uid()) || metadata.mode() & 0o022 != 0 {
        let cause =
            format!("{shown} could have been written by others than root, and what it says is done as root");
        return Err((cause, format!("chown root {shown} && chmod go-w {shown}")));
    }
    if metadata.len() > LONGEST {
        return Err((format!("{shown} has more than {LONGEST} bytes"), "name another file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(failed)?;
    // What is no UTF-8 is no word that is known, outside of comments.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The lines that mean no device that is there. Not asked where one device alone was looked at.
fn absent<'a, T>(wanted: &Wanted<'_>, config: &'a Config, rows: &[Row<'_, T>]) -> Vec<&'a Line> {
    let used = |line: &&Line| rows.iter().any(|row| row.line.number == line.number);
    config.lines.iter().filter(|line| wanted.device.is_none() && !used(line)).collect()
}

/// Tells what would be done.
fn planned(wanted: &Wanted<'_>, config: &Config, rows: &[Row<'_, Plan>]) -> ExitCode {
    let absent = absent(wanted, config, rows);
    tell::rows(wanted, config, rows, &absent, super::tell::plan_json, super::tell::plan_lines);
    status(rows, &absent)
}

/// Tells what was done.
fn bound(wanted: &Wanted<'_>, config: &Config, rows: &[Row<'_, Bound>]) -> ExitCode {
    let absent = absent(wanted, config, rows);
    tell::rows(wanted, config, rows, &absent, super::tell::bound_json, super::tell::bound_lines);
    status(rows, &absent)
}

fn status<T>(rows: &[Row<'_, T>], absent: &[&Line]) -> ExitCode {
    match (rows.iter().all(|row| row.result.is_ok()), absent.is_empty()) {
        (false, _) => ExitCode::from(FAILED),
        (true, false) => ExitCode::from(ABSENT),
        (true, true) => ExitCode::SUCCESS,
    }
}

/// Gives back what `bind` has bound by a file, and the opt-in that it gave.
pub(super) fn unbind(json: bool) -> ExitCode {
    let memory = match Memory::open_if_there() {
        Ok(memory) => memory,
        Err(error) => return told(json, &not_remembered(&error), RUN_AS_ROOT, FAILED),
    };
    let devices = match memory.as_ref().map_or(Ok(Vec::new()), Memory::devices) {
        Ok(devices) => devices,
        Err(error) => return told(json, &not_remembered(&error), RUN_AS_ROOT, FAILED),
    };
    let mut results = Vec::new();
    if let Some(memory) = &memory {
        for address in devices {
            let result = unbind_one(&address);
            if result.is_ok()
                && let Err(error) = memory.remove_device(&address)
            {
                return told(json, &not_remembered(&error), RUN_AS_ROOT, FAILED);
            }
            results.push((address, result));
        }
        // While a device is left, its driver may need the opt-in once more.
        if memory.has_opt_in() && results.iter().all(|(_, result)| result.is_ok()) {
            let taken = optin::disable();
            if let Err(error) = taken {
                return crate::failed(json, &error);
            }
            if let Err(error) = memory.remove_opt_in() {
                return told(json, &not_remembered(&error), RUN_AS_ROOT, FAILED);
            }
        }
    }
    if results.is_empty() && !json {
        crate::ui::print_lines(&["No device is bound by a configuration file."]);
        return ExitCode::SUCCESS;
    }
    super::report(json, &results, tell::given_json, tell::given_lines)
}

/// A device that was given back.
struct Given {
    address: String,
    /// The driver that has it now.
    driver: Option<String>,
    /// It is no longer there.
    is_gone: bool,
}

fn unbind_one(address: &str) -> Result<Given, Error> {
    let given = |driver, is_gone| Given { address: address.to_owned(), driver, is_gone };
    // Somebody may have done it by hand.
    let is_gone = match binding::bound()?.iter().any(|bound| bound == address) {
        true => binding::unbind(address)?.is_gone,
        false => pci::device(address).is_err_and(|error| error.kind() == ErrorKind::NoDevice),
    };
    if is_gone {
        return Ok(given(None, true));
    }
    // Bound at boot, before the kernel had loaded its driver, it had none; without us that one would have it.
    Ok(given(binding::hand_to_kernel(address)?, false))
}

fn told(json: bool, cause: &str, remedy: &str, status: u8) -> ExitCode {
    let kind = format!("{:?}", ErrorKind::System);
    crate::tell_failure(json, &Failure { kind: &kind, errno: None, cause, remedy: Some(remedy) });
    ExitCode::from(status)
}
