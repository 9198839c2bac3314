//! The uAPI of iommufd and VFIO served inside the process that uses it, for programs written against the kernel's nodes.
//!
//! [`File`]s stand for open nodes; whoever intercepts the program's calls (the preload library, a test) hands them on.

mod cdev;
mod container;
mod device;
pub mod devices;
mod discovery;
mod fault_queue;
mod file;
mod group;
mod iommufd;
mod memory;
mod node;
mod server;
mod settings;
mod touches;

pub use discovery::kernel_serves;
pub use file::{Caller, Descriptors, File, FileKind, FileOperations, MmapRequest, Touch};
pub use node::{Node, NodeKind};
pub use server::{Server, check};
pub use settings::{Provider, Settings, VARIABLE};
pub use touches::{serve_touches, touches_are_served};
