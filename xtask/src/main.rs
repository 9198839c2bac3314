//! The project's tasks: `cargo xtask vm ...` runs guests, `cargo xtask test` runs everything that must hold.

mod command;
mod guide;
mod lookup_code;
mod msrv;
mod package;
mod project;
mod steps;
mod ui;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use project::Project;

/// Tasks of the noiommu project.
#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run our programs in an emulated machine, with the host as witness
    #[command(subcommand)]
    Vm(Guest),
    /// Run for long what must not happen at all
    #[command(subcommand)]
    Soak(Soak),
    /// Record what the reference kernel answers to the conformance cases, into the tree
    Golden(vm::Options),
    /// Follow the guide: run its commands, compare what they say, check its links
    Guide(guide::Options),
    /// Make the package for Debian, and print where it is
    Package(package::Options),
    /// Check the published crates with a compiler older than the oldest that they are for
    Msrv,
    /// Run everything that must hold, step by step
    #[command(visible_alias = "ci")]
    Test(steps::Options),
}

#[derive(Subcommand)]
enum Guest {
    /// Print where the image of a kernel is, built from source if it is not in the cache yet
    Kernel {
        /// Which interfaces it has
        variant: vm::Variant,
    },
    /// A driver of yours, on an emulated device and a stock Debian kernel
    Driver(vm::Driver),
    /// A stock Debian kernel and an edu device
    StockEdu(vm::Stock),
    /// The same behind an emulated IOMMU: the device must be refused
    StockIommu(vm::Stock),
    /// Edu devices behind an IOMMU and without one on one IOAS
    Mixed(vm::OnKernel),
    /// `noiommu doctor` among wrong settings, whose remedies are typed
    Doctor(vm::OnKernel),
    /// A C program that knows the uAPI only, and an NVMe controller
    NvmeIdentify(vm::OnKernel),
    /// The NVMe driver and the kernel's: what one writes the other reads, and how fast both are
    Nvme(vm::Nvme),
    /// Virtio by the drivers of virtio-drivers: a disk that the kernel's driver has in turns, a host on a wire with the kernel's card
    Virtio(vm::Virtio),
    /// Every device on every kernel, through whatever provides it there
    Matrix(vm::Matrix),
    /// All conformance cases, answered by a kernel or through the preload library
    Conformance(vm::OnKernel),
    /// Random sequences of calls, answered by the reference kernel and through the preload library
    FuzzUapi(vm::Fuzz),
    /// The package on a fresh Debian: installed, configured, at work after a restart, removed
    Package(vm::Stock),
    /// What the engine costs beside the kernel's own, on the reference kernel
    Bench(vm::Bench),
}

#[derive(Subcommand)]
enum Soak {
    /// Kill drivers in the middle of DMA, and look for their devices' bytes in other processes' memory
    Guardian(vm::soak::Guardian),
    /// Verify DMA while the kernel compacts, reclaims, splits, collapses and copies all of memory
    Storms(vm::soak::Storms),
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the task. Most can only succeed or fail; what a task's exit code tells besides is its own.
fn run(cli: &Cli) -> Result<ExitCode> {
    let project = Project::find()?;
    match &cli.task {
        Task::Vm(Guest::Bench(options)) => return Ok(vm::bench(&project, options)),
        Task::Vm(Guest::Kernel { variant }) => vm::kernel_image(&project, *variant),
        Task::Vm(Guest::Driver(options)) => vm::driver(&project, options),
        Task::Vm(Guest::StockEdu(options)) => vm::stock_edu(&project, options),
        Task::Vm(Guest::StockIommu(options)) => vm::stock_iommu(&project, options),
        Task::Vm(Guest::Mixed(options)) => vm::mixed(&project, options),
        Task::Vm(Guest::Doctor(options)) => vm::doctor(&project, options),
        Task::Vm(Guest::NvmeIdentify(options)) => vm::nvme_identify(&project, options),
        Task::Vm(Guest::Nvme(options)) => vm::nvme(&project, options),
        Task::Vm(Guest::Virtio(options)) => vm::virtio(&project, options),
        Task::Vm(Guest::Matrix(options)) => vm::matrix(&project, options),
        Task::Vm(Guest::Conformance(options)) => vm::conformance(&project, options),
        Task::Vm(Guest::FuzzUapi(options)) => vm::fuzz(&project, options),
        Task::Vm(Guest::Package(options)) => vm::package(&project, options),
        Task::Msrv => match msrv::check(&project)? {
            Some(why) => anyhow::bail!("not checked: {why}"),
            None => Ok(()),
        },
        Task::Package(options) => package::run(&project, options),
        Task::Soak(Soak::Guardian(options)) => vm::soak::guardian(&project, options),
        Task::Soak(Soak::Storms(options)) => vm::soak::storms(&project, options),
        Task::Golden(options) => vm::golden(&project, options),
        Task::Guide(options) => guide::guide(&project, options),
        Task::Test(options) => steps::run(&project, options),
    }?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    /// What clap checks only when a command is used: names that occur twice, and the like.
    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
