//! Who uses the engine on this machine, read from their pages.

use std::path::Path;
use std::sync::atomic::Ordering;

use noiommu_core::Totals;

use super::page::{MAGIC, NAME, Page, VERSION};
use super::process::{copy, is_of, memory_files};
use super::{ContextKind, ContextStats, Guard, ProcessStats, publish};
use crate::guardian::{self, Status};
use crate::memory::Vma;
use crate::{Error, Result, files};

/// How often a page that changes all the time is read before what it says is taken as it comes.
const TRIES: u32 = 8;

/// A guardian, as others see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Guardian {
    /// Its process.
    pub process: u32,
    /// Its driver, by the id that this has, or had, in its own PID namespace.
    pub driver: u32,
    /// The driver is gone, and its devices are being made quiet.
    pub rescuing: bool,
    /// Devices that may be doing DMA.
    pub loose: u32,
}

/// All that could be seen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Seen {
    /// The processes, by id.
    pub processes: Vec<ProcessStats>,
    /// Guardians that are processes of a driver's own, by id.
    pub guardians: Vec<Guardian>,
    /// Processes that this one may not look at.
    pub hidden: u32,
    /// Processes that tell in a way that this version of the kit does not know.
    pub other_versions: u32,
}

/// What this process has, whether others can see it or not.
#[must_use]
pub fn own() -> ProcessStats {
    let page = publish::page();
    // Whoever writes a row is a thread at work, and soon done.
    let read = |row: usize| loop {
        match page.rows().get(row).map(|row| row.read()) {
            Some(Some(totals)) => break totals,
            Some(None) => std::hint::spin_loop(),
            None => break Totals::NONE,
        }
    };
    let mut stats = told_by(page, read);
    stats.process = std::process::id();
    stats.guardian = guardian::status();
    describe(&mut stats);
    stats
}

/// All processes that use the engine, as far as this one may look at them.
///
/// # Errors
/// What reading /proc answers.
pub fn processes() -> Result<Seen> {
    let names = files::names(Path::new("/proc")).map_err(|error| Error::system("reading /proc", error))?;
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    let mut seen = Seen::default();
    for process in numbers {
        match look(process, &mut seen) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => seen.hidden += 1,
            // Another error: it has ended, or is about to.
            Ok(()) | Err(_) => {}
        }
    }
    Ok(seen)
}

/// Looks at a process.
fn look(process: u32, seen: &mut Seen) -> std::io::Result<()> {
    let mappings = memory_files(process)?;
    if mappings.is_empty() {
        return Ok(());
    }
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    // What the process takes itself for: the last of the ids that it has.
    let own_id = field(&status, "NSpid:").and_then(|ids| ids.split_whitespace().last()?.parse().ok());
    let own_id = own_id.unwrap_or(process);
    let mut guard = None;
    for vma in mappings.iter().filter(|vma| is_of(vma, guardian::BOARD)) {
        let Some(board) = guardian::look(process, vma)? else { continue };
        if board.driver == own_id {
            guard = Some(board);
        } else if board.guardian == own_id {
            let guardian::Seen { driver, rescuing, loose, .. } = board;
            seen.guardians.push(Guardian { process, driver, rescuing, loose });
        }
    }
    for vma in mappings.iter().filter(|vma| is_of(vma, NAME)) {
        if let Some(mut stats) = read(process, vma, own_id, seen)? {
            stats.process = process;
            if guard.is_some_and(|guard| guard.dead) {
                stats.guardian = Status::Dead;
            }
            if let Status::Own { apart, .. } = &mut stats.guardian {
                *apart = guard.is_some_and(|guard| guard.apart);
            }
            describe(&mut stats);
            seen.processes.push(stats);
        }
    }
    Ok(())
}

/// Reads a process's page; `None`: it is not this process's own, or none that is known.
fn read(process: u32, vma: &Vma, own_id: u32, seen: &mut Seen) -> std::io::Result<Option<ProcessStats>> {
    if vma.end - vma.start != size_of::<Page>() {
        seen.other_versions += 1;
        return Ok(None);
    }
    let mut last = None;
    for _ in 0..TRIES {
        // What stands in the middle one is of one moment where the first and the last have the same sequence: nobody began or ended
        // writing between them.
        let [before, between, after] = copy::<3>(process, vma, size_of::<Page>())?.map(page_of);
        let head = &between.head;
        if head.magic.load(Ordering::Relaxed) != MAGIC {
            return Ok(None);
        }
        if head.version.load(Ordering::Relaxed) != VERSION {
            seen.other_versions += 1;
            return Ok(None);
        }
        // Of a parent's that it was forked from.
        if head.process.load(Ordering::Relaxed) != own_id {
            return Ok(None);
        }
        let rows = before.rows().iter().zip(after.rows());
        let still = rows.zip(between.rows()).all(|((before, after), row)| {
            before.sequence() == after.sequence() && (row.kind().is_none() || row.read().is_some())
        });
        last = Some(between);
        if still {
            break;
        }
    }
    Ok(last.map(|page| told_by(&page, |row| page.rows().get(row).map_or(Totals::NONE, |row| row.numbers()))))
}

/// Words that were copied, as the page that they are.
fn page_of(words: Vec<u64>) -> Box<Page> {
    let mut page = Box::new(Page::new());
    let length = words.len().min(size_of::<Page>() / 8);
    // SAFETY: a page is atomics, of which every value is one, and is at least so many words long.
    unsafe { std::ptr::copy_nonoverlapping(words.as_ptr(), std::ptr::from_mut(&mut *page).cast(), length) };
    page
}

/// What a page tells; `totals`: the numbers of a row.
fn told_by(page: &Page, totals: impl Fn(usize) -> Totals) -> ProcessStats {
    let head = &page.head;
    let mut stats = ProcessStats {
        process: 0,
        name: String::new(),
        contexts: Vec::new(),
        contexts_untold: head.without_row.load(Ordering::Relaxed),
        maps: head.maps.load(Ordering::Relaxed),
        unmaps: head.unmaps.load(Ordering::Relaxed),
        lookups: head.lookups.load(Ordering::Relaxed),
        pin_slots: head.pin_slots.load(Ordering::Relaxed),
        pin_bytes: head.pin_bytes.load(Ordering::Relaxed),
        charged: None,
        devices: head.devices.load(Ordering::Relaxed),
        guardian: match head.guard.load(Ordering::Acquire) {
            it if it == Guard::Own as u32 => {
                Status::Own { process: head.guardian.load(Ordering::Relaxed), apart: false }
            }
            it if it == Guard::Service as u32 => Status::Service,
            _ => Status::None,
        },
    };
    for (index, row) in page.rows().iter().enumerate() {
        let Some(kind) = row.kind().and_then(ContextKind::of) else { continue };
        let Totals { ioases, areas, bytes, table_frames, maps, unmaps } = totals(index);
        stats.contexts.push(ContextStats { kind, ioases, areas, bytes, table_frames });
        stats.maps = stats.maps.wrapping_add(maps);
        stats.unmaps = stats.unmaps.wrapping_add(unmaps);
    }
    stats
}

/// What the kernel tells of a process.
fn describe(stats: &mut ProcessStats) {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", stats.process));
    let name = read("comm").map(|name| name.trim_end().to_owned()).unwrap_or_default();
    let charged = read("status").ok().and_then(|status| {
        let kib: u64 = field(&status, "VmPin:")?.trim_end_matches(" kB").trim().parse().ok()?;
        Some(kib * 1024)
    });
    (stats.name, stats.charged) = (name, charged);
}

/// A line of /proc/PID/status.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}
