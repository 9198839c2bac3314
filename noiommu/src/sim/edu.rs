//! The edu device, modelled after its documentation (QEMU, docs/specs/edu.rst).
//!
//! | offset | register |
//! |---|---|
//! | 0x00 | identification, 0xRRrr00ed: major and minor version |
//! | 0x04 | liveness: reads back inverted |
//! | 0x08 | factorial: write n, read n! when the status says it is done |
//! | 0x20 | status: bit 0 computing, bit 7 interrupt when done |
//! | 0x24, 0x60, 0x64 | interrupt status, raise, acknowledge: an interrupt while it is not 0 |
//! | 0x80, 0x88, 0x90 | DMA source, destination, count |
//! | 0x98 | DMA command: bit 0 start and running, bit 1 direction (0: to the device), bit 2 interrupt when done |
//!
//! Registers below 0x80 take accesses of 4 bytes, those above of 4 or 8. The device's own buffer is 4096 bytes at 0x40000
//! in its address space.

use super::{At, Bus, Identity, Model, Work};

const IDENTIFICATION: u64 = 0x0100_00ed;
const BAR_SIZE: u64 = 1 << 20;
const BUFFER: u64 = 0x4_0000;
const BUFFER_SIZE: u64 = 4096;

const STATUS_COMPUTING: u64 = 1;
const STATUS_INTERRUPT: u64 = 0x80;
const FACTORIAL_DONE: u64 = 0x001;
const DMA_DONE: u64 = 0x100;
const DMA_RUN: u64 = 1;
const DMA_FROM_DEVICE: u64 = 2;
const DMA_INTERRUPT: u64 = 4;

/// The model of an edu device: vendor 1234, device 11e8; a line, and MSI with one vector.
#[derive(Clone, Debug)]
pub struct Edu {
    liveness: u64,
    factorial: u64,
    status: u64,
    interrupts: u64,
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
    buffer: Box<[u8; BUFFER_SIZE as usize]>,
}

impl Default for Edu {
    fn default() -> Self {
        let [liveness, factorial, status, interrupts, source, destination, count, command] = [0; 8];
        let buffer = Box::new([0; BUFFER_SIZE as usize]);
        Self { liveness, factorial, status, interrupts, source, destination, count, command, buffer }
    }
}

impl Edu {
    /// The device's own buffer.
    #[must_use]
    pub fn buffer(&self) -> &[u8] {
        &*self.buffer
    }

    /// Whether a transfer has been asked for that is not done.
    #[must_use]
    pub fn is_copying(&self) -> bool {
        self.command & DMA_RUN != 0
    }

    /// There is a reason to interrupt.
    fn interrupt(&mut self, reasons: u64, bus: &mut Bus<'_>) {
        self.interrupts |= reasons;
        if self.interrupts != 0 {
            bus.raise(0);
        }
    }

    fn transfer(&mut self, bus: &mut Bus<'_>) {
        let from_device = self.command & DMA_FROM_DEVICE != 0;
        let (inside, place) =
            if from_device { (self.source, self.destination) } else { (self.destination, self.source) };
        let range = inside.checked_sub(BUFFER).and_then(|start| {
            let end = start.checked_add(self.count)?;
            (end <= BUFFER_SIZE).then_some(start as usize..end as usize)
        });
        let Some(range) = range else {
            let count = self.count;
            tracing::error!(
                "sim:edu: DMA of {count} bytes at {inside:#x} lies outside of the device's buffer"
            );
            return;
        };
        let bytes = &mut self.buffer[range];
        if from_device {
            let _ = bus.write(place, bytes);
            return;
        }
        // With bus mastering off nothing comes into the buffer, and the device takes that for done. Where nobody is, it finds all
        // ones.
        let mut found = vec![0; bytes.len()];
        if bus.read(place, &mut found).is_ok() || bus.is_master() {
            bytes.copy_from_slice(&found);
        }
    }
}

/// Replaces a register or, with 4 bytes, one half of it.
fn put(register: &mut u64, offset: u64, width: u8, value: u64) {
    *register = match (width, offset & 4) {
        (8, _) => value,
        (_, 0) => *register & !0xffff_ffff | value & 0xffff_ffff,
        _ => *register & 0xffff_ffff | value << 32,
    };
}

impl Model for Edu {
    fn identity(&self) -> Identity {
        // What is nobody's in config space is memory, in QEMU.
        Identity::new("edu", 0x1234, 0x11e8)
            .revision(0x10)
            .class(0x00_ff_00)
            .subsystem(0x1af4, 0x1100)
            .bar(0, BAR_SIZE)
            .line()
            .msi(1)
            .config(0x4e, &[0; 0x100 - 0x4e], &[0xff; 0x100 - 0x4e])
    }

    fn read(&mut self, at: At, _: &mut Bus<'_>) -> u64 {
        let At { offset, width, .. } = at;
        if !accepts(offset, width) {
            // Narrow accesses do not reach the device; wide ones of narrow registers read as ones.
            return if width < 4 { 0 } else { u64::MAX };
        }
        let value = match offset & !4 {
            _ if offset < 0x80 => match offset {
                0x00 => IDENTIFICATION,
                0x04 => self.liveness,
                0x08 => self.factorial,
                0x20 => self.status,
                0x24 => self.interrupts,
                _ => u64::MAX,
            },
            0x80 => self.source,
            0x88 => self.destination,
            0x90 => self.count,
            0x98 => self.command,
            _ => u64::MAX,
        };
        if offset >= 0x80 && offset & 4 != 0 { value >> 32 } else { value }
    }

    fn write(&mut self, at: At, value: u64, bus: &mut Bus<'_>) {
        let At { offset, width, .. } = at;
        if !accepts(offset, width) {
            return;
        }
        match offset {
            0x04 => self.liveness = !value & 0xffff_ffff,
            0x08 if self.status & STATUS_COMPUTING == 0 => {
                self.factorial = value;
                self.status |= STATUS_COMPUTING;
            }
            0x20 => {
                self.status = self.status & !STATUS_INTERRUPT | value & STATUS_INTERRUPT;
            }
            0x60 => self.interrupt(value, bus),
            0x64 => {
                self.interrupts &= !value;
                if self.interrupts == 0 {
                    bus.lower();
                }
            }
            // While it runs, the DMA registers do not change.
            0x80..0xa0 if self.command & DMA_RUN != 0 => {}
            0x80..0x88 => put(&mut self.source, offset, width, value),
            0x88..0x90 => put(&mut self.destination, offset, width, value),
            0x90..0x98 => put(&mut self.count, offset, width, value),
            0x98..0xa0 => put(&mut self.command, offset, width, value),
            _ => {}
        }
    }

    fn work(&mut self, bus: &mut Bus<'_>) -> Work {
        if self.status & STATUS_COMPUTING != 0 {
            // 34! is a multiple of 2^32, and so are those after it.
            let n = (self.factorial as u32).min(34);
            let product = (1..=n).fold(1u32, u32::wrapping_mul);
            self.factorial = product.into();
            self.status &= !STATUS_COMPUTING;
            if self.status & STATUS_INTERRUPT != 0 {
                self.interrupt(FACTORIAL_DONE, bus);
            }
        } else if self.command & DMA_RUN != 0 {
            self.transfer(bus);
            self.command &= !DMA_RUN;
            if self.command & DMA_INTERRUPT != 0 {
                self.interrupt(DMA_DONE, bus);
            }
        } else {
            return Work::Idle;
        }
        Work::More
    }
}

/// Whether the device answers an access of this width.
fn accepts(offset: u64, width: u8) -> bool {
    width == 4 || width == 8 && (0x80..0xa0).contains(&offset)
}
