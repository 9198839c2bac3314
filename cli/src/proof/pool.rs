//! The pool: plain 4 KiB pages in chunks of 2 MiB, sorted by where they lie in physical memory.
//!
//! The lowest chunks are the victims, because the kernel compacts from low frames to high ones. The others wait in
//! stages, each above the one before; a round empties every second page of the next stage, and so offers holes that
//! are higher than all victims.

use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};

use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mlock, mmap_anonymous, mprotect, munmap,
};
use rustix::param::page_size;

use super::Error;
use super::frames::{Entry, Pagemap, hidden};
use super::tally::Class;
use super::zones::{Zone, fullest, small_fragments, zones};

/// Bytes of a chunk: a huge page of x86, so that a chunk can be collapsed as a whole.
pub(crate) const CHUNK: usize = 2 << 20;

/// A chunk of the pool, by its place in memory: 0 is the lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk(usize);

/// Anonymous private memory that is unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    /// Its first byte.
    start: NonNull<u8>,
    /// Its length in bytes.
    length: usize,
}

impl Mapping {
    /// Maps fresh memory; nothing is populated yet.
    fn new(length: usize) -> io::Result<Self> {
        // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let start =
            NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap answered address zero"))?;
        Ok(Self { start, length })
    }

    /// `madvise` on a part of it.
    fn advise(&self, address: NonNull<u8>, length: usize, advice: Advice) -> io::Result<()> {
        let offset = address.addr().get().wrapping_sub(self.start.addr().get());
        assert!(offset <= self.length && length <= self.length - offset, "advice is for our own memory only");
        // SAFETY: the range is inside the mapping, and no Rust reference to it exists: all access is through
        // volatile reads and writes, for which pages that become zero are just other bytes.
        unsafe { madvise(address.as_ptr().cast(), length, advice) }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours alone and nothing refers to it any more. A failure leaks it, no more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// All pages of a run.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Keeps the memory; chunks point into it.
    mapping: Mapping,
    /// The chunks in use, sorted by frame.
    chunks: Vec<NonNull<u8>>,
    /// The zone that all of them lie in.
    zone: Zone,
}

impl Pool {
    /// Takes `mib` MiB and touches every page. The chunks are in no order yet.
    pub(crate) fn fill(mib: u64, mut progress: impl FnMut(usize, usize)) -> Result<Self, Error> {
        let failed = |what: &str, error: io::Error| {
            Error::new(
                format!("cannot {what} a pool of {mib} MiB: {error}"),
                "try a smaller one with --pool-mib",
            )
        };
        let count = mib as usize * (1 << 20) / CHUNK;
        let mapping = Mapping::new((count + 1) * CHUNK).map_err(|error| failed("map", error))?;
        let first = mapping.start.addr().get().next_multiple_of(CHUNK) - mapping.start.addr().get();
        let mut chunks = Vec::with_capacity(count);
        for index in 0..count {
            // SAFETY: the mapping is one chunk longer than `count`, so this stays inside after aligning.
            let chunk = unsafe { mapping.start.add(first + index * CHUNK) };
            // A kernel without huge pages answers EINVAL, and then there is nothing to turn off.
            let _ = mapping.advise(chunk, CHUNK, Advice::LinuxNoHugepage);
            mapping
                .advise(chunk, CHUNK, Advice::LinuxPopulateWrite)
                .map_err(|error| failed("fill", error))?;
            chunks.push(chunk);
            progress(index + 1, count);
        }
        Ok(Self { mapping, chunks, zone: Zone { name: "no zone".to_owned(), first: 0, last: 0 } })
    }

    /// Sorts the chunks by frame, and leaves those in use that lie in the zone that has most of them: the kernel
    /// does not move pages between zones. The others stay where they are and fill what would be holes.
    pub(crate) fn sort(&mut self, pagemap: &Pagemap) -> Result<(), Error> {
        let all = (0..self.len()).map(|index| self.frames(Chunk(index), pagemap));
        let mut frames = all.collect::<Result<Vec<_>, _>>()?;
        let (zone, members) = fullest(&zones(), frames.iter().map(Vec::as_slice)).ok_or_else(|| {
            Error::new("no part of the pool lies in a single memory zone", "try a larger --pool-mib")
        })?;
        self.chunks = by_frame(members, &mut frames).into_iter().map(|index| self.chunks[index]).collect();
        self.zone = zone;
        Ok(())
    }

    /// How many chunks there are.
    pub(crate) fn len(&self) -> usize {
        self.chunks.len()
    }

    /// The zone that they lie in.
    pub(crate) fn zone(&self) -> &Zone {
        &self.zone
    }

    /// Where a chunk starts.
    pub(crate) fn address(&self, chunk: Chunk) -> NonNull<u8> {
        self.chunks[chunk.0]
    }

    /// The frames of a chunk. A page that is not mapped at the moment is touched first.
    pub(crate) fn frames(&self, chunk: Chunk, pagemap: &Pagemap) -> Result<Vec<u64>, Error> {
        let address = self.address(chunk);
        let entries = pagemap.read(address.addr().get(), CHUNK / page_size())?;
        entries.into_iter().enumerate().map(|(page, entry)| self.frame(chunk, page, entry, pagemap)).collect()
    }

    /// The frame behind an entry.
    fn frame(&self, chunk: Chunk, page: usize, mut entry: Entry, pagemap: &Pagemap) -> Result<u64, Error> {
        for _ in 0..100 {
            match entry {
                Entry::Frame(frame) => return Ok(frame),
                Entry::Hidden => return Err(hidden()),
                Entry::Absent => {
                    let byte = page * page_size();
                    // SAFETY: inside the chunk, which is mapped readable. Touching waits for a page on the move
                    // and brings back one that was swapped out.
                    unsafe { self.address(chunk).add(byte).read_volatile() };
                    entry = pagemap.read(self.address(chunk).addr().get() + byte, 1)?[0];
                }
            }
        }
        Err(Error::new(
            "a page was never found in memory, however often it was touched",
            "stop what is using the swap",
        ))
    }

    /// Gives back the lower half of a chunk. The other half keeps its block of memory in use, so that the kernel
    /// takes the hole for a place to move pages to. Single free pages would do for single pages, but the kernel gives
    /// up a compaction when it meets a larger folio of some other program and has no hole of its size.
    pub(crate) fn open_hole(&self, chunk: Chunk) -> Result<(), Error> {
        self.mapping.advise(self.address(chunk), CHUNK / 2, Advice::LinuxDontNeed).map_err(not_given_back)
    }

    /// Gives back all pages of a chunk.
    pub(crate) fn release(&self, chunk: Chunk) -> Result<(), Error> {
        self.mapping.advise(self.address(chunk), CHUNK, Advice::LinuxDontNeed).map_err(not_given_back)
    }

    /// Touches pages of released chunks until as many are in use again as there are small free fragments in the
    /// zone. The kernel gives out the smallest fragments first, so what stays free are the large holes: with small
    /// ones on top, it gives up a compaction at the first large folio it meets (since Linux 6.9).
    pub(crate) fn plaster(&self, chunks: impl Iterator<Item = Chunk>) -> Result<(), Error> {
        let mut left = small_fragments(&self.zone) * page_size();
        for chunk in chunks {
            let length = left.min(CHUNK);
            if length == 0 {
                break;
            }
            self.mapping.advise(self.address(chunk), length, Advice::LinuxPopulateWrite).map_err(
                |error| {
                    Error::new(
                        format!("cannot take memory back: {error}"),
                        "try a smaller pool with --pool-mib",
                    )
                },
            )?;
            left -= length;
        }
        Ok(())
    }

    /// Mlocks a chunk.
    pub(crate) fn lock(&self, chunk: Chunk) -> Result<(), Error> {
        // SAFETY: the chunk is mapped; locking changes nothing that a reader can see.
        unsafe { mlock(self.address(chunk).as_ptr().cast(), CHUNK) }.map_err(|error| {
            Error::new(
                format!("cannot mlock {} KiB: {error}", CHUNK / 1024),
                "run as root with CAP_IPC_LOCK, or raise the limit (ulimit -l)",
            )
        })
    }

    /// Lets the kernel make huge pages of a chunk, or forbids it again.
    pub(crate) fn allow_huge(&self, chunk: Chunk, allow: bool) -> io::Result<()> {
        let advice = if allow { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        self.mapping.advise(self.address(chunk), CHUNK, advice)
    }

    /// Maps a chunk in 4 KiB pages again, if it was mapped as one huge page. Its bytes stay where they are.
    pub(crate) fn split(&self, chunk: Chunk) -> io::Result<()> {
        let page = self.address(chunk).as_ptr().cast();
        // One page with its own rights cannot be part of a huge mapping.
        // SAFETY: the page is inside the chunk, and no one writes to it between the two calls.
        unsafe {
            mprotect(page, page_size(), MprotectFlags::READ)?;
            mprotect(page, page_size(), MprotectFlags::READ | MprotectFlags::WRITE)?;
        }
        Ok(())
    }

    /// Writes a pattern that tells every word of the pool apart.
    pub(crate) fn write_pattern(&self, chunk: Chunk) {
        for word in 0..CHUNK / 8 {
            // SAFETY: an aligned word inside the chunk, which is mapped writable.
            unsafe { self.address(chunk).cast::<u64>().add(word).write_volatile(pattern(chunk, word)) };
        }
    }

    /// The first page of a chunk that lost its pattern.
    pub(crate) fn lost_page(&self, chunk: Chunk) -> Option<usize> {
        (0..CHUNK / 8)
            .find(|word| {
                // SAFETY: an aligned word inside the chunk, which is mapped readable.
                let found = unsafe { self.address(chunk).cast::<u64>().add(*word).read_volatile() };
                found != pattern(chunk, *word)
            })
            .map(|word| word * 8 / page_size())
    }
}

/// The error of a page that could not be given back.
fn not_given_back(error: io::Error) -> Error {
    Error::new(format!("cannot give pages back to the kernel: {error}"), "report this: it should not happen")
}

/// The word at a place of a chunk.
fn pattern(chunk: Chunk, word: usize) -> u64 {
    ((chunk.0 as u64) << 32 | word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The members, sorted by the median of their frames: a chunk is where most of it is.
fn by_frame(mut members: Vec<usize>, frames: &mut [Vec<u64>]) -> Vec<usize> {
    for frames in frames.iter_mut() {
        frames.sort_unstable();
    }
    members.sort_by_key(|index| frames[*index].get(frames[*index].len() / 2).copied());
    members
}

/// Which chunks are victims of which class, and which open their holes in which round.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The victims, from low to high.
    pub(crate) victims: Vec<(Class, Chunk)>,
    /// The chunks of each round, from low to high.
    pub(crate) stages: Vec<Range<usize>>,
}

/// How many chunks a round needs for each chunk of a class: two classes move, half of a chunk becomes holes, and
/// other programs' pages want holes too.
const ROOM: usize = 6;

/// The most chunks per class by default: 4096 pages of 4 KiB.
const MANY: usize = 8;

impl Layout {
    /// Lays out `chunks` chunks for `rounds` rounds, with as many pages per class as asked for or as there is room.
    pub(crate) fn new(
        chunks: usize,
        rounds: usize,
        pages: Option<usize>,
        page_size: usize,
    ) -> Result<Self, Error> {
        let room = chunks / (ROOM * rounds + Class::ALL.len());
        let per_class = match pages {
            Some(pages) => pages.div_ceil(CHUNK / page_size).max(1),
            None => room.clamp(1, MANY),
        };
        let victims = per_class * Class::ALL.len();
        // With less than this the holes of a round cannot take in the pages that should move.
        if chunks < victims + rounds * (ROOM - 2) * per_class {
            return Err(Error::new(
                format!(
                    "{chunks} chunks of {} MiB in one memory zone are too few for {rounds} rounds with {} pages per class",
                    CHUNK >> 20,
                    per_class * CHUNK / page_size,
                ),
                "use fewer --pages, fewer --rounds or a larger --pool-mib",
            ));
        }
        let stage = (chunks - victims) / rounds;
        Ok(Self {
            victims: (0..victims).map(|index| (Class::ALL[index % Class::ALL.len()], Chunk(index))).collect(),
            stages: (0..rounds).map(|round| victims + round * stage..victims + (round + 1) * stage).collect(),
        })
    }

    /// Pages per class.
    pub(crate) fn pages(&self, page_size: usize) -> usize {
        self.victims.len() / Class::ALL.len() * (CHUNK / page_size)
    }

    /// The chunks of one round.
    pub(crate) fn stage(&self, round: usize) -> impl Iterator<Item = Chunk> {
        self.stages[round].clone().map(Chunk)
    }

    /// The victims of one class, from low to high.
    pub(crate) fn of(&self, class: Class) -> impl Iterator<Item = Chunk> {
        self.victims.iter().filter(move |victim| victim.0 == class).map(|victim| victim.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_sorted_by_where_most_of_them_is() {
        // The second has a stray low page, the last is the lowest as a whole.
        let mut frames =
            vec![vec![900, 901, 902], vec![1, 800, 801], vec![500, 501, 502], vec![30, 31, 9999]];
        assert_eq!(by_frame(vec![0, 1, 3], &mut frames), [3, 1, 0]);
    }

    #[test]
    fn classes_take_turns_and_get_the_same_number_of_pages() {
        let layout = Layout::new(512, 5, None, 4096).unwrap();
        assert_eq!(layout.pages(4096), MANY * 512);
        for (index, (class, chunk)) in layout.victims.iter().enumerate() {
            assert_eq!((*class, *chunk), (Class::ALL[index % 3], Chunk(index)));
        }
        for class in Class::ALL {
            assert_eq!(layout.of(class).count(), MANY);
        }
    }

    #[test]
    fn stages_lie_above_the_victims_and_do_not_overlap() {
        let layout = Layout::new(300, 5, Some(1024), 4096).unwrap();
        let mut next = layout.victims.len();
        for stage in &layout.stages {
            assert_eq!(stage.start, next);
            assert!(stage.len() >= 4 * 2);
            next = stage.end;
        }
        assert!(next <= 300);
    }

    #[test]
    fn pages_are_rounded_up_to_whole_chunks() {
        assert_eq!(Layout::new(512, 5, Some(1), 4096).unwrap().pages(4096), 512);
        assert_eq!(Layout::new(512, 5, Some(513), 4096).unwrap().pages(4096), 1024);
    }

    #[test]
    fn what_has_no_room_is_refused() {
        assert!(Layout::new(22, 5, None, 4096).is_err());
        assert!(Layout::new(23, 5, None, 4096).is_ok());
        assert!(Layout::new(512, 5, Some(1_000_000), 4096).unwrap_err().remedy.contains("--pages"));
    }

    #[test]
    fn lost_bytes_are_found() {
        let page_size = page_size();
        let mapping = Mapping::new(2 * CHUNK).unwrap();
        let start = mapping.start.addr().get();
        // SAFETY: the mapping is one chunk longer than a chunk.
        let aligned = unsafe { mapping.start.add(start.next_multiple_of(CHUNK) - start) };
        let zone = Zone { name: String::new(), first: 0, last: 0 };
        let pool = Pool { mapping, chunks: vec![aligned], zone };
        pool.write_pattern(Chunk(0));
        assert_eq!(pool.lost_page(Chunk(0)), None);
        // SAFETY: inside the chunk.
        unsafe { aligned.add(3 * page_size + 17).write_volatile(0x5a) };
        assert_eq!(pool.lost_page(Chunk(0)), Some(3));
        pool.open_hole(Chunk(0)).unwrap();
        assert_eq!(pool.lost_page(Chunk(0)), Some(0));
    }
}
