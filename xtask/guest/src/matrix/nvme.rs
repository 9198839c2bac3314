//! NVMe controllers: the admin queue, by which they tell who they are. See *NVM Express Base Specification 1.4*; sections
//! are named where they are used.

use anyhow::{Result, ensure};
use noiommu::{Bar, Device, InterruptKind, Ioas, barrier};

use super::driver::{Driver, PAGE, Shared, Written, expect_id, wait};

// 3.1, the controller's registers.
const CAP: u64 = 0x00;
const VS: u64 = 0x08;
const INTMS: u64 = 0x0c;
const INTMC: u64 = 0x10;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;

const CC_ENABLE: u32 = 1;
/// Entries of 2^6 and 2^4 bytes.
const CC_ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;
const CSTS_READY: u32 = 1;
const CSTS_FATAL: u32 = 2;

/// 5, the opcode of Identify, and 5.15.1, what it is asked for: the controller.
const IDENTIFY: u32 = 0x06;
const CONTROLLER: u32 = 0x01;
/// Where the serial number is in the answer, and the model (figure 247).
const SERIAL: std::ops::Range<usize> = 4..24;
const MODEL: std::ops::Range<usize> = 24..64;

/// Entries of each queue.
const ENTRIES: u16 = 8;
/// Where the queues and the data are in the shared memory.
const SUBMISSION: usize = 0;
const COMPLETION: usize = PAGE;
const DATA: usize = 2 * PAGE;

/// A controller with its admin queue.
pub(super) struct Nvme {
    registers: Bar,
    memory: Shared,
    device: Device,
    interrupts: Option<InterruptKind>,
    /// Bytes from one doorbell to the next.
    stride: u64,
    /// The next entry of each queue, and the phase that the next completion has.
    tail: u16,
    head: u16,
    phase: bool,
    /// The last command's identifier.
    command: u16,
}

impl Nvme {
    /// Puts a command for the controller into the queue (4.2) and rings (3.1.23).
    fn submit(&mut self) -> Result<()> {
        let at = SUBMISSION + usize::from(self.tail) * 64;
        self.command += 1;
        let memory = self.memory.memory()?;
        memory.fill(at, 64, 0)?;
        memory.store_u32(at, IDENTIFY | u32::from(self.command) << 16)?;
        memory.store_u64(at + 24, self.memory.address(DATA)?)?;
        memory.store_u32(at + 40, CONTROLLER)?;
        memory.fill(DATA, PAGE, 0)?;
        self.tail = (self.tail + 1) % ENTRIES;
        self.registers.write_u32(DOORBELLS, self.tail.into())?;
        Ok(())
    }

    /// Whether the next completion is there: its phase tells (4.6).
    fn is_complete(&self) -> Result<bool> {
        let status = self.memory.memory()?.load_u16(COMPLETION + usize::from(self.head) * 16 + 14)?;
        barrier::dma_read();
        Ok(status & 1 == u16::from(self.phase))
    }

    /// Takes the completion of the last command.
    fn complete(&mut self) -> Result<()> {
        let at = COMPLETION + usize::from(self.head) * 16;
        let memory = self.memory.memory()?;
        let (command, status) = (memory.load_u16(at + 12)?, memory.load_u16(at + 14)?);
        self.head = (self.head + 1) % ENTRIES;
        self.phase ^= self.head == 0;
        self.registers.write_u32(DOORBELLS + self.stride, self.head.into())?;
        ensure!(command == self.command, "command {} was answered, not {}", command, self.command);
        ensure!(status >> 1 == 0, "Identify ended with status {:#x}", status >> 1);
        Ok(())
    }

    fn wait_for(&self, ready: u32) -> Result<()> {
        wait(&self.device, "becoming ready or stopping", || {
            let status = self.registers.read_u32(CSTS)?;
            ensure!(status & CSTS_FATAL == 0 || ready == 0, "the controller has failed: CSTS {status:#x}");
            Ok(status & CSTS_READY == ready)
        })
    }

    fn text(&self, range: std::ops::Range<usize>) -> Result<String> {
        let bytes = self.memory.bytes(DATA + range.start, range.len())?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }
}

impl Driver for Nvme {
    const ID: (u16, u16) = (0x1b36, 0x0010);

    fn start(device: Device, ioas: &Ioas, interrupts: Option<InterruptKind>) -> Result<Self> {
        expect_id(&device, Self::ID)?;
        let registers = device.bar(0)?;
        device.attach(ioas)?;
        let memory = Shared::new(&device, ioas, 3)?;
        let capabilities = registers.read_u64(CAP)?;
        ensure!(capabilities >> 48 & 0xf == 0, "its smallest page is larger than 4 KiB");
        ensure!(capabilities & 0xffff >= u64::from(ENTRIES - 1), "its queues are too short");
        let stride = 4 << (capabilities >> 32 & 0xf);
        let nvme =
            Self { registers, memory, device, interrupts, stride, tail: 0, head: 0, phase: true, command: 0 };
        // 7.6.1, initialization: stopped, told of its queues, started.
        nvme.registers.write_u32(CC, 0)?;
        nvme.wait_for(0)?;
        nvme.registers.write_u32(AQA, u32::from(ENTRIES - 1) << 16 | u32::from(ENTRIES - 1))?;
        nvme.registers.write_u64(ASQ, nvme.memory.address(SUBMISSION)?)?;
        nvme.registers.write_u64(ACQ, nvme.memory.address(COMPLETION)?)?;
        // SAFETY: the promise of this driver. The controller is given three addresses, each of a whole page of `memory`,
        // which is mapped for it: two queues that fit into a page, and a page of data for a command that writes one page.
        // `memory` lives until the controller is stopped, or is kept by its IOAS until the device is quiet.
        unsafe { nvme.device.enable_bus_master()? };
        nvme.registers.write_u32(CC, CC_ENABLE | CC_ENTRY_SIZES)?;
        nvme.wait_for(CSTS_READY)?;
        if nvme.interrupts != Some(InterruptKind::Msix) {
            // 3.1.3: masked until somebody waits for it. With MSI-X this register is not to be touched.
            nvme.registers.write_u32(INTMS, u32::MAX)?;
        }
        Ok(nvme)
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn identity(&mut self) -> Result<String> {
        let version = self.registers.read_u32(VS)?;
        Ok(format!("NVMe {}.{}", version >> 16, version >> 8 & 0xff))
    }

    fn transfer(&mut self) -> Result<Written> {
        self.submit()?;
        wait(&self.device, "Identify", || self.is_complete())?;
        self.complete()?;
        let vendor = self.memory.memory()?.load_u16(DATA)?;
        let subsystem = self.memory.memory()?.load_u16(DATA + 2)?;
        ensure!(vendor == Self::ID.0, "its vendor is {vendor:#06x} by DMA, subsystem {subsystem:#06x}");
        Ok(Written {
            what: format!("{}, serial {}", self.text(MODEL)?, self.text(SERIAL)?),
            address: self.memory.address(DATA)?,
            bytes: self.memory.bytes(DATA, MODEL.end)?,
        })
    }

    fn fire(&mut self) -> Result<()> {
        if self.interrupts.is_some_and(|kind| kind != InterruptKind::Msix) {
            self.registers.write_u32(INTMC, u32::MAX)?;
        }
        self.submit()
    }

    fn acknowledge(&mut self) -> Result<()> {
        ensure!(self.is_complete()?, "an interrupt without a completion");
        // Taking it lets the line fall: 7.5.1.
        self.complete()
    }

    fn stop(&mut self) -> Result<()> {
        self.registers.write_u32(CC, 0)?;
        self.wait_for(0)
    }

    fn is_fresh(&self) -> Result<bool> {
        let (configuration, status) = (self.registers.read_u32(CC)?, self.registers.read_u32(CSTS)?);
        Ok(configuration & CC_ENABLE == 0 && status & CSTS_READY == 0)
    }
}
