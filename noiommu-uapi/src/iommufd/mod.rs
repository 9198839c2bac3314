//! The calls of `/dev/iommu`.
//!
//! Every structure begins with its own size. A smaller one than the call needs is EINVAL; a larger one is fine as long as
//! what the kernel does not know of it is 0, and else E2BIG. Flags that it does not know, and reserved fields that are not 0,
//! are EOPNOTSUPP. Objects are named by ids from one namespace per open file.
//!
//! Besides these the file answers the container calls of [`crate::vfio::container`], on its compatibility IOAS.

pub(crate) mod hardware;
pub(crate) mod hwpt;
pub(crate) mod ioas;

pub use hardware::*;
pub use hwpt::*;
pub use ioas::*;

use crate::ioctl::iommufd;
use crate::layout::structures;

/// Destroys an object: [`IommuDestroy`].
pub const IOMMU_DESTROY: u32 = iommufd(0x80);
/// Sets or gets an option: [`IommuOption`].
pub const IOMMU_OPTION: u32 = iommufd(0x87);
/// Tells or changes the IOAS behind the container calls: [`IommuVfioIoas`].
pub const IOMMU_VFIO_IOAS: u32 = iommufd(0x88);

/// Whom locked memory is charged to: 0 the user, 1 the process. Of the whole file, so the object id is 0.
pub const IOMMU_OPTION_RLIMIT_MODE: u32 = 0;
/// Whether an IOAS maps contiguous pages as larger ones (1, the default) or one by one (0).
pub const IOMMU_OPTION_HUGE_PAGES: u32 = 1;

/// Set an option.
pub const IOMMU_OPTION_OP_SET: u16 = 0;
/// Get an option.
pub const IOMMU_OPTION_OP_GET: u16 = 1;

/// Tell which IOAS serves the container calls.
pub const IOMMU_VFIO_IOAS_GET: u16 = 0;
/// Let an IOAS serve the container calls.
pub const IOMMU_VFIO_IOAS_SET: u16 = 1;
/// Let none serve them.
pub const IOMMU_VFIO_IOAS_CLEAR: u16 = 2;

structures! {
    /// Argument of [`IOMMU_DESTROY`].
    struct IommuDestroy = iommu_destroy, 8 {
        /// Bytes of this structure.
        0 => size: u32,
        /// Any object that user space made.
        4 => id: u32,
    }

    /// Argument of [`IOMMU_OPTION`].
    struct IommuOption = iommu_option, 24 {
        /// Bytes of this structure.
        0 => size: u32,
        /// One of `IOMMU_OPTION_RLIMIT_MODE`, `IOMMU_OPTION_HUGE_PAGES`.
        4 => option_id: u32,
        /// One of `IOMMU_OPTION_OP_*`.
        8 => op: u16,
        /// 0.
        10 => __reserved: u16,
        /// Whose option; 0 where it is the file's.
        12 => object_id: u32,
        /// The value, in for a set and out for a get.
        16 => val64: u64,
    }

    /// Argument of [`IOMMU_VFIO_IOAS`].
    struct IommuVfioIoas = iommu_vfio_ioas, 12 {
        /// Bytes of this structure.
        0 => size: u32,
        /// The IOAS, in for a set and out for a get.
        4 => ioas_id: u32,
        /// One of `IOMMU_VFIO_IOAS_*`.
        8 => op: u16,
        /// 0.
        10 => __reserved: u16,
    }
}
