//! Writing to an NVMe drive by the kernel's own driver: what is read later is known, and not by anything of ours.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::stock_edu::DEVICES;

/// Writes bytes to the beginning of the drive of the controller at an address, for good.
pub(super) fn write(address: &str, bytes: &[u8]) -> Result<()> {
    let controllers = Path::new(DEVICES).join(address).join("nvme");
    let mut namespace = None;
    for controller in fs::read_dir(&controllers).with_context(|| format!("{}", controllers.display()))? {
        let controller = controller?;
        // A namespace is called as its controller, and more.
        let prefix = format!("{}n", controller.file_name().to_string_lossy());
        for entry in fs::read_dir(controller.path())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(&prefix) {
                namespace = Some(name);
            }
        }
    }
    let node = Path::new("/dev").join(namespace.with_context(|| format!("{address} has no drive"))?);
    let drive = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&node)
        .with_context(|| format!("{}", node.display()))?;
    drive.write_all_at(bytes, 0).context("writing to the drive")?;
    drive.sync_all().context("writing to the drive")?;
    let mut there = vec![0; bytes.len()];
    drive.read_exact_at(&mut there, 0)?;
    ensure!(there == bytes, "the drive does not hold what was written");
    Ok(())
}
