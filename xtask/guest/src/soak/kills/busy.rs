//! Devices in the middle of DMA into a driver's memory, and what stops them.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use noiommu::{Bar, Contiguity, Device, DmaBuffer, Error, Ioas, ReadWrite, Register};
use noiommu_edu::Edu;

use super::super::drive;
use super::super::nvme::{self, BLOCK, DEPTH, Nvme};
use super::ohci;
use crate::matrix::driver::{PAGE, PATIENCE, Shared, expect_id, wait};

/// A device that writes a driver's memory, with all that this takes.
pub(super) trait Busy {
    /// Whether what it writes is still to come, in part at least.
    fn is_writing(&mut self) -> Result<bool>;
}

/// A kind of device.
pub(super) struct Kind {
    /// Its name in plans and tables.
    pub(super) name: &'static str,
    /// Vendor and device id.
    pub(super) id: (u16, u16),
    /// Has it write memory: when this answers, it is on its way.
    pub(super) start: fn(Device, &Ioas) -> Result<Box<dyn Busy>>,
    /// Makes it quiet, by what the driver knows of it.
    pub(super) stop: fn(Device) -> Result<()>,
    /// Once before all: gives the device bytes to write that can be told from others.
    pub(super) prepare: fn(address: &str) -> Result<()>,
}

/// All kinds.
const KINDS: [Kind; 3] = [
    Kind { name: "edu", id: noiommu_edu::ID, start: Late::start, stop: quiesce, prepare: teach },
    Kind { name: "nvme", id: nvme::ID, start: Queued::start, stop: Nvme::stop, prepare: fill },
    Kind { name: "ohci", id: ohci::ID, start: Endless::start, stop: Endless::stop, prepare: |_| Ok(()) },
];

impl Kind {
    /// The one with this name.
    pub(super) fn find(name: &str) -> Result<&'static Self> {
        KINDS
            .iter()
            .find(|kind| kind.name == name)
            .with_context(|| format!("no kind of device is called {name}"))
    }
}

fn quiesce(device: Device) -> Result<()> {
    device.quiesce()?;
    Ok(())
}

/// What devices are given to write, over and over.
fn words_of(device: &str, length: usize) -> Vec<u8> {
    format!("{device} wrote this. ").into_bytes().into_iter().cycle().take(length).collect()
}

// What follows of edu's registers is in its driver, too, which waits for the end of each transfer.
const DMA_SOURCE: Register<u64, ReadWrite> = Register::at(0x80);
const DMA_DESTINATION: Register<u64, ReadWrite> = Register::at(0x88);
const DMA_COUNT: Register<u64, ReadWrite> = Register::at(0x90);
const DMA_COMMAND: Register<u64, ReadWrite> = Register::at(0x98);
const START: u64 = 1;
const FROM_DEVICE: u64 = 2;
const DEVICE_BUFFER: u64 = 0x4_0000;

/// An edu device that has been told to write: it does so 100 ms later.
struct Late {
    registers: Bar,
    _memory: Shared,
    _device: Device,
}

impl Late {
    fn start(device: Device, ioas: &Ioas) -> Result<Box<dyn Busy>> {
        expect_id(&device, noiommu_edu::ID)?;
        let registers = device.bar(0)?;
        device.attach(ioas)?;
        let memory = Shared::new(&device, ioas, 1)?;
        // What an earlier driver began has to end: the device takes no command before.
        wait(&device, "copying", || Ok(registers.get(DMA_COMMAND)? & START == 0))?;
        // SAFETY: the promise of this driver. The device is told to write once, less than a page, to a page of `memory`, which is
        // mapped for it and lives as long as the device is held.
        unsafe { device.enable_bus_master()? };
        registers.set(DMA_SOURCE, DEVICE_BUFFER)?;
        registers.set(DMA_DESTINATION, memory.address(0)?)?;
        registers.set(DMA_COUNT, noiommu_edu::BUFFER_SIZE)?;
        registers.set(DMA_COMMAND, START | FROM_DEVICE)?;
        Ok(Box::new(Self { registers, _memory: memory, _device: device }))
    }
}

impl Busy for Late {
    fn is_writing(&mut self) -> Result<bool> {
        Ok(self.registers.get(DMA_COMMAND)? & START != 0)
    }
}

/// Gives an edu device's buffer its bytes, which stay when drivers come and go.
fn teach(address: &str) -> Result<()> {
    let context = noiommu::Context::new()?;
    let ioas = context.ioas()?;
    let edu = Edu::new(context.open(address)?, &ioas)?;
    let mapping = ioas.map(DmaBuffer::new(PAGE, Contiguity::Pages)?).map_err(Error::from)?;
    let length = noiommu_edu::BUFFER_SIZE;
    mapping.buffer().context("a mapping without a buffer")?.write(0, &words_of("edu", length as usize))?;
    edu.load(&mapping.for_device(edu.device())?, 0, length)?;
    edu.close()?;
    Ok(())
}

/// Pairs of queues of the controller: 126 reads at once.
const PAIRS: usize = 2;

/// Blocks of a page.
const BLOCKS: u16 = (PAGE as u64 / BLOCK) as u16;

/// An NVMe controller with as many reads queued as it takes, each into a page of its own. Its drive is slow.
struct Queued {
    nvme: Nvme,
    _memory: Shared,
    /// How many are not done.
    left: usize,
}

impl Queued {
    fn start(device: Device, ioas: &Ioas) -> Result<Box<dyn Busy>> {
        let mut nvme = Nvme::start(device, ioas, PAIRS as u16)?;
        let reads = PAIRS * usize::from(DEPTH);
        let memory = Shared::new(nvme.device(), ioas, reads)?;
        for read in 0..reads {
            let (pair, block) = (1 + read % PAIRS, (read * usize::from(BLOCKS)) as u64);
            let prp = [memory.address(read * PAGE)?, 0];
            // SAFETY: a whole page of `memory`, which lives as long as the controller.
            unsafe { nvme.read(pair, read as u16, block, BLOCKS, prp)? };
        }
        let mut queued = Self { nvme, _memory: memory, left: reads };
        // The first ones come at once or soon: it does write.
        let device = queued.nvme.device().name().to_owned();
        let deadline = Instant::now() + PATIENCE;
        while queued.left == reads {
            ensure!(Instant::now() < deadline, "{device} does not read");
            queued.take()?;
            std::thread::yield_now();
        }
        Ok(Box::new(queued))
    }

    /// Takes what is done.
    fn take(&mut self) -> Result<()> {
        for pair in 1..=PAIRS {
            while let Some(done) = self.nvme.next_done(pair)? {
                ensure!(done.status == 0, "read {} ended with status {:#x}", done.command, done.status);
                self.left -= 1;
            }
        }
        Ok(())
    }
}

impl Busy for Queued {
    fn is_writing(&mut self) -> Result<bool> {
        self.take()?;
        Ok(self.left > 0)
    }
}

/// Writes to the drive what is to be read from it, through the kernel's own driver, which has the controller until then.
fn fill(address: &str) -> Result<()> {
    drive::write(address, &words_of("nvme", PAIRS * usize::from(DEPTH) * PAGE))
}

/// A USB host controller that is running: it writes the number of each frame, a millisecond, to its communications area (4.4).
struct Endless {
    memory: Shared,
    device: Device,
}

impl Endless {
    fn start(device: Device, ioas: &Ioas) -> Result<Box<dyn Busy>> {
        expect_id(&device, ohci::ID)?;
        let registers = device.bar(0)?;
        device.set_quiet_recipe(&ohci::QUIET)?;
        device.attach(ioas)?;
        let memory = Shared::new(&device, ioas, 1)?;
        let area = u32::try_from(memory.address(0)?).context("the controller reaches 4 GiB")?;
        registers.set(ohci::COMMAND_STATUS, ohci::RESET)?;
        wait(&device, "its reset", || Ok(registers.get(ohci::COMMAND_STATUS)? & ohci::RESET == 0))?;
        registers.set(ohci::INTERRUPT_DISABLE, u32::MAX)?;
        // SAFETY: the promise of this driver. The controller is given one address, of a page of `memory` for its communications area
        // of 256 bytes, and no list to look at; the memory is mapped for it and lives as long as the device is held.
        unsafe { device.enable_bus_master()? };
        registers.set(ohci::HCCA, area)?;
        registers.set(ohci::CONTROL, ohci::OPERATIONAL)?;
        let mut endless = Self { memory, device };
        ensure!(endless.is_writing()?, "no frame was counted");
        Ok(Box::new(endless))
    }

    fn stop(device: Device) -> Result<()> {
        device.set_quiet_recipe(&ohci::QUIET)?;
        quiesce(device)
    }

    fn frame(&self) -> Result<u16> {
        Ok(self.memory.memory()?.load_u16(ohci::FRAME_NUMBER)?)
    }
}

impl Busy for Endless {
    fn is_writing(&mut self) -> Result<bool> {
        let first = self.frame()?;
        wait(&self.device, "a frame", || Ok(self.frame()? != first))?;
        Ok(true)
    }
}
