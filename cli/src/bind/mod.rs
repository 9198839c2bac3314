//! `noiommu bind` and `noiommu unbind`: devices taken from the kernel's drivers, and given back.

mod config;
mod tell;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anstyle::AnsiColor;
use noiommu::binding::{self, Bound, Plan, Restored};
use noiommu::{Error, Provider, pci};
use serde_json::{Value, json};

pub(crate) use self::tell::offer_json;
use crate::FAILED;
use crate::ui::{self, styled};

/// How `bind` is called.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What reaches a device, the best first; `noiommu list` shows what each one would get:

  behind an IOMMU   cdev           vfio-pci and iommufd (/dev/vfio/devices/vfioN)
                    group          vfio-pci and a container (/dev/vfio/N)
  without one       cdev-noiommu   the same as cdev, Linux 7.3, unsafe mode on (`noiommu enable`)
                    group-noiommu  /dev/vfio/noiommu-N, unsafe mode on
                    uio            no driver; uio_pci_generic hands on the interrupt line
                    sysfs          no driver; works on any kernel

What was there before is remembered in /run/noiommu/bindings before anything is changed, so `noiommu unbind` restores it,
also when this command was killed half-way. A bind that fails puts everything back itself. After a restart
the kernel's own drivers have their devices again.

Refused without --force: a disk that is mounted or swapped to, a network interface that is up or has the default route,
a device with other functions, or others in its IOMMU group, that drivers of the kernel have (name them all
in one call instead). Bridges and devices that a program drives are always refused.

With --config, what is bound is named by a file, as the unit noiommu.service does at boot. It has these lines:

  enable                                          # the opt-in, as `noiommu enable`
  bind address=0000:00:04.0                       # one device
  bind id=1b36:0010 class=0108 provider=sysfs     # all that fit all that is given

A device is bound by the first line that fits it. One that cannot be bound does not keep the others from it; a mistake in
the file does. `noiommu unbind --config` takes back what was done.

Examples:
  noiommu bind 0000:00:04.0                       # the best way there is
  noiommu bind 04:00.0 --dry-run                  # what would be done, step by step
  noiommu bind 00:04.0 00:05.0 --provider sysfs
  noiommu bind --config /etc/noiommu.conf --dry-run

Exit status: 0 all are bound (again: also when they were), 1 one could not be, 2 wrong usage, or mistakes in the file,
3 with --config: nothing failed, but a line means no device that is there. Without --config, when one is refused
beforehand, none is touched.")]
pub(crate) struct BindArguments {
    /// PCI addresses, as lspci has them; the domain may be left out
    #[arg(required_unless_present = "config", conflicts_with = "config", value_name = "ADDRESS")]
    addresses: Vec<String>,

    /// The devices that this file names
    #[arg(long, value_name = "FILE", conflicts_with_all = ["provider", "force"])]
    config: Option<PathBuf>,

    /// With --config: this device alone, if the file names it
    #[arg(long, value_name = "ADDRESS", requires = "config")]
    device: Option<String>,

    /// How the devices are to be reached, in place of the best way
    #[arg(long, value_name = "P", value_parser = provider)]
    provider: Option<Provider>,

    /// Although a device is in use, or its neighbours are
    #[arg(long)]
    force: bool,

    /// Show the steps, change nothing
    #[arg(long)]
    dry_run: bool,

    /// Print the result as one JSON object, and nothing else
    #[arg(long)]
    json: bool,
}

/// How `unbind` is called.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each device gets back the driver and the driver_override that it had before it was bound first, however often it was bound
since, and also when a bind was killed half-way.

Examples:
  noiommu unbind 0000:00:04.0
  noiommu unbind --all
  noiommu unbind --config                         # what `bind --config` has bound, and the opt-in that it gave

Exit status: 0 all are as they were, 1 one could not be given back (the others are), 2 wrong usage.")]
pub(crate) struct UnbindArguments {
    /// PCI addresses of devices that `noiommu bind` has bound
    #[arg(required_unless_present_any = ["all", "config"], conflicts_with_all = ["all", "config"], value_name = "ADDRESS")]
    addresses: Vec<String>,

    /// All that `bind --config` has bound, whatever the file says by now; those without a driver go to the kernel's
    #[arg(long, conflicts_with = "all")]
    config: bool,

    /// All that are bound
    #[arg(long)]
    all: bool,

    /// Print the result as one JSON object, and nothing else
    #[arg(long)]
    json: bool,
}

/// The providers that a real device can be bound for, by name.
fn provider(name: &str) -> Result<Provider, String> {
    let real = || Provider::ALL.into_iter().rev().filter(|provider| *provider != Provider::Sim);
    real().find(|provider| provider.name() == name).ok_or_else(|| {
        let names: Vec<_> = real().map(Provider::name).collect();
        format!("one of {}", names.join(", "))
    })
}

/// Binds devices.
pub(crate) fn bind(options: &BindArguments) -> ExitCode {
    if let Some(path) = &options.config {
        let (device, dry_run, json) = (options.device.as_deref(), options.dry_run, options.json);
        return config::bind(&config::Wanted { path, device, dry_run, json });
    }
    let wanted = binding::Options {
        provider: options.provider,
        force: options.force,
        together: options.addresses.clone(),
    };
    // All are looked at first, so that a refusal leaves all of them alone.
    let plans: Result<Vec<Plan>, Error> =
        options.addresses.iter().map(|address| binding::plan(address, &wanted)).collect();
    let plans = match plans {
        Ok(plans) => plans,
        Err(error) => return crate::failed(options.json, &error),
    };
    if options.dry_run {
        show(options.json, plans.iter().map(tell::plan_json).collect(), || {
            plans.iter().flat_map(tell::plan_lines).collect()
        });
        return ExitCode::SUCCESS;
    }
    if options.force && !options.json {
        warn(&plans);
    }
    let results: Vec<(String, Result<Bound, Error>)> = plans
        .iter()
        .map(|plan| (plan.device.address.clone(), binding::bind(&plan.device.address, &wanted)))
        .collect();
    report(options.json, &results, tell::bound_json, tell::bound_lines)
}

/// Gives devices back.
pub(crate) fn unbind(options: &UnbindArguments) -> ExitCode {
    if options.config {
        return config::unbind(options.json);
    }
    let addresses = if options.all { binding::bound() } else { Ok(options.addresses.clone()) };
    let addresses = match addresses {
        Ok(addresses) => addresses,
        Err(error) => return crate::failed(options.json, &error),
    };
    if addresses.is_empty() && !options.json {
        ui::print_lines(&["No device is bound."]);
        return ExitCode::SUCCESS;
    }
    let results: Vec<(String, Result<Restored, Error>)> =
        addresses.into_iter().map(|address| (address.clone(), binding::unbind(&address))).collect();
    report(options.json, &results, tell::restored_json, tell::restored_lines)
}

/// What is done in spite of its use.
fn warn(plans: &[Plan]) {
    let style = AnsiColor::Yellow.on_default().bold();
    for plan in plans {
        let address = &plan.device.address;
        for used in pci::uses(address).unwrap_or_default() {
            let _ = writeln!(anstream::stderr(), "{} {address}: {used}", styled(style, "forced:"));
        }
    }
}

/// Prints results in the form asked for: errors for people go to standard error, those for programs among the results.
fn report<T>(
    json: bool,
    results: &[(String, Result<T, Error>)],
    value: fn(&T) -> Value,
    lines: fn(&T) -> Vec<String>,
) -> ExitCode {
    if json {
        let values = results.iter().map(|(address, result)| match result {
            Ok(done) => value(done),
            Err(error) => json!({ "address": address, "error": crate::error_json(error) }),
        });
        show(true, values.collect(), Vec::new);
    } else {
        for (_, result) in results {
            match result {
                Ok(done) => ui::print_lines(&lines(done)),
                Err(error) => {
                    crate::failed(false, error);
                }
            }
        }
    }
    let all = results.iter().all(|(_, result)| result.is_ok());
    if all { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn show(json: bool, values: Vec<Value>, lines: impl FnOnce() -> Vec<String>) {
    if json {
        let _ = writeln!(std::io::stdout(), "{}", json!({ "devices": values }));
    } else {
        ui::print_lines(&lines());
    }
}
