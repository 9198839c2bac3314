//! The edu device, by its own driver.

use anyhow::{Result, ensure};
use noiommu::{Contiguity, Device, DmaBuffer, Error, InterruptKind, Ioas, Mapping};
use noiommu_edu::{BUFFER_SIZE, Edu};

use super::driver::{Driver, Written};

/// What it interrupts for; any bits will do.
const REASON: u32 = 0x0004_0001;

/// What is written there can be read, inverted.
const LIVENESS: u64 = 0x04;

/// Bytes of the copy, and where they are in memory that begins and ends at page borders: across one of them.
const LENGTH: u64 = BUFFER_SIZE;
const AT: u64 = 4096 - 777;

/// The device, with two buffers for it.
pub(super) struct Teacher {
    edu: Edu,
    from: Mapping,
    to: Mapping,
}

impl Driver for Teacher {
    const ID: (u16, u16) = noiommu_edu::ID;

    fn start(device: Device, ioas: &Ioas, _: Option<InterruptKind>) -> Result<Self> {
        let edu = Edu::new(device, ioas)?;
        let map = || ioas.map(DmaBuffer::new(2 * 4096, Contiguity::Pages)?).map_err(Error::from);
        let (from, to) = (map()?, map()?);
        Ok(Self { edu, from, to })
    }

    fn device(&self) -> &Device {
        self.edu.device()
    }

    fn identity(&mut self) -> Result<String> {
        ensure!(self.edu.is_alive()? && self.edu.factorial(6)? == 720, "it does not answer as it should");
        let (major, minor) = self.edu.version()?;
        Ok(format!("edu {major}.{minor}"))
    }

    fn transfer(&mut self) -> Result<Written> {
        let pattern: Vec<u8> = (0..LENGTH).map(|at| ((at * 7) ^ (at >> 8)) as u8).collect();
        let (Some(from), Some(to)) = (self.from.buffer(), self.to.buffer()) else {
            anyhow::bail!("mappings without buffers");
        };
        from.write(AT as usize, &pattern)?;
        self.edu.load(&self.from.for_device(self.edu.device())?, AT, LENGTH)?;
        let view = self.to.for_device(self.edu.device())?;
        self.edu.store(&view, AT, LENGTH)?;
        let mut bytes = vec![0; LENGTH as usize];
        to.read(AT as usize, &mut bytes)?;
        ensure!(bytes == pattern, "what came back is not what went out");
        let first = view.at(AT)?;
        bytes.truncate(first.length as usize);
        Ok(Written { what: format!("{LENGTH} bytes there and back"), address: first.address.bits(), bytes })
    }

    fn fire(&mut self) -> Result<()> {
        Ok(self.edu.raise(REASON)?)
    }

    fn acknowledge(&mut self) -> Result<()> {
        let reasons = self.edu.acknowledge()?;
        ensure!(reasons == REASON, "an interrupt for other reasons: {reasons:#x}");
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        // It does nothing unless told to.
        Ok(())
    }

    fn is_fresh(&self) -> Result<bool> {
        // What it inverted last.
        Ok(self.edu.device().bar(0)?.read_u32(LIVENESS)? == 0)
    }
}
