//! Entries of the AMDv1 I/O page table, bit by bit.
//!
//! Source: *AMD I/O Virtualization Technology (IOMMU) Specification*, 48882, section 2.2.3 "I/O Page Tables for Host
//! Translations": the entry fields (figures 8 and 9) and the page sizes that next level 7 codes (table 14). Checked
//! against the behaviour of Linux 7.3, which uses the same format for its no-IOMMU tables.
//!
//! | bits | field | here |
//! |---|---|---|
//! | 0 | PR, present | set in every entry in use |
//! | 1-4 | ignored by hardware, free for software | bit 1: [`AREA_END`] |
//! | 9-11 | next level | 0: leaf of the level's own size; 1-6: a table; 7: leaf of a size coded in the address |
//! | 12-51 | address | a leaf: physical address; a table: frame number in the arena |
//! | 60 | FC, forced coherence | set in leaves |
//! | 61, 62 | IR, IW: readable, writable by the device | both set in tables |
//!
//! Levels are counted from 0 here (a level-0 table holds 4 KiB slots), so the next-level field of a table entry, which
//! the specification counts from 1, is the level of the *entry itself* in our count.

/// log2 of the smallest page and of a table frame: 4 KiB.
pub const PAGE_SHIFT: u32 = 12;
/// The bits of an address within its page.
pub const PAGE_MASK: u64 = (1 << PAGE_SHIFT) - 1;
/// Index bits per level: 512 slots in a table.
pub const INDEX_BITS: u32 = 9;
/// Slots in a table.
pub const SLOTS: usize = 1 << INDEX_BITS;
/// The highest level a table can have; its 128 usable slots complete the 64 input bits.
pub const TOP_LEVEL_MAX: u32 = 5;
/// The level of the top table before it has had to grow: 39 input bits.
pub const TOP_LEVEL_START: u32 = 2;
/// log2 of the largest leaf, 2 PiB.
pub const LARGEST_LEAF: u32 = 51;
/// The one power of two between 4 KiB and [`LARGEST_LEAF`] that no leaf may have: 512 GiB, which the natural leaf of
/// level 3 would be; hardware does not handle it (and the kernel's tables avoid it).
pub const FORBIDDEN_LEAF: u32 = 39;

/// The sizes that a leaf can have, as a bit each (VFIO's page size bitmap).
pub const PAGE_SIZES: u64 = ((2 << LARGEST_LEAF) - (1 << PAGE_SHIFT)) & !(1 << FORBIDDEN_LEAF);

const PRESENT: u64 = 1;
const NEXT_LEVEL_SHIFT: u32 = 9;
const NEXT_LEVEL: u64 = 7 << NEXT_LEVEL_SHIFT;
const SIZE_IN_ADDRESS: u64 = 7 << NEXT_LEVEL_SHIFT;
const ADDRESS: u64 = ((1 << 52) - 1) & !0xfff;
const FORCE_COHERENT: u64 = 1 << 60;
const READABLE: u64 = 1 << 61;
const WRITABLE: u64 = 1 << 62;

/// The software bit of ours: this leaf is the last of its area. A lookup that joins neighbouring leaves stops here, so
/// that an answer never runs from one area into the next even when their memory is adjacent.
pub const AREA_END: u64 = 1 << 1;

/// The bits that the specification defines, as the kernel's table would hold them: all but our software bit.
#[must_use]
pub const fn hardware_bits(entry: u64) -> u64 {
    entry & !AREA_END
}

/// What a device may do with a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// The device may read (IOMMU_IOAS_MAP_READABLE).
    pub read: bool,
    /// The device may write (IOMMU_IOAS_MAP_WRITEABLE).
    pub write: bool,
}

impl Access {
    /// Reading and writing.
    pub const READ_WRITE: Self = Self { read: true, write: true };
    /// Reading alone.
    pub const READ_ONLY: Self = Self { read: true, write: false };
    /// Writing alone.
    pub const WRITE_ONLY: Self = Self { read: false, write: true };
}

/// A decoded entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Nothing is mapped here.
    Empty,
    /// A table one level down.
    Table {
        /// Its frame number in the arena.
        frame: u64,
    },
    /// Memory.
    Leaf(Leaf),
}

/// A decoded leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Physical address of its first byte, aligned to its size.
    pub base: u64,
    /// log2 of its size, 12 to 51.
    pub size: u32,
    /// What the device may do.
    pub access: Access,
    /// Whether it is the last of its area.
    pub area_end: bool,
}

impl Leaf {
    /// Mask of the address bits inside the leaf.
    #[must_use]
    pub const fn offset_mask(&self) -> u64 {
        (1u64 << (self.size & 63)).wrapping_sub(1)
    }
}

/// log2 of what one slot of a table of `level` covers.
#[must_use]
pub const fn slot_shift(level: u32) -> u32 {
    PAGE_SHIFT.wrapping_add(INDEX_BITS.wrapping_mul(level))
}

/// The slot of `iova` in a table of `level`, below [`SLOTS`].
#[must_use]
pub const fn slot_of(iova: u64, level: u32) -> usize {
    // The mask leaves 9 bits, which fit any usize; levels end at 5, so the shift (at most 57) is below 64.
    ((iova >> (slot_shift(level) & 63)) & (SLOTS as u64 - 1)) as usize
}

/// Whether a top table of `level` reaches `iova`.
#[must_use]
pub const fn reaches(level: u32, iova: u64) -> bool {
    level >= TOP_LEVEL_MAX || iova >> (slot_shift(level.wrapping_add(1)) & 63) == 0
}

/// The level whose tables hold leaves of 2^`size` bytes: the highest whose slots are not larger than the leaf.
#[must_use]
pub const fn leaf_level(size: u32) -> u32 {
    let mut level = 0;
    while level < TOP_LEVEL_MAX - 1 && slot_shift(level.wrapping_add(1)) <= size {
        level = level.wrapping_add(1);
    }
    level
}

/// Neighbouring slots that a leaf of 2^`size` bytes fills in its table, 1 to 256.
#[must_use]
pub const fn leaf_slots(size: u32) -> usize {
    1usize << (size.wrapping_sub(slot_shift(leaf_level(size))) & 63)
}

/// log2 of the largest leaf that can stand at `iova` for memory at `pa` and is not longer than `length`, which is a
/// nonzero multiple of 4 KiB as both addresses are; `None` when one of them is not.
#[must_use]
pub const fn best_leaf(iova: u64, pa: u64, length: u64) -> Option<u32> {
    let Some(longest) = length.checked_ilog2() else { return None };
    let alignment = (iova | pa).trailing_zeros();
    let mut size = longest;
    if alignment < size {
        size = alignment;
    }
    if size > LARGEST_LEAF {
        size = LARGEST_LEAF;
    }
    if size == FORBIDDEN_LEAF {
        size = FORBIDDEN_LEAF - 1;
    }
    if size < PAGE_SHIFT || length & 0xfff != 0 { None } else { Some(size) }
}

/// The entry of a table of `level` that points to the table in `frame`.
#[must_use]
pub const fn table_entry(level: u32, frame: u64) -> u64 {
    PRESENT
        | ((level as u64) << NEXT_LEVEL_SHIFT) & NEXT_LEVEL
        | (frame << PAGE_SHIFT) & ADDRESS
        | READABLE
        | WRITABLE
}

/// The entry for 2^`size` bytes at `base`, the same in each of its [`leaf_slots`].
#[must_use]
pub const fn leaf_entry(base: u64, size: u32, access: Access, area_end: bool) -> u64 {
    let mut entry = PRESENT | FORCE_COHERENT | base & ADDRESS;
    if size != slot_shift(leaf_level(size)) {
        // The size 2^n is coded by ones from bit 12 to n-2 and a zero at n-1; base is aligned to 2^n.
        let below = (1u64 << (size.wrapping_sub(1) & 63)).wrapping_sub(1);
        entry |= SIZE_IN_ADDRESS | below & ADDRESS;
    }
    if access.read {
        entry |= READABLE;
    }
    if access.write {
        entry |= WRITABLE;
    }
    if area_end {
        entry |= AREA_END;
    }
    entry
}

/// The next-level field of an entry: for one that points to a table, the level of the entry itself.
#[must_use]
#[inline]
pub const fn table_level(entry: u64) -> u32 {
    ((entry & NEXT_LEVEL) >> NEXT_LEVEL_SHIFT) as u32
}

/// What an entry of a table of `level` means.
#[must_use]
#[inline]
pub const fn decode(entry: u64, level: u32) -> Entry {
    if entry & PRESENT == 0 {
        return Entry::Empty;
    }
    let size = match entry & NEXT_LEVEL {
        0 => slot_shift(level),
        SIZE_IN_ADDRESS => {
            // The lowest zero bit from 12 up is bit n-1 of a leaf of 2^n bytes.
            (entry | 0xfff).trailing_ones().wrapping_add(1)
        }
        _ => return Entry::Table { frame: (entry & ADDRESS) >> PAGE_SHIFT },
    };
    Entry::Leaf(Leaf {
        base: entry & ADDRESS & !(1u64 << (size & 63)).wrapping_sub(1),
        size,
        access: Access { read: entry & READABLE != 0, write: entry & WRITABLE != 0 },
        area_end: entry & AREA_END != 0,
    })
}

/// Whether an entry is a leaf of its slot's own size, that may have another one behind it in its area.
#[must_use]
#[inline]
pub const fn fills_one_slot(entry: u64) -> bool {
    entry & (PRESENT | NEXT_LEVEL | AREA_END) == PRESENT
}

/// Whether an entry points to a table.
#[must_use]
#[inline]
pub const fn is_table(entry: u64) -> bool {
    let next = entry & NEXT_LEVEL;
    entry & PRESENT != 0 && next != 0 && next != SIZE_IN_ADDRESS
}

/// Whether an entry of a table of level 0 is a leaf of one page.
#[must_use]
#[inline]
pub const fn is_page(entry: u64) -> bool {
    entry & (PRESENT | NEXT_LEVEL) == PRESENT
}

/// The physical address of a leaf of one page.
#[must_use]
#[inline]
pub const fn page_address(entry: u64) -> u64 {
    entry & ADDRESS
}

/// Whether a run ends with a leaf of one page, by the entry behind it in its table or in the next one: it is the last of its area,
/// or a leaf of one page elsewhere follows. `false` where it may go on.
#[must_use]
#[inline]
pub const fn ends_run(page: u64, behind: u64) -> bool {
    let follows = page_address(page).wrapping_add(1 << PAGE_SHIFT);
    page & AREA_END != 0 || (is_page(behind) && page_address(behind) != follows)
}

/// The physical address of an IOVA by the entry of a table of level 0, where there are no tables below; `None`: it is empty. Without
/// a branch for the sizes that are coded in the address.
#[must_use]
#[inline]
pub const fn address_in_lowest(entry: u64, iova: u64) -> Option<u64> {
    if entry & PRESENT == 0 {
        return None;
    }
    // With all bits below the last of the next level set, that one is the lowest zero for a leaf of 4 KiB, and the one that ends the
    // code of the size for others: all bits up to the lowest zero are those of the offset.
    let ones = entry | 0x7ff;
    let mask = ones ^ ones.wrapping_add(1);
    let address = entry & ADDRESS;
    Some(address ^ (address ^ iova) & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked by hand from the specification's figures and table 14; level counted from 0.
    #[test]
    fn entries_of_the_specification() {
        let rw = Access::READ_WRITE;
        // PTE, 4 KiB at 0x1234_5000: PR, address, FC, IR, IW; next level 0.
        assert_eq!(leaf_entry(0x1234_5000, 12, rw, false), 0x7000_0000_1234_5001);
        // 2 MiB in a level-1 table: next level 0 too.
        assert_eq!(leaf_entry(0x4020_0000, 21, rw, false), 0x7000_0000_4020_0001);
        // 8 KiB: table 14, address bit 12 is 0 and is all that codes the size; next level 7.
        assert_eq!(leaf_entry(0x1234_4000, 13, rw, false), 0x7000_0000_1234_4e01);
        // 16 KiB: bits 13..12 are 01.
        assert_eq!(leaf_entry(0x1234_4000, 14, rw, false), 0x7000_0000_1234_5e01);
        // 32 KiB: bits 14..12 are 011.
        assert_eq!(leaf_entry(0x1234_0000, 15, rw, false), 0x7000_0000_1234_3e01);
        // 1 MiB: bits 19..12 are 0111_1111.
        assert_eq!(leaf_entry(0xff00_0000, 20, rw, false), 0x7000_0000_ff07_fe01);
        // 4 MiB in a level-1 table: bits 21..12 are 01_1111_1111.
        assert_eq!(leaf_entry(0x40_0000, 22, rw, false), 0x7000_0000_005f_fe01);
        // 4 GiB in a level-2 table: bit 31 is 0, bits 30..12 are ones.
        assert_eq!(leaf_entry(0x1_0000_0000, 32, rw, false), 0x7000_0001_7fff_fe01);
        // 1 GiB: natural in a level-2 table.
        assert_eq!(leaf_entry(0x4000_0000, 30, rw, false), 0x7000_0000_4000_0001);
        // 256 TiB: natural in a level-4 table.
        assert_eq!(leaf_entry(1 << 48, 48, rw, false), 0x7001_0000_0000_0001);
        // Permissions alone.
        assert_eq!(leaf_entry(0x1000, 12, Access::READ_ONLY, false), 0x3000_0000_0000_1001);
        assert_eq!(leaf_entry(0x1000, 12, Access::WRITE_ONLY, false), 0x5000_0000_0000_1001);
        // PDE: a level-1 entry pointing to a level-0 table carries next level 1; a level-2 entry 2; no FC.
        assert_eq!(table_entry(1, 5), 0x6000_0000_0000_5201);
        assert_eq!(table_entry(2, 5), 0x6000_0000_0000_5401);
        assert_eq!(table_entry(5, 0xab), 0x6000_0000_000a_ba01);
        // The software bit lies where hardware does not look.
        assert_eq!(hardware_bits(leaf_entry(0x1000, 12, rw, true)), leaf_entry(0x1000, 12, rw, false));
    }

    #[test]
    fn every_size_survives_the_round_trip() {
        for size in PAGE_SHIFT..=LARGEST_LEAF {
            if size == FORBIDDEN_LEAF {
                continue;
            }
            let level = leaf_level(size);
            assert!(leaf_slots(size) <= 256 && level <= 4);
            assert_eq!(leaf_slots(size) as u64 * (1 << slot_shift(level)), 1 << size);
            for base in [0, 1u64 << size, ((1u64 << 52) - 1) & !((1 << size) - 1)] {
                let leaf = Leaf { base, size, access: Access::READ_ONLY, area_end: size & 1 == 0 };
                let entry = leaf_entry(base, size, leaf.access, leaf.area_end);
                assert_eq!(decode(entry, level), Entry::Leaf(leaf), "size 2^{size} at {base:#x}");
                if level == 0 {
                    for iova in [0, 1, leaf.offset_mask(), u64::MAX] {
                        let address = Some(base | iova & leaf.offset_mask());
                        assert_eq!(address_in_lowest(entry, iova), address, "size 2^{size} at {base:#x}");
                    }
                }
            }
        }
        for level in 1..=5 {
            assert_eq!(decode(table_entry(level, 0x1234), level), Entry::Table { frame: 0x1234 });
        }
        assert_eq!(decode(0, 3), Entry::Empty);
    }

    #[test]
    fn the_largest_leaf_that_fits() {
        assert_eq!(best_leaf(0, 0, 0x1000), Some(12));
        assert_eq!(best_leaf(0, 0, 0x3000), Some(13));
        assert_eq!(best_leaf(0x1000, 0, 1 << 40), Some(12));
        assert_eq!(best_leaf(0, 1 << 20, 1 << 40), Some(20));
        assert_eq!(best_leaf(0, 0, 1 << 39), Some(38));
        assert_eq!(best_leaf(0, 0, 1 << 40), Some(40));
        assert_eq!(best_leaf(0, 0, 1 << 63), Some(51));
        assert_eq!(best_leaf(1 << 63, 0, 1 << 52), Some(51));
        for (iova, pa, length) in
            [(1, 0, 0x1000), (0, 0x800, 0x1000), (0, 0, 0x1800), (0, 0, 0), (0, 0, 0xfff)]
        {
            assert_eq!(best_leaf(iova, pa, length), None);
        }
    }

    #[test]
    fn reach_of_the_top() {
        assert!(reaches(2, (1 << 39) - 1) && !reaches(2, 1 << 39));
        assert!(reaches(4, (1 << 57) - 1) && !reaches(4, 1 << 57));
        assert!(reaches(5, u64::MAX));
        assert_eq!(slot_of(u64::MAX, 5), 127);
    }
}
