//! All calls, as a table.

use crate::iommufd::*;
use crate::layout::{Field, Layout, Structure};
use crate::vfio::{container::*, device::*, feature::*, gfx::*, group::*, pci::*, spapr::*};

/// The kind of file that answers a call. One number can be several calls: of a container and of a device, say.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CallFile {
    /// `/dev/iommu`.
    Iommufd,
    /// `/dev/vfio/vfio`, with an IOMMU of type 1, with none, or before one is chosen.
    Container,
    /// The same on POWER servers, where it has further calls.
    SpaprContainer,
    /// `/dev/vfio/N`, `/dev/vfio/noiommu-N`.
    Group,
    /// A device, through its group or as `/dev/vfio/devices/...`.
    Device,
    /// The data of a migration.
    Migration,
}

/// What the argument of a call is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Argument {
    /// It does not matter.
    None,
    /// A number, the argument itself.
    Value,
    /// A pointer to a descriptor (`i32`).
    Descriptor,
    /// A pointer to a number (`u32`).
    Number,
    /// A pointer to text that a zero byte ends.
    Text,
    /// A pointer to a structure whose first field is its size.
    Structure {
        /// Its layout.
        layout: &'static Layout,
        /// Bytes that it has at least; less is EINVAL.
        min_size: u32,
    },
}

/// A call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// The kernel's name of the number.
    pub name: &'static str,
    /// The request number.
    pub number: u32,
    /// Who answers it.
    pub file: CallFile,
    /// What goes with it.
    pub argument: Argument,
}

impl Call {
    /// The call with this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<&'static Self> {
        CALLS.iter().find(|call| call.name == name)
    }

    /// The call with this number on a file of this kind. An iommufd and a container of POWER servers know the calls of a
    /// container too (an iommufd for its compatibility IOAS, and not all of them).
    #[must_use]
    pub fn by_number(file: CallFile, number: u32) -> Option<&'static Self> {
        let on = |file| CALLS.iter().find(|call| call.file == file && call.number == number);
        on(file).or_else(|| match file {
            CallFile::Iommufd | CallFile::SpaprContainer => on(CallFile::Container),
            _ => None,
        })
    }

    /// The layout of the argument, where it is a structure.
    #[must_use]
    pub const fn layout(&self) -> Option<&'static Layout> {
        match self.argument {
            Argument::Structure { layout, .. } => Some(layout),
            _ => None,
        }
    }

    /// The fields of the argument; none where it is no structure.
    #[must_use]
    pub const fn fields(&self) -> &'static [Field] {
        match self.argument {
            Argument::Structure { layout, .. } => layout.fields,
            _ => &[],
        }
    }

    /// Bytes of the structure that 7.3 knows, without a tail; 0 where the argument is none.
    #[must_use]
    pub const fn size(&self) -> u32 {
        match self.argument {
            Argument::Structure { layout, .. } => layout.size,
            _ => 0,
        }
    }

    /// Bytes that the structure has at least, 0 where the argument is none.
    #[must_use]
    pub const fn min_size(&self) -> u32 {
        match self.argument {
            Argument::Structure { min_size, .. } => min_size,
            _ => 0,
        }
    }
}

/// `Structure up to field`: the field is the last that a call cannot do without.
macro_rules! argument {
    ($kind:ident) => {
        Argument::$kind
    };
    ($structure:ident up to $field:ident) => {
        Argument::Structure {
            layout: <$structure as Structure>::LAYOUT,
            min_size: <$structure as Structure>::LAYOUT.end_of(stringify!($field)),
        }
    };
}

macro_rules! calls {
    ($($file:ident { $($name:ident($($argument:tt)+),)* })*) => {
        /// All calls of Linux 7.3.
        pub const CALLS: &[Call] = &[$($(Call {
            name: stringify!($name),
            number: $name,
            file: CallFile::$file,
            argument: argument!($($argument)+),
        },)*)*];
    };
}

calls! {
    Iommufd {
        IOMMU_DESTROY(IommuDestroy up to id),
        IOMMU_IOAS_ALLOC(IommuIoasAlloc up to out_ioas_id),
        IOMMU_IOAS_ALLOW_IOVAS(IommuIoasAllowIovas up to allowed_iovas),
        IOMMU_IOAS_COPY(IommuIoasCopy up to src_iova),
        IOMMU_IOAS_IOVA_RANGES(IommuIoasIovaRanges up to out_iova_alignment),
        IOMMU_IOAS_MAP(IommuIoasMap up to iova),
        IOMMU_IOAS_UNMAP(IommuIoasUnmap up to length),
        IOMMU_OPTION(IommuOption up to val64),
        IOMMU_VFIO_IOAS(IommuVfioIoas up to __reserved),
        IOMMU_HWPT_ALLOC(IommuHwptAlloc up to __reserved),
        IOMMU_GET_HW_INFO(IommuHwInfo up to __reserved),
        IOMMU_HWPT_SET_DIRTY_TRACKING(IommuHwptSetDirtyTracking up to __reserved),
        IOMMU_HWPT_GET_DIRTY_BITMAP(IommuHwptGetDirtyBitmap up to data),
        IOMMU_HWPT_INVALIDATE(IommuHwptInvalidate up to __reserved),
        IOMMU_FAULT_QUEUE_ALLOC(IommuFaultAlloc up to out_fault_fd),
        IOMMU_IOAS_MAP_FILE(IommuIoasMapFile up to iova),
        IOMMU_VIOMMU_ALLOC(IommuViommuAlloc up to out_viommu_id),
        IOMMU_VDEVICE_ALLOC(IommuVdeviceAlloc up to virt_id),
        IOMMU_IOAS_CHANGE_PROCESS(IommuIoasChangeProcess up to __reserved),
        IOMMU_VEVENTQ_ALLOC(IommuVeventqAlloc up to out_veventq_fd),
        IOMMU_HW_QUEUE_ALLOC(IommuHwQueueAlloc up to length),
        IOMMU_IOAS_NOIOMMU_GET_PA(IommuIoasNoiommuGetPa up to out_phys),
    }
    Container {
        VFIO_GET_API_VERSION(None),
        VFIO_CHECK_EXTENSION(Value),
        VFIO_SET_IOMMU(Value),
        VFIO_IOMMU_GET_INFO(VfioIommuType1Info up to iova_pgsizes),
        VFIO_IOMMU_MAP_DMA(VfioIommuType1DmaMap up to size),
        VFIO_IOMMU_UNMAP_DMA(VfioIommuType1DmaUnmap up to size),
        VFIO_IOMMU_DIRTY_PAGES(VfioIommuType1DirtyBitmap up to flags),
    }
    SpaprContainer {
        VFIO_IOMMU_ENABLE(None),
        VFIO_IOMMU_DISABLE(None),
        VFIO_IOMMU_SPAPR_TCE_GET_INFO(VfioIommuSpaprTceInfo up to dma32_window_size),
        VFIO_IOMMU_SPAPR_REGISTER_MEMORY(VfioIommuSpaprRegisterMemory up to size),
        VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY(VfioIommuSpaprRegisterMemory up to size),
        VFIO_IOMMU_SPAPR_TCE_CREATE(VfioIommuSpaprTceCreate up to start_addr),
        VFIO_IOMMU_SPAPR_TCE_REMOVE(VfioIommuSpaprTceRemove up to start_addr),
        VFIO_EEH_PE_OP(VfioEehPeOp up to op),
    }
    Group {
        VFIO_GROUP_GET_STATUS(VfioGroupStatus up to flags),
        VFIO_GROUP_SET_CONTAINER(Descriptor),
        VFIO_GROUP_UNSET_CONTAINER(None),
        VFIO_GROUP_GET_DEVICE_FD(Text),
    }
    Device {
        VFIO_DEVICE_GET_INFO(VfioDeviceInfo up to num_irqs),
        VFIO_DEVICE_GET_REGION_INFO(VfioRegionInfo up to offset),
        VFIO_DEVICE_GET_IRQ_INFO(VfioIrqInfo up to count),
        VFIO_DEVICE_SET_IRQS(VfioIrqSet up to count),
        VFIO_DEVICE_RESET(None),
        VFIO_DEVICE_GET_PCI_HOT_RESET_INFO(VfioPciHotResetInfo up to count),
        VFIO_DEVICE_PCI_HOT_RESET(VfioPciHotReset up to count),
        VFIO_DEVICE_QUERY_GFX_PLANE(VfioDeviceGfxPlaneInfo up to region_index),
        VFIO_DEVICE_GET_GFX_DMABUF(Number),
        VFIO_DEVICE_IOEVENTFD(VfioDeviceIoeventfd up to fd),
        VFIO_DEVICE_FEATURE(VfioDeviceFeature up to flags),
        VFIO_DEVICE_BIND_IOMMUFD(VfioDeviceBindIommufd up to out_devid),
        VFIO_DEVICE_ATTACH_IOMMUFD_PT(VfioDeviceAttachIommufdPt up to pt_id),
        VFIO_DEVICE_DETACH_IOMMUFD_PT(VfioDeviceDetachIommufdPt up to flags),
    }
    Migration {
        VFIO_MIG_GET_PRECOPY_INFO(VfioPrecopyInfo up to dirty_bytes),
    }
}
