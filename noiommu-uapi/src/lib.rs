//! The uAPI of iommufd and VFIO as Linux 7.3 has it: ioctl numbers, structures, flags, and a table of all calls.
//!
//! Numbers, flags and fields have the kernel's names, so that a reader of its headers finds them; structures have them in
//! Rust's spelling (`struct iommu_ioas_map` is [`iommufd::IommuIoasMap`]). Every layout is asserted when this crate is
//! compiled, and told as data too: [`Layout`] lists a structure's fields, [`CALLS`] all calls with their structures, for
//! programs that build or read arguments without knowing the call (a conformance runner, a fuzzer, a tracer).
//!
//! Nothing here calls the kernel. A structure is plain bytes both ways (`zerocopy`'s traits), padding included, which has a
//! field of its own.
//!
//! ```
//! use noiommu_uapi::{Call, CallFile, iommufd::IOMMU_IOAS_MAP};
//!
//! let call = Call::by_name("IOMMU_IOAS_MAP").unwrap();
//! assert_eq!(call.number, IOMMU_IOAS_MAP);
//! let iova = call.layout().unwrap().field("iova").unwrap();
//! assert_eq!((iova.offset, iova.size), (32, 8));
//! assert_eq!(Call::by_number(CallFile::Iommufd, 0x3b85), Some(call));
//! ```
#![no_std]

mod calls;
pub mod ioctl;
pub mod iommufd;
mod layout;
pub mod vfio;

pub use calls::{Argument, CALLS, Call, CallFile};
pub use layout::{Field, FieldType, Kind, Layout, Structure, Tail};
