//! What is mapped where: MAP, MAP_FILE, COPY, UNMAP, and the physical addresses behind it.

use noiommu_uapi::iommufd::*;

use super::Process;
use super::argument::Argument;
use crate::platform::Platform;
use crate::table::format::Access;
use crate::{Context, CopyRequest, Errno, Iova, IovaRange, MapRequest, ObjectId, Place};

const PAGE_MASK: u64 = 0xfff;

impl<P: Platform> Context<P> {
    pub(super) fn ioctl_map(
        &mut self,
        process: &dyn Process<P::Backing>,
        argument: &Argument<'_>,
    ) -> Result<(), P::Error> {
        let mut call: IommuIoasMap = argument.structure()?;
        check_flags(call.flags, call.__reserved)?;
        if call.iova == u64::MAX || call.length == u64::MAX {
            return Err(Errno::EOVERFLOW.into());
        }
        let request = MapRequest {
            backing: process.user_backing(call.user_va & !PAGE_MASK),
            address: call.user_va,
            length: call.length,
            access: access(call.flags),
            place: place(call.flags, call.iova),
        };
        call.iova = self.map(ObjectId(call.ioas_id), process.caller(), request)?.0;
        // Where this fails, what has been mapped stays.
        Ok(argument.respond(&call)?)
    }

    pub(super) fn ioctl_map_file(
        &mut self,
        process: &dyn Process<P::Backing>,
        argument: &Argument<'_>,
    ) -> Result<(), P::Error> {
        let mut call: IommuIoasMapFile = argument.structure()?;
        check_flags(call.flags, 0)?;
        if call.iova == u64::MAX || call.length == u64::MAX {
            return Err(Errno::EOVERFLOW.into());
        }
        let access = access(call.flags);
        if !access.read && !access.write {
            return Err(Errno::EINVAL.into());
        }
        let ioas = ObjectId(call.ioas_id);
        // Before the descriptor is looked at: is there such an IOAS, and such a range?
        self.iova_alignment(ioas)?;
        IovaRange::with_length(Iova(call.start), call.length)?;
        let request = MapRequest {
            backing: process.file_backing(call.fd, call.start, call.length)?,
            address: call.start,
            length: call.length,
            access,
            place: place(call.flags, call.iova),
        };
        call.iova = self.map(ioas, process.caller(), request)?.0;
        Ok(argument.respond(&call)?)
    }

    pub(super) fn ioctl_copy(&mut self, argument: &Argument<'_>) -> Result<(), P::Error> {
        let mut call: IommuIoasCopy = argument.structure()?;
        check_flags(call.flags, 0)?;
        if call.length == u64::MAX || call.src_iova == u64::MAX || call.dst_iova == u64::MAX {
            return Err(Errno::EOVERFLOW.into());
        }
        let request = CopyRequest {
            source: ObjectId(call.src_ioas_id),
            source_iova: Iova(call.src_iova),
            length: call.length,
            access: access(call.flags),
            place: place(call.flags, call.dst_iova),
        };
        call.dst_iova = self.copy(ObjectId(call.dst_ioas_id), request)?.0;
        Ok(argument.respond(&call)?)
    }

    pub(super) fn ioctl_unmap(&mut self, argument: &Argument<'_>) -> Result<(), Errno> {
        let mut call: IommuIoasUnmap = argument.structure()?;
        let ioas = ObjectId(call.ioas_id);
        self.iova_alignment(ioas)?;
        let range = if call.iova == 0 && call.length == u64::MAX {
            IovaRange::ALL
        } else if call.iova == u64::MAX || call.length == u64::MAX {
            return Err(Errno::EOVERFLOW);
        } else {
            IovaRange::with_length(Iova(call.iova), call.length)?
        };
        call.length = self.unmap(ioas, range)?;
        argument.respond(&call)
    }

    pub(super) fn ioctl_get_pa(
        &mut self,
        process: &dyn Process<P::Backing>,
        argument: &Argument<'_>,
    ) -> Result<(), Errno> {
        let mut call: IommuIoasNoiommuGetPa = argument.structure()?;
        let caller = process.caller();
        // The privilege counts before everything else; the rest is in the order of Context::get_pa.
        if caller.raw_io && (call.flags != 0 || call.__reserved != 0) {
            return Err(Errno::EOPNOTSUPP);
        }
        let (address, length) = self.get_pa(caller, ObjectId(call.ioas_id), Iova(call.iova), call.length)?;
        (call.out_phys, call.length) = (address.0, length);
        argument.respond(&call)
    }
}

fn check_flags(flags: u32, reserved: u32) -> Result<(), Errno> {
    let known = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
    if flags & !known != 0 || reserved != 0 { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
}

fn access(flags: u32) -> Access {
    Access { read: flags & IOMMU_IOAS_MAP_READABLE != 0, write: flags & IOMMU_IOAS_MAP_WRITEABLE != 0 }
}

fn place(flags: u32, iova: u64) -> Place {
    if flags & IOMMU_IOAS_MAP_FIXED_IOVA != 0 { Place::Fixed(Iova(iova)) } else { Place::Automatic }
}
