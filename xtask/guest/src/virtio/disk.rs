//! What one driver writes, the other one reads: every byte of the disk.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::drive;
use crate::disk::kernel;
use crate::matrix::{bind, unbind};
use crate::stock_edu::DEVICES;

/// One provider's turn: ours writes and the kernel's reads, and the other way round if both are wanted.
pub(super) fn both_drivers(address: &str, provider: &str, turn: u64, both: bool) -> Result<Value> {
    let name = block_device(address)?;
    let size = kernel::size(&name)?;
    let (ours, theirs) = ((2 * turn) << 32, (2 * turn + 1) << 32);
    bind(address, provider)?;
    let wrote = drive(provider, "write", address, ours)?;
    unbind(address)?;
    let name = block_device(address)?;
    let mut account = json!({
        "size": size, "ours_wrote": wrote, "kernel_verified": kernel::verify(&name, ours)?,
    });
    if both {
        account["kernel_wrote"] = kernel::write(&name, theirs)?.into();
        bind(address, provider)?;
        account["ours_verified"] = drive(provider, "read", address, theirs)?;
        unbind(address)?;
        // The kernel has it again.
        block_device(address)?;
    }
    Ok(account)
}

/// Waits for the block device that the kernel makes of it; its name.
fn block_device(address: &str) -> Result<String> {
    kernel::wait_for(address, || child(address, "block"))
}

/// Below a PCI device is its virtio device, and below that what the kernel's driver has made of it, by class: its name.
pub(super) fn child(address: &str, class: &str) -> Option<String> {
    let entries = fs::read_dir(Path::new(DEVICES).join(address)).ok()?.flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("virtio")).find_map(|entry| {
        let made = fs::read_dir(entry.path().join(class)).ok()?.flatten().next()?;
        Some(made.file_name().to_string_lossy().into_owned())
    })
}
