//! Names for numbers: errnos, signals, and the constants that cases may use.

/// The errno's name; its number where it has none here.
pub(crate) fn errno(number: i32) -> String {
    let name = match number {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::E2BIG => "E2BIG",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::ENOTDIR => "ENOTDIR",
        libc::EISDIR => "EISDIR",
        libc::EINVAL => "EINVAL",
        libc::ENFILE => "ENFILE",
        libc::EMFILE => "EMFILE",
        libc::ENOTTY => "ENOTTY",
        libc::EFBIG => "EFBIG",
        libc::ENOSPC => "ENOSPC",
        libc::ESPIPE => "ESPIPE",
        libc::EROFS => "EROFS",
        libc::EPIPE => "EPIPE",
        libc::EDOM => "EDOM",
        libc::ERANGE => "ERANGE",
        libc::EDEADLK => "EDEADLK",
        libc::ENOSYS => "ENOSYS",
        libc::ELOOP => "ELOOP",
        libc::EOVERFLOW => "EOVERFLOW",
        libc::EBADFD => "EBADFD",
        libc::EMSGSIZE => "EMSGSIZE",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EADDRINUSE => "EADDRINUSE",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::ESTALE => "ESTALE",
        libc::EREMOTEIO => "EREMOTEIO",
        _ => return format!("errno {number}"),
    };
    name.to_owned()
}

/// The signal's name; its number where it has none here.
pub(crate) fn signal(number: i32) -> String {
    let name = match number {
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGBUS => "SIGBUS",
        libc::SIGKILL => "SIGKILL",
        libc::SIGABRT => "SIGABRT",
        libc::SIGILL => "SIGILL",
        libc::SIGFPE => "SIGFPE",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGTERM => "SIGTERM",
        _ => return format!("signal {number}"),
    };
    name.to_owned()
}

/// How far the offsets of two neighbouring regions of a vfio-pci device are apart, as a power of two.
const REGION_SHIFT: u64 = 40;

/// A constant's value.
pub(crate) fn constant(name: &str) -> Option<u64> {
    let value = match name {
        "PAGE" => 4096,
        "U16_MAX" => u16::MAX.into(),
        "U32_MAX" => u32::MAX.into(),
        "U64_MAX" => u64::MAX,
        // MAP, MAP_FILE, COPY: IOMMU_IOAS_MAP_FIXED_IOVA, _WRITEABLE, _READABLE.
        "FIXED" => 1,
        "W" => 2,
        "R" => 4,
        // IOMMU_OPTION and IOMMU_VFIO_IOAS.
        "RLIMIT_MODE" => 0,
        "HUGE_PAGES" => 1,
        "OPTION_SET" => 0,
        "OPTION_GET" => 1,
        "IOAS_GET" => 0,
        "IOAS_SET" => 1,
        "IOAS_CLEAR" => 2,
        // VFIO_DMA_MAP_FLAG_ and VFIO_DMA_UNMAP_FLAG_.
        "DMA_READ" => 1,
        "DMA_WRITE" => 2,
        "UNMAP_ALL" => 2,
        // VFIO container types and extensions.
        "TYPE1" => 1,
        "TYPE1V2" => 3,
        "DMA_CC" => 4,
        "EEH" => 5,
        "NESTING" => 6,
        "SPAPR_V2" => 7,
        "NOIOMMU" => 8,
        "EXT_UNMAP_ALL" => 9,
        "UPDATE_VADDR" => 10,
        // IOMMU_HWPT_ALLOC flags.
        "NEST_PARENT" => 1,
        "DIRTY_TRACKING" => 2,
        "FAULT_ID_VALID" => 4,
        "ALLOC_PASID" => 8,
        // Regions, as offsets of the device's file.
        "BAR0" | "BAR1" | "BAR2" | "BAR3" | "BAR4" | "BAR5" => {
            u64::from(name.as_bytes().get(3)?.wrapping_sub(b'0')) << REGION_SHIFT
        }
        "ROM" => 6 << REGION_SHIFT,
        "CONFIG" => 7 << REGION_SHIFT,
        "VGA" => 8 << REGION_SHIFT,
        "REGION9" => 9 << REGION_SHIFT,
        // Region and interrupt indices.
        "ROM_INDEX" => 6,
        "CONFIG_INDEX" => 7,
        "VGA_INDEX" => 8,
        "INTX" => 0,
        "MSI" => 1,
        "MSIX" => 2,
        "ERR" => 3,
        "REQ" => 4,
        // VFIO_IRQ_SET_.
        "NONE" => 1,
        "BOOL" => 2,
        "EVENTFD" => 4,
        "MASK" => 8,
        "UNMASK" => 16,
        "TRIGGER" => 32,
        // VFIO_DEVICE_FEATURE_.
        "GET" => 1 << 16,
        "SET" => 1 << 17,
        "PROBE" => 1 << 18,
        _ => return None,
    };
    Some(value)
}

/// A capability's number.
pub(crate) fn capability(name: &str) -> Option<u32> {
    Some(match name {
        "CAP_NET_ADMIN" => 12,
        "CAP_IPC_LOCK" => 14,
        "CAP_SYS_RAWIO" => 17,
        "CAP_SYS_ADMIN" => 21,
        "CAP_SYS_RESOURCE" => 24,
        _ => return None,
    })
}
