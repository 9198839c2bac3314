//! QEMU's edu device by its registers: found and switched on in sysfs, its BAR mapped.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The most bytes moved at once: QEMU 7.2 aborts when a transfer reaches the end of the device's 4096-byte buffer.
pub(crate) const MOST: usize = 2048;

/// Where the device's own buffer lies in its address space.
const BUFFER: u64 = 0x40000;
/// Size of BAR 0.
const BAR_LEN: usize = 1 << 20;

/// Answers its own inverse.
const LIVENESS: usize = 0x04;
const DMA_SOURCE: usize = 0x80;
const DMA_DESTINATION: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;
const START: u64 = 1;
/// Without this bit a transfer goes from RAM to the device.
const TO_RAM: u64 = 2;

/// Offset of the command register in configuration space, and its bus mastering bit.
const PCI_COMMAND: u64 = 4;
const BUS_MASTER: u16 = 4;

/// The device, enabled and bus mastering.
pub(crate) struct Edu {
    bar: NonNull<u8>,
    config: File,
}

impl Edu {
    /// Finds the first edu device and switches it on.
    pub(crate) fn open() -> Result<Self> {
        let dir = find()?;
        fs::write(dir.join("enable"), "1").context("enabling the edu device")?;
        let resource = OpenOptions::new().read(true).write(true).open(dir.join("resource0"))?;
        // SAFETY: a shared mapping of the BAR's file at an address of the kernel's choice.
        let bar = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(ptr::null_mut(), BAR_LEN, access, libc::MAP_SHARED, resource.as_raw_fd(), 0)
        };
        if bar == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).context("mapping the edu device's BAR 0");
        }
        let bar = NonNull::new(bar.cast()).context("mmap answered address 0")?;
        let config = OpenOptions::new().read(true).write(true).open(dir.join("config"))?;
        let edu = Self { bar, config };
        let probe = 0x1234_5678_u32;
        // SAFETY: the liveness register is 4 bytes inside the BAR; it changes nothing else.
        let inverse = unsafe {
            edu.bar.add(LIVENESS).cast::<u32>().write_volatile(probe);
            edu.bar.add(LIVENESS).cast::<u32>().read_volatile()
        };
        if inverse != !probe {
            bail!("the edu device is not alive: {inverse:#x} where {:#x} was due", !probe);
        }
        edu.set_bus_master(true)?;
        Ok(edu)
    }

    /// Has the device fetch `len` bytes from physical address `pa`.
    pub(crate) fn fetch(&mut self, pa: u64, len: usize) -> Result<()> {
        self.transfer(pa, BUFFER, len, START)
    }

    /// Has the device store `len` bytes of its buffer at physical address `pa`.
    pub(crate) fn store(&mut self, pa: u64, len: usize) -> Result<()> {
        self.transfer(BUFFER, pa, len, START | TO_RAM)
    }

    /// Switches bus mastering on or off and reads back that it is so.
    fn set_bus_master(&self, on: bool) -> Result<()> {
        let mut command = [0; 2];
        self.config.read_exact_at(&mut command, PCI_COMMAND)?;
        let old = u16::from_le_bytes(command);
        let new = if on { old | BUS_MASTER } else { old & !BUS_MASTER };
        self.config.write_all_at(&new.to_le_bytes(), PCI_COMMAND)?;
        self.config.read_exact_at(&mut command, PCI_COMMAND)?;
        if u16::from_le_bytes(command) & BUS_MASTER != new & BUS_MASTER {
            bail!("bus mastering does not switch");
        }
        Ok(())
    }

    fn transfer(&mut self, source: u64, destination: u64, len: usize, command: u64) -> Result<()> {
        assert!(len <= MOST);
        self.write(DMA_SOURCE, source);
        self.write(DMA_DESTINATION, destination);
        self.write(DMA_COUNT, len as u64);
        self.write(DMA_COMMAND, command);
        // The device waits 100 ms before it moves anything; an emulated one on a busy machine longer.
        let late = Instant::now() + Duration::from_secs(10);
        // SAFETY: an 8-byte register inside the BAR; reading it has no effect.
        while unsafe { self.bar.add(DMA_COMMAND).cast::<u64>().read_volatile() } & START != 0 {
            if Instant::now() > late {
                bail!("the edu device did not finish a transfer within 10 s");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn write(&mut self, register: usize, value: u64) {
        // SAFETY: only called with the DMA registers, which are 8 bytes wide and inside the BAR. What the device does to
        // memory follows from the addresses, which are those of pinned pages.
        unsafe { self.bar.add(register).cast::<u64>().write_volatile(value) }
    }
}

impl Drop for Edu {
    fn drop(&mut self) {
        // The pages are given back after this, so the device must not write any more.
        let _ = self.set_bus_master(false);
        // SAFETY: the mapping is ours and nothing refers to it after this.
        unsafe { libc::munmap(self.bar.as_ptr().cast(), BAR_LEN) };
    }
}

fn find() -> Result<PathBuf> {
    let is = |dir: &Path, file: &str, id: &str| {
        fs::read_to_string(dir.join(file)).is_ok_and(|text| text.trim() == id)
    };
    for entry in fs::read_dir("/sys/bus/pci/devices")? {
        let dir = entry?.path();
        if is(&dir, "vendor", "0x1234") && is(&dir, "device", "0x11e8") {
            return Ok(dir);
        }
    }
    bail!("no edu device (1234:11e8): give QEMU `-device edu`")
}
