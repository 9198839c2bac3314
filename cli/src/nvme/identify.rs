//! `noiommu nvme identify`: who a controller says that it is.

use std::process::ExitCode;

use anstyle::Style;
use noiommu_nvme::{Error, Identity, Namespace, Settings};
use serde_json::{Value, json};

use super::Trouble;
use super::open::Place;
use crate::ui::{self, styled};

/// How it is called.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The controller is taken from whoever drives it before: a kernel's driver has to be made to let go of it, and it wants `noiommu
enable` where no IOMMU confines it.

Examples:
  noiommu bind 0000:00:05.0 && noiommu nvme identify 0000:00:05.0
  noiommu nvme identify sim --json

Exit status: 0 done, 1 it could not be done, 2 wrong usage.")]
pub(crate) struct Options {
    #[command(flatten)]
    place: Place,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is told.
struct Found {
    device: String,
    provider: &'static str,
    identity: Identity,
    namespaces: Vec<Namespace>,
    refused: Vec<Error>,
}

/// Runs the subcommand.
pub(crate) fn run(options: &Options) -> ExitCode {
    match find(options) {
        Ok(found) if options.json => {
            ui::print_lines(&[found.json()]);
            ExitCode::SUCCESS
        }
        Ok(found) => {
            ui::print_lines(&found.lines());
            ExitCode::SUCCESS
        }
        Err(trouble) => trouble.tell(options.json),
    }
}

fn find(options: &Options) -> Result<Found, Trouble> {
    let controller = options.place.open(&Settings::default())?.controller;
    let (namespaces, refused) = controller.namespaces()?;
    let found = Found {
        device: controller.device().name().to_owned(),
        provider: controller.device().provider().name(),
        identity: controller.identity()?,
        namespaces,
        refused,
    };
    controller.close()?;
    Ok(found)
}

impl Found {
    fn json(&self) -> Value {
        let Identity { version: (major, minor, tertiary), .. } = self.identity;
        let namespaces: Vec<Value> = self
            .namespaces
            .iter()
            .map(|one| {
                json!({
                    "namespace": one.id(),
                    "blocks": one.blocks(),
                    "block_size": one.block_size(),
                    "bytes": one.bytes(),
                })
            })
            .collect();
        let refused: Vec<&str> = self.refused.iter().map(Error::cause).collect();
        json!({
            "device": self.device,
            "provider": self.provider,
            "vendor": format!("{:#06x}", self.identity.vendor),
            "serial": self.identity.serial,
            "model": self.identity.model,
            "firmware": self.identity.firmware,
            "version": format!("{major}.{minor}.{tertiary}"),
            "max_transfer": self.identity.max_transfer,
            "volatile_cache": self.identity.volatile_cache,
            "namespaces": namespaces,
            "refused": refused,
        })
    }

    fn lines(&self) -> Vec<String> {
        let identity = &self.identity;
        let (major, minor, _) = identity.version;
        let model = if identity.model.is_empty() { "a controller without a name" } else { &identity.model };
        let mut lines = vec![styled(Style::new().bold(), model)];
        let mut row = |title: &str, text: String| lines.push(format!("  {title:<11}{text}"));
        row("device", format!("{} by {}", self.device, self.provider));
        row("serial", identity.serial.clone());
        row("firmware", identity.firmware.clone());
        row("NVMe", format!("{major}.{minor}"));
        row(
            "transfers",
            match identity.max_transfer {
                Some(most) => format!("up to {}", ui::bytes(most)),
                None => "of any length".to_owned(),
            },
        );
        row(
            "cache",
            match identity.volatile_cache {
                true => "volatile: a flush makes writes outlive a loss of power".to_owned(),
                false => "none that a loss of power empties".to_owned(),
            },
        );
        for namespace in &self.namespaces {
            let size = format!(
                "{}: {} blocks of {}",
                ui::bytes(namespace.bytes()),
                namespace.blocks(),
                ui::bytes(namespace.block_size().into())
            );
            row(&format!("namespace {}", namespace.id()), format!(" {size}"));
        }
        for error in &self.refused {
            row("not driven", format!(" {error}"));
        }
        lines
    }
}
