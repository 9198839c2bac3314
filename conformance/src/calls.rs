//! The ioctls by name: numbers and fields.
//!
//! For now a small table of its own, in the shape of the one of `noiommu-uapi`.

use std::sync::OnceLock;

/// One field of a call's structure.
pub(crate) struct Field {
    /// Its name in the kernel's header.
    pub(crate) name: &'static str,
    /// Bytes before it.
    pub(crate) offset: usize,
    /// Its bytes: 1, 2, 4 or 8.
    pub(crate) width: usize,
}

/// One ioctl.
pub(crate) struct Call {
    /// Its name in the kernel's header.
    pub(crate) name: &'static str,
    /// The request number.
    pub(crate) number: u32,
    /// The fields of its structure, none where it takes no structure.
    pub(crate) fields: Vec<Field>,
    /// The structure's size.
    pub(crate) size: usize,
}

const TABLE: &str = "
IOMMU_DESTROY 0x3b80 size:4 id:4
IOMMU_IOAS_ALLOC 0x3b81 size:4 flags:4 out_ioas_id:4
IOMMU_IOAS_ALLOW_IOVAS 0x3b82 size:4 ioas_id:4 num_iovas:4 __reserved:4 allowed_iovas:8
IOMMU_IOAS_COPY 0x3b83 size:4 flags:4 dst_ioas_id:4 src_ioas_id:4 length:8 dst_iova:8 src_iova:8
IOMMU_IOAS_IOVA_RANGES 0x3b84 size:4 ioas_id:4 num_iovas:4 __reserved:4 allowed_iovas:8 out_iova_alignment:8
IOMMU_IOAS_MAP 0x3b85 size:4 flags:4 ioas_id:4 __reserved:4 user_va:8 length:8 iova:8
IOMMU_IOAS_UNMAP 0x3b86 size:4 ioas_id:4 iova:8 length:8
IOMMU_OPTION 0x3b87 size:4 option_id:4 op:2 __reserved:2 object_id:4 val64:8
IOMMU_VFIO_IOAS 0x3b88 size:4 ioas_id:4 op:2 __reserved:2
IOMMU_HWPT_ALLOC 0x3b89 size:4 flags:4 dev_id:4 pt_id:4 out_hwpt_id:4 __reserved:4 data_type:4 data_len:4 data_uptr:8 fault_id:4 __reserved2:4
IOMMU_GET_HW_INFO 0x3b8a size:4 flags:4 dev_id:4 data_len:4 data_uptr:8 out_data_type:4 out_max_pasid_log2:1 r0:1 r1:1 r2:1 out_capabilities:8
IOMMU_HWPT_SET_DIRTY_TRACKING 0x3b8b size:4 flags:4 hwpt_id:4 __reserved:4
IOMMU_HWPT_GET_DIRTY_BITMAP 0x3b8c size:4 hwpt_id:4 flags:4 __reserved:4 iova:8 length:8 page_size:8 data:8
IOMMU_HWPT_INVALIDATE 0x3b8d size:4 hwpt_id:4 data_uptr:8 data_type:4 entry_len:4 entry_num:4 __reserved:4
IOMMU_FAULT_QUEUE_ALLOC 0x3b8e size:4 flags:4 out_fault_id:4 out_fault_fd:4
IOMMU_IOAS_MAP_FILE 0x3b8f size:4 flags:4 ioas_id:4 fd:4 start:8 length:8 iova:8
IOMMU_VIOMMU_ALLOC 0x3b90 size:4 flags:4 type:4 dev_id:4 hwpt_id:4 out_viommu_id:4 data_len:4 __reserved:4 data_uptr:8
IOMMU_VDEVICE_ALLOC 0x3b91 size:4 viommu_id:4 dev_id:4 out_vdevice_id:4 virt_id:8
IOMMU_IOAS_CHANGE_PROCESS 0x3b92 size:4 __reserved:4
IOMMU_VEVENTQ_ALLOC 0x3b93 size:4 flags:4 viommu_id:4 type:4 veventq_depth:4 out_veventq_id:4 out_veventq_fd:4 __reserved:4
IOMMU_HW_QUEUE_ALLOC 0x3b94 size:4 flags:4 viommu_id:4 type:4 index:4 out_hw_queue_id:4 nesting_parent_iova:8 length:8
IOMMU_IOAS_NOIOMMU_GET_PA 0x3b95 size:4 flags:4 ioas_id:4 __reserved:4 iova:8 length:8 out_phys:8
VFIO_GET_API_VERSION 0x3b64
VFIO_CHECK_EXTENSION 0x3b65
VFIO_SET_IOMMU 0x3b66
VFIO_GROUP_GET_STATUS 0x3b67 argsz:4 flags:4
VFIO_GROUP_SET_CONTAINER 0x3b68
VFIO_GROUP_UNSET_CONTAINER 0x3b69
VFIO_GROUP_GET_DEVICE_FD 0x3b6a
VFIO_DEVICE_GET_INFO 0x3b6b argsz:4 flags:4 num_regions:4 num_irqs:4 cap_offset:4 pad:4
VFIO_DEVICE_GET_REGION_INFO 0x3b6c argsz:4 flags:4 index:4 cap_offset:4 size:8 offset:8
VFIO_DEVICE_GET_IRQ_INFO 0x3b6d argsz:4 flags:4 index:4 count:4
VFIO_DEVICE_SET_IRQS 0x3b6e argsz:4 flags:4 index:4 start:4 count:4
VFIO_DEVICE_RESET 0x3b6f
VFIO_DEVICE_GET_PCI_HOT_RESET_INFO 0x3b70 argsz:4 flags:4 count:4
VFIO_IOMMU_GET_INFO 0x3b70 argsz:4 flags:4 iova_pgsizes:8 cap_offset:4 pad:4
VFIO_IOMMU_MAP_DMA 0x3b71 argsz:4 flags:4 vaddr:8 iova:8 size:8
VFIO_DEVICE_PCI_HOT_RESET 0x3b71 argsz:4 flags:4 count:4
VFIO_IOMMU_UNMAP_DMA 0x3b72 argsz:4 flags:4 iova:8 size:8
VFIO_IOMMU_ENABLE 0x3b73
VFIO_IOMMU_DISABLE 0x3b74
VFIO_IOMMU_DIRTY_PAGES 0x3b75 argsz:4 flags:4
VFIO_DEVICE_IOEVENTFD 0x3b74 argsz:4 flags:4 offset:8 data:8 fd:4 reserved:4
VFIO_DEVICE_FEATURE 0x3b75 argsz:4 flags:4
VFIO_DEVICE_BIND_IOMMUFD 0x3b76 argsz:4 flags:4 iommufd:4 out_devid:4 token_uuid_ptr:8
VFIO_DEVICE_ATTACH_IOMMUFD_PT 0x3b77 argsz:4 flags:4 pt_id:4 pasid:4
VFIO_DEVICE_DETACH_IOMMUFD_PT 0x3b78 argsz:4 flags:4 pasid:4
";

fn table() -> &'static [Call] {
    static CALLS: OnceLock<Vec<Call>> = OnceLock::new();
    CALLS.get_or_init(|| {
        TABLE
            .lines()
            .filter(|line| !line.is_empty())
            .filter_map(|line| {
                let mut words = line.split(' ');
                let name = words.next()?;
                let number = u32::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok()?;
                let (mut fields, mut size) = (Vec::new(), 0);
                for word in words {
                    let (name, width) = word.split_once(':')?;
                    let width = width.parse().ok()?;
                    fields.push(Field { name, offset: size, width });
                    size += width;
                }
                Some(Call { name, number, fields, size })
            })
            .collect()
    })
}

/// The call of that name.
pub(crate) fn named(name: &str) -> Option<&'static Call> {
    table().iter().find(|call| call.name == name)
}
