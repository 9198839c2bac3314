//! Physical region pages: how a command is told where its data is (NVM Express Base Specification 1.4, 4.3).
//!
//! Entry 1 is the address of the first byte. Entry 2 is the second page, if there are two, or a list of all but the first. Each
//! command of a queue has a list of its own, which does not cross a page: so no list has to be continued in another.

use noiommu::{Device, Ioas};

use crate::error::{Error, Result};
use crate::pages::{PAGE, Pages};
use crate::region::Part;

/// Bytes of an entry.
const ENTRY: usize = 8;

/// The lists of a queue's commands.
#[derive(Debug)]
pub(crate) struct Lists {
    pages: Pages,
    /// The address of each list.
    addresses: Box<[u64]>,
    /// Entries of a list, a power of two.
    entries: usize,
}

impl Lists {
    /// Lists for so many commands, each with room for all pages but the first of `max_pages`.
    pub(crate) fn new(device: &Device, ioas: &Ioas, commands: u16, max_pages: usize) -> Result<Self> {
        let entries = max_pages.saturating_sub(1).next_power_of_two().clamp(1, PAGE / ENTRY);
        let stride = entries * ENTRY;
        let pages = Pages::scattered(device, ioas, usize::from(commands) * stride)?;
        let addresses = (0..usize::from(commands)).map(|index| pages.address(index * stride));
        Ok(Self { addresses: addresses.collect::<Result<_>>()?, pages, entries })
    }

    /// Entries 1 and 2 for a part of a region, in whose stead command `index` of the queue writes its list.
    #[inline]
    pub(crate) fn describe(&self, index: usize, part: Part<'_>) -> Result<[u64; 2]> {
        let (Some(&first), Some(rest)) = (part.pages.first(), part.pages.get(1..part.count)) else {
            return Err(Error::argument("a part of a region without pages"));
        };
        let first = first + part.offset;
        match *rest {
            [] => Ok([first, 0]),
            [second] => Ok([first, second]),
            _ => Ok([first, self.write(index, rest)?]),
        }
    }

    fn write(&self, index: usize, pages: &[u64]) -> Result<u64> {
        let list = self.addresses.get(index).filter(|_| pages.len() <= self.entries);
        let list = *list.ok_or_else(|| Error::argument("more pages than a command can have"))?;
        let memory = self.pages.memory()?;
        let start = index * self.entries * ENTRY;
        for (at, page) in pages.iter().enumerate() {
            memory.store_u64(start + at * ENTRY, page.to_le())?;
        }
        Ok(list)
    }
}
