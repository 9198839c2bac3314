//! Bytes to steps: every byte string is a sequence of calls, most of which mean something.
//!
//! What a byte means depends on what there is by then: "the second IOAS", "the first area of it, from its third page on". The
//! model tells, so that a short string gets far.

use arbitrary::{Arbitrary, Result, Unstructured};
use noiommu_core::ObjectKind;
use noiommu_uapi::iommufd::*;
use noiommu_uapi::vfio::container::*;
use noiommu_uapi::{CALLS, CallFile};
use zerocopy::IntoBytes;

use crate::model::Model;
use crate::world::{BASE, BYTES, FILE, LARGE, PAGE, SHIFTED, SMALL};

/// One step.
#[derive(Debug)]
pub(crate) struct Step {
    /// What happens.
    pub(crate) op: Op,
    /// How an ioctl gets its argument.
    pub(crate) delivery: Delivery,
}

/// What happens.
#[derive(Debug)]
pub(crate) enum Op {
    /// An ioctl with a structure.
    Ioctl(u32, Vec<u8>),
    /// An ioctl whose argument is a number.
    Number(u32, u64),
    Bind,
    Unbind(u32),
    Attach(u32, u32, Option<u32>),
    Detach(u32, Option<u32>),
    QueueClosed(u32),
    /// A no-IOMMU group takes the context as its container.
    Group,
    /// A small page is another one from now on, is gone, or can only be read.
    Replace(u8),
    TakeAway(u8),
    Protect(u8),
    /// Want of memory from some pin, some frame on, or in the middle of a pin's addresses; `None` ends it.
    PinsLeft(Option<u32>),
    FramesLeft(Option<u64>),
    AddressesFail(bool),
    /// What the caller may do, a bit each, and whether it has descriptors left.
    Rights(u8),
}

/// How an argument reaches the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delivery {
    /// The structure's size field says so much more (or less).
    pub(crate) longer: i32,
    /// A byte that far behind the structure is not zero.
    pub(crate) tail: Option<u8>,
    /// It lies there, relative to the beginning of the memory.
    pub(crate) at: u64,
    /// The memory cannot be written to.
    pub(crate) read_only: bool,
}

impl Arbitrary<'_> for Delivery {
    fn arbitrary(u: &mut Unstructured<'_>) -> Result<Self> {
        let plain = Self::default();
        Ok(match u.int_in_range(0..=63u8)? {
            1 => Self { longer: u.int_in_range(-48..=64)?, ..plain },
            2 => Self { longer: u.int_in_range(1..=448)?, tail: Some(u8::arbitrary(u)?), ..plain },
            3 => Self { at: u.int_in_range(0..=BYTES as u64 + 8)?, ..plain },
            4 => Self {
                at: *u.choose(&[u64::MAX - BASE, u64::MAX - BASE - 16, BASE.wrapping_neg()])?,
                ..plain
            },
            5 => Self { read_only: true, ..plain },
            _ => plain,
        })
    }
}

/// Some bytes, and what there is.
struct Chooser<'a, 'b, 'c> {
    u: &'a mut Unstructured<'b>,
    model: &'c Model,
}

/// Flags of MAP, MAP_FILE and COPY: mostly fixed, readable, writable.
const MAP_FLAGS: &[u32] = &[7, 7, 7, 7, 7, 7, 6, 6, 5, 5, 3, 4, 2, 1, 0, 8, 15, 0x8000_0007];

impl Chooser<'_, '_, '_> {
    fn below(&mut self, end: u8) -> Result<u8> {
        self.u.int_in_range(0..=end - 1)
    }

    /// An object of that kind, or seldom any other number.
    fn id(&mut self, kind: ObjectKind) -> Result<u32> {
        let byte = u8::arbitrary(self.u)?;
        let mut ids = self.model.objects.keys().copied().filter(|id| self.model.kind(*id) == Some(kind));
        let count = ids.clone().count();
        match byte {
            240.. => Ok(*self.u.choose(&[1, 2, 3, 4, 5, 6, 0, u32::MAX])?),
            _ if count == 0 => Ok(u32::from(byte % 8)),
            _ => Ok(ids.nth(usize::from(byte) % count).unwrap_or(0)),
        }
    }

    fn ioas(&mut self) -> Result<u32> {
        self.id(ObjectKind::Ioas)
    }

    fn device(&mut self) -> Result<u32> {
        self.id(ObjectKind::Device)
    }

    /// What a device can be attached to.
    fn page_table(&mut self) -> Result<u32> {
        if self.below(4)? == 0 { self.id(ObjectKind::Hwpt) } else { self.ioas() }
    }

    fn pages(&mut self) -> Result<u64> {
        Ok(u64::from(self.below(32)?) * PAGE)
    }

    /// An IOAS and a place in it: an area or some pages of it and behind it, or nearly anything.
    fn place(&mut self) -> Result<(u32, u64, u64)> {
        let ioas = self.ioas()?;
        let areas = self.model.ioases().find(|(id, _)| *id == ioas).map(|(_, space)| &space.areas);
        let Some(areas) = areas.filter(|areas| !areas.is_empty()) else {
            return Ok((ioas, self.iova()?, self.length()?));
        };
        let at = usize::from(u8::arbitrary(self.u)?) % areas.len();
        let (first, area) = areas.iter().nth(at).map_or((0, 0), |(first, area)| (*first, area.last));
        let whole = area.wrapping_sub(first).wrapping_add(1);
        Ok(match self.below(12)? {
            0 => (ioas, self.iova()?, self.length()?),
            1 => (ioas, first, self.length()?),
            // Part of it, from inside or from before.
            2 | 3 => {
                let inside = self.pages()?.min(whole.wrapping_sub(1));
                (ioas, first.wrapping_add(inside), whole.wrapping_sub(inside))
            }
            4 => (ioas, first.wrapping_add(self.pages()?), PAGE),
            5 => (ioas, first, whole.wrapping_add(self.pages()?)),
            6 => {
                let before = self.pages()?;
                (ioas, first.wrapping_sub(before), whole.wrapping_add(before))
            }
            7 => (ioas, first.wrapping_add(u64::from(u8::arbitrary(self.u)?)), 1),
            _ => (ioas, first, whole),
        })
    }

    fn iova(&mut self) -> Result<u64> {
        Ok(match self.below(24)? {
            1 => LARGE,
            2 => 0x20_0000,
            3 => u64::MAX - PAGE + 1,
            4 => u64::MAX - 2 * PAGE + 1,
            5 => u64::MAX,
            6 => self.pages()? + u64::from(u8::arbitrary(self.u)?),
            7 => self.pages()?.wrapping_sub(1),
            // Borders of tables.
            8 => 0x80_0000_0000 - self.pages()?,
            9 => 1 << 63,
            10 => u64::arbitrary(self.u)?,
            _ => 0x1_0000 + self.pages()?,
        })
    }

    /// An IOVA for something new: right behind an area of that IOAS, or anywhere.
    fn room(&mut self, ioas: u32) -> Result<u64> {
        let areas = self.model.ioases().find(|(id, _)| *id == ioas).map(|(_, space)| &space.areas);
        match areas.filter(|areas| !areas.is_empty()) {
            Some(areas) if self.below(3)? == 0 => {
                let at = usize::from(u8::arbitrary(self.u)?) % areas.len();
                Ok(areas.values().nth(at).map_or(0, |area| area.last).wrapping_add(1))
            }
            _ => self.iova(),
        }
    }

    /// A small page, of those that are mapped if there are any.
    fn small_page(&mut self) -> Result<u8> {
        let (byte, mapped) = (u8::arbitrary(self.u)?, self.model.small_pages());
        Ok(match mapped.len() {
            0 => byte,
            count => mapped.get(usize::from(byte) % count).copied().unwrap_or(byte),
        })
    }

    fn length(&mut self) -> Result<u64> {
        Ok(match self.below(32)? {
            1 => 0,
            2 => u64::MAX,
            3 => 2 << 20,
            4 => 1 << 30,
            5 => 1 << 63,
            6 => u64::from(u8::arbitrary(self.u)?),
            7 => self.pages()? + 1,
            8 => 4 << 20,
            9 => u64::arbitrary(self.u)?,
            10 => u64::MAX - PAGE + 1,
            11..=16 => self.pages()?,
            pages => u64::from(pages % 8 + 1) * PAGE,
        })
    }

    fn address(&mut self) -> Result<u64> {
        Ok(match self.below(24)? {
            1 | 2 => LARGE,
            3 => LARGE + self.pages()?,
            4 => SHIFTED + self.pages()?,
            5 => SMALL + self.pages()? + u64::from(u8::arbitrary(self.u)?),
            6 => 0,
            7 => u64::MAX - self.pages()?,
            8 => self.pages()?,
            page => SMALL + u64::from(page % 16) * PAGE,
        })
    }

    /// Something in a field that should be 0, seldom.
    fn reserved(&mut self) -> Result<u32> {
        Ok(u32::from(u8::arbitrary(self.u)? == 255))
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> Result<T> {
        self.u.choose(of).copied()
    }

    /// A pointer to something behind the structure, or to nowhere.
    fn behind(&mut self) -> Result<u64> {
        self.one(&[BASE + 64, BASE + 64, BASE + 64, BASE + 64, BASE + BYTES as u64 - 24, 0])
    }

    #[expect(clippy::needless_update, reason = "some structures have no further fields")]
    fn iommufd(&mut self) -> Result<(u32, Vec<u8>)> {
        macro_rules! call {
            ($number:ident, $structure:ident { $($field:ident: $value:expr),* $(,)? }) => {{
                let size = size_of::<$structure>() as u32;
                let call = $structure { size, $($field: $value,)* ..Default::default() };
                ($number, call.as_bytes().to_vec())
            }};
        }
        Ok(match self.below(40)? {
            0..=8 => {
                let ioas_id = self.ioas()?;
                call!(
                    IOMMU_IOAS_MAP,
                    IommuIoasMap {
                        ioas_id: ioas_id,
                        flags: self.one(MAP_FLAGS)?,
                        user_va: self.address()?,
                        length: self.length()?,
                        iova: self.room(ioas_id)?,
                        __reserved: self.reserved()?,
                    }
                )
            }
            9 | 10 => call!(
                IOMMU_IOAS_MAP_FILE,
                IommuIoasMapFile {
                    ioas_id: self.ioas()?,
                    flags: self.one(MAP_FLAGS)?,
                    fd: self.one(&[FILE, FILE, FILE, FILE, FILE, FILE, -1, 9])?,
                    start: if self.below(8)? == 0 { self.length()? } else { self.pages()? },
                    length: self.length()?,
                    iova: self.iova()?,
                }
            ),
            11..=17 => {
                let ((src_ioas_id, src_iova, length), dst_ioas_id) = (self.place()?, self.ioas()?);
                call!(
                    IOMMU_IOAS_COPY,
                    IommuIoasCopy {
                        flags: self.one(MAP_FLAGS)?,
                        dst_ioas_id: dst_ioas_id,
                        src_ioas_id: src_ioas_id,
                        length: length,
                        dst_iova: self.room(dst_ioas_id)?,
                        src_iova: src_iova,
                    }
                )
            }
            18..=22 => {
                let (ioas_id, iova, length) = self.place()?;
                call!(IOMMU_IOAS_UNMAP, IommuIoasUnmap { ioas_id: ioas_id, iova: iova, length: length })
            }
            23 => call!(IOMMU_IOAS_UNMAP, IommuIoasUnmap { ioas_id: self.ioas()?, length: u64::MAX }),
            24 | 25 => {
                let (ioas_id, iova, length) = self.place()?;
                call!(
                    IOMMU_IOAS_NOIOMMU_GET_PA,
                    IommuIoasNoiommuGetPa {
                        ioas_id: ioas_id,
                        iova: iova,
                        length: length,
                        flags: self.reserved()?,
                        __reserved: self.reserved()?,
                    }
                )
            }
            26 => call!(IOMMU_DESTROY, IommuDestroy { id: self.ioas()? }),
            27 => {
                let kind = self.one(&[ObjectKind::Hwpt, ObjectKind::FaultQueue, ObjectKind::Device])?;
                call!(IOMMU_DESTROY, IommuDestroy { id: self.id(kind)? })
            }
            28 => call!(IOMMU_IOAS_ALLOC, IommuIoasAlloc { flags: self.reserved()? }),
            29 => {
                let (number, mut bytes) = call!(
                    IOMMU_IOAS_ALLOW_IOVAS,
                    IommuIoasAllowIovas {
                        ioas_id: self.ioas()?,
                        num_iovas: self.below(4)?.into(),
                        allowed_iovas: self.behind()?,
                        __reserved: self.reserved()?,
                    }
                );
                bytes.resize(64, 0);
                for _ in 0..3 {
                    let start = self.iova()?;
                    bytes.extend_from_slice([start, start.wrapping_add(self.length()?)].as_bytes());
                }
                (number, bytes)
            }
            30 => call!(
                IOMMU_IOAS_IOVA_RANGES,
                IommuIoasIovaRanges {
                    ioas_id: self.ioas()?,
                    num_iovas: self.below(3)?.into(),
                    allowed_iovas: self.behind()?,
                    __reserved: self.reserved()?,
                }
            ),
            31 => call!(IOMMU_IOAS_CHANGE_PROCESS, IommuIoasChangeProcess { __reserved: self.reserved()? }),
            32 | 33 => call!(
                IOMMU_OPTION,
                IommuOption {
                    option_id: self.one(&[1, 1, 1, 0, 2])?,
                    op: self.one(&[0, 0, 0, 1, 2])?,
                    object_id: if self.below(3)? == 0 { 0 } else { self.ioas()? },
                    val64: self.one(&[0, 0, 1, 2])?,
                    __reserved: self.reserved()? as u16,
                }
            ),
            34 => call!(
                IOMMU_VFIO_IOAS,
                IommuVfioIoas {
                    ioas_id: self.ioas()?,
                    op: self.one(&[1, 1, 1, 0, 2, 3])?,
                    __reserved: self.reserved()? as u16,
                }
            ),
            35 | 36 => call!(
                IOMMU_HWPT_ALLOC,
                IommuHwptAlloc {
                    flags: self.one(&[0, 0, 0, 4, 4, 1, 8])?,
                    dev_id: self.device()?,
                    pt_id: self.page_table()?,
                    fault_id: self.id(ObjectKind::FaultQueue)?,
                    data_type: self.reserved()?,
                    data_len: self.reserved()?,
                    __reserved: self.reserved()?,
                }
            ),
            37 => call!(IOMMU_FAULT_QUEUE_ALLOC, IommuFaultAlloc { flags: self.reserved()? }),
            38 => self.raw()?,
            _ => call!(IOMMU_IOAS_ALLOC, IommuIoasAlloc {}),
        })
    }

    /// Any call with any words.
    fn raw(&mut self) -> Result<(u32, Vec<u8>)> {
        let calls = || CALLS.iter().filter(|call| call.file == CallFile::Iommufd);
        let chosen = calls().nth(self.u.choose_index(calls().count())?);
        let known = chosen.map_or(IOMMU_DESTROY, |call| call.number);
        let request = if self.below(20)? == 0 { u32::arbitrary(self.u)? } else { known };
        let mut words = vec![self.one(&[8, 12, 16, 24, 32, 40, 48, 64, 7])?];
        for _ in 0..self.below(16)? {
            words.push(self.below(9)?.into());
        }
        Ok((request, words.as_bytes().to_vec()))
    }

    fn container(&mut self) -> Result<Op> {
        Ok(match self.below(10)? {
            _ if !self.model.has_compat() && self.below(8)? > 0 => {
                let (size, ioas_id, op) = (12, self.ioas()?, IOMMU_VFIO_IOAS_SET);
                let call = IommuVfioIoas { size, ioas_id, op, ..Default::default() };
                Op::Ioctl(IOMMU_VFIO_IOAS, call.as_bytes().to_vec())
            }
            0 => Op::Number(VFIO_CHECK_EXTENSION, self.below(12)?.into()),
            1 | 2 => Op::Number(VFIO_SET_IOMMU, self.one(&[1, 1, 1, 3, 8, 2, 1 << 32])?),
            3 | 4 => {
                let argsz = self.one(&[32, 32, 32, 40, 31])?;
                let (vaddr, size, iova) = (self.address()?, self.length()?, self.iova()?);
                let flags = self.one(&[3, 3, 1, 2, 0, 4])?;
                let call = VfioIommuType1DmaMap { argsz, flags, vaddr, iova, size };
                Op::Ioctl(VFIO_IOMMU_MAP_DMA, call.as_bytes().to_vec())
            }
            5..=8 => {
                let argsz = self.one(&[24, 24, 24, 40, 23])?;
                let flags = self.one(&[0, 0, 0, 0, 0, 2, 1])?;
                let (_, iova, size) = if flags == 2 { (0, 0, 0) } else { self.place()? };
                let call = VfioIommuType1DmaUnmap { argsz, flags, iova, size };
                Op::Ioctl(VFIO_IOMMU_UNMAP_DMA, call.as_bytes().to_vec())
            }
            _ => {
                let argsz = self.one(&[96, 16, 15, 24, 36, 40, 56, 72])?;
                let call = VfioIommuType1Info { argsz, ..Default::default() };
                Op::Ioctl(VFIO_IOMMU_GET_INFO, call.as_bytes().to_vec())
            }
        })
    }

    fn pasid(&mut self) -> Result<Option<u32>> {
        self.one(&[None, None, None, None, None, Some(0), Some(1), Some(u32::MAX)])
    }

    fn op(&mut self) -> Result<Op> {
        Ok(match self.below(64)? {
            0..=35 => {
                let (request, bytes) = self.iommufd()?;
                Op::Ioctl(request, bytes)
            }
            36..=40 => self.container()?,
            41 => Op::Bind,
            42 => Op::Unbind(self.device()?),
            43..=47 => Op::Attach(self.device()?, self.page_table()?, self.pasid()?),
            48..=50 => Op::Detach(self.device()?, self.pasid()?),
            51 => Op::QueueClosed(self.id(ObjectKind::FaultQueue)?),
            52 => Op::Group,
            53..=56 => Op::Replace(self.small_page()?),
            57 => Op::TakeAway(self.small_page()?),
            58 => Op::Protect(self.small_page()?),
            59 => Op::PinsLeft(self.one(&[None, Some(0), Some(1), Some(2)])?),
            60 => Op::FramesLeft(self.one(&[None, Some(0), Some(1), Some(2), Some(3), Some(5)])?),
            61 => Op::AddressesFail(bool::arbitrary(self.u)?),
            62 => Op::Rights(u8::arbitrary(self.u)?),
            _ => Op::Bind,
        })
    }
}

/// The next step that the bytes mean where there is what the model has; none where they end.
pub(crate) fn next(u: &mut Unstructured<'_>, model: &Model) -> Option<Step> {
    if u.is_empty() {
        return None;
    }
    let op = Chooser { u, model }.op().ok()?;
    Some(Step { op, delivery: Delivery::arbitrary(u).ok()? })
}
