//! The one step for every ioctl: a structure from `field=value` words, the call, and what it changed.
//!
//! `NAME fd [field=value ...] [@option=value ...] [-> captures]`. The structure's size field holds its size unless it is given.
//! It ends where the next page, which is not there, begins: a provider that touches a byte too many is caught.
//!
//! Options: `@size=N` bytes are there (default: the larger of structure and size field, data included); `@at=OFFSET:BYTE` a byte
//! in it; `@u8= @i32= @u32= @u64=` comma-separated data after the structure; `@room=N` bytes of zeros after it, counted in the
//! size; `@arg=null|bad|ro|none|EXPR` another pointer than that; `@short=N` only the first N bytes are mapped; `@request=N`
//! another request number.
//!
//! Captures: `field=$name` keeps a field, `field=fd name` and `fd name` a descriptor, `$name` the returned value.

use noiommu_uapi::{Call, Field, Kind};

use crate::memory::PAGE;
use crate::names;
use crate::sys;
use crate::world::{Answer, Mistake, World, mistake, option};

/// Where a structure lies while a call runs: two pages with nothing after them.
struct Scratch {
    start: u64,
    end: u64,
}

/// Pages of the scratch memory.
const PAGES: u64 = 3;

impl Scratch {
    fn new() -> Result<Self, Mistake> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let length = ((PAGES + 1) * PAGE) as usize;
        let start = sys::mmap(0, length, libc::PROT_NONE, flags, -1, 0)
            .map_err(|errno| Mistake(format!("no scratch memory: {}", names::errno(errno))))?;
        let end = start + PAGES * PAGE;
        let _ = sys::mprotect(start, (PAGES * PAGE) as usize, libc::PROT_READ | libc::PROT_WRITE);
        Ok(Self { start, end })
    }

    fn protect(&self, protection: i32) {
        let _ = sys::mprotect(self.start, (PAGES * PAGE) as usize, protection);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = sys::munmap(self.start, ((PAGES + 1) * PAGE) as usize);
    }
}

/// Runs `NAME fd ...`.
pub(crate) fn step(world: &mut World<'_>, call: &'static Call, words: &[String]) -> Answer {
    let (given, captures) = match words.iter().position(|word| word == "->") {
        Some(arrow) => words.split_at(arrow),
        None => (words, [].as_slice()),
    };
    let captures = captures.get(1..).unwrap_or_default();
    let Some((fd, given)) = given.split_first() else { return mistake("no descriptor") };
    let fd = world.file(fd)?;
    let request = match option(given, "@request") {
        Some(number) => world.value(number)?,
        None => call.number.into(),
    };
    if call.fields().is_empty() {
        let scratch = Scratch::new()?;
        let argument = plain_argument(world, &scratch, given)?;
        let result = sys::ioctl(fd, request, argument);
        return returned(world, result, captures);
    }
    let bytes = structure(world, call, given)?;
    let scratch = Scratch::new()?;
    let mapped = match option(given, "@short") {
        Some(length) => world.value(length)?.min(bytes.len() as u64),
        None => bytes.len() as u64,
    };
    // Aligned as any allocator would align it, unless the case cuts it on purpose.
    let at = match option(given, "@short") {
        Some(_) => scratch.end - mapped,
        None => scratch.end - mapped.next_multiple_of(8),
    };
    sys::put(at, bytes.get(..mapped as usize).unwrap_or_default());
    let argument = match option(given, "@arg") {
        None => at,
        Some("null") => 0,
        Some("bad") => scratch.end,
        Some("ro") => {
            scratch.protect(libc::PROT_READ);
            at
        }
        Some("none") => {
            scratch.protect(libc::PROT_NONE);
            at
        }
        Some(expression) => world.value(expression)?,
    };
    let result = sys::ioctl(fd, request, argument);
    scratch.protect(libc::PROT_READ | libc::PROT_WRITE);
    let after = sys::get(at, mapped as usize);
    let mut answer = match result {
        Ok(_) if returned_file(captures).is_some() => "fd".to_owned(),
        Ok(value) => value.to_string(),
        Err(errno) => names::errno(errno),
    };
    for field in call.fields() {
        let range = bytes_of(field);
        let (Some(old), Some(new)) = (bytes.get(range.clone()), after.get(range)) else { continue };
        let file = captured_file(captures, field.name);
        if old != new {
            let value = number(new);
            let value = match file {
                Some(_) => "fd".to_owned(),
                None => tell(world, field, value),
            };
            answer.push_str(&format!(" {}={value}", field.name));
        }
    }
    // What lies behind the structure: capabilities, data of a feature.
    let (old, new) = (bytes.get(call.size() as usize..mapped as usize), after.get(call.size() as usize..));
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        // Zeros at the end tell nothing.
        let length = new.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let new = new.get(..length).unwrap_or_default();
        let words: Vec<String> = new.chunks(4).map(|word| format!("{:#x}", number(word))).collect();
        answer.push_str(&format!(" data=[{}]", words.join(" ")));
    }
    if let Ok(value) = result {
        capture(world, call, &after, value, captures)?;
    }
    Ok(answer)
}

/// The bytes of the structure and of what follows it.
fn structure(world: &World<'_>, call: &Call, given: &[String]) -> Result<Vec<u8>, Mistake> {
    let mut bytes = vec![0; call.size() as usize];
    let mut size_given = None;
    let size_field =
        call.fields().iter().find(|field| matches!(field.name, "size" | "argsz") && field.offset == 0);
    for word in given.iter().filter(|word| !word.starts_with('@')) {
        let Some((name, value)) = word.split_once('=') else {
            return mistake(format!("`{word}` is no field"));
        };
        let Some(field) = named(call, name) else {
            return mistake(format!("{} has no field `{name}`", call.name));
        };
        let value = world.value(value)?;
        if size_field.is_some_and(|size| size.offset == field.offset) {
            size_given = Some(value);
        }
        let target = bytes.get_mut(bytes_of(field));
        target.into_iter().for_each(|target| set(target, value));
    }
    for word in given {
        for (name, width) in [("@u8=", 1), ("@u16=", 2), ("@i32=", 4), ("@u32=", 4), ("@u64=", 8)] {
            for value in word.strip_prefix(name).into_iter().flat_map(|list| list.split(',')) {
                bytes.extend_from_slice(&world.value(value)?.to_le_bytes()[..width]);
            }
        }
        if let Some(room) = word.strip_prefix("@room=") {
            bytes.resize(bytes.len() + world.value(room)? as usize, 0);
        }
    }
    let size = size_given.unwrap_or(bytes.len() as u64);
    if let Some(field) = size_field {
        let target = bytes.get_mut(bytes_of(field));
        target.into_iter().for_each(|target| set(target, size));
    }
    let there = match option(given, "@size") {
        Some(length) => world.value(length)?,
        None => size.max(bytes.len() as u64),
    };
    bytes.resize(there.min(PAGES * PAGE) as usize, 0);
    for word in given {
        if let Some((offset, value)) = word.strip_prefix("@at=").and_then(|rest| rest.split_once(':')) {
            let (offset, value) = (world.value(offset)? as usize, world.value(value)?);
            match bytes.get_mut(offset) {
                Some(byte) => *byte = value as u8,
                None => return mistake(format!("`{word}` lies outside")),
            }
        }
    }
    Ok(bytes)
}

/// The argument of a call without a structure: a number, `int:N` (a pointer to it), or a string in quotes.
fn plain_argument(world: &World<'_>, scratch: &Scratch, given: &[String]) -> Result<u64, Mistake> {
    match option(given, "@arg") {
        Some("null") => return Ok(0),
        Some("bad") => return Ok(scratch.end),
        Some(expression) => return world.value(expression),
        None => {}
    }
    let Some(word) = given.iter().find(|word| !word.starts_with('@')) else { return Ok(0) };
    if let Some(text) = word.strip_prefix('"') {
        let text = text.trim_end_matches('"');
        // `{edu}` is that device's PCI address.
        let text = match text.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            Some((role, rest)) => match world.roles.get(role) {
                Some(device) => format!("{}{rest}", device.address),
                None => return mistake(format!("no device `{role}`")),
            },
            None => text.to_owned(),
        };
        let at = scratch.end - (text.len() as u64 + 1);
        sys::put(at, text.as_bytes());
        sys::store(at + text.len() as u64, 1, 0);
        return Ok(at);
    }
    if let Some(value) = word.strip_prefix("int:") {
        let at = scratch.end - 4;
        sys::store(at, 4, world.value(value)?);
        return Ok(at);
    }
    world.value(word)
}

/// Runs `ioctl fd NUMBER [ARGUMENT]`: any number, any argument.
pub(crate) fn raw(world: &mut World<'_>, words: &[String]) -> Answer {
    let [fd, request, rest @ ..] = words else { return mistake("ioctl FD NUMBER [ARGUMENT]") };
    let (given, captures) = match rest.iter().position(|word| word == "->") {
        Some(arrow) => rest.split_at(arrow),
        None => (rest, [].as_slice()),
    };
    let scratch = Scratch::new()?;
    let argument = match given.first().map(String::as_str) {
        // As large as the largest structure, all zeros.
        Some("zeros") => scratch.end - 256,
        _ => plain_argument(world, &scratch, given)?,
    };
    let (fd, request) = (world.file(fd)?, world.value(request)?);
    let result = sys::ioctl(fd, request, argument);
    returned(world, result, captures.get(1..).unwrap_or_default())
}

/// The answer of a call that has nothing but its returned value.
fn returned(world: &mut World<'_>, result: Result<i64, i32>, captures: &[String]) -> Answer {
    Ok(match result {
        Ok(value) => {
            keep_returned(world, value, captures);
            if returned_file(captures).is_some() { "fd".to_owned() } else { value.to_string() }
        }
        Err(errno) => names::errno(errno),
    })
}

fn keep_returned(world: &mut World<'_>, value: i64, captures: &[String]) {
    if let Some(name) = returned_file(captures) {
        world.files.insert(name.to_owned(), value as i32);
    }
    for name in captures.iter().filter_map(|word| word.strip_prefix('$')) {
        world.variables.insert(name.to_owned(), value as u64);
    }
}

/// The name in `-> fd NAME`.
fn returned_file(captures: &[String]) -> Option<&str> {
    let at = captures.iter().position(|word| word == "fd")?;
    captures.get(at + 1).map(String::as_str)
}

/// The name in `-> field=fd NAME`.
fn captured_file<'c>(captures: &'c [String], field: &str) -> Option<&'c str> {
    let at = captures.iter().position(|word| word.strip_suffix("=fd") == Some(field))?;
    captures.get(at + 1).map(String::as_str)
}

fn capture(
    world: &mut World<'_>,
    call: &Call,
    after: &[u8],
    value: i64,
    captures: &[String],
) -> Result<(), Mistake> {
    keep_returned(world, value, captures);
    for word in captures {
        let Some((name, variable)) = word.split_once('=') else { continue };
        let Some(field) = named(call, name) else {
            return mistake(format!("{} has no field `{name}`", call.name));
        };
        let value = number(after.get(bytes_of(field)).unwrap_or_default());
        if let Some(variable) = variable.strip_prefix('$') {
            world.variables.insert(variable.to_owned(), value);
        } else if let Some(file) = captured_file(captures, name) {
            world.files.insert(file.to_owned(), value as u32 as i32);
        } else {
            return mistake(format!("`{word}` keeps nothing"));
        }
    }
    Ok(())
}

/// The number in up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A field's value, as it is compared: physical addresses and pointers by what they point at.
fn tell(world: &mut World<'_>, field: &Field, value: u64) -> String {
    if field.name == "out_phys" {
        return world.memory.physical(value, world.roles);
    }
    if let Some(pointer) = world.memory.pointer(value).filter(|_| field.size == 8) {
        return pointer;
    }
    match (field.name, field.kind, field.size) {
        (_, Kind::Signed, _) => (value as u32 as i32).to_string(),
        ("flags", ..) | (_, _, 8) => format!("{value:#x}"),
        _ => value.to_string(),
    }
}

/// The field of that name.
fn named(call: &Call, name: &str) -> Option<&'static Field> {
    call.layout()?.field(name)
}

/// Where the field lies.
fn bytes_of(field: &Field) -> std::ops::Range<usize> {
    field.offset as usize..(field.offset + field.size) as usize
}

/// Writes a number into the bytes of a field.
fn set(target: &mut [u8], value: u64) {
    for (byte, value) in target.iter_mut().zip(value.to_le_bytes()) {
        *byte = value;
    }
}

/// The ioctl step for that verb, if it is one.
pub(crate) fn call(verb: &str) -> Option<&'static Call> {
    Call::by_name(verb)
}
