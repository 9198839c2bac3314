//! Steps on memory: buffers, memfds, their contents, and the arrays that calls point at.

use crate::memory::{self, HUGE, Kind, PAGE};
use crate::names;
use crate::sys;
use crate::world::{Answer, World, has, mistake, option, quiet, word};

/// The step, if its verb is one of these.
pub(super) fn step(world: &mut World<'_>, verb: &str, words: &[String]) -> Option<Answer> {
    Some(match verb {
        "buf" => buffer(world, words),
        "munmap" | "mprotect" | "dontneed" | "remove" | "touch" | "lock" | "unlock" | "again" => {
            change(world, verb, words)
        }
        "move" => relocate(world, words),
        "fill" => fill(world, words),
        "check" => check(world, words),
        "put" => put(world, words),
        "get" => get(world, words),
        "ranges" => ranges(world, words),
        "show-ranges" => show_ranges(world, words),
        "memfd" => memfd(world, words),
        "truncate" => truncate(world, words),
        "seal" => seal(world, words),
        "frame" => frame(world, words),
        "physical" => physical(world, words),
        _ => return None,
    })
}

/// `buf NAME SIZE [untouched|shared|hugetlb|thp] [ro|none] [align=N] [at=ADDRESS] [runs=N,...] [file=FD offset=N [private]]`.
///
/// Small touched buffers have no two neighbouring pages that are neighbours in physical memory too, unless `runs` says so.
fn buffer(world: &mut World<'_>, words: &[String]) -> Answer {
    world.memory.open();
    let (name, length) = (word(words, 0)?.to_owned(), world.size(word(words, 1)?)?);
    let kind = if let Some(file) = option(words, "file") {
        let offset = option(words, "offset").map_or(Ok(0), |offset| world.value(offset))? as i64;
        Kind::File(world.file(file)?, offset, !has(words, "private"))
    } else if has(words, "untouched") {
        Kind::Untouched
    } else if has(words, "shared") {
        Kind::Shared
    } else if has(words, "hugetlb") {
        Kind::Hugetlb
    } else if has(words, "thp") {
        Kind::Thp
    } else {
        Kind::Touched
    };
    let huge = matches!(kind, Kind::Hugetlb | Kind::Thp) || has(words, "huge");
    let natural = if huge { HUGE } else { PAGE };
    let alignment = option(words, "align").map_or(Ok(natural), |alignment| world.value(alignment))?;
    let address = match option(words, "at") {
        Some(address) => world.value(address)?,
        None => world.memory.place(length, alignment),
    };
    let mut runs = Vec::new();
    for run in option(words, "runs").into_iter().flat_map(|list| list.split(',')) {
        runs.push(world.value(run)?);
    }
    let runs = (!runs.is_empty()).then_some(runs.as_slice());
    if let Err(errno) = world.memory.make(&name, length, address, kind, runs) {
        return Ok(names::errno(errno));
    }
    let protection = match () {
        () if has(words, "ro") => libc::PROT_READ,
        () if has(words, "none") => libc::PROT_NONE,
        () => return Ok(String::new()),
    };
    quiet(sys::mprotect(address, length as usize, protection))
}

/// `VERB ADDRESS SIZE`: changes a range of the address space. `again` puts fresh private memory there.
fn change(world: &mut World<'_>, verb: &str, words: &[String]) -> Answer {
    let address = world.value(word(words, 0)?)?;
    let length = world.size(word(words, 1)?)? as usize;
    // What is about to go is remembered.
    world.memory.look();
    match verb {
        "munmap" => quiet(sys::munmap(address, length)),
        "dontneed" => quiet(sys::madvise(address, length, libc::MADV_DONTNEED)),
        "remove" => quiet(sys::madvise(address, length, libc::MADV_REMOVE)),
        "lock" => quiet(sys::mlock(address, length)),
        "unlock" => quiet(sys::munlock(address, length)),
        "touch" => {
            memory::touch(address, length as u64);
            Ok(String::new())
        }
        "again" => {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            quiet(sys::mmap(address, length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0))
        }
        _ => {
            let protection = match word(words, 2)? {
                "none" => libc::PROT_NONE,
                "ro" => libc::PROT_READ,
                "rw" => libc::PROT_READ | libc::PROT_WRITE,
                other => return mistake(format!("no protection `{other}`")),
            };
            quiet(sys::mprotect(address, length, protection))
        }
    }
}

/// `move FROM TO SIZE`: moves pages to another address.
fn relocate(world: &mut World<'_>, words: &[String]) -> Answer {
    let (from, to) = (world.value(word(words, 0)?)?, world.value(word(words, 1)?)?);
    let length = world.size(word(words, 2)?)? as usize;
    world.memory.look();
    quiet(sys::move_page(from, to, length))
}

/// `fill ADDRESS LENGTH BYTE`.
fn fill(world: &mut World<'_>, words: &[String]) -> Answer {
    let (address, length) = (world.value(word(words, 0)?)?, world.value(word(words, 1)?)?);
    let byte = world.value(word(words, 2)?)?;
    (address..address.wrapping_add(length)).for_each(|at| sys::store(at, 1, byte));
    Ok(String::new())
}

/// `check ADDRESS LENGTH BYTE`: nothing where all bytes are that one, else the first that differs.
fn check(world: &mut World<'_>, words: &[String]) -> Answer {
    let (address, length) = (world.value(word(words, 0)?)?, world.value(word(words, 1)?)?);
    let byte = world.value(word(words, 2)?)?;
    let differs = (address..address.wrapping_add(length)).find(|at| sys::load(*at, 1) != byte);
    Ok(differs.map_or_else(String::new, |at| format!("+{:#x}: {:#x}", at - address, sys::load(at, 1))))
}

/// `put ADDRESS VALUE WIDTH`.
fn put(world: &mut World<'_>, words: &[String]) -> Answer {
    let (address, value) = (world.value(word(words, 0)?)?, world.value(word(words, 1)?)?);
    sys::store(address, world.value(word(words, 2)?)? as usize, value);
    Ok(String::new())
}

/// `get ADDRESS WIDTH`.
fn get(world: &mut World<'_>, words: &[String]) -> Answer {
    let address = world.value(word(words, 0)?)?;
    Ok(format!("{:#x}", sys::load(address, world.value(word(words, 1)?)? as usize)))
}

/// `ranges NAME FIRST..LAST ...`: an array of IOVA ranges in memory of its own, with room for more behind it.
fn ranges(world: &mut World<'_>, words: &[String]) -> Answer {
    let name = word(words, 0)?;
    let address = world.memory.place(PAGE, PAGE);
    if let Err(errno) = world.memory.make(name, PAGE, address, Kind::Untouched, None) {
        return Ok(names::errno(errno));
    }
    for (at, range) in (address..).step_by(16).zip(words.get(1..).unwrap_or_default()) {
        let Some((first, last)) = range.split_once("..") else {
            return mistake(format!("`{range}` is no range"));
        };
        sys::store(at, 8, world.value(first)?);
        sys::store(at + 8, 8, world.value(last)?);
    }
    Ok(String::new())
}

/// `show-ranges ADDRESS COUNT`: such an array's contents.
fn show_ranges(world: &mut World<'_>, words: &[String]) -> Answer {
    let (address, count) = (world.value(word(words, 0)?)?, world.value(word(words, 1)?)?);
    let ranges: Vec<String> = (address..)
        .step_by(16)
        .take(count as usize)
        .map(|at| format!("{:#x}..{:#x}", sys::load(at, 8), sys::load(at + 8, 8)))
        .collect();
    Ok(ranges.join(" "))
}

/// `memfd NAME SIZE [hugetlb]`: with no holes.
fn memfd(world: &mut World<'_>, words: &[String]) -> Answer {
    world.memory.open();
    let name = word(words, 0)?.to_owned();
    let mut flags = libc::MFD_ALLOW_SEALING;
    if has(words, "hugetlb") {
        flags |= libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
    }
    let length = world.size(word(words, 1)?)?;
    let fd = match sys::memfd(flags) {
        Ok(fd) => fd,
        Err(errno) => return Ok(names::errno(errno)),
    };
    world.files.insert(name.clone(), fd);
    world.memory.adopt_file(&name, fd);
    if let Err(errno) = sys::ftruncate(fd, length as i64) {
        return Ok(names::errno(errno));
    }
    quiet(if length == 0 || has(words, "sparse") { Ok(0) } else { sys::fallocate(fd, length as i64) })
}

/// `truncate NAME SIZE`.
fn truncate(world: &mut World<'_>, words: &[String]) -> Answer {
    let name = word(words, 0)?;
    let length = world.size(word(words, 1)?)?;
    world.memory.look_at_file(name);
    quiet(sys::ftruncate(world.file(name)?, length as i64))
}

/// `seal NAME write|future-write|shrink|grow|seal ...`.
fn seal(world: &mut World<'_>, words: &[String]) -> Answer {
    let mut seals = 0;
    for word in words.get(1..).unwrap_or_default() {
        seals |= match word.as_str() {
            "write" => libc::F_SEAL_WRITE,
            "future-write" => libc::F_SEAL_FUTURE_WRITE,
            "shrink" => libc::F_SEAL_SHRINK,
            "grow" => libc::F_SEAL_GROW,
            "seal" => libc::F_SEAL_SEAL,
            other => return mistake(format!("no seal `{other}`")),
        };
    }
    quiet(sys::fcntl(world.file(word(words, 0)?)?, libc::F_ADD_SEALS, seals))
}

/// `frame ADDRESS`: whose page is there now, by the oldest name it has; `none` where there is none.
fn frame(world: &mut World<'_>, words: &[String]) -> Answer {
    let address = world.value(word(words, 0)?)?;
    let roles = world.roles;
    Ok(match world.memory.frame(address) {
        0 => "none".to_owned(),
        frame => world.memory.physical(frame * PAGE, roles),
    })
}

/// `physical ADDRESS $NAME`: keeps the physical address that pagemap tells, for what has no IOAS to ask.
fn physical(world: &mut World<'_>, words: &[String]) -> Answer {
    let address = world.value(word(words, 0)?)?;
    let Some(name) = word(words, 1)?.strip_prefix('$') else { return mistake("physical ADDRESS $NAME") };
    let frame = world.memory.frame(address);
    if frame == 0 {
        return Ok("no page there".to_owned());
    }
    world.variables.insert(name.to_owned(), frame * PAGE + address % PAGE);
    Ok(String::new())
}
