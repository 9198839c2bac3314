//! The calls of /dev/iommu, as far as they do something.

use noiommu_core::platform::Caller;
use noiommu_core::table::format::Access;
use noiommu_core::{Errno, ObjectKind};
use noiommu_uapi::iommufd::*;
use noiommu_uapi::{Call, CallFile};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::space::{last_of, some};
use super::{Model, Object, Setting, Wanted};
use crate::world::{Backing, FILE, Memory, QUEUE};

/// What a call shall answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Expected {
    /// Exactly that, and exactly those bytes in memory.
    Exactly(Result<u32, Errno>),
    /// Some error; its memory is not looked at.
    Refusal,
    /// That; what it writes is not looked at.
    AsToItsResult(Result<u32, Errno>),
}

/// The structure at `address`, as a call with checks for its version gets it.
fn structure<T: FromBytes + IntoBytes>(memory: &Memory, address: u64, size: u32) -> Result<T, Errno> {
    let mut value = T::new_zeroed();
    let known = value.as_mut_bytes();
    for at in known.len() as u64..size.into() {
        let mut byte = [0];
        memory.read(address.checked_add(at).ok_or(Errno::EFAULT)?, &mut byte)?;
        if byte != [0] {
            return Err(Errno::E2BIG);
        }
    }
    let part = known.len().min(size as usize);
    memory.read(address, &mut known[..part])?;
    Ok(value)
}

fn flags(flags: u32, known: u32) -> Result<(), Errno> {
    if flags & !known == 0 { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
}

fn zero(reserved: u32) -> Result<(), Errno> {
    flags(reserved, 0)
}

fn overflows(values: &[u64]) -> Result<(), Errno> {
    if values.contains(&u64::MAX) { Err(Errno::EOVERFLOW) } else { Ok(()) }
}

const MAP_FLAGS: u32 = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;

fn wanted(flags: u32, length: u64, iova: u64) -> Result<Wanted, Errno> {
    let access =
        Access { read: flags & IOMMU_IOAS_MAP_READABLE != 0, write: flags & IOMMU_IOAS_MAP_WRITEABLE != 0 };
    let iova = (flags & IOMMU_IOAS_MAP_FIXED_IOVA != 0).then_some(iova);
    if some(access) { Ok(Wanted { length, iova, access }) } else { Err(Errno::EINVAL) }
}

/// A call under way.
struct Running<'a, 'b> {
    setting: &'a Setting<'b>,
    memory: &'a mut Memory,
    address: u64,
    size: u32,
}

impl Running<'_, '_> {
    fn read<T: FromBytes + IntoBytes + KnownLayout>(&self) -> Result<T, Errno> {
        structure(self.memory, self.address, self.size)
    }

    fn answer<T: IntoBytes + Immutable>(&mut self, value: &T) -> Result<(), Errno> {
        let bytes = value.as_bytes();
        self.memory.write(self.address, &bytes[..bytes.len().min(self.size as usize)])
    }
}

impl Model {
    pub(crate) fn ioctl(
        &mut self,
        setting: &Setting<'_>,
        memory: &mut Memory,
        request: u32,
        address: u64,
    ) -> Expected {
        if !(0x80..=0x95).contains(&(request & 0xff)) {
            return self.container(setting, memory, request, address);
        }
        let mut size = [0; 4];
        let known = Call::by_number(CallFile::Iommufd, request);
        let head = memory.read(address, &mut size);
        let size = u32::from_ne_bytes(size);
        match (head, known) {
            (Err(error), _) => return Expected::Exactly(Err(error)),
            (_, None) => return Expected::Exactly(Err(Errno::ENOTTY)),
            (_, Some(call)) if size < call.min_size() => return Expected::Exactly(Err(Errno::EINVAL)),
            _ => {}
        }
        let mut running = Running { setting, memory, address, size };
        let done = match request {
            IOMMU_DESTROY => running.read().and_then(|call: IommuDestroy| self.destroy(call.id)),
            IOMMU_IOAS_ALLOC => self.ioas_alloc(&mut running),
            IOMMU_IOAS_ALLOW_IOVAS => self.allow_iovas(&mut running),
            IOMMU_IOAS_IOVA_RANGES => self.iova_ranges(&mut running),
            IOMMU_IOAS_MAP => self.ioas_map(&mut running),
            IOMMU_IOAS_MAP_FILE => self.ioas_map_file(&mut running),
            IOMMU_IOAS_COPY => self.ioas_copy(&mut running),
            IOMMU_IOAS_UNMAP => self.ioas_unmap(&mut running),
            IOMMU_IOAS_NOIOMMU_GET_PA => self.ioas_get_pa(&mut running),
            IOMMU_IOAS_CHANGE_PROCESS => self.change_process(&running),
            IOMMU_OPTION => self.option(&mut running),
            IOMMU_VFIO_IOAS => self.vfio_ioas(&mut running),
            IOMMU_HWPT_ALLOC => self.hwpt_alloc(&mut running),
            IOMMU_FAULT_QUEUE_ALLOC => self.queue_alloc(&mut running),
            // What needs an IOMMU. Which refusal it is, the kernel's recorded answers tell.
            _ => return Expected::Refusal,
        };
        Expected::Exactly(done.map(|()| 0))
    }

    fn ioas_alloc(&mut self, running: &mut Running<'_, '_>) -> Result<(), Errno> {
        let mut call: IommuIoasAlloc = running.read()?;
        zero(call.flags)?;
        let id = self.add(Object::Ioas(super::Ioas::default()));
        call.out_ioas_id = id;
        running.answer(&call).inspect_err(|_| {
            self.objects.remove(&id);
        })
    }

    fn allow_iovas(&mut self, running: &mut Running<'_, '_>) -> Result<(), Errno> {
        let call: IommuIoasAllowIovas = running.read()?;
        zero(call.__reserved)?;
        self.ioas(call.ioas_id)?;
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for index in 0..u64::from(call.num_iovas) {
            let mut range = IommuIovaRange::default();
            running.memory.read(call.allowed_iovas.wrapping_add(index * 16), range.as_mut_bytes())?;
            let overlap = ranges.iter().any(|(start, last)| *start <= range.last && range.start <= *last);
            if range.start >= range.last || overlap {
                return Err(Errno::EINVAL);
            }
            ranges.push((range.start, range.last));
        }
        self.ioas_mut(call.ioas_id)?.allowed = ranges;
        Ok(())
    }

    fn iova_ranges(&mut self, running: &mut Running<'_, '_>) -> Result<(), Errno> {
        let mut call: IommuIoasIovaRanges = running.read()?;
        zero(call.__reserved)?;
        call.out_iova_alignment = self.alignment(call.ioas_id)?;
        let room = std::mem::replace(&mut call.num_iovas, 1);
        if room > 0 {
            running.memory.write(call.allowed_iovas, [0, u64::MAX].as_bytes())?;
        }
        running.answer(&call)?;
        if room > 0 { Ok(()) } else { Err(Errno::EMSGSIZE) }
    }

    fn ioas_map(&mut self, running: &mut Running<'_, '_>) -> Result<(), Errno> {
        let mut call: IommuIoasMap = running.read()?;
        flags(call.flags, MAP_FLAGS)?;
        zero(call.__reserved)?;
        overflows(&[call.iova, call.length])?;
        let wanted = wanted(call.flags, call.length, call.iova)?;
        call.iova = self.map(running.setting.pages, call.ioas_id, Backing::User, call.user_va, &wanted)?;
        running.answer(&call)
    }

    fn ioas_map_file(&mut self, running: &mut Running<'_, '_>) -> Result<(), Errno> {
        let mut call: IommuIoasMapFile = running.read()?;
        flags(call.flags, MAP_FLAGS)?;
        overflows(&[call.iova, call.length])?;
        let wanted = wanted(call.flags, call.length, call.iova)?;
        self.ioas(call.ioas_id)?;
        last_of(call.start, call.length)?;
        if call.fd != FILE {
            return Err(Errno::EBADF);
        }
        call.iova = self.map(running.setting.pages, call.ioas_id, Backing::File, call.start, &wanted)?;
        running.answer(&call)
    }

    fn ioas_copy(&mut self, running: &mut Running<'_, '_>) -> Result<(), Errno> {
        let mut call: IommuIoasCopy = running.read()?;
        flags(call.flags, MAP_FLAGS)?;
        overflows(&[call.length, call.src_iova, call.dst_iova])?;
        let wanted = wanted(call.flags, call.length, call.dst_iova)?;
        let pages = running.setting.pages;
        call.dst_iova = self.copy(pages, call.dst_ioas_id, call.src_ioas_id, call.src_iova, &wanted)?;
        running.answer(&call)
    }

    fn ioas_unmap(&mut self, running: &mut Running<'_, '_>) -> Result<(), Errno> {
        let mut call: IommuIoasUnmap = running.read()?;
        self.ioas(call.ioas_id)?;
        let all = call.iova == 0 && call.length == u64::MAX;
        let last = if all {
            u64::MAX
        } else {
            overflows(&[call.iova, call.length])?;
            last_of(call.iova, call.length)?
        };
        let (bytes, cut) = self.unmap(call.ioas_id, call.iova, last)?;
        if cut || bytes == 0 && !all {
            return Err(Errno::ENOENT);
        }
        call.length = bytes;
        running.answer(&call)
    }

    fn ioas_get_pa(&mut self, running: &mut Running<'_, '_>) -> Result<(), Errno> {
        let mut call: IommuIoasNoiommuGetPa = running.read()?;
        if running.setting.caller.raw_io {
            zero(call.flags)?;
            zero(call.__reserved)?;
        }
        (call.out_phys, call.length) = self.get_pa(running.setting, call.ioas_id, call.iova, call.length)?;
        running.answer(&call)
    }

    fn change_process(&self, running: &Running<'_, '_>) -> Result<(), Errno> {
        let call: IommuIoasChangeProcess = running.read()?;
        zero(call.__reserved)?;
        let files = self.ioases().flat_map(|(_, ioas)| ioas.areas.values()).all(|area| self.is_file(area));
        if files { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn option(&mut self, running: &mut Running<'_, '_>) -> Result<(), Errno> {
        let mut call: IommuOption = running.read()?;
        zero(call.__reserved.into())?;
        let rlimit = call.option_id == IOMMU_OPTION_RLIMIT_MODE;
        if !rlimit && call.option_id != IOMMU_OPTION_HUGE_PAGES || rlimit && call.object_id != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if !rlimit {
            self.ioas(call.object_id)?;
        }
        match call.op {
            IOMMU_OPTION_OP_GET if rlimit => call.val64 = self.charges_process.into(),
            IOMMU_OPTION_OP_GET => call.val64 = (!self.ioas(call.object_id)?.small_pages).into(),
            IOMMU_OPTION_OP_SET if rlimit => {
                let Caller { resource, .. } = running.setting.caller;
                if !resource {
                    return Err(Errno::EPERM);
                }
                if !self.objects.is_empty() {
                    return Err(Errno::EBUSY);
                }
                self.charges_process = one_or_zero(call.val64)?;
            }
            IOMMU_OPTION_OP_SET => {
                let large = one_or_zero(call.val64)?;
                self.set_large_pages(call.object_id, large)?;
            }
            _ => return Err(Errno::EOPNOTSUPP),
        }
        // The value alone is written.
        let address = running.address.wrapping_add(16);
        running.memory.write(address, call.val64.as_bytes())
    }

    pub(super) fn set_large_pages(&mut self, id: u32, large: bool) -> Result<(), Errno> {
        let filled = self.has_domain(id) && !self.ioas(id)?.areas.is_empty();
        if !large && !self.ioas(id)?.small_pages {
            if filled {
                return Err(Errno::EINVAL);
            }
            self.check_whole_pages(id)?;
        }
        self.ioas_mut(id)?.small_pages = !large;
        Ok(())
    }

    fn vfio_ioas(&mut self, running: &mut Running<'_, '_>) -> Result<(), Errno> {
        let mut call: IommuVfioIoas = running.read()?;
        zero(call.__reserved.into())?;
        match call.op {
            IOMMU_VFIO_IOAS_GET => {
                call.ioas_id = self.compat.ok_or(Errno::ENODEV)?;
                return running.answer(&call);
            }
            IOMMU_VFIO_IOAS_SET => {
                self.ioas(call.ioas_id)?;
                self.compat = Some(call.ioas_id);
            }
            IOMMU_VFIO_IOAS_CLEAR => self.compat = None,
            _ => return Err(Errno::EOPNOTSUPP),
        }
        Ok(())
    }

    fn hwpt_alloc(&mut self, running: &mut Running<'_, '_>) -> Result<(), Errno> {
        let mut call: IommuHwptAlloc = running.read()?;
        zero(call.__reserved)?;
        if (call.data_type == IOMMU_HWPT_DATA_NONE) != (call.data_len == 0) {
            return Err(Errno::EINVAL);
        }
        if self.kind(call.dev_id) != Some(ObjectKind::Device) {
            return Err(Errno::ENOENT);
        }
        match self.kind(call.pt_id) {
            Some(ObjectKind::Ioas) => {}
            Some(ObjectKind::Hwpt) => return Err(Errno::EOPNOTSUPP),
            _ => return Err(Errno::EINVAL),
        }
        flags(call.flags, IOMMU_HWPT_FAULT_ID_VALID)?;
        zero(call.data_len)?;
        let id = self.add_hwpt(running.setting, call.pt_id, false)?;
        let queue = (call.flags != 0).then_some(call.fault_id);
        let told = match queue {
            Some(queue) if self.kind(queue) != Some(ObjectKind::FaultQueue) => Err(Errno::ENOENT),
            _ => {
                call.out_hwpt_id = id;
                running.answer(&call)
            }
        };
        if told.is_ok() {
            self.objects.insert(id, Object::Hwpt { ioas: call.pt_id, automatic: false, faults: queue });
        } else {
            self.objects.remove(&id);
            self.settle();
        }
        told
    }

    fn queue_alloc(&mut self, running: &mut Running<'_, '_>) -> Result<(), Errno> {
        let mut call: IommuFaultAlloc = running.read()?;
        zero(call.flags)?;
        if !running.setting.descriptors {
            return Err(Errno::EMFILE);
        }
        let id = self.add(Object::Queue { open: true });
        (call.out_fault_id, call.out_fault_fd) = (id, id + QUEUE as u32);
        running.answer(&call).inspect_err(|_| {
            self.objects.remove(&id);
        })
    }
}

fn one_or_zero(value: u64) -> Result<bool, Errno> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Errno::EINVAL),
    }
}
