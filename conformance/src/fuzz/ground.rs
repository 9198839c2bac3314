//! The memory that all sequences of a process stand on. Making it takes long, so it is made once, and put right after each
//! sequence.

use crate::memory::{Kind, PAGE};
use crate::sys;
use crate::world::{Mistake, World, mistake};

use super::generator::{B, C, F, SPARE};

/// What a case must begin with to have the same memory.
pub(super) const PRELUDE: &[(&str, &str)] =
    &[("b", "buf b 24"), ("c", "buf c 16 runs=4"), ("p", "buf p 16 untouched"), ("f", "memfd f 8")];

/// Descriptors that sequences speak of even where nothing gave them a number.
const NAMES: &[&str] = &["i", "j", "k", "d", "e", "q1", "q2", "q3", "q4", "q5", "q6", "q7", "q8", "q9"];

/// Makes it in a new world.
///
/// # Errors
/// There is not enough memory, or it cannot be put together as it should be.
pub(super) fn make(world: &mut World<'_>) -> Result<(), Mistake> {
    world.memory.forked();
    let runs =
        [("b", B + SPARE, Kind::Touched, [1]), ("c", C, Kind::Touched, [4]), ("p", B, Kind::Untouched, [1])];
    for (name, pages, kind, runs) in runs {
        let address = world.memory.place(pages * PAGE, PAGE);
        if let Err(errno) = world.memory.make(name, pages * PAGE, address, kind, Some(&runs)) {
            return mistake(format!("no buffer `{name}`: {}", crate::names::errno(errno)));
        }
    }
    // Of the parking place, only the addresses matter.
    let (parking, bytes) = (world.memory.address("p").unwrap_or(0), (B * PAGE) as usize);
    let _ = sys::munmap(parking, bytes);
    file(world)
}

/// The file, no two neighbouring pages of which are neighbours in physical memory.
fn file(world: &mut World<'_>) -> Result<(), Mistake> {
    let failed = |errno: i32| Mistake(format!("no file: {}", crate::names::errno(errno)));
    let length = F * PAGE;
    let fd = sys::memfd(libc::MFD_ALLOW_SEALING).map_err(failed)?;
    sys::ftruncate(fd, length as i64).map_err(failed)?;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let window = sys::mmap(0, length as usize, access, libc::MAP_SHARED, fd, 0).map_err(failed)?;
    // Frames that did not suit are held back in here.
    const HELD: u64 = 256;
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let held = sys::mmap(0, (HELD * PAGE) as usize, access, anonymous, -1, 0).map_err(failed)?;
    let mut hold = (held..held + HELD * PAGE).step_by(PAGE as usize);
    let mut before = 0;
    for page in (window..window + length).step_by(PAGE as usize) {
        loop {
            sys::store(page, 1, 1);
            let frame = world.memory.frame(page);
            if frame == 0 {
                return mistake("frames cannot be seen: this needs CAP_SYS_ADMIN");
            }
            if before == 0 || frame.abs_diff(before) > 1 {
                before = frame;
                break;
            }
            let Some(at) = hold.next() else { return mistake("no pages apart from each other for a file") };
            sys::punch(fd, (page - window) as i64, PAGE as i64).map_err(failed)?;
            sys::store(at, 1, 1);
        }
    }
    let _ = (sys::munmap(window, length as usize), sys::munmap(held, (HELD * PAGE) as usize));
    world.files.insert("f".to_owned(), fd);
    world.memory.adopt_file("f", fd);
    Ok(())
}

/// A world that has seen nothing but the ground: what every sequence begins with.
pub(super) fn begin(world: &mut World<'_>) {
    world.files.extend(NAMES.iter().map(|name| ((*name).to_owned(), -1)));
}

/// Closes what a sequence has left open, and puts the memory back.
pub(super) fn end(world: &mut World<'_>, steps: &[&str]) {
    for (name, fd) in &mut world.files {
        if name != "f" && *fd >= 0 {
            let _ = sys::close(*fd);
        }
    }
    world.files.retain(|name, _| name == "f");
    world.variables.clear();
    for step in steps.iter().rev().filter_map(|step| step.strip_prefix("move ")) {
        let mut words = step.split(' ');
        if let (Some(from), Some(to)) = (words.next(), words.next())
            && let (Ok(from), Ok(to)) = (world.value(from), world.value(to))
        {
            let _ = sys::move_page(to, from, PAGE as usize);
        }
    }
    world.memory.keep(PRELUDE.len() - 1);
}
