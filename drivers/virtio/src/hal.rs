//! What `virtio-drivers` has of the machine: memory, by functions that know of no device.
//!
//! So the device is told apart from them: whoever calls the crate does it within [`enter`], which says for this thread whose memory is
//! meant. There is no table of all devices, no lock that two of them share, and nothing to be found by an address that two IOASes may
//! both have.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Arc;

use noiommu::Device;
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::pool::Pool;

/// A device and its memory.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) device: Arc<Device>,
    pub(crate) pool: Arc<Pool>,
}

thread_local! {
    static CURRENT: RefCell<Option<Place>> = const { RefCell::new(None) };
}

/// Puts back what was there before, after a panic too.
struct Leave(Option<Place>);

impl Drop for Leave {
    fn drop(&mut self) {
        let before = self.0.take();
        // A thread that ends has no place any more.
        let _ = CURRENT.try_with(|current| current.replace(before));
    }
}

/// Calls the crate for a device: what it allocates and shares meanwhile, in this thread, is that device's.
pub(crate) fn enter<T>(place: &Place, work: impl FnOnce() -> T) -> T {
    let before = CURRENT.try_with(|current| current.replace(Some(place.clone()))).ok().flatten();
    let _leave = Leave(before);
    work()
}

/// What is done for the device that is meant; `None`: none is.
fn with<T>(work: impl FnOnce(&Place) -> Option<T>) -> Option<T> {
    CURRENT.try_with(|current| current.borrow().as_ref().and_then(work)).ok().flatten()
}

/// The kit, as the crate calls it. It is not public: a driver of the crate's that uses it has to be called within [`enter`] for one
/// device all its life, or it would give a device the addresses of another one's memory.
pub(crate) enum KitHal {}

// SAFETY: `dma_alloc` gives zeroed memory at the beginning of a page, mapped and owned by the pool until `dma_dealloc`, of which
// nobody has a reference; `share` and `unshare` touch the buffer they are given during the call alone.
unsafe impl Hal for KitHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // The crate takes address 0 for a failure, which it tells its caller; why it failed is noted in the pool.
        let failed = (0, NonNull::dangling());
        let made = with(|place| match place.pool.ring(&place.device, pages) {
            Ok((address, memory)) => Some((address, NonNull::new(memory)?)),
            Err(error) => {
                place.pool.note(error);
                None
            }
        });
        made.unwrap_or(failed)
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        // The kit keeps it, pinned, for as long as the device may reach it. Where no device is meant it stays the pool's, and goes
        // with that; an error would be a panic of the crate's.
        let _ = with(|place| place.pool.free_ring(paddr, vaddr.as_ptr(), pages).then_some(()));
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
        // Asked by the crate's own PCI transport alone, which is not used; there is no pointer to a BAR that could be answered.
        panic!("{size} bytes of registers at {paddr:#x}: they are reached by the kit's own transport")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        // SAFETY: valid, and touched by nobody else during this call, as the trait's contract has it; all bytes are initialised.
        let bytes = unsafe { buffer.as_ref() };
        // It cannot be refused here, and an address that is none would let the device write anywhere. It never has to be: no request
        // is longer than a slot, and there are as many slots of each size as the queues have descriptors. A panic comes before the
        // device is told of the request.
        with(|place| place.pool.share(bytes)).expect("a request that has no slot")
    }

    unsafe fn unshare(paddr: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        let into = match direction {
            BufferDirection::DriverToDevice => None,
            // SAFETY: as above; the crate has it from a `&mut [u8]`.
            _ => Some(unsafe { buffer.as_mut() }),
        };
        let _ = with(|place| place.pool.unshare(paddr, into).then_some(()));
    }
}

#[cfg(test)]
mod tests {
    use noiommu::Context;

    use super::*;
    use crate::pool::Shape;

    fn place() -> Place {
        let context = Context::simulated();
        let (ioas, device) = (context.ioas().unwrap(), context.sim_edu().unwrap());
        device.attach(&ioas).unwrap();
        let pool = Pool::new(&device, &ioas, Shape { slots: 2, largest: 4096, smallest: 4096 }).unwrap();
        Place { device: Arc::new(device), pool }
    }

    #[test]
    fn memory_is_that_of_the_device_that_is_meant() {
        let (one, other) = (place(), place());
        let mut bytes = [7; 100];
        let buffer = NonNull::from(&mut bytes[..]);
        enter(&one, || {
            // SAFETY: a buffer of this test's, which nothing else touches.
            let address = unsafe { KitHal::share(buffer, BufferDirection::DriverToDevice) };
            assert_eq!((one.pool.taken(), other.pool.taken()), (1, 0));
            enter(&other, || {
                let (place, memory) = KitHal::dma_alloc(1, BufferDirection::Both);
                assert!(other.pool.is_ring(place, 4096) && !one.pool.is_ring(place, 4096));
                // SAFETY: as it was answered.
                assert_eq!(unsafe { KitHal::dma_dealloc(place, memory, 1) }, 0);
                assert!(!other.pool.is_ring(place, 4096));
                // SAFETY: as above; it is shared with another device, which this one does not do anything to.
                unsafe { KitHal::unshare(address, buffer, BufferDirection::DriverToDevice) };
            });
            assert_eq!(one.pool.taken(), 1, "left alone by the other's");
            // SAFETY: as it was answered.
            unsafe { KitHal::unshare(address, buffer, BufferDirection::DriverToDevice) };
        });
        assert_eq!(one.pool.taken(), 0);
    }

    #[test]
    fn without_a_device_there_is_no_memory() {
        assert_eq!(KitHal::dma_alloc(1, BufferDirection::Both).0, 0, "what the crate takes for a failure");
        let place = place();
        let driver = std::panic::AssertUnwindSafe(|| enter(&place, || panic!("of a driver's")));
        assert!(std::panic::catch_unwind(driver).is_err());
        assert_eq!(KitHal::dma_alloc(1, BufferDirection::Both).0, 0, "after a panic, too");
    }
}
