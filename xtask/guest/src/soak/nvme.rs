//! NVMe controllers with I/O queues, for reads. See *NVM Express Base Specification 1.4*; sections are named where they are used.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use noiommu::{Bar, Device, Ioas, QuietStep, ReadOnly, ReadWrite, Register, barrier};

use crate::matrix::driver::{PAGE, Shared, expect_id, wait};

/// Vendor and device id of QEMU's.
pub(super) const ID: (u16, u16) = (0x1b36, 0x0010);

// 3.1, the controller's registers.
const CAP: Register<u64, ReadOnly> = Register::at(0x00);
const CC: Register<u32, ReadWrite> = Register::at(0x14);
const CSTS: Register<u32, ReadOnly> = Register::at(0x1c);
const AQA: Register<u32, ReadWrite> = Register::at(0x24);
const ASQ: Register<u64, ReadWrite> = Register::at(0x28);
const ACQ: Register<u64, ReadWrite> = Register::at(0x30);
const INTMS: Register<u32, ReadWrite> = Register::at(0x0c);
const DOORBELLS: u64 = 0x1000;

const CC_ENABLE: u32 = 1;
/// Entries of 2^6 and 2^4 bytes.
const CC_ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;
const CSTS_READY: u32 = 1;

// Opcodes: 5, of the admin queue; 6.9, of the queues of the NVM command set.
const CREATE_SUBMISSION: u32 = 0x01;
const CREATE_COMPLETION: u32 = 0x05;
const SET_FEATURES: u32 = 0x09;
const READ: u32 = 0x02;
/// 5.21.1.7, the feature: how many queues there are to be.
const NUMBER_OF_QUEUES: u32 = 0x07;
/// 5.3 and 5.4: the queue is one piece of memory.
const CONTIGUOUS: u32 = 1;

/// Bytes of a block of the drive.
pub(super) const BLOCK: u64 = 512;

/// Entries of each queue: what fits into a page.
const ENTRIES: u16 = 64;
/// The most commands that a queue takes at once: a full ring would look empty.
pub(super) const DEPTH: u16 = ENTRIES - 1;

/// How long a controller may take to stop.
const STOPPING: Duration = Duration::from_secs(10);

/// What stops a controller in whatever state it is (3.1.5): disabled, and told that it is.
const QUIET: [QuietStep; 2] = [
    QuietStep::Update { bar: 0, offset: CC.offset(), width: 4, clear: CC_ENABLE as u64, set: 0 },
    QuietStep::Wait {
        bar: 0,
        offset: CSTS.offset(),
        width: 4,
        mask: CSTS_READY as u64,
        value: 0,
        timeout: STOPPING,
    },
];

/// A pair of queues with one number: commands go in, completions come out.
struct Pair {
    number: u16,
    tail: u16,
    head: u16,
    /// The phase that the next completion has (4.6).
    phase: bool,
}

impl Pair {
    fn new(number: u16) -> Self {
        Self { number, tail: 0, head: 0, phase: true }
    }

    /// Where its queues are in the shared memory: a page each.
    fn submission(&self) -> usize {
        usize::from(self.number) * 2 * PAGE
    }

    fn completion(&self) -> usize {
        self.submission() + PAGE
    }
}

/// A command that has been done.
pub(super) struct Done {
    /// The number that it was given.
    pub(super) command: u16,
    /// 4.6.1: 0 is success.
    pub(super) status: u16,
}

/// A controller with queues for reads.
pub(super) struct Nvme {
    registers: Bar,
    memory: Shared,
    device: Device,
    /// Bytes from one doorbell to the next.
    stride: u64,
    /// The admin queues, then the others.
    pairs: Vec<Pair>,
}

impl Nvme {
    /// Takes the device, attaches it, tells what makes it quiet, and starts it with so many pairs of queues for reads.
    pub(super) fn start(device: Device, ioas: &Ioas, pairs: u16) -> Result<Self> {
        expect_id(&device, ID)?;
        let registers = device.bar(0)?;
        device.set_quiet_recipe(&QUIET)?;
        device.attach(ioas)?;
        let memory = Shared::new(&device, ioas, 2 * (usize::from(pairs) + 1))?;
        let capabilities = registers.get(CAP)?;
        ensure!(capabilities >> 48 & 0xf == 0, "its smallest page is larger than 4 KiB");
        ensure!(capabilities & 0xffff >= u64::from(ENTRIES - 1), "its queues are too short");
        let stride = 4 << (capabilities >> 32 & 0xf);
        let mut nvme = Self { registers, memory, device, stride, pairs: vec![Pair::new(0)] };
        // 7.6.1, initialization: stopped, told of its queues, started.
        nvme.registers.set(CC, 0)?;
        nvme.wait_for(0)?;
        nvme.registers.set(AQA, u32::from(ENTRIES - 1) << 16 | u32::from(ENTRIES - 1))?;
        nvme.registers.set(ASQ, nvme.memory.address(nvme.pairs[0].submission())?)?;
        nvme.registers.set(ACQ, nvme.memory.address(nvme.pairs[0].completion())?)?;
        // SAFETY: the promise of this driver. The controller is given addresses of whole pages of `memory` for its queues, each of
        // which fits into a page; and of what it is told to read into, which whoever calls `read` answers for. `memory` lives
        // until the controller is stopped, or is kept by its IOAS until the device is quiet.
        unsafe { nvme.device.enable_bus_master()? };
        nvme.registers.set(CC, CC_ENABLE | CC_ENTRY_SIZES)?;
        nvme.wait_for(CSTS_READY)?;
        nvme.registers.set(INTMS, u32::MAX)?;
        nvme.admin(SET_FEATURES, 0, NUMBER_OF_QUEUES, u32::from(pairs - 1) << 16 | u32::from(pairs - 1))?;
        for number in 1..=pairs {
            let pair = Pair::new(number);
            let size = u32::from(ENTRIES - 1) << 16 | u32::from(number);
            let (submission, completion) =
                (nvme.memory.address(pair.submission())?, nvme.memory.address(pair.completion())?);
            nvme.admin(CREATE_COMPLETION, completion, size, CONTIGUOUS)?;
            nvme.admin(CREATE_SUBMISSION, submission, size, u32::from(number) << 16 | CONTIGUOUS)?;
            nvme.pairs.push(pair);
        }
        Ok(nvme)
    }

    /// Stops one that somebody else has left as it was.
    pub(super) fn stop(device: Device) -> Result<()> {
        device.set_quiet_recipe(&QUIET)?;
        device.quiesce()?;
        Ok(())
    }

    /// The device.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// Has it read blocks from the drive: command `number` in pair `pair` (from 1 on). `prp` are the two words that tell where to
    /// (4.3): the address of the first page; and that of the second one or of a list of them.
    ///
    /// # Safety
    /// The pages are those of a mapping in the device's IOAS, which is not reclaimed before the command is done or the device quiet.
    pub(super) unsafe fn read(
        &mut self,
        pair: usize,
        number: u16,
        block: u64,
        blocks: u16,
        prp: [u64; 2],
    ) -> Result<()> {
        let [low, high] = [block as u32, (block >> 32) as u32];
        // The drive's only namespace is 1.
        self.submit(pair, number, READ, 1, prp, [low, high, u32::from(blocks - 1)])
    }

    /// Takes the next completion of a pair, if there is one.
    pub(super) fn next_done(&mut self, pair: usize) -> Result<Option<Done>> {
        let pair = self.pairs.get_mut(pair).context("no such pair of queues")?;
        let at = pair.completion() + usize::from(pair.head) * 16;
        let memory = self.memory.memory()?;
        let status = memory.load_u16(at + 14)?;
        if status & 1 != u16::from(pair.phase) {
            return Ok(None);
        }
        barrier::dma_read();
        let command = memory.load_u16(at + 12)?;
        pair.head = (pair.head + 1) % ENTRIES;
        pair.phase ^= pair.head == 0;
        let doorbell = DOORBELLS + (2 * u64::from(pair.number) + 1) * self.stride;
        self.registers.write_u32(doorbell, pair.head.into())?;
        Ok(Some(Done { command, status: status >> 1 }))
    }

    /// A command of the admin queue, done.
    fn admin(&mut self, opcode: u32, address: u64, ten: u32, eleven: u32) -> Result<()> {
        self.submit(0, 0, opcode, 0, [address, 0], [ten, eleven, 0])?;
        let mut done = None;
        let device = self.device.name().to_owned();
        let deadline = Instant::now() + STOPPING;
        while done.is_none() {
            ensure!(Instant::now() < deadline, "{device} does not answer admin command {opcode:#x}");
            done = self.next_done(0)?;
        }
        let status = done.map_or(0, |done| done.status);
        ensure!(status == 0, "admin command {opcode:#x} ended with status {status:#x}");
        Ok(())
    }

    /// Puts a command into a queue (4.2) and rings (3.1.24).
    fn submit(
        &mut self,
        pair: usize,
        number: u16,
        opcode: u32,
        namespace: u32,
        prp: [u64; 2],
        words: [u32; 3],
    ) -> Result<()> {
        let pair = self.pairs.get_mut(pair).context("no such pair of queues")?;
        let at = pair.submission() + usize::from(pair.tail) * 64;
        let memory = self.memory.memory()?;
        memory.fill(at, 64, 0)?;
        memory.store_u32(at, opcode | u32::from(number) << 16)?;
        memory.store_u32(at + 4, namespace)?;
        for (word, place) in prp.into_iter().zip([24, 32]) {
            memory.store_u64(at + place, word)?;
        }
        for (word, place) in words.into_iter().zip([40, 44, 48]) {
            memory.store_u32(at + place, word)?;
        }
        pair.tail = (pair.tail + 1) % ENTRIES;
        let doorbell = DOORBELLS + 2 * u64::from(pair.number) * self.stride;
        self.registers.write_u32(doorbell, pair.tail.into())?;
        Ok(())
    }

    fn wait_for(&self, ready: u32) -> Result<()> {
        wait(&self.device, "becoming ready or stopping", || {
            Ok(self.registers.get(CSTS)? & CSTS_READY == ready)
        })
    }
}
