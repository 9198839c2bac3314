//! The drive as the kernel's own driver has it.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::disk::kernel;
use crate::stock_edu::DEVICES;

/// Waits for the block device that the kernel makes of a controller's first namespace; its name.
pub(super) fn block_device(address: &str) -> Result<String> {
    let controllers = Path::new(DEVICES).join(address).join("nvme");
    kernel::wait_for(address, || find(&controllers))
}

/// Below `nvme` of the PCI device: its controller, and below that its namespaces.
fn find(controllers: &Path) -> Option<String> {
    let controller = fs::read_dir(controllers).ok()?.flatten().next()?;
    let mut entries = fs::read_dir(controller.path()).ok()?.flatten();
    entries.find_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Not one of the hidden paths of multipath, such as nvme0c0n1.
        let numbers = name.strip_prefix("nvme")?.split_once('n')?;
        let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        (all_digits(numbers.0) && all_digits(numbers.1)).then_some(name)
    })
}
