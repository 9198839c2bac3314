//! The table of calls, held against what the kernel's headers and its own tables of calls amount to.

use std::collections::BTreeSet;

use noiommu_uapi::CallFile::{Container, Device, Group, Iommufd, Migration, SpaprContainer};
use noiommu_uapi::{Argument, CALLS, Call, CallFile, Field, Kind, Layout, ioctl};

/// Name, file, number, bytes of the structure and bytes that it has at least.
#[rustfmt::skip]
const PINNED: &[(&str, CallFile, u32, u32, u32)] = &[
    ("IOMMU_DESTROY", Iommufd, 0x3b80, 8, 8),
    ("IOMMU_IOAS_ALLOC", Iommufd, 0x3b81, 12, 12),
    ("IOMMU_IOAS_ALLOW_IOVAS", Iommufd, 0x3b82, 24, 24),
    ("IOMMU_IOAS_COPY", Iommufd, 0x3b83, 40, 40),
    ("IOMMU_IOAS_IOVA_RANGES", Iommufd, 0x3b84, 32, 32),
    ("IOMMU_IOAS_MAP", Iommufd, 0x3b85, 40, 40),
    ("IOMMU_IOAS_UNMAP", Iommufd, 0x3b86, 24, 24),
    ("IOMMU_OPTION", Iommufd, 0x3b87, 24, 24),
    ("IOMMU_VFIO_IOAS", Iommufd, 0x3b88, 12, 12),
    ("IOMMU_HWPT_ALLOC", Iommufd, 0x3b89, 48, 24),
    ("IOMMU_GET_HW_INFO", Iommufd, 0x3b8a, 40, 32),
    ("IOMMU_HWPT_SET_DIRTY_TRACKING", Iommufd, 0x3b8b, 16, 16),
    ("IOMMU_HWPT_GET_DIRTY_BITMAP", Iommufd, 0x3b8c, 48, 48),
    ("IOMMU_HWPT_INVALIDATE", Iommufd, 0x3b8d, 32, 32),
    ("IOMMU_FAULT_QUEUE_ALLOC", Iommufd, 0x3b8e, 16, 16),
    ("IOMMU_IOAS_MAP_FILE", Iommufd, 0x3b8f, 40, 40),
    ("IOMMU_VIOMMU_ALLOC", Iommufd, 0x3b90, 40, 24),
    ("IOMMU_VDEVICE_ALLOC", Iommufd, 0x3b91, 24, 24),
    ("IOMMU_IOAS_CHANGE_PROCESS", Iommufd, 0x3b92, 8, 8),
    ("IOMMU_VEVENTQ_ALLOC", Iommufd, 0x3b93, 32, 28),
    ("IOMMU_HW_QUEUE_ALLOC", Iommufd, 0x3b94, 40, 40),
    ("IOMMU_IOAS_NOIOMMU_GET_PA", Iommufd, 0x3b95, 40, 40),
    ("VFIO_GET_API_VERSION", Container, 0x3b64, 0, 0),
    ("VFIO_CHECK_EXTENSION", Container, 0x3b65, 0, 0),
    ("VFIO_SET_IOMMU", Container, 0x3b66, 0, 0),
    ("VFIO_IOMMU_GET_INFO", Container, 0x3b70, 24, 16),
    ("VFIO_IOMMU_MAP_DMA", Container, 0x3b71, 32, 32),
    ("VFIO_IOMMU_UNMAP_DMA", Container, 0x3b72, 24, 24),
    ("VFIO_IOMMU_DIRTY_PAGES", Container, 0x3b75, 8, 8),
    ("VFIO_IOMMU_ENABLE", SpaprContainer, 0x3b73, 0, 0),
    ("VFIO_IOMMU_DISABLE", SpaprContainer, 0x3b74, 0, 0),
    ("VFIO_IOMMU_SPAPR_TCE_GET_INFO", SpaprContainer, 0x3b70, 32, 16),
    ("VFIO_IOMMU_SPAPR_REGISTER_MEMORY", SpaprContainer, 0x3b75, 24, 24),
    ("VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY", SpaprContainer, 0x3b76, 24, 24),
    ("VFIO_IOMMU_SPAPR_TCE_CREATE", SpaprContainer, 0x3b77, 40, 40),
    ("VFIO_IOMMU_SPAPR_TCE_REMOVE", SpaprContainer, 0x3b78, 16, 16),
    ("VFIO_EEH_PE_OP", SpaprContainer, 0x3b79, 40, 12),
    ("VFIO_GROUP_GET_STATUS", Group, 0x3b67, 8, 8),
    ("VFIO_GROUP_SET_CONTAINER", Group, 0x3b68, 0, 0),
    ("VFIO_GROUP_UNSET_CONTAINER", Group, 0x3b69, 0, 0),
    ("VFIO_GROUP_GET_DEVICE_FD", Group, 0x3b6a, 0, 0),
    ("VFIO_DEVICE_GET_INFO", Device, 0x3b6b, 24, 16),
    ("VFIO_DEVICE_GET_REGION_INFO", Device, 0x3b6c, 32, 32),
    ("VFIO_DEVICE_GET_IRQ_INFO", Device, 0x3b6d, 16, 16),
    ("VFIO_DEVICE_SET_IRQS", Device, 0x3b6e, 20, 20),
    ("VFIO_DEVICE_RESET", Device, 0x3b6f, 0, 0),
    ("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", Device, 0x3b70, 12, 12),
    ("VFIO_DEVICE_PCI_HOT_RESET", Device, 0x3b71, 12, 12),
    ("VFIO_DEVICE_QUERY_GFX_PLANE", Device, 0x3b72, 64, 60),
    ("VFIO_DEVICE_GET_GFX_DMABUF", Device, 0x3b73, 0, 0),
    ("VFIO_DEVICE_IOEVENTFD", Device, 0x3b74, 32, 28),
    ("VFIO_DEVICE_FEATURE", Device, 0x3b75, 8, 8),
    ("VFIO_DEVICE_BIND_IOMMUFD", Device, 0x3b76, 24, 16),
    ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", Device, 0x3b77, 16, 12),
    ("VFIO_DEVICE_DETACH_IOMMUFD_PT", Device, 0x3b78, 12, 8),
    ("VFIO_MIG_GET_PRECOPY_INFO", Migration, 0x3b79, 24, 24),
];

#[test]
fn the_table_is_the_kernels() {
    let told = |call: &Call| (call.name, call.file, call.number, call.size(), call.min_size());
    assert_eq!(CALLS.iter().map(told).collect::<Vec<_>>(), PINNED);
}

#[test]
fn a_call_is_found_by_its_name_and_by_its_number() {
    for call in CALLS {
        assert_eq!(Call::by_name(call.name), Some(call));
        assert_eq!(Call::by_number(call.file, call.number), Some(call));
        let parts = ioctl::decode(call.number);
        assert_eq!((parts.direction, parts.size, parts.kind), (ioctl::Direction::None, 0, b';'));
    }
    assert_eq!(Call::by_name("IOMMU_TEST_CMD"), None);
    let name = |file, number| Call::by_number(file, number).map(|call| call.name);
    // One number, by the file.
    assert_eq!(name(Device, 0x3b71), Some("VFIO_DEVICE_PCI_HOT_RESET"));
    assert_eq!(name(Container, 0x3b71), Some("VFIO_IOMMU_MAP_DMA"));
    assert_eq!(name(Iommufd, 0x3b71), Some("VFIO_IOMMU_MAP_DMA"));
    assert_eq!(name(SpaprContainer, 0x3b71), Some("VFIO_IOMMU_MAP_DMA"));
    assert_eq!(name(SpaprContainer, 0x3b75), Some("VFIO_IOMMU_SPAPR_REGISTER_MEMORY"));
    assert_eq!(name(Group, 0x3b71), None);
    assert_eq!(name(Migration, 0x3b79), Some("VFIO_MIG_GET_PRECOPY_INFO"));
    // Another direction or size is another number.
    assert_eq!(name(Iommufd, 0xc028_3b85), None);
    assert_eq!(name(Iommufd, 0x3b96), None);
}

#[test]
fn a_structure_begins_with_its_size_and_has_no_byte_left_out() {
    for call in CALLS {
        let Argument::Structure { layout, .. } = call.argument else {
            assert!(call.fields().is_empty());
            continue;
        };
        let first = &layout.fields[0];
        assert_eq!((first.offset, first.size, first.kind), (0, 4, Kind::Unsigned), "{}", call.name);
        let size = if call.file == Iommufd { "size" } else { "argsz" };
        assert_eq!(first.name, size, "{}", call.name);
        assert!(call.min_size() >= 8 && call.min_size() <= call.size(), "{}", call.name);
    }
    let mut names = BTreeSet::new();
    for layout in Layout::all() {
        assert!(names.insert(layout.name), "{}", layout.name);
        assert_eq!(Layout::by_name(layout.name), Some(layout));
        let end = layout.fields.iter().fold(0, |end, field: &Field| {
            assert_eq!(field.offset, end, "{}: {}", layout.name, field.name);
            assert_eq!(
                field.size,
                bytes(field.kind).unwrap_or(field.size),
                "{}: {}",
                layout.name,
                field.name
            );
            end + field.size
        });
        assert_eq!(end, layout.size, "{}", layout.name);
    }
}

/// The bytes of what tells its own size.
fn bytes(kind: Kind) -> Option<u32> {
    match kind {
        Kind::Structure(layout) => Some(layout.size),
        _ => None,
    }
}

#[test]
fn fields_tell_what_they_are() {
    let field = |structure, name| Layout::by_name(structure).unwrap().field(name).unwrap();
    assert_eq!(field("iommu_ioas_map_file", "fd").kind, Kind::Signed);
    assert_eq!(field("iommu_viommu_alloc", "type").offset, 8);
    assert_eq!(field("iommu_hw_info", "in_data_type"), field("iommu_hw_info", "out_data_type"));
    assert_eq!(field("iommu_hw_info", "__reserved").kind, Kind::Array(&Kind::Unsigned, 3));
    let header = Layout::by_name("vfio_info_cap_header").unwrap();
    assert_eq!(field("vfio_region_info_cap_type", "header").kind, Kind::Structure(header));
    let tail = Layout::by_name("vfio_pci_hot_reset").unwrap().tail.unwrap();
    assert_eq!((tail.name, tail.size, tail.kind), ("group_fds", 4, Kind::Signed));
    assert!(Layout::by_name("iommu_ioas_map").unwrap().field("type").is_none());
}

#[test]
fn structures_are_bytes_both_ways() {
    use noiommu_uapi::iommufd::{IOMMU_IOAS_MAP_READABLE, IommuIoasMap};
    use zerocopy::{FromBytes, IntoBytes};

    let map = IommuIoasMap {
        size: 40,
        flags: IOMMU_IOAS_MAP_READABLE,
        ioas_id: 7,
        user_va: 0x1234_5678_9abc_d000,
        length: 4096,
        ..Default::default()
    };
    let bytes = map.as_bytes();
    let layout = Call::by_name("IOMMU_IOAS_MAP").unwrap().layout().unwrap();
    let at = layout.field("user_va").unwrap().offset as usize;
    assert_eq!(bytes[at..at + 8], map.user_va.to_ne_bytes());
    assert_eq!(IommuIoasMap::read_from_bytes(bytes).unwrap(), map);
}
