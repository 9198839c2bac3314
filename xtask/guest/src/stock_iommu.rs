//! A stock kernel and an edu device behind a real IOMMU: the engine's addresses are as right as ever, but this device must
//! not be given any.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use noiommu::{Context, Contiguity, DmaBuffer, Error, ErrorKind, optin};

use crate::stock_edu::{DEVICES, check, find_edu, read};
use crate::witness::Witness;

/// Runs it all.
pub(crate) fn run() -> Result<()> {
    let mut witness = Witness::connect("stock-iommu")?;
    let address = find_edu()?;
    let directory = Path::new(DEVICES).join(&address);
    // Else this guest shows nothing.
    ensure!(directory.join("iommu").exists(), "the kernel has put no IOMMU before {address}");
    optin::enable()?;
    let context = Context::new()?;
    let before = fs::read(directory.join("config"))?;
    match context.open(&address) {
        Err(error) if error.kind() == ErrorKind::HasIommu => witness.note(&error.to_string())?,
        other => anyhow::bail!("not refused for its IOMMU: {other:?}"),
    }
    ensure!(read(&address, "driver_override")? == "(null)" && read(&address, "enable")? == "0", "touched");
    ensure!(fs::read(directory.join("config"))? == before, "its config space was written");
    ensure!(!optin::is_tainted(), "tainted by a device that was refused");

    let ioas = context.ioas()?;
    let mapping = ioas.map(DmaBuffer::new(20_000, Contiguity::Pages)?).map_err(Error::from)?;
    if let Some(buffer) = mapping.buffer() {
        buffer.write(0, &witness.stream(0, 20_000))?;
    }
    check(&mut witness, &mapping, 0, 20_000)?;
    witness.done(0)
}
