//! `noiommu list`: the PCI devices of this machine, and how each could be had.

mod names;
mod table;

use std::path::Path;
use std::process::ExitCode;

use noiommu::binding::{self, Offer};
use noiommu::pci::{self, Iommu, PciDevice, Use};
use noiommu::{Provider, optin};
use serde_json::{Value, json};

use self::names::Names;

/// Arguments of `noiommu list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Columns:\n  \
    ADDRESS   domain:bus:device.function, as all subcommands take it\n  \
    DEVICE    class and name, from the machine's pci.ids (package pci.ids or hwdata) where there is one\n  \
    DRIVER    who has it now; - is nobody\n  \
    PROVIDER  how the kit reaches it now; (in parentheses) how after `noiommu bind`; - is not at all\n  \
    IOMMU     none, or the IOMMU group; `none (VFIO)`: the group is one that VFIO's no-IOMMU mode made up\n  \
    NUMA      the node; - where there is none\n  \
    USE       what it is in use for, so that bind wants --force\n\n\
    Changes nothing and needs no rights.\n\n\
    Exit codes:\n  \
    0  told\n  \
    1  sysfs cannot be read\n  \
    2  wrong arguments\n\n\
    Examples:\n  \
    noiommu list\n  \
    noiommu list --json | jq -r '.devices[] | select(.class == \"0x010802\").address'     NVMe controllers")]
pub(crate) struct Arguments {
    /// Bridges, too
    #[arg(long)]
    all: bool,
    /// Print the result as one JSON object, and nothing else
    #[arg(long)]
    json: bool,
}

/// A device and what is to be told of it.
struct Row {
    device: PciDevice,
    class: String,
    name: Option<String>,
    /// How it is reached now.
    has: Option<Provider>,
    offers: Vec<Offer>,
    uses: Vec<Use>,
    /// Bound by `noiommu bind`; `None`: only root can see.
    bound: Option<bool>,
}

impl Row {
    /// How it would be reached after a bind.
    fn would_get(&self) -> Option<Provider> {
        self.offers.iter().find(|offer| offer.is_available()).map(Offer::provider)
    }
}

/// Shows the devices.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let mut devices = match pci::devices() {
        Ok(devices) => devices,
        Err(error) => return crate::failed(arguments.json, &error),
    };
    devices.retain(|device| arguments.all || !device.is_bridge);
    let names = Names::look(Path::new("/"));
    let offers = binding::offers_for(&devices);
    let bound = binding::bound().ok();
    let row = |(device, offers): (PciDevice, Vec<Offer>)| Row {
        class: names.class(device.class),
        name: names.device(device.vendor, device.device),
        has: binding::provider_of(&device),
        offers,
        uses: pci::uses(&device.address).unwrap_or_default(),
        bound: bound.as_ref().map(|bound| bound.contains(&device.address)),
        device,
    };
    let rows: Vec<_> = devices.into_iter().zip(offers).map(row).collect();
    if arguments.json {
        let devices: Vec<_> = rows.iter().map(value).collect();
        crate::ui::print_lines(&[json!({ "enabled": optin::is_enabled(), "devices": devices })]);
    } else {
        crate::ui::print_lines(&table::lines(&rows, table::width(), names.is_known()));
    }
    ExitCode::SUCCESS
}

/// A device for programs.
fn value(row: &Row) -> Value {
    let device = &row.device;
    let (kind, group) = match device.iommu {
        Iommu::Group(group) => ("group", Some(group)),
        Iommu::Dummy(group) => ("dummy", Some(group)),
        _ => ("none", None),
    };
    json!({
        "address": device.address,
        "vendor": format!("{:04x}", device.vendor),
        "device": format!("{:04x}", device.device),
        "subsystem_vendor": format!("{:04x}", device.subsystem_vendor),
        "subsystem_device": format!("{:04x}", device.subsystem_device),
        "class": format!("0x{:06x}", device.class),
        "class_name": row.class,
        "name": row.name,
        "bridge": device.is_bridge,
        "driver": device.driver,
        "driver_override": device.driver_override,
        "bound": row.bound,
        "provider": row.has.map(Provider::name),
        "would_get": row.would_get().map(Provider::name),
        "offers": row.offers.iter().map(crate::bind::offer_json).collect::<Vec<_>>(),
        "iommu": { "kind": kind, "group": group },
        "numa_node": device.numa_node,
        "siblings": device.siblings,
        "uses": row.uses.iter().map(Use::to_string).collect::<Vec<_>>(),
    })
}
