//! Intel's 82574 network card: a frame out, its answer in, by legacy descriptors. See *Intel 82574 GbE Controller Family
//! Datasheet*; sections are named where they are used.

use std::time::Duration;

use anyhow::{Result, ensure};
use noiommu::{Bar, Device, InterruptKind, Ioas, barrier};

use super::driver::{Driver, PAGE, Shared, Written, arp, expect_id, wait};

// 10.2, registers.
const CTRL: u64 = 0x0000;
const STATUS: u64 = 0x0008;
const ICR: u64 = 0x00c0;
const ICS: u64 = 0x00c8;
const IMS: u64 = 0x00d0;
const IMC: u64 = 0x00d8;
const IVAR: u64 = 0x00e4;
const RCTL: u64 = 0x0100;
const TCTL: u64 = 0x0400;
const RECEIVE: u64 = 0x2800;
const TRANSMIT: u64 = 0x3800;
const RAL: u64 = 0x5400;
const RAH: u64 = 0x5404;
/// From the beginning of a ring's registers (10.2.5.5, 10.2.6.3): its address, bytes, head and tail.
const BASE_LOW: u64 = 0x00;
const BASE_HIGH: u64 = 0x04;
const LENGTH: u64 = 0x08;
const HEAD: u64 = 0x10;
const TAIL: u64 = 0x18;

/// 10.2.2.1: the link is to come up.
const CTRL_LINK: u32 = 1 << 6;
const STATUS_LINK: u32 = 1 << 1;
/// 10.2.4.1: causes that are not about a queue, and a change of the link among them.
const CAUSES: u32 = 1 << 24 | 1 << 2;
/// 10.2.4.9: those go to vector 0.
const IVAR_OTHER: u32 = 8 << 16;
/// 10.2.5.1: enabled, every address taken, broadcasts too, buffers of 2048 bytes, checksums taken off.
const RCTL_ENABLE: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 15 | 1 << 26;
/// 10.2.6.1: enabled, short frames padded.
const TCTL_ENABLE: u32 = 1 << 1 | 1 << 3;
const RAH_VALID: u32 = 1 << 31;

/// 7.2.10.1: the whole frame, checksum added, done to be reported.
const END_CHECKSUM_REPORT: u8 = 1 | 1 << 1 | 1 << 3;
/// In the status of a descriptor of either kind.
const DONE: u8 = 1;

/// Longer than the card holds an interrupt back by itself, which is 128 microseconds.
const THROTTLED: Duration = Duration::from_millis(10);

/// Descriptors of a ring: a length of 128 bytes is the least (10.2.5.7).
const ENTRIES: usize = 8;
/// Where the rings and the frames are in the shared memory.
const TRANSMIT_RING: usize = 0;
const RECEIVE_RING: usize = PAGE / 2;
const FRAME: usize = PAGE;
const ANSWERS: usize = 2 * PAGE;
const ANSWER: usize = 2048;

/// A card with one ring in each direction.
pub(super) struct E1000e {
    registers: Bar,
    memory: Shared,
    device: Device,
    interrupts: Option<InterruptKind>,
    sent: usize,
    received: usize,
}

impl E1000e {
    fn mac(&self) -> Result<[u8; 6]> {
        let (low, high) = (self.registers.read_u32(RAL)?, self.registers.read_u32(RAH)?);
        ensure!(high & RAH_VALID != 0, "it has no address");
        let ([a, b, c, d], [e, f, ..]) = (low.to_le_bytes(), high.to_le_bytes());
        Ok([a, b, c, d, e, f])
    }

    fn ring(&self, registers: u64, at: usize, tail: usize) -> Result<()> {
        let address = self.memory.address(at)?;
        self.registers.write_u32(registers + BASE_LOW, address as u32)?;
        self.registers.write_u32(registers + BASE_HIGH, (address >> 32) as u32)?;
        self.registers.write_u32(registers + LENGTH, (ENTRIES * 16) as u32)?;
        self.registers.write_u32(registers + HEAD, 0)?;
        self.registers.write_u32(registers + TAIL, tail as u32)?;
        Ok(())
    }

    /// Sends the frame in the shared memory and waits until the card has written its descriptor back (7.2.10).
    fn send(&mut self, length: usize) -> Result<()> {
        let at = TRANSMIT_RING + self.sent % ENTRIES * 16;
        let memory = self.memory.memory()?;
        memory.store_u64(at, self.memory.address(FRAME)?)?;
        memory.store_u64(at + 8, length as u64 | u64::from(END_CHECKSUM_REPORT) << 24)?;
        self.sent += 1;
        self.registers.write_u32(TRANSMIT + TAIL, (self.sent % ENTRIES) as u32)?;
        wait(&self.device, "sending", || Ok(memory.load_u8(at + 12)? & DONE != 0))
    }

    /// The next frame that comes in: where it is and how long (7.1.5).
    fn receive(&mut self) -> Result<(usize, usize)> {
        let slot = self.received % ENTRIES;
        let at = RECEIVE_RING + slot * 16;
        let memory = self.memory.memory()?;
        wait(&self.device, "receiving", || Ok(memory.load_u8(at + 12)? & DONE != 0))?;
        barrier::dma_read();
        let (length, errors) = (memory.load_u16(at + 8)?, memory.load_u8(at + 13)?);
        ensure!(errors == 0, "a frame with errors {errors:#x}");
        self.received += 1;
        Ok((ANSWERS + slot * ANSWER, length.into()))
    }
}

impl Driver for E1000e {
    const ID: (u16, u16) = (0x8086, 0x10d3);

    fn start(device: Device, ioas: &Ioas, interrupts: Option<InterruptKind>) -> Result<Self> {
        expect_id(&device, Self::ID)?;
        let registers = device.bar(0)?;
        device.attach(ioas)?;
        let memory = Shared::new(&device, ioas, 2 + ENTRIES * ANSWER / PAGE)?;
        let card = Self { registers, memory, device, interrupts, sent: 0, received: 0 };
        // Whoever had it before may have left it running.
        card.registers.write_u32(IMC, u32::MAX)?;
        card.registers.write_u32(RCTL, 0)?;
        card.registers.write_u32(TCTL, 0)?;
        card.registers.read_u32(ICR)?;
        for slot in 0..ENTRIES {
            let place = card.memory.address(ANSWERS + slot * ANSWER)?;
            card.memory.memory()?.store_u64(RECEIVE_RING + slot * 16, place)?;
        }
        // One descriptor stays with us: a ring whose head is its tail is empty (7.1.9).
        card.ring(RECEIVE, RECEIVE_RING, ENTRIES - 1)?;
        card.ring(TRANSMIT, TRANSMIT_RING, 0)?;
        // SAFETY: the promise of this driver. The card is given the addresses of two rings, which lie in one page of
        // `memory`, of its page for a frame, and of buffers of 2048 bytes, none across pages, which is as much as it was
        // told that they hold. `memory` lives until the card is stopped, or is kept by its IOAS until the device is quiet.
        unsafe { card.device.enable_bus_master()? };
        card.registers.write_u32(CTRL, card.registers.read_u32(CTRL)? | CTRL_LINK)?;
        wait(&card.device, "bringing its link up", || {
            Ok(card.registers.read_u32(STATUS)? & STATUS_LINK != 0)
        })?;
        card.registers.write_u32(RCTL, RCTL_ENABLE)?;
        card.registers.write_u32(TCTL, TCTL_ENABLE)?;
        Ok(card)
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn identity(&mut self) -> Result<String> {
        Ok(format!("MAC {}", self.mac()?.map(|byte| format!("{byte:02x}")).join(":")))
    }

    fn transfer(&mut self) -> Result<Written> {
        let mac = self.mac()?;
        let request = arp::request(mac);
        self.memory.memory()?.write(FRAME, &request)?;
        self.send(request.len())?;
        let (at, length) = self.receive()?;
        let bytes = self.memory.bytes(at, length.min(arp::FRAME))?;
        let gateway = arp::answer(&bytes, mac)?;
        Ok(Written {
            what: format!("sent a frame, {} answered", gateway.map(|byte| format!("{byte:02x}")).join(":")),
            address: self.memory.address(at)?,
            bytes,
        })
    }

    fn fire(&mut self) -> Result<()> {
        if self.interrupts == Some(InterruptKind::Msix) {
            self.registers.write_u32(IVAR, IVAR_OTHER)?;
        }
        self.registers.read_u32(ICR)?;
        self.registers.write_u32(IMS, CAUSES)?;
        self.registers.write_u32(ICS, CAUSES)?;
        Ok(())
    }

    fn acknowledge(&mut self) -> Result<()> {
        // Masked first: reading lets go of causes only so far as they are masked no more (10.2.4.1).
        let causes = self.registers.read_u32(ICR)?;
        self.registers.write_u32(IMC, u32::MAX)?;
        self.registers.write_u32(ICR, u32::MAX)?;
        ensure!(causes & CAUSES != 0, "an interrupt without a cause: {causes:#x}");
        // A vector is held back for a while after each message. QEMU 7.2 ends itself when MSI-X is turned off before that is over.
        std::thread::sleep(THROTTLED);
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.registers.write_u32(IMC, u32::MAX)?;
        self.registers.write_u32(RCTL, 0)?;
        self.registers.write_u32(TCTL, 0)?;
        Ok(())
    }

    fn is_fresh(&self) -> Result<bool> {
        // Its only reset is by power states, for which QEMU 7.2 changes no register: it must be awake again, as itself.
        Ok(self.mac()? != [0xff; 6] && self.registers.read_u32(STATUS)? != u32::MAX)
    }
}
