//! Domains that the kernel keeps: memory pinned and mapped by iommufd or by a VFIO container, at the IOVAs that the IOAS has
//! given out.

mod container;
mod iommufd;

use std::collections::BTreeMap;

use noiommu_core::table::format::Access;
use noiommu_core::{Errno, IovaRange};

pub(super) use self::container::Container;
pub(crate) use self::iommufd::KernelAddresses;
pub(super) use self::iommufd::KernelIoas;
use crate::memory::{Backing, View, refused};
use crate::{Error, Result};

/// Where the kernel maps what an IOAS maps, for devices that it serves.
pub(super) trait KernelDomain {
    /// Pins and maps `backing`, from `offset` bytes on, at `range`, for devices to access so.
    ///
    /// # Errors
    /// What the kernel answers; nothing is mapped then.
    fn map(&mut self, range: IovaRange, backing: &Backing, offset: u64, access: Access) -> Result<()>;

    /// The contrary, for exactly such a range.
    fn unmap(&mut self, range: IovaRange);

    /// The IOVAs that the domain can map, in order.
    ///
    /// # Errors
    /// What the kernel answers.
    fn usable(&self) -> Result<Vec<IovaRange>>;
}

/// Stretches of files that are mapped into this process for as long as a domain maps them: not every kernel takes a file.
#[derive(Default)]
struct Views(BTreeMap<u64, View>);

impl Views {
    /// The address in this process of `length` bytes of `backing` from `offset` on; a file is mapped for it.
    fn address(&mut self, range: IovaRange, backing: &Backing, offset: u64, length: u64) -> Result<u64> {
        match backing {
            Backing::User(address) => Ok(*address as u64 + offset),
            Backing::File(file, start) => {
                let length = usize::try_from(length).map_err(|_| Error::from(Errno::EOVERFLOW))?;
                let start = start.checked_add(offset).ok_or_else(|| Error::from(Errno::EOVERFLOW))?;
                let view = View::new(file, start, length)?;
                let address = view.start() as u64;
                self.0.insert(range.first().0, view);
                Ok(address)
            }
        }
    }

    fn forget(&mut self, range: IovaRange) {
        self.0.remove(&range.first().0);
    }
}

/// Bytes of a range of the kit's, which is never all of the IOVA space.
fn length(range: IovaRange) -> u64 {
    range.length().unwrap_or(u64::MAX)
}

/// What a refused mapping means. `address`: of the memory in this process, where it has one.
fn not_mapped(by: &str, range: IovaRange, address: Option<u64>, errno: Errno) -> Error {
    let system = std::io::Error::from_raw_os_error(errno.raw());
    match (errno, address) {
        (Errno::EFAULT | Errno::ENOMEM, Some(address)) => {
            refused(by, address as usize, usize::try_from(length(range)).unwrap_or(usize::MAX), &system)
        }
        // The place is free in the IOAS: what is in the way is the IOMMU's.
        (Errno::EEXIST | Errno::EADDRINUSE | Errno::ENOENT | Errno::EINVAL, _) => Error::new(
            crate::ErrorKind::Rule,
            errno,
            format!("{by}: the device's IOMMU cannot map {range:?}: {system}"),
        )
        .with_remedy("attach devices before mapping, so that IOVAs are chosen that all of them can have"),
        (Errno::ENOSPC, _) => Error::new(
            crate::ErrorKind::Rule,
            errno,
            format!("{by}: the container has as many mappings as it may have"),
        )
        .with_remedy("map fewer and larger buffers, or raise vfio_iommu_type1.dma_entry_limit"),
        _ => Error::system(format_args!("{by}: mapping {range:?}"), system),
    }
}
