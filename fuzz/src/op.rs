//! Bytes to steps: every byte string is a sequence of calls with fields that mean something often enough.

use arbitrary::{Arbitrary, Result, Unstructured};
use noiommu_uapi::iommufd::*;
use noiommu_uapi::vfio::container::*;
use noiommu_uapi::{CALLS, CallFile};
use zerocopy::IntoBytes;

use crate::world::{BASE, BYTES, FILE, LARGE, PAGE, SHIFTED, SMALL};

/// One step.
#[derive(Debug)]
pub struct Step {
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
    /// Devices are counted in the order of binding, over and over.
    Unbind(u8),
    Attach(u8, u32, Option<u32>),
    Detach(u8, Option<u32>),
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

fn id(u: &mut Unstructured<'_>) -> Result<u32> {
    Ok(*u.choose(&[1, 2, 3, 4, 5, 6, 7, 8, 0, u32::MAX])?)
}

fn flags(u: &mut Unstructured<'_>) -> Result<u32> {
    // Mostly fixed, readable, writable.
    Ok(*u.choose(&[7, 7, 7, 5, 6, 4, 6, 7, 5, 1, 0, 8, 15, 0x8000_0007])?)
}

fn page(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(u64::from(u.int_in_range(0..=31u8)?) * PAGE)
}

fn iova(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=15u8)? {
        0 => LARGE,
        1 => 0x20_0000,
        2 => u64::MAX - PAGE + 1,
        3 => u64::MAX - 2 * PAGE + 1,
        4 => u64::MAX,
        5 => page(u)? + u64::from(u8::arbitrary(u)?),
        6 => page(u)?.wrapping_sub(1),
        // Borders of tables.
        7 => 0x80_0000_0000 - page(u)?,
        8 => 1 << 63,
        9 => u64::arbitrary(u)?,
        _ => 0x1_0000 + page(u)?,
    })
}

fn length(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=15u8)? {
        0 => 0,
        1 => u64::MAX,
        2 => 2 << 20,
        3 => 1 << 30,
        4 => 1 << 63,
        5 => u64::from(u8::arbitrary(u)?),
        6 => page(u)? + 1,
        7 => 4 << 20,
        8 => u64::arbitrary(u)?,
        9 => u64::MAX - PAGE + 1,
        _ => page(u)?,
    })
}

fn address(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=15u8)? {
        0 | 1 => LARGE,
        2 => LARGE + page(u)?,
        3 => SHIFTED + page(u)?,
        4 => SMALL + page(u)? + u64::from(u8::arbitrary(u)?),
        5 => 0,
        6 => u64::MAX - page(u)?,
        7 => page(u)?,
        _ => SMALL + page(u)?,
    })
}

/// Something in a field that should be 0, seldom.
fn reserved(u: &mut Unstructured<'_>) -> Result<u32> {
    Ok(u32::from(u.ratio(1, 50)?))
}

/// A pointer to something behind the structure, or to nowhere.
fn behind(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(*u.choose(&[BASE + 64, BASE + 64, BASE + 64, BASE + BYTES as u64 - 24, 0])?)
}

fn iommufd(u: &mut Unstructured<'_>) -> Result<(u32, Vec<u8>)> {
    macro_rules! call {
        ($number:ident, $structure:ident { $($field:ident: $value:expr),* $(,)? }) => {{
            let size = size_of::<$structure>() as u32;
            let call = $structure { size, $($field: $value,)* ..Default::default() };
            ($number, call.as_bytes().to_vec())
        }};
    }
    Ok(match u.int_in_range(0..=31u8)? {
        0 => call!(IOMMU_DESTROY, IommuDestroy { id: id(u)? }),
        1 => call!(IOMMU_IOAS_ALLOC, IommuIoasAlloc { flags: reserved(u)? }),
        2 => {
            let (number, mut bytes) = call!(
                IOMMU_IOAS_ALLOW_IOVAS,
                IommuIoasAllowIovas {
                    ioas_id: id(u)?,
                    num_iovas: u.int_in_range(0..=3)?,
                    __reserved: reserved(u)?,
                    allowed_iovas: behind(u)?,
                }
            );
            bytes.resize(64, 0);
            for _ in 0..3 {
                let start = iova(u)?;
                bytes.extend_from_slice([start, start.wrapping_add(length(u)?)].as_bytes());
            }
            (number, bytes)
        }
        3 => call!(
            IOMMU_IOAS_IOVA_RANGES,
            IommuIoasIovaRanges {
                ioas_id: id(u)?,
                num_iovas: u.int_in_range(0..=2)?,
                __reserved: reserved(u)?,
                allowed_iovas: behind(u)?,
            }
        ),
        4..=9 => call!(
            IOMMU_IOAS_MAP,
            IommuIoasMap {
                flags: flags(u)?,
                ioas_id: id(u)?,
                __reserved: reserved(u)?,
                user_va: address(u)?,
                length: length(u)?,
                iova: iova(u)?,
            }
        ),
        10 | 11 => call!(
            IOMMU_IOAS_MAP_FILE,
            IommuIoasMapFile {
                flags: flags(u)?,
                ioas_id: id(u)?,
                fd: *u.choose(&[FILE, FILE, FILE, FILE, -1, 9])?,
                start: if u.ratio(1, 4)? { length(u)? } else { page(u)? },
                length: length(u)?,
                iova: iova(u)?,
            }
        ),
        12..=16 => call!(
            IOMMU_IOAS_COPY,
            IommuIoasCopy {
                flags: flags(u)?,
                dst_ioas_id: id(u)?,
                src_ioas_id: id(u)?,
                length: length(u)?,
                dst_iova: iova(u)?,
                src_iova: iova(u)?,
            }
        ),
        17..=20 => {
            call!(IOMMU_IOAS_UNMAP, IommuIoasUnmap { ioas_id: id(u)?, iova: iova(u)?, length: length(u)? })
        }
        21 => call!(IOMMU_IOAS_UNMAP, IommuIoasUnmap { ioas_id: id(u)?, length: u64::MAX }),
        22 | 23 => call!(
            IOMMU_IOAS_NOIOMMU_GET_PA,
            IommuIoasNoiommuGetPa {
                flags: reserved(u)?,
                ioas_id: id(u)?,
                __reserved: reserved(u)?,
                iova: iova(u)?,
                length: length(u)?,
            }
        ),
        24 => call!(IOMMU_IOAS_CHANGE_PROCESS, IommuIoasChangeProcess { __reserved: reserved(u)? }),
        25 | 26 => call!(
            IOMMU_OPTION,
            IommuOption {
                option_id: u.int_in_range(0..=2)?,
                op: u.int_in_range(0..=2)?,
                __reserved: reserved(u)? as u16,
                object_id: if u.ratio(1, 3)? { 0 } else { id(u)? },
                val64: u.int_in_range(0..=2)?,
            }
        ),
        27 => call!(
            IOMMU_VFIO_IOAS,
            IommuVfioIoas { ioas_id: id(u)?, op: u.int_in_range(0..=3)?, __reserved: reserved(u)? as u16 }
        ),
        28 | 29 => call!(
            IOMMU_HWPT_ALLOC,
            IommuHwptAlloc {
                flags: *u.choose(&[0, 0, 4, 1, 8])?,
                dev_id: id(u)?,
                pt_id: id(u)?,
                __reserved: reserved(u)?,
                data_type: reserved(u)?,
                data_len: reserved(u)?,
                fault_id: id(u)?,
            }
        ),
        30 => call!(IOMMU_FAULT_QUEUE_ALLOC, IommuFaultAlloc { flags: reserved(u)? }),
        _ => {
            let calls = || CALLS.iter().filter(|call| call.file == CallFile::Iommufd);
            let call =
                calls().nth(u.choose_index(calls().count())?).map_or(IOMMU_DESTROY, |call| call.number);
            let request = if u.ratio(1, 20)? { u32::arbitrary(u)? } else { call };
            let mut words = vec![*u.choose(&[8, 12, 16, 24, 32, 40, 48, 64, 7])?];
            for _ in 0..u.int_in_range(0..=15u8)? {
                words.push(u.int_in_range(0..=8)?);
            }
            (request, words.as_bytes().to_vec())
        }
    })
}

fn container(u: &mut Unstructured<'_>) -> Result<Op> {
    Ok(match u.int_in_range(0..=7u8)? {
        0 => Op::Number(VFIO_CHECK_EXTENSION, u.int_in_range(0..=11)?),
        1 => Op::Number(VFIO_SET_IOMMU, *u.choose(&[1, 3, 8, 1, 2, 1 << 32])?),
        2 | 3 => {
            let argsz = *u.choose(&[32, 32, 40, 31])?;
            let (vaddr, size, iova) = (address(u)?, length(u)?, iova(u)?);
            let call = VfioIommuType1DmaMap { argsz, flags: u.int_in_range(0..=4)?, vaddr, iova, size };
            Op::Ioctl(VFIO_IOMMU_MAP_DMA, call.as_bytes().to_vec())
        }
        4..=6 => {
            let argsz = *u.choose(&[24, 24, 40, 23])?;
            let flags = *u.choose(&[0, 0, 0, 2, 1])?;
            let (iova, size) = if u.ratio(1, 4)? { (0, 0) } else { (iova(u)?, length(u)?) };
            let call = VfioIommuType1DmaUnmap { argsz, flags, iova, size, ..Default::default() };
            Op::Ioctl(VFIO_IOMMU_UNMAP_DMA, call.as_bytes().to_vec())
        }
        _ => {
            let argsz = *u.choose(&[96, 16, 15, 24, 36, 40, 56, 72])?;
            let call = VfioIommuType1Info { argsz, ..Default::default() };
            Op::Ioctl(VFIO_IOMMU_GET_INFO, call.as_bytes().to_vec())
        }
    })
}

impl Arbitrary<'_> for Op {
    fn arbitrary(u: &mut Unstructured<'_>) -> Result<Self> {
        let pasid = |u: &mut Unstructured<'_>| {
            Ok(*u.choose(&[None, None, None, Some(0), Some(1), Some(u32::MAX)])?)
        };
        Ok(match u.int_in_range(0..=63u8)? {
            0..=35 => {
                let (request, bytes) = iommufd(u)?;
                Self::Ioctl(request, bytes)
            }
            36..=39 => container(u)?,
            40 | 41 => Self::Bind,
            42 => Self::Unbind(u8::arbitrary(u)?),
            43..=48 => Self::Attach(u8::arbitrary(u)?, id(u)?, pasid(u)?),
            49..=51 => Self::Detach(u8::arbitrary(u)?, pasid(u)?),
            52 => Self::QueueClosed(id(u)?),
            53 => Self::Group,
            54 | 55 => Self::Replace(u8::arbitrary(u)?),
            56 => Self::TakeAway(u8::arbitrary(u)?),
            57 => Self::Protect(u8::arbitrary(u)?),
            58 => Self::PinsLeft(Option::<u8>::arbitrary(u)?.map(|left| u32::from(left % 4))),
            59 => Self::FramesLeft(Option::<u8>::arbitrary(u)?.map(|left| u64::from(left % 8))),
            60 => Self::AddressesFail(bool::arbitrary(u)?),
            61 => Self::Rights(u8::arbitrary(u)?),
            _ => Self::Ioctl(IOMMU_IOAS_ALLOC, [12u32, 0, 0].as_bytes().to_vec()),
        })
    }
}

impl Arbitrary<'_> for Delivery {
    fn arbitrary(u: &mut Unstructured<'_>) -> Result<Self> {
        let plain = Self::default();
        Ok(match u.int_in_range(0..=31u8)? {
            0 => Self { longer: u.int_in_range(-48..=64)?, ..plain },
            1 => Self { longer: u.int_in_range(1..=448)?, tail: Some(u8::arbitrary(u)?), ..plain },
            2 => Self { at: u.int_in_range(0..=BYTES as u64 + 8)?, ..plain },
            3 => Self {
                at: *u.choose(&[u64::MAX - BASE, u64::MAX - BASE - 16, BASE.wrapping_neg()])?,
                ..plain
            },
            4 => Self { read_only: true, ..plain },
            _ => plain,
        })
    }
}

impl Arbitrary<'_> for Step {
    fn arbitrary(u: &mut Unstructured<'_>) -> Result<Self> {
        Ok(Self { op: Op::arbitrary(u)?, delivery: Delivery::arbitrary(u)? })
    }
}

/// The most steps of one sequence.
const MOST: usize = 64;

/// The steps that some bytes mean.
#[must_use]
pub fn steps(bytes: &[u8]) -> Vec<Step> {
    let mut u = Unstructured::new(bytes);
    let mut steps = Vec::new();
    while !u.is_empty() && steps.len() < MOST {
        let Ok(step) = Step::arbitrary(&mut u) else { break };
        steps.push(step);
    }
    steps
}
