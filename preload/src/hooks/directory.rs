//! Directories: what the kernel lists, and what is ours in them behind that.

use std::ffi::{c_char, c_int, c_long, c_void};
use std::mem::{offset_of, zeroed};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use libc::{AT_FDCWD, DIR, dirent, glob_t};
use noiommu::Errno;

use super::{interpose, library, open};
use crate::overlay::Entry;
use crate::paths::{self, route};
use crate::raw::{last_errno, set_errno, system, without_signals};
use crate::{copy, gate, process, real, state, table};

/// A stream on a directory that has something of ours in it.
struct Stream {
    /// The C library's, as a number: it is only ever compared.
    stream: usize,
    /// What is ours in it.
    entries: Vec<Listed>,
    /// Whether the kernel has no such directory.
    is_ours: bool,
    /// The next of our entries; `None` while the kernel's are read.
    next: Option<usize>,
    /// The entry last given, which stays until the next one is asked for.
    given: Box<dirent>,
}

/// An entry of a directory.
#[derive(Clone)]
struct Listed {
    name: Vec<u8>,
    inode: u64,
    kind: u8,
}

impl Listed {
    fn new(entry: &Entry) -> Self {
        Self { name: entry.name().to_vec(), inode: entry.inode(), kind: entry.kind() }
    }
}

impl Stream {
    /// Back to where the kernel's entries begin; a directory that the kernel does not have has none.
    fn begin(&mut self) {
        self.next = self.is_ours.then_some(0);
    }
}

// SAFETY: `dirent` holds no pointers.
unsafe impl Send for Stream {}

static STREAMS: Mutex<Vec<Stream>> = Mutex::new(Vec::new());
static COUNT: AtomicUsize = AtomicUsize::new(0);

type Compare = Option<unsafe extern "C" fn(*mut *const dirent, *mut *const dirent) -> c_int>;
type Select = Option<unsafe extern "C" fn(*const dirent) -> c_int>;
type GlobError = Option<extern "C" fn(*const c_char, c_int) -> c_int>;

interpose! {
    fn opendir(path: *const c_char) -> *mut DIR {
        let kernel = |_, path| {
            let stream = library!(opendir(path));
            if stream.is_null() {
                return -1;
            }
            look_for_ours(stream, path);
            stream as c_long
        };
        let ours = |entry: &'static Entry| {
            let fd = open::open_entry(entry, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC, 0)?;
            let stream = library!(fdopendir(fd));
            if stream.is_null() {
                // SAFETY: the descriptor just opened.
                unsafe { super::descriptor::close(fd) };
                return Err(Errno::ENOMEM);
            }
            keep(stream, all_of(entry), true);
            Ok(stream as c_long)
        };
        match route(AT_FDCWD, path, true, kernel, ours) {
            -1 => ptr::null_mut(),
            stream => stream as *mut DIR,
        }
    }

    fn fdopendir(fd: c_int) -> *mut DIR {
        let stream = library!(fdopendir(fd));
        if stream.is_null() || !state::is_on() || gate::is_inside() {
            return stream;
        }
        match table::get(fd).map(|kept| kept.entry()) {
            Some(Some(entry)) => keep(stream, all_of(entry), true),
            Some(None) => {}
            None => look_for_ours(stream, ptr::null()),
        }
        stream
    }

    fn closedir(stream: *mut DIR) -> c_int {
        if COUNT.load(Ordering::Relaxed) == 0 || stream.is_null() {
            return library!(closedir(stream));
        }
        with(stream, |streams, place| {
            streams.swap_remove(place);
            COUNT.fetch_sub(1, Ordering::Relaxed);
        });
        // SAFETY: the program's stream, open until the call below.
        let fd = unsafe { libc::dirfd(stream) };
        if !table::is_served(fd) || process::is_borrowed() {
            return library!(closedir(stream));
        }
        // The C library closes the descriptor itself.
        let (answer, closed) = table::change(|change| (library!(closedir(stream)), change.clear(fd)));
        drop(closed);
        answer
    }

    fn readdir(stream: *mut DIR) -> *mut dirent {
        next_entry(stream)
    }

    fn readdir64(stream: *mut DIR) -> *mut dirent {
        next_entry(stream)
    }

    fn readdir_r(stream: *mut DIR, into: *mut dirent, given: *mut *mut dirent) -> c_int {
        next_entry_into(stream, into, given)
    }

    fn readdir64_r(stream: *mut DIR, into: *mut dirent, given: *mut *mut dirent) -> c_int {
        next_entry_into(stream, into, given)
    }

    fn rewinddir(stream: *mut DIR) {
        with(stream, |streams, place| streams[place].begin());
        library!(rewinddir(stream));
    }

    fn telldir(stream: *mut DIR) -> c_long {
        // Behind the kernel's entries: numbers that it does not give, and not the -1 that means an error.
        match with(stream, |streams, place| streams[place].next).flatten() {
            Some(next) => -2 - next as c_long,
            None => library!(telldir(stream)),
        }
    }

    fn seekdir(stream: *mut DIR, place: c_long) {
        let next = usize::try_from((-2_i64).saturating_sub(place)).ok();
        let sought = with(stream, |streams, at| {
            streams[at].begin();
            if next.is_some() {
                streams[at].next = next;
            }
        });
        if sought.is_none() || next.is_none() {
            library!(seekdir(stream, place));
        }
    }

    fn scandir(path: *const c_char, into: *mut *mut *mut dirent, select: Select, compare: Compare) -> c_int {
        scan(path, into, select, compare)
    }

    fn scandir64(path: *const c_char, into: *mut *mut *mut dirent, select: Select, compare: Compare) -> c_int {
        scan(path, into, select, compare)
    }

    fn glob(pattern: *const c_char, flags: c_int, error: GlobError, into: *mut glob_t) -> c_int {
        matching(pattern, flags, error, into)
    }

    fn glob64(pattern: *const c_char, flags: c_int, error: GlobError, into: *mut glob_t) -> c_int {
        matching(pattern, flags, error, into)
    }
}

/// Does something with what is known of a stream. The stream is found at `place`; nothing is done when it is none of ours.
fn with<R>(stream: *mut DIR, work: impl FnOnce(&mut Vec<Stream>, usize) -> R) -> Option<R> {
    if COUNT.load(Ordering::Relaxed) == 0 {
        return None;
    }
    let find = || {
        let mut streams = STREAMS.lock().unwrap_or_else(PoisonError::into_inner);
        let place = streams.iter().position(|known| known.stream == stream as usize)?;
        Some(work(&mut streams, place))
    };
    gate::engine(|| without_signals(find))
}

/// What is in a directory that the kernel does not have.
fn all_of(directory: &Entry) -> Vec<Listed> {
    let own = |name: &[u8]| Listed { name: name.to_vec(), ..Listed::new(directory) };
    let children = state::served().overlay.children(&directory.path).map(Listed::new);
    [own(b"."), own(b"..")].into_iter().chain(children).collect()
}

/// Remembers a stream, when there is something of ours in it.
fn keep(stream: *mut DIR, entries: Vec<Listed>, is_ours: bool) {
    if entries.is_empty() && !is_ours {
        return;
    }
    let stream = stream as usize;
    // SAFETY: numbers and characters.
    let given = Box::new(unsafe { zeroed() });
    gate::engine(|| {
        without_signals(|| {
            let mut new = Stream { stream, entries, is_ours, next: None, given };
            new.begin();
            STREAMS.lock().unwrap_or_else(PoisonError::into_inner).push(new);
            COUNT.fetch_add(1, Ordering::Relaxed);
        });
    });
}

/// Remembers a stream of the kernel's when its directory has something of ours, too. `path` is how it was named, null when by a
/// descriptor.
fn look_for_ours(stream: *mut DIR, path: *const c_char) {
    if !state::is_on() || gate::is_inside() {
        return;
    }
    let mut begin = [0; 4];
    if !path.is_null() && copy::string(path as u64, &mut begin).is_some() {
        let is_near = matches!(&begin, b"/dev" | b"/sys") || begin.first() != Some(&b'/');
        if !is_near {
            return;
        }
    }
    // SAFETY: the program's stream, just opened.
    let fd = unsafe { libc::dirfd(stream) };
    let entries = gate::engine(|| {
        let path = paths::of_descriptor(fd)?;
        may_have_ours(&path)
            .then(|| state::served().overlay.children(&path).map(Listed::new).collect::<Vec<_>>())
    });
    if let Some(entries) = entries {
        keep(stream, entries, false);
    }
}

/// Whether a directory is one in which something of ours may be, so that the server must be asked.
fn may_have_ours(path: &[u8]) -> bool {
    const PLACES: [&[u8]; 8] = [
        b"/dev",
        b"/sys/class",
        b"/sys/class/misc",
        b"/sys/devices/virtual",
        b"/sys/devices/virtual/misc",
        b"/sys/dev/char",
        b"/sys/bus/pci/devices",
        b"/sys/kernel",
    ];
    PLACES.contains(&path)
        || state::is_telling(path)
        || path.starts_with(b"/sys/devices/") && path.windows(4).any(|window| window == b"/pci")
}

/// `readdir`.
fn next_entry(stream: *mut DIR) -> *mut dirent {
    let Some(next) = with(stream, |streams, place| streams[place].next) else {
        return library!(readdir(stream));
    };
    if next.is_none() {
        let errno = last_errno();
        set_errno(0);
        let entry = library!(readdir(stream));
        let failed = last_errno();
        set_errno(if failed == 0 || !entry.is_null() { errno } else { failed });
        if !entry.is_null() || failed != 0 {
            return entry;
        }
    }
    // SAFETY: the program's stream.
    let fd = unsafe { libc::dirfd(stream) };
    // What the kernel has too, it has listed.
    let is_listed = |entry: &Listed| !table::is_served(fd) && is_in(fd, &entry.name);
    let step = |streams: &mut Vec<Stream>, place: usize| {
        let known = &mut streams[place];
        let number = known.next.unwrap_or(0);
        let entry = known.entries.get(number).cloned();
        known.next = Some(number + usize::from(entry.is_some()));
        (number, entry)
    };
    loop {
        let Some((number, Some(entry))) = with(stream, step) else { return ptr::null_mut() };
        if !is_listed(&entry) {
            let give = |streams: &mut Vec<Stream>, place: usize| {
                let given = &mut streams[place].given;
                fill(given, &entry, number);
                ptr::from_mut::<dirent>(given)
            };
            return with(stream, give).unwrap_or(ptr::null_mut());
        }
    }
}

/// Whether the kernel has this name in a directory.
fn is_in(directory: c_int, name: &[u8]) -> bool {
    let mut with_nul = name.to_vec();
    with_nul.push(0);
    // SAFETY: all zeros is one; it and the name, which ends with a NUL, are here.
    unsafe {
        let mut found: libc::stat = zeroed();
        system!(SYS_newfstatat, directory, with_nul.as_ptr(), &raw mut found, libc::AT_SYMLINK_NOFOLLOW) == 0
    }
}

fn fill(into: &mut dirent, entry: &Listed, number: usize) {
    into.d_ino = entry.inode;
    into.d_off = -3 - number as i64;
    into.d_type = entry.kind;
    let length = entry.name.len().min(into.d_name.len() - 1);
    for (to, &from) in into.d_name.iter_mut().zip(entry.name.iter().take(length).chain(&[0])) {
        *to = from as c_char;
    }
    into.d_reclen = (offset_of!(dirent, d_name) + length + 1).next_multiple_of(8) as u16;
}

/// `readdir_r`.
fn next_entry_into(stream: *mut DIR, into: *mut dirent, given: *mut *mut dirent) -> c_int {
    if with(stream, |_, _| ()).is_none() {
        return library!(readdir_r(stream, into, given));
    }
    let before = last_errno();
    set_errno(0);
    let entry = next_entry(stream);
    let failed = if entry.is_null() { last_errno() } else { 0 };
    set_errno(before);
    // SAFETY: the program's places, and the entry is as long as it says.
    unsafe {
        if entry.is_null() {
            *given = ptr::null_mut();
        } else {
            ptr::copy_nonoverlapping(entry.cast::<u8>(), into.cast::<u8>(), (*entry).d_reclen.into());
            *given = into;
        }
    }
    failed
}

/// `scandir`, by the functions above: the C library's own would not come by here.
fn scan(path: *const c_char, into: *mut *mut *mut dirent, select: Select, compare: Compare) -> c_int {
    if !state::is_on() || gate::is_inside() {
        return library!(scandir(path, into, select, compare));
    }
    // SAFETY: the program's own call; streams and entries are used as the C library wants them used.
    unsafe {
        let stream = opendir(path);
        if stream.is_null() {
            return -1;
        }
        if with(stream, |_, _| ()).is_none() {
            closedir(stream);
            return real::scandir()(path, into, select, compare);
        }
        let before = last_errno();
        let mut list: Vec<*mut dirent> = Vec::new();
        let failed = loop {
            set_errno(0);
            let entry = next_entry(stream);
            if entry.is_null() {
                break last_errno();
            }
            if select.is_some_and(|select| select(entry) == 0) {
                continue;
            }
            let length = usize::from((*entry).d_reclen);
            let copy = libc::malloc(length).cast::<dirent>();
            if copy.is_null() {
                break libc::ENOMEM;
            }
            ptr::copy_nonoverlapping(entry.cast::<u8>(), copy.cast::<u8>(), length);
            list.push(copy);
        };
        closedir(stream);
        let array = libc::malloc(size_of_val(list.as_slice()).max(1)).cast::<*mut dirent>();
        if failed != 0 || array.is_null() {
            list.into_iter().for_each(|entry| libc::free(entry.cast::<c_void>()));
            libc::free(array.cast::<c_void>());
            set_errno(if failed != 0 { failed } else { libc::ENOMEM });
            return -1;
        }
        ptr::copy_nonoverlapping(list.as_ptr(), array, list.len());
        if let Some(compare) = compare {
            type Untyped = unsafe extern "C" fn(*const c_void, *const c_void) -> c_int;
            let compare = std::mem::transmute::<
                unsafe extern "C" fn(*mut *const dirent, *mut *const dirent) -> c_int,
                Untyped,
            >(compare);
            libc::qsort(array.cast::<c_void>(), list.len(), size_of::<*mut dirent>(), Some(compare));
        }
        *into = array;
        set_errno(before);
        list.len() as c_int
    }
}

/// `glob_t` with the fields that glibc's GLOB_ALTDIRFUNC reads.
#[repr(C)]
struct Glob {
    found: [usize; 3],
    flags: c_int,
    closedir: unsafe extern "C" fn(*mut DIR) -> c_int,
    readdir: unsafe extern "C" fn(*mut DIR) -> *mut dirent,
    opendir: unsafe extern "C" fn(*const c_char) -> *mut DIR,
    lstat: unsafe extern "C" fn(*const c_char, *mut libc::stat) -> c_int,
    stat: unsafe extern "C" fn(*const c_char, *mut libc::stat) -> c_int,
}

const _: () = assert!(size_of::<Glob>() == size_of::<glob_t>());

/// `glob`: told to use the functions above, for patterns that may find something of ours.
fn matching(pattern: *const c_char, flags: c_int, error: GlobError, into: *mut glob_t) -> c_int {
    const ALTDIRFUNC: c_int = 1 << 9;
    let mut begin = [0; 5];
    let is_near = state::is_on()
        && !gate::is_inside()
        && copy::string(pattern as u64, &mut begin).is_some()
        && matches!(&begin, b"/dev/" | b"/sys/");
    if !is_near || flags & ALTDIRFUNC != 0 {
        return library!(glob(pattern, flags, error, into));
    }
    // SAFETY: the program's structure, with fields where the C library has them; they are read during the call only.
    unsafe {
        let fields = into.cast::<Glob>();
        (&raw mut (*fields).closedir).write(closedir);
        (&raw mut (*fields).readdir).write(readdir);
        (&raw mut (*fields).opendir).write(opendir);
        (&raw mut (*fields).lstat).write(super::metadata::lstat);
        (&raw mut (*fields).stat).write(super::metadata::stat);
    }
    library!(glob(pattern, flags | ALTDIRFUNC, error, into))
}
