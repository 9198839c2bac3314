//! Steps on files: opening, closing, duplicating, reading, writing, and what a directory shows.

use crate::names;
use crate::sys::{self, Opener};
use crate::world::{Answer, Mistake, World, has, mistake, option, quiet, shown, word};

/// The step, if its verb is one of these.
pub(super) fn step(world: &mut World<'_>, verb: &str, words: &[String]) -> Option<Answer> {
    Some(match verb {
        "open" => open(world, words),
        "close" => close(world, words),
        "close-range" => close_range(world, words),
        "dup" => dup(world, words),
        "dup2" => dup_onto(world, words),
        "fcntl" => fcntl(world, words),
        "lseek" => lseek(world, words),
        "read" | "pread" => read(world, words, verb == "pread"),
        "write" | "pwrite" => write(world, words, verb == "pwrite"),
        "poll" => poll(world, words),
        "eventfd" => eventfd(world, words),
        "socketpair" => socketpair(world, words),
        "pass" => pass(world, words),
        "receive" => receive(world, words),
        "stat" => stat(world, words),
        "fstat" => word(words, 0).and_then(|name| Ok(about(sys::fstat(world.file(name)?), None))),
        "access" => access(world, words),
        "list" => list(world, words),
        "readlink" => readlink(world, words),
        "contents" => contents(world, words),
        _ => return None,
    })
}

/// A path in the words of a case: `cdev:ROLE`, `group:ROLE` (their nodes), `sysfs:ROLE/...`, `fd:NAME` (the descriptor's link
/// in proc), or a path.
fn path(world: &World<'_>, text: &str) -> Result<String, Mistake> {
    let Some((kind, rest)) = text.split_once(':') else { return Ok(text.to_owned()) };
    if kind == "fd" {
        return Ok(format!("/proc/self/fd/{}", world.file(rest)?));
    }
    let (role, below) = rest.split_once('/').map_or((rest, ""), |(role, below)| (role, below));
    let Some(device) = world.roles.get(role) else { return mistake(format!("no device `{role}`")) };
    let path = match kind {
        "cdev" => device.cdev_path(),
        "group" => device.group_path(),
        // The cdev's entry in its class, below the device.
        "vfio-dev" => {
            device.cdev.as_ref().map(|name| format!("{}/vfio-dev/{name}/{below}", device.sysfs.display()))
        }
        "sysfs" => Some(format!("{}/{below}", device.sysfs.display())),
        _ => Some(text.to_owned()),
    };
    path.map_or_else(|| mistake(format!("`{role}` has no {kind}")), Ok)
}

/// Numbers of groups and cdevs differ between machines: told by the device's role.
fn symbolic(world: &World<'_>, name: &str) -> String {
    for (role, device) in world.roles.all() {
        if device.cdev.as_deref() == Some(name) {
            return format!("<cdev of {role}>");
        }
        if let Some(group) = &device.group {
            if name == group {
                return format!("<group of {role}>");
            }
            if name.strip_prefix("noiommu-") == Some(group) {
                return format!("noiommu-<group of {role}>");
            }
        }
        if name == device.address {
            return format!("<{role}>");
        }
    }
    name.to_owned()
}

fn open(world: &mut World<'_>, words: &[String]) -> Answer {
    let (path, name) = (path(world, word(words, 0)?)?, word(words, 1)?);
    let mut flags = match () {
        () if has(words, "ro") => libc::O_RDONLY,
        () if has(words, "wo") => libc::O_WRONLY,
        () => libc::O_RDWR,
    };
    for (word, flag) in [
        ("cloexec", libc::O_CLOEXEC),
        ("nonblock", libc::O_NONBLOCK),
        ("append", libc::O_APPEND),
        ("directory", libc::O_DIRECTORY),
        ("path", libc::O_PATH),
        ("trunc", libc::O_TRUNC),
    ] {
        if has(words, word) {
            flags |= flag;
        }
    }
    let by = match option(words, "by") {
        None => Opener::Open,
        Some("open64") => Opener::Open64,
        Some("openat") => Opener::OpenAt,
        Some("openat64") => Opener::OpenAt64,
        Some(other) => return mistake(format!("nothing opens by {other}")),
    };
    let result = sys::open(&path, flags, by);
    world.files.insert(name.to_owned(), result.unwrap_or(-1));
    quiet(result)
}

fn close(world: &mut World<'_>, words: &[String]) -> Answer {
    quiet(sys::close(world.file(word(words, 0)?)?))
}

/// `close-range NAME`: the same by the call for ranges.
fn close_range(world: &mut World<'_>, words: &[String]) -> Answer {
    let fd = world.file(word(words, 0)?)? as u32;
    quiet(sys::close_range(fd, fd))
}

fn dup(world: &mut World<'_>, words: &[String]) -> Answer {
    let result = match option(words, "from") {
        Some(first) => {
            let command = if has(words, "cloexec") { libc::F_DUPFD_CLOEXEC } else { libc::F_DUPFD };
            sys::fcntl(world.file(word(words, 0)?)?, command, world.value(first)? as i32).map(|fd| fd as i32)
        }
        None => sys::dup(world.file(word(words, 0)?)?),
    };
    world.files.insert(word(words, 1)?.to_owned(), result.unwrap_or(-1));
    quiet(result)
}

fn dup_onto(world: &mut World<'_>, words: &[String]) -> Answer {
    let (from, onto) = (world.file(word(words, 0)?)?, world.file(word(words, 1)?)?);
    let flags = has(words, "cloexec").then_some(libc::O_CLOEXEC);
    let result = sys::dup3(from, onto, flags);
    Ok(match result {
        Ok(fd) if fd == onto => String::new(),
        Ok(_) => "another descriptor".to_owned(),
        Err(errno) => names::errno(errno),
    })
}

fn fcntl(world: &mut World<'_>, words: &[String]) -> Answer {
    let fd = world.file(word(words, 0)?)?;
    match word(words, 1)? {
        "getfd" => shown(sys::fcntl(fd, libc::F_GETFD, 0)),
        "setfd" => shown(sys::fcntl(fd, libc::F_SETFD, world.value(word(words, 2)?)? as i32)),
        "getfl" => Ok(match sys::fcntl(fd, libc::F_GETFL, 0) {
            Ok(flags) => access_words(flags as i32),
            Err(errno) => names::errno(errno),
        }),
        "setfl" => {
            let flags = if word(words, 2)? == "nonblock" { libc::O_NONBLOCK } else { 0 };
            shown(sys::fcntl(fd, libc::F_SETFL, flags))
        }
        other => mistake(format!("no fcntl `{other}`")),
    }
}

/// Access mode and O_NONBLOCK; the rest says nothing about the file.
fn access_words(flags: i32) -> String {
    let access = match flags & libc::O_ACCMODE {
        libc::O_RDONLY => "ro",
        libc::O_WRONLY => "wo",
        _ => "rw",
    };
    if flags & libc::O_NONBLOCK == 0 { access.to_owned() } else { format!("{access} nonblock") }
}

fn lseek(world: &mut World<'_>, words: &[String]) -> Answer {
    let fd = world.file(word(words, 0)?)?;
    let offset = world.value(word(words, 1)?)? as i64;
    let whence = match words.get(2).map_or("set", String::as_str) {
        "cur" => libc::SEEK_CUR,
        "end" => libc::SEEK_END,
        _ => libc::SEEK_SET,
    };
    Ok(match sys::lseek(fd, offset, whence) {
        Ok(at) => format!("{at:#x}"),
        Err(errno) => names::errno(errno),
    })
}

/// `read FD LENGTH`, `pread FD OFFSET LENGTH`, `into=ADDRESS`: the count and what came; `-> $name` keeps it instead, for what
/// differs between machines.
fn read(world: &mut World<'_>, words: &[String], positioned: bool) -> Answer {
    let fd = world.file(word(words, 0)?)?;
    let offset = if positioned { Some(world.value(word(words, 1)?)? as i64) } else { None };
    let length = world.value(word(words, 1 + usize::from(positioned))?)? as usize;
    let mut room = vec![0_u8; length.min(1 << 20)];
    let into = match option(words, "into") {
        Some(address) => world.value(address)?,
        None => room.as_mut_ptr() as u64,
    };
    let result = sys::pread(fd, into, length, offset);
    Ok(match result {
        Err(errno) => names::errno(errno),
        Ok(count) if option(words, "into").is_some() || count == 0 => count.to_string(),
        Ok(count) => {
            let got = room.get(..count as usize).unwrap_or_default();
            if let Some(name) =
                words.last().and_then(|word| word.strip_prefix('$')).filter(|_| has(words, "->"))
            {
                let value = got.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
                world.variables.insert(name.to_owned(), value);
                return Ok(count.to_string());
            }
            format!("{count}: {}", bytes(got))
        }
    })
}

/// Bytes as a number where they are as many as a register has, else one by one.
fn bytes(bytes: &[u8]) -> String {
    match bytes.len() {
        1 | 2 | 4 | 8 => {
            let number = bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
            format!("{number:#x}")
        }
        _ => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "),
    }
}

/// `write FD VALUE WIDTH`, `pwrite FD OFFSET VALUE WIDTH`: little-endian, any width (zeros follow); `from=ADDRESS`.
fn write(world: &mut World<'_>, words: &[String], positioned: bool) -> Answer {
    let fd = world.file(word(words, 0)?)?;
    let first = 1 + usize::from(positioned);
    let offset = if positioned { Some(world.value(word(words, 1)?)? as i64) } else { None };
    let value = world.value(word(words, first)?)?;
    let width = world.value(word(words, first + 1)?)? as usize;
    let mut data = value.to_le_bytes().to_vec();
    data.resize(width.min(1 << 20), 0);
    let from = match option(words, "from") {
        Some(address) => world.value(address)?,
        None => data.as_ptr() as u64,
    };
    shown(sys::pwrite(fd, from, width, offset))
}

/// `poll FD [MILLISECONDS]`: the events that are there.
fn poll(world: &mut World<'_>, words: &[String]) -> Answer {
    let fd = world.file(word(words, 0)?)?;
    let time = words.get(1).map_or(Ok(0), |time| world.value(time))?;
    let asked = libc::POLLIN | libc::POLLOUT | libc::POLLPRI;
    let asked = if has(words, "in") { libc::POLLIN } else { asked };
    Ok(match sys::poll(fd, asked, time as i32) {
        Err(errno) => names::errno(errno),
        Ok(events) => {
            let names = [
                (libc::POLLIN, "in"),
                (libc::POLLPRI, "pri"),
                (libc::POLLOUT, "out"),
                (libc::POLLERR, "err"),
                (libc::POLLHUP, "hup"),
                (libc::POLLNVAL, "nval"),
            ];
            let names: Vec<&str> =
                names.into_iter().filter(|(event, _)| events & event != 0).map(|(_, name)| name).collect();
            if names.is_empty() { "nothing".to_owned() } else { names.join(" ") }
        }
    })
}

fn eventfd(world: &mut World<'_>, words: &[String]) -> Answer {
    let initial = words.get(1).map_or(Ok(0), |value| world.value(value))?;
    let result = sys::eventfd(initial as u32);
    world.files.insert(word(words, 0)?.to_owned(), result.unwrap_or(-1));
    quiet(result)
}

/// `socketpair NAME NAME`.
fn socketpair(world: &mut World<'_>, words: &[String]) -> Answer {
    match sys::socketpair() {
        Ok((one, other)) => {
            world.files.insert(word(words, 0)?.to_owned(), one);
            world.files.insert(word(words, 1)?.to_owned(), other);
            Ok(String::new())
        }
        Err(errno) => Ok(names::errno(errno)),
    }
}

/// `pass SOCKET FILE`: sends a descriptor.
fn pass(world: &mut World<'_>, words: &[String]) -> Answer {
    quiet(sys::send_file(world.file(word(words, 0)?)?, world.file(word(words, 1)?)?))
}

/// `receive SOCKET NAME`: takes a descriptor.
fn receive(world: &mut World<'_>, words: &[String]) -> Answer {
    let result = sys::receive_file(world.file(word(words, 0)?)?);
    world.files.insert(word(words, 1)?.to_owned(), result.unwrap_or(-1));
    quiet(result)
}

fn stat(world: &mut World<'_>, words: &[String]) -> Answer {
    let name = word(words, 0)?;
    let path = path(world, name)?;
    // What sysfs tells of a cdev must be the number that its node has.
    let told = name
        .strip_prefix("cdev:")
        .and_then(|role| world.roles.get(role))
        .and_then(|device| Some((&device.sysfs, device.cdev.as_ref()?)))
        .and_then(|(sysfs, cdev)| {
            std::fs::read_to_string(sysfs.join("vfio-dev").join(cdev).join("dev")).ok()
        });
    Ok(about(sys::stat(&path), told.as_deref()))
}

/// Type and permissions, and whether the device number is the one that was told.
fn about(stat: Result<(u32, u64), i32>, told: Option<&str>) -> String {
    let (mode, device) = match stat {
        Ok(stat) => stat,
        Err(errno) => return names::errno(errno),
    };
    let kind = match mode & libc::S_IFMT {
        libc::S_IFCHR => "char",
        libc::S_IFDIR => "directory",
        libc::S_IFREG => "file",
        libc::S_IFLNK => "link",
        libc::S_IFIFO => "pipe",
        0 => "anonymous",
        _ => "other",
    };
    let number = format!("{}:{}", libc::major(device), libc::minor(device));
    let agrees = match told {
        Some(told) if told.trim() == number => " as sysfs tells",
        Some(_) => " unlike sysfs tells",
        None => "",
    };
    format!("{kind} {:04o}{agrees}", mode & 0o7777)
}

fn access(world: &mut World<'_>, words: &[String]) -> Answer {
    let path = path(world, word(words, 0)?)?;
    let mode = word(words, 1)?.chars().fold(0, |mode, c| {
        mode | match c {
            'r' => libc::R_OK,
            'w' => libc::W_OK,
            'x' => libc::X_OK,
            _ => libc::F_OK,
        }
    });
    shown(sys::access(&path, mode))
}

/// `list PATH [only=PREFIX]`: the names in a directory, sorted, those of devices by their role.
fn list(world: &mut World<'_>, words: &[String]) -> Answer {
    let path = path(world, word(words, 0)?)?;
    let only = option(words, "only").unwrap_or("");
    Ok(match std::fs::read_dir(&path) {
        Err(error) => names::errno(error.raw_os_error().unwrap_or(0)),
        Ok(entries) => {
            let mut names: Vec<String> = entries
                .flatten()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .filter(|name| name.starts_with(only))
                .map(|name| symbolic(world, &name))
                .collect();
            names.sort();
            if names.is_empty() { "nothing".to_owned() } else { names.join(" ") }
        }
    })
}

fn readlink(world: &mut World<'_>, words: &[String]) -> Answer {
    let path = path(world, word(words, 0)?)?;
    Ok(match std::fs::read_link(&path) {
        Err(error) => names::errno(error.raw_os_error().unwrap_or(0)),
        Ok(target) => {
            let name = target.file_name().and_then(|name| name.to_str()).unwrap_or("?");
            symbolic(world, name)
        }
    })
}

/// `contents PATH`: the first line of a file.
fn contents(world: &mut World<'_>, words: &[String]) -> Answer {
    let path = path(world, word(words, 0)?)?;
    Ok(match std::fs::read_to_string(&path) {
        Err(error) => names::errno(error.raw_os_error().unwrap_or(0)),
        Ok(text) => format!("\"{}\"", text.lines().next().unwrap_or("")),
    })
}
