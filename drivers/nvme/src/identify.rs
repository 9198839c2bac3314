//! What a controller and its namespaces say of themselves.
//!
//! Source: NVM Express Base Specification 1.4, 5.15.2.1 (Identify Namespace), 5.15.2.2 (Identify Controller).

use crate::error::{Error, Result};

/// Bytes of every structure.
pub(crate) const STRUCTURE: usize = 4096;

/// CNS, 5.15.1: which structure is wanted.
pub(crate) const NAMESPACE: u32 = 0x00;
/// The controller's.
pub(crate) const CONTROLLER: u32 = 0x01;
/// Up to 1024 numbers of active namespaces, larger than the one that is told.
pub(crate) const ACTIVE_NAMESPACES: u32 = 0x02;

/// A structure's bytes. What lies past their end is 0.
pub(crate) struct Structure<'a>(pub(crate) &'a [u8]);

impl Structure<'_> {
    fn bytes<const COUNT: usize>(&self, at: usize) -> [u8; COUNT] {
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk);
        bytes.copied().unwrap_or([0; COUNT])
    }

    fn u8(&self, at: usize) -> u8 {
        u8::from_le_bytes(self.bytes(at))
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    /// Text, which is ASCII padded with blanks. It is shown on terminals, so what is not to be printed is a question mark.
    fn text(&self, at: usize, length: usize) -> String {
        let bytes = self.0.get(at..).and_then(|from| from.get(..length)).unwrap_or_default();
        let shown = |&byte: &u8| match byte {
            b' '..=b'~' => char::from(byte),
            _ => '?',
        };
        let end = bytes.iter().rposition(|byte| *byte != 0 && *byte != b' ').map_or(0, |last| last + 1);
        bytes.iter().take(end).map(shown).collect::<String>().trim().to_owned()
    }
}

/// What a controller says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// PCI vendor.
    pub vendor: u16,
    /// PCI vendor of its subsystem.
    pub subsystem_vendor: u16,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Revision of its firmware.
    pub firmware: String,
    /// Its number within its subsystem.
    pub controller: u16,
    /// Major, minor and tertiary version of the specification that it keeps to.
    pub version: (u16, u8, u8),
    /// The most bytes of one command; `None`: there is no limit.
    pub max_transfer: Option<u64>,
    /// The highest number that a namespace can have.
    pub namespaces: u32,
    /// Whether it takes doorbells in memory: it is a program.
    pub shadow_doorbells: bool,
    /// Whether what has been written may be lost with power before a flush.
    pub volatile_cache: bool,
}

impl Identity {
    /// Reads it. `page_shift` is the unit of MDTS; the version is a register's, since old controllers do not tell it here.
    pub(crate) fn new(structure: &Structure<'_>, page_shift: u32, version: u32) -> Result<Self> {
        // SQES and CQES: required sizes of entries in the lower half, the largest in the upper.
        let (submission, completion) = (structure.u8(512), structure.u8(513));
        let takes = |sizes: u8, size: u8| sizes & 0xf <= size && size <= sizes >> 4;
        if !takes(submission, 6) || !takes(completion, 4) {
            return Err(Error::unsupported(format!(
                "the controller's queue entries are of other sizes (SQES {submission:#04x}, CQES {completion:#04x})"
            )));
        }
        Ok(Self {
            vendor: structure.u16(0),
            subsystem_vendor: structure.u16(2),
            serial: structure.text(4, 20),
            model: structure.text(24, 40),
            firmware: structure.text(64, 8),
            controller: structure.u16(78),
            version: ((version >> 16) as u16, (version >> 8) as u8, version as u8),
            max_transfer: match u32::from(structure.u8(77)) {
                0 => None,
                shift => 1_u64.checked_shl(shift + page_shift),
            },
            namespaces: structure.u32(516),
            shadow_doorbells: structure.u16(256) >> 8 & 1 != 0,
            volatile_cache: structure.u8(525) & 1 != 0,
        })
    }
}

/// A namespace: blocks from 0 on. Known to be one of the controller that told of it, and of no other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Namespace {
    id: u32,
    blocks: u64,
    block_shift: u32,
    /// The controller that it is of.
    pub(crate) owner: u64,
}

impl Namespace {
    /// Reads Identify Namespace.
    pub(crate) fn new(id: u32, structure: &Structure<'_>, owner: u64) -> Result<Self> {
        let (blocks, formats, format) = (structure.u64(0), structure.u8(25), structure.u8(26));
        if blocks == 0 {
            return Err(Error::unsupported(format!("namespace {id} is not active")));
        }
        // FLBAS: which format, and whether metadata comes with the data.
        let index = usize::from(format & 0xf);
        if index > usize::from(formats) {
            return Err(Error::nonsense(format!(
                "namespace {id} has format {index}, of {formats} after the first"
            )));
        }
        let format = structure.u32(128 + 4 * index);
        let (metadata, block_shift) = (format & 0xffff, format >> 16 & 0xff);
        if metadata != 0 {
            return Err(Error::unsupported(format!(
                "namespace {id} has {metadata} bytes of metadata with each block"
            ))
            .with_remedy("format it without (nvme format --lbaf)"));
        }
        if !(9..=16).contains(&block_shift) {
            return Err(Error::unsupported(format!("namespace {id} has blocks of 2^{block_shift} bytes")));
        }
        if blocks.checked_mul(1 << block_shift).is_none() {
            return Err(Error::nonsense(format!(
                "namespace {id} has {blocks} blocks of 2^{block_shift} bytes"
            )));
        }
        Ok(Self { id, blocks, block_shift, owner })
    }

    /// Its number, from 1 on.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// How many blocks it has.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Bytes of a block: a power of two, at least 512.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        1 << self.block_shift
    }

    /// Bytes of a block, as a power of two.
    #[inline]
    pub(crate) fn block_shift(&self) -> u32 {
        self.block_shift
    }

    /// Bytes of all of it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks << self.block_shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn text_cannot_take_over_a_terminal() {
        let mut bytes = [b' '; 64];
        bytes[4..12].copy_from_slice(b"A\x1b[2J\xff\0B");
        assert_eq!(Structure(&bytes).text(4, 20), "A?[2J??B");
        assert_eq!(Structure(&bytes).text(40, 10), "");
        assert_eq!(Structure(&bytes).text(60, 10), "", "past the end");
    }

    #[test]
    fn namespaces_that_cannot_be_driven() {
        let namespace = |blocks: u64, formats: u8, format: u8, lbaf: u32| {
            let mut bytes = [0; STRUCTURE];
            bytes[..8].copy_from_slice(&blocks.to_le_bytes());
            (bytes[25], bytes[26]) = (formats, format);
            bytes[128 + 4 * usize::from(format & 0xf)..][..4].copy_from_slice(&lbaf.to_le_bytes());
            Namespace::new(1, &Structure(&bytes), 1)
        };
        let right = namespace(100, 0, 0, 9 << 16).unwrap();
        assert_eq!((right.block_size(), right.blocks(), right.bytes()), (512, 100, 51_200));
        assert_eq!(namespace(100, 7, 7, 12 << 16).unwrap().block_size(), 4096);
        for (blocks, formats, format, lbaf, kind) in [
            (0, 0, 0, 9 << 16, ErrorKind::Unsupported),
            (1, 0, 1, 9 << 16, ErrorKind::Nonsense),
            (1, 0, 0, 9 << 16 | 8, ErrorKind::Unsupported),
            (1, 0, 0, 8 << 16, ErrorKind::Unsupported),
            (1, 0, 0, 255 << 16, ErrorKind::Unsupported),
            (u64::MAX, 0, 0, 9 << 16, ErrorKind::Nonsense),
        ] {
            assert_eq!(namespace(blocks, formats, format, lbaf).unwrap_err().kind(), kind);
        }
    }

    #[test]
    fn sizes_of_entries_and_transfers() {
        let mut bytes = [0; STRUCTURE];
        assert_eq!(
            Identity::new(&Structure(&bytes), 12, 0x10400).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        (bytes[512], bytes[513], bytes[77]) = (0x66, 0x44, 5);
        assert_eq!(Identity::new(&Structure(&bytes), 12, 0x10400).unwrap().max_transfer, Some(128 << 10));
        bytes[77] = 255;
        assert_eq!(Identity::new(&Structure(&bytes), 12, 0x10400).unwrap().max_transfer, None);
    }
}
