//! The sanitizer's records: what is mapped where, what was, and by whom.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use noiommu_core::table::Segment;
use noiommu_core::{IovaRange, PhysAddr};

use super::super::Direction;
use super::super::memory::Who;
use super::{Fault, Freed, Freeing, Hint, Mapped, Neighbour, Report};

const PAGE: u64 = 4096;
/// How much of what is gone is remembered: the newest mappings, and contiguous runs in all of them.
const GONE: usize = 4096;
const GONE_RUNS: usize = 1 << 16;

/// What an access is found to be.
pub(super) enum Verdict {
    Right,
    /// To memory that its owner has dropped, and that is kept for the device.
    Dropped(Fault),
    /// Not before this byte of it.
    Wrong(Fault, u64),
}

#[derive(Default)]
pub(super) struct Ledger {
    areas: HashMap<u64, Area>,
    /// By IOAS and first IOVA.
    places: HashMap<(u32, u64), u64>,
    /// Every frame of every area, with the run that it belongs to. Areas may share a frame.
    frames: BTreeMap<(u64, u64), usize>,
    /// What is gone, the oldest first; runs in it.
    gone: VecDeque<Area>,
    gone_runs: usize,
    next: u64,
    /// How many mappings have been given up so far.
    freed: u64,
}

struct Area {
    mapped: Mapped,
    /// Its memory in this process.
    virtual_address: Option<u64>,
    runs: Vec<Run>,
    freed: Option<FreedAt>,
}

/// Contiguous whole pages.
#[derive(Clone, Copy)]
struct Run {
    /// Where in the mapping it begins.
    offset: u64,
    address: PhysAddr,
    length: u64,
}

struct FreedAt {
    how: Freeing,
    when: Instant,
    thread: String,
    number: u64,
}

impl Run {
    /// How far into the run a place is, if it is in it.
    fn find(&self, place: PhysAddr) -> Option<u64> {
        place.0.checked_sub(self.address.0).filter(|into| *into < self.length)
    }
}

impl Area {
    /// Where a place is in the mapping, if it is in it.
    fn find(&self, place: PhysAddr) -> Option<u64> {
        self.runs.iter().find_map(|run| Some(run.offset + run.find(place)?))
    }

    /// What is left of a run for a device, from so far into it on: pages are whole, what was asked for need not be.
    fn room(&self, run: Run, into: u64) -> u64 {
        run.length.min(self.mapped.length.saturating_sub(run.offset)).saturating_sub(into)
    }

    fn freed(&self) -> Option<Freed> {
        self.freed.as_ref().map(|at| Freed {
            how: at.how,
            ago: at.when.elapsed(),
            thread: at.thread.clone(),
            number: at.number,
        })
    }
}

fn frames(run: &Run) -> impl Iterator<Item = u64> + use<> {
    (run.address.0 / PAGE..).take((run.length / PAGE) as usize)
}

impl Ledger {
    pub(super) fn mapped(
        &mut self,
        mapped: Mapped,
        range: IovaRange,
        virtual_address: Option<u64>,
        runs: &[Segment],
    ) {
        let id = self.next;
        self.next += 1;
        let mut offset = 0;
        let runs: Vec<Run> = runs
            .iter()
            .map(|segment| {
                let run = Run { offset, address: segment.address, length: segment.length };
                offset += segment.length;
                run
            })
            .collect();
        for (index, run) in runs.iter().enumerate() {
            self.frames.extend(frames(run).map(|frame| ((frame, id), index)));
        }
        self.places.insert((mapped.ioas, range.first().0), id);
        self.areas.insert(id, Area { mapped, virtual_address, runs, freed: None });
    }

    pub(super) fn freed(&mut self, ioas: u32, range: IovaRange, how: Freeing) {
        let Some(id) = self.places.get(&(ioas, range.first().0)) else { return };
        if let Some(area) = self.areas.get_mut(id)
            && area.freed.is_none()
        {
            self.freed += 1;
            let thread = std::thread::current().name().unwrap_or("without a name").to_owned();
            area.freed = Some(FreedAt { how, when: Instant::now(), thread, number: self.freed });
        }
    }

    pub(super) fn unmapped(&mut self, ioas: u32, range: IovaRange) {
        self.freed(ioas, range, Freeing::Dropped);
        let Some(id) = self.places.remove(&(ioas, range.first().0)) else { return };
        let Some(area) = self.areas.remove(&id) else { return };
        for frame in area.runs.iter().flat_map(frames) {
            self.frames.remove(&(frame, id));
        }
        self.gone_runs += area.runs.len();
        self.gone.push_back(area);
        while self.gone.len() > 1 && (self.gone.len() > GONE || self.gone_runs > GONE_RUNS) {
            self.gone_runs -= self.gone.pop_front().map_or(0, |area| area.runs.len());
        }
    }

    /// What an access is, of a device that is attached to `ioas`.
    pub(super) fn judge(
        &self,
        ioas: Option<u32>,
        direction: Direction,
        place: PhysAddr,
        length: u64,
    ) -> Verdict {
        let frame = place.0 / PAGE;
        // The likeliest, where areas share the frame.
        let mut found: Option<(u8, Verdict)> = None;
        for (&(_, id), &run) in self.frames.range((frame, 0)..=(frame, u64::MAX)) {
            let Some(area) = self.areas.get(&id) else { continue };
            let run = area.runs[run];
            let Some(into) = run.find(place) else { continue };
            let (mapping, offset, room) = (area.mapped, run.offset + into, area.room(run, into));
            let (rank, verdict) = match area.freed() {
                Some(freed @ Freed { how: Freeing::Reclaimed(_), .. }) => {
                    (0, Verdict::Wrong(Fault::Unmapped { mapping, offset, freed }, 0))
                }
                _ if ioas != Some(mapping.ioas) => {
                    (1, Verdict::Wrong(Fault::OtherIoas { mapping, offset }, 0))
                }
                _ if room < length => {
                    let next = offset + room;
                    let next = (next < mapping.length)
                        .then(|| area.runs.iter().find(|run| run.offset == next))
                        .flatten()
                        .map(|run| run.address);
                    let begins = PhysAddr(place.0 - into);
                    (2, Verdict::Wrong(Fault::PastRun { mapping, offset, begins, next }, room))
                }
                _ if direction == Direction::Write && mapping.read_only => {
                    (3, Verdict::Wrong(Fault::ReadOnly { mapping, offset }, 0))
                }
                Some(freed) => (4, Verdict::Dropped(Fault::Dropped { mapping, offset, freed })),
                None => return Verdict::Right,
            };
            if found.as_ref().is_none_or(|(best, _)| rank > *best) {
                found = Some((rank, verdict));
            }
        }
        if let Some((_, verdict)) = found {
            return verdict;
        }
        let gone = self.gone.iter().rev().find_map(|area| {
            Some(Fault::Unmapped { mapping: area.mapped, offset: area.find(place)?, freed: area.freed()? })
        });
        Verdict::Wrong(gone.unwrap_or(Fault::NeverMapped), 0)
    }

    /// All that is to be said of an access whose byte `at` is the first that is wrong.
    pub(super) fn report(
        &self,
        who: Who<'_>,
        direction: Direction,
        address: PhysAddr,
        length: u64,
        at: u64,
        fault: Fault,
    ) -> Report {
        let unknown = matches!(fault, Fault::NeverMapped);
        let nearest = if unknown { self.nearest(address) } else { None };
        let hint = if unknown { self.hint(address) } else { None };
        Report { device: who.device.to_owned(), direction, address, length, at, fault, nearest, hint }
    }

    /// The mapping whose memory is nearest.
    fn nearest(&self, place: PhysAddr) -> Option<Neighbour> {
        let runs = self.areas.values().flat_map(|area| area.runs.iter().map(move |run| (area, run)));
        let neighbours = runs.filter_map(|(area, run)| {
            let length = area.room(*run, 0);
            let last = run.address.0 + length.checked_sub(1)?;
            let is_above = run.address > place;
            let distance = if is_above { run.address.0 - place.0 } else { place.0.saturating_sub(last) };
            Some(Neighbour { mapping: area.mapped, distance, is_above })
        });
        neighbours.min_by_key(|neighbour| neighbour.distance)
    }

    /// What else the number could be.
    fn hint(&self, place: PhysAddr) -> Option<Hint> {
        let areas = || self.areas.values().filter(|area| area.freed.is_none());
        let within = |start: u64, area: &Area| {
            place.0.checked_sub(start).filter(|offset| *offset < area.mapped.length)
        };
        let mapping = |area: &Area| area.mapped;
        let address = areas().find_map(|area| {
            let offset = within(area.virtual_address?, area)?;
            Some(Hint::VirtualAddress { mapping: mapping(area), offset })
        });
        let iova = || {
            areas().find_map(|area| {
                let offset = within(area.mapped.iova.0, area)?;
                Some(Hint::Iova { mapping: mapping(area), offset })
            })
        };
        // With the upper half missing.
        let cut = || {
            let cut = u64::from(u32::MAX);
            areas().filter(|_| place.0 <= cut).find_map(|area| {
                area.runs.iter().find_map(|run| {
                    let into = place.0.checked_sub(run.address.0 & cut).filter(|into| *into < run.length)?;
                    Some(Hint::CutTo32Bits { mapping: mapping(area), offset: run.offset + into })
                })
            })
        };
        address.or_else(cut).or_else(iova)
    }
}
