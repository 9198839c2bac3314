//! Steps on devices: mapping their regions, registers, and the DMA engine of QEMU's `edu`.

use std::time::{Duration, Instant};

use crate::names;
use crate::sys;
use crate::world::{Answer, World, has, mistake, word};

/// The step, if its verb is one of these.
pub(super) fn step(world: &mut World<'_>, verb: &str, words: &[String]) -> Option<Answer> {
    Some(match verb {
        "mmap" => mmap(world, words),
        "load" => load(world, words),
        "store" => store(world, words),
        "edu-dma" => edu_dma(world, words),
        "master" => master(world, words),
        _ => return None,
    })
}

/// `mmap NAME FD OFFSET SIZE [ro|wo|none|exec] [private]`: maps a file somewhere.
fn mmap(world: &mut World<'_>, words: &[String]) -> Answer {
    let name = word(words, 0)?;
    let fd = world.file(word(words, 1)?)?;
    let offset = world.value(word(words, 2)?)? as i64;
    let length = world.size(word(words, 3)?)?;
    let protection = match () {
        () if has(words, "ro") => libc::PROT_READ,
        () if has(words, "wo") => libc::PROT_WRITE,
        () if has(words, "none") => libc::PROT_NONE,
        () if has(words, "exec") => libc::PROT_READ | libc::PROT_EXEC,
        () => libc::PROT_READ | libc::PROT_WRITE,
    };
    let sharing = if has(words, "private") { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
    Ok(match sys::mmap(0, length as usize, protection, sharing, fd, offset) {
        Ok(address) => {
            world.memory.adopt(name, address, length);
            String::new()
        }
        Err(errno) => names::errno(errno),
    })
}

/// `load ADDRESS [WIDTH]`: a register's value; 4 bytes unless said otherwise.
fn load(world: &mut World<'_>, words: &[String]) -> Answer {
    let address = world.value(word(words, 0)?)?;
    let width = words.get(1).map_or(Ok(4), |width| world.value(width))?;
    Ok(format!("{:#x}", sys::load(address, width as usize)))
}

/// `store ADDRESS VALUE [WIDTH]`.
fn store(world: &mut World<'_>, words: &[String]) -> Answer {
    let (address, value) = (world.value(word(words, 0)?)?, world.value(word(words, 1)?)?);
    let width = words.get(2).map_or(Ok(4), |width| world.value(width))?;
    sys::store(address, width as usize, value);
    Ok(String::new())
}

/// Registers of edu's DMA engine, and where its own memory is.
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
const INNER: u64 = 0x40000;
/// Starts it; stays set until it is done.
const START: u64 = 1;
/// Out of the device rather than into it.
const OUT: u64 = 2;
/// It takes 100 ms of the machine's time; a loaded one may be slow.
const PATIENCE: Duration = Duration::from_secs(5);

/// `edu-dma REGISTERS in|out PHYSICAL INNER LENGTH [no-wait]`: moves bytes between memory and the device's own, at most 2048.
fn edu_dma(world: &mut World<'_>, words: &[String]) -> Answer {
    let registers = world.value(word(words, 0)?)?;
    let out = match word(words, 1)? {
        "in" => false,
        "out" => true,
        other => return mistake(format!("no direction `{other}`")),
    };
    let physical = world.value(word(words, 2)?)?;
    let inner = INNER + world.value(word(words, 3)?)?;
    let length = world.value(word(words, 4)?)?;
    let (from, to) = if out { (inner, physical) } else { (physical, inner) };
    sys::store(registers + SOURCE, 8, from);
    sys::store(registers + DESTINATION, 8, to);
    sys::store(registers + COUNT, 8, length);
    sys::store(registers + COMMAND, 8, if out { START | OUT } else { START });
    if has(words, "no-wait") {
        return Ok(String::new());
    }
    let began = Instant::now();
    while sys::load(registers + COMMAND, 8) & START != 0 {
        if began.elapsed() > PATIENCE {
            return Ok("not done".to_owned());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(String::new())
}

/// `master FD on|off`: bus mastering, through the command register in the device's config region.
fn master(world: &mut World<'_>, words: &[String]) -> Answer {
    const COMMAND: i64 = (7 << 40) + 4;
    const MEMORY: u16 = 2;
    const MASTER: u16 = 4;
    let fd = world.file(word(words, 0)?)?;
    let mut command = 0_u16;
    if let Err(errno) = sys::pread(fd, &raw mut command as u64, 2, Some(COMMAND)) {
        return Ok(names::errno(errno));
    }
    command |= MEMORY;
    if has(words, "off") {
        command &= !MASTER;
    } else {
        command |= MASTER;
    }
    Ok(match sys::pwrite(fd, &raw const command as u64, 2, Some(COMMAND)) {
        Ok(_) => String::new(),
        Err(errno) => names::errno(errno),
    })
}
