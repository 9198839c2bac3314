//! The engine's ties to the world: what it asks of whoever it runs in.

use core::ops::Deref;

use crate::table::format::Access;
use crate::table::{Table, TableMemory};
use crate::{Errno, PhysAddr};

/// Who asks, and what they may do; read at the time of the call.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caller {
    /// CAP_SYS_RAWIO: may learn physical addresses.
    pub raw_io: bool,
    /// CAP_IPC_LOCK: exempt from RLIMIT_MEMLOCK.
    pub ipc_lock: bool,
    /// CAP_SYS_RESOURCE: may choose how pinned memory is charged.
    pub resource: bool,
}

/// A run of physically contiguous bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PhysRun {
    /// Its first byte.
    pub address: PhysAddr,
    /// Bytes.
    pub length: u64,
}

/// Memory that stays at its physical place until this is dropped.
pub trait Pins {
    /// What can go wrong in learning the addresses.
    type Error: From<Errno>;

    /// Hands the memory's physical runs to `sink`, in order, as many at a time as are at hand, together exactly the length that
    /// was pinned. Called once, while the pins are held; an error of `sink` ends it and is passed on.
    ///
    /// # Errors
    /// Those of `sink`, and those of whoever knows the addresses.
    fn runs(&self, sink: &mut dyn FnMut(&[PhysRun]) -> Result<(), Errno>) -> Result<(), Self::Error>;
}

/// What the engine runs on: memory that can be pinned, and memory for its tables.
pub trait Platform {
    /// What a failed call tells, an [`Errno`] at least.
    type Error: From<Errno> + Into<Errno>;
    /// Names memory that can be mapped, from some page of a process or of a file on. The engine only keeps it.
    type Backing;
    /// Pinned memory.
    type Pins: Pins<Error = Self::Error>;
    /// Memory of a page table.
    type Memory: TableMemory;
    /// A shared handle of a page table.
    type Table: Deref<Target = Table<Self::Memory>> + Clone;

    /// Whether `backing` is memory of a file, not of a process (IOMMU_IOAS_CHANGE_PROCESS takes only files).
    fn is_file(&self, backing: &Self::Backing) -> bool;

    /// A new, empty table.
    ///
    /// # Errors
    /// Want of memory.
    fn new_table(&self) -> Result<Self::Table, Self::Error>;

    /// Whether `backing` was memory of a device that has been taken back since it was named: it has no places any more, and
    /// never will have again.
    fn is_revoked(&self, backing: &Self::Backing) -> bool {
        let _ = backing;
        false
    }

    /// Pins `length` bytes of `backing` from `offset` on, both multiples of 4 KiB. `access.write` tells whether the caller
    /// of MAP asked for writing, whatever the areas do.
    ///
    /// # Errors
    /// Nothing is pinned then.
    fn pin(
        &self,
        backing: &Self::Backing,
        offset: u64,
        length: u64,
        access: Access,
        caller: Caller,
    ) -> Result<Self::Pins, Self::Error>;

    /// The largest alignment that automatic placement goes for, a power of two. In Linux it is the size of a transparent huge page,
    /// or of a page where there are none.
    fn huge_page(&self) -> u64 {
        1 << 21
    }
}
