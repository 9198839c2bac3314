//! A block device in memory (5.2).

use noiommu::sim::{Aborted, Bus};

use super::model::Kind;
use super::queue::Chain;

const SECTOR: usize = 512;

// 5.2.6, requests and what becomes of them.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const OK: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// 5.2.3: it can be told to keep what was written.
const FEATURE_FLUSH: u64 = 1 << 9;

/// A disk in memory.
pub struct Disk {
    /// What is on it.
    pub media: Vec<u8>,
    /// How many sectors it says that it has.
    pub sectors: u64,
    /// How often it was told to keep what was written.
    pub flushes: u64,
}

impl Disk {
    /// One with so many sectors, all zero.
    #[must_use]
    pub fn new(sectors: u64) -> Self {
        Self { media: vec![0; sectors as usize * SECTOR], sectors, flushes: 0 }
    }

    /// The part of the media that a request is about, if it is there.
    fn part(&mut self, sector: u64, length: usize) -> Option<&mut [u8]> {
        let start = usize::try_from(sector).ok()?.checked_mul(SECTOR)?;
        self.media.get_mut(start..start.checked_add(length)?)
    }
}

impl Kind for Disk {
    const NAME: (&'static str, u16) = ("virtio-blk", 2);
    const QUEUES: (usize, u16) = (1, 256);
    const FEATURES: u64 = FEATURE_FLUSH;

    fn configuration(&self) -> Vec<u8> {
        self.sectors.to_le_bytes().to_vec()
    }

    fn request(&mut self, _: usize, chain: &Chain, bus: &mut Bus<'_>) -> Result<u32, Aborted> {
        let given = chain.read(bus)?;
        // Where the status goes: behind all else.
        let (Some((head, data)), Some(last)) = (given.split_first_chunk::<16>(), chain.room().checked_sub(1))
        else {
            return Ok(0);
        };
        let kind = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let sector = u64::from_le_bytes([
            head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15],
        ]);
        let mut written = 0;
        let status = match kind {
            IN => match self.part(sector, last) {
                Some(part) => {
                    written = chain.write(0, part, bus)?;
                    OK
                }
                None => FAILED,
            },
            OUT => match self.part(sector, data.len()) {
                Some(part) => {
                    part.copy_from_slice(data);
                    OK
                }
                None => FAILED,
            },
            FLUSH => {
                self.flushes += 1;
                OK
            }
            GET_ID => {
                written = chain.write(0, b"simulated-disk\0\0\0\0\0\0", bus)?;
                OK
            }
            _ => UNSUPPORTED,
        };
        Ok(written + chain.write(last, &[status], bus)?)
    }

    fn refuse(&mut self, chain: &Chain, status: u8, bus: &mut Bus<'_>) -> Result<u32, Aborted> {
        chain.write(chain.room().saturating_sub(1), &[status], bus)
    }
}
