//! What a device reaches that reaches other memory: pages that stand for it.

use std::collections::HashMap;

use noiommu_core::PhysAddr;

const PAGE: usize = 4096;
/// 16 MiB of pages; what lies beyond is nobody's.
const PAGES: usize = 4096;

/// Other memory, as it is found: every page has contents of its own until a device changes it.
#[derive(Default)]
pub(super) struct StandIn(HashMap<u64, Box<[u8; PAGE]>>);

impl StandIn {
    /// The rest of the page from `place` on; `None`: there is no more memory.
    fn page(&mut self, place: PhysAddr) -> Option<&mut [u8]> {
        let frame = place.0 / PAGE as u64;
        if self.0.len() >= PAGES && !self.0.contains_key(&frame) {
            return None;
        }
        let page = self.0.entry(frame).or_insert_with(|| {
            let mut page = Box::new([0; PAGE]);
            for (word, at) in page.chunks_exact_mut(8).zip(0u64..) {
                let value = (frame << 9 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                word.copy_from_slice(&(value ^ value >> 29).to_le_bytes());
            }
            page
        });
        page.get_mut(place.0 as usize % PAGE..)
    }

    /// Reads up to the end of a page; answers the bytes.
    pub(super) fn read(&mut self, place: PhysAddr, into: &mut [u8]) -> usize {
        let Some(page) = self.page(place) else { return 0 };
        let length = page.len().min(into.len());
        into[..length].copy_from_slice(&page[..length]);
        length
    }

    /// Writes up to the end of a page; answers the bytes.
    pub(super) fn write(&mut self, place: PhysAddr, from: &[u8]) -> usize {
        let Some(page) = self.page(place) else { return 0 };
        let length = page.len().min(from.len());
        page[..length].copy_from_slice(&from[..length]);
        length
    }
}
