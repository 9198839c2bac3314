//! Screens of virtual graphics devices.

use crate::ioctl::vfio;
use crate::layout::structures;

/// Tells of a plane: [`VfioDeviceGfxPlaneInfo`].
pub const VFIO_DEVICE_QUERY_GFX_PLANE: u32 = vfio(14);
/// Opens a plane's memory; the argument points to its `dmabuf_id` (`u32`). Answers a descriptor.
pub const VFIO_DEVICE_GET_GFX_DMABUF: u32 = vfio(15);

/// Ask only whether the device has such planes.
pub const VFIO_GFX_PLANE_TYPE_PROBE: u32 = 1 << 0;
/// Planes in dma-bufs.
pub const VFIO_GFX_PLANE_TYPE_DMABUF: u32 = 1 << 1;
/// Planes in a region.
pub const VFIO_GFX_PLANE_TYPE_REGION: u32 = 1 << 2;

/// Of `VFIO_REGION_TYPE_GFX`: the description of the monitor, a [`VfioRegionGfxEdid`].
pub const VFIO_REGION_SUBTYPE_GFX_EDID: u32 = 1;
/// The monitor is on.
pub const VFIO_DEVICE_GFX_LINK_STATE_UP: u32 = 1;
/// The monitor is off.
pub const VFIO_DEVICE_GFX_LINK_STATE_DOWN: u32 = 2;

structures! {
    /// What the region with the description of the monitor begins with. The link is down while the description changes.
    struct VfioRegionGfxEdid = vfio_region_gfx_edid, 24 {
        /// Where in the region the description (EDID) is.
        0 => edid_offset: u32,
        /// Bytes that it can have.
        4 => edid_max_size: u32,
        /// Bytes that it has.
        8 => edid_size: u32,
        /// Greatest width in pixels, 0 for any.
        12 => max_xres: u32,
        /// Greatest height in pixels, 0 for any.
        16 => max_yres: u32,
        /// `VFIO_DEVICE_GFX_LINK_STATE_*`.
        20 => link_state: u32,
    }

    /// Argument of [`VFIO_DEVICE_QUERY_GFX_PLANE`].
    struct VfioDeviceGfxPlaneInfo = vfio_device_gfx_plane_info, 64 {
        /// Bytes of this structure.
        0 => argsz: u32,
        /// `VFIO_GFX_PLANE_TYPE_*`.
        4 => flags: u32,
        /// In: DRM's type of plane.
        8 => drm_plane_type: u32,
        /// Out: DRM's format.
        12 => drm_format: u32,
        /// Out: DRM's format modifier.
        16 => drm_format_mod: u64,
        /// Out: pixels.
        24 => width: u32,
        /// Out: pixels.
        28 => height: u32,
        /// Out: bytes of a line.
        32 => stride: u32,
        /// Out: bytes of the plane, whole pages.
        36 => size: u32,
        /// Out: where a cursor is.
        40 => x_pos: u32,
        /// Out: where a cursor is.
        44 => y_pos: u32,
        /// Out: the point of a cursor that counts; all ones for unknown.
        48 => x_hot: u32,
        /// Out: the point of a cursor that counts; all ones for unknown.
        52 => y_hot: u32,
        /// Out: which region, or which dma-buf.
        56 => region_index | dmabuf_id: u32,
        /// Unused.
        60 => reserved: u32,
    }
}
