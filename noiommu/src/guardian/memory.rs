//! A guardian gives up the memory of the driver that it was forked from.
//!
//! What stays is what it runs on: the code, constants and variables of the program and its libraries, a few pages around the
//! thread's own variables, and what it says it needs. Copies of the driver's heap would grow with every page that the driver
//! changes; shared memory and registers of devices would stay in use for as long as the guardian lives.
//!
//! Takes no memory from the heap, which is what it unmaps.

use std::ops::Range;

use super::sys;

/// A file that is mapped, by device and inode.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct FileId {
    major: u64,
    minor: u64,
    inode: u64,
}

/// A line of /proc/self/maps.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Line {
    range: Range<usize>,
    executable: bool,
    private: bool,
    major: u64,
    minor: u64,
    inode: u64,
    /// The kernel's own: `[vdso]` and the like.
    kernels: bool,
}

impl Line {
    fn file(&self) -> FileId {
        FileId { major: self.major, minor: self.minor, inode: self.inode }
    }

    /// See *proc_pid_maps(5)*: `start-end rwxp offset major:minor inode name`.
    fn parse(text: &[u8]) -> Option<Self> {
        let mut fields = text.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
        let (range, flags, _, device, inode) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let (start, end) = split(range, b'-')?;
        let (major, minor) = split(device, b':')?;
        let range = usize::try_from(number(start, 16)?).ok()?..usize::try_from(number(end, 16)?).ok()?;
        Some(Self {
            range,
            executable: *flags.get(2)? == b'x',
            private: *flags.get(3)? == b'p',
            major: number(major, 16)?,
            minor: number(minor, 16)?,
            inode: number(inode, 10)?,
            kernels: fields.next().is_some_and(|name| name.starts_with(b"[v")),
        })
    }
}

fn split(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let middle = text.iter().position(|byte| *byte == at)?;
    Some((text.get(..middle)?, text.get(middle + 1..)?))
}

fn number(text: &[u8], base: u32) -> Option<u64> {
    text.iter().try_fold(0u64, |value, byte| {
        let digit = char::from(*byte).to_digit(base)?;
        value.checked_mul(base.into())?.checked_add(digit.into())
    })
}

/// The most files with code that are told apart; more are taken for none.
const FILES: usize = 256;

/// Decides which mappings stay, line by line.
struct Keeper<'a> {
    /// Files with code in them.
    code: &'a [FileId],
    /// Where the last mapping of such a file ended: what follows at once are its variables that began as zero.
    after: usize,
}

impl Keeper<'_> {
    fn keeps(&mut self, line: &Line) -> bool {
        let of_code = line.private && line.inode != 0 && self.code.contains(&line.file());
        let zeroed = line.private && line.inode == 0 && line.range.start == self.after && self.after != 0;
        if of_code || zeroed {
            self.after = line.range.end;
        }
        of_code || zeroed || line.kernels
    }
}

/// Unmaps everything else than what has been said above and `needed`; false: the list of mappings could not be read, and nothing
/// was done.
///
/// # Safety
/// The caller is alone in its process, returns to nobody, and uses no memory besides code, static variables, the thread's own
/// variables and `needed`, its stack among them.
pub(super) unsafe fn give_up(needed: &[Range<usize>]) -> bool {
    let mut code = [FileId::default(); FILES];
    let mut files = 0;
    let read = each_line(|line| {
        if line.executable && line.inode != 0 && !code[..files].contains(&line.file()) && files < FILES {
            code[files] = line.file();
            files += 1;
        }
    });
    // SAFETY: it only tells an address.
    let own = unsafe { libc::pthread_self() } as usize;
    // Variables of threads lie below it, the thread's own record above.
    let own = own.saturating_sub(256 << 10)..own.saturating_add(16 << 10);
    let mut keeper = Keeper { code: &code[..files], after: 0 };
    read && each_line(|line| {
        if !keeper.keeps(&line) {
            let mut start = line.range.start;
            // In order of address, so that what is between them goes.
            while start < line.range.end {
                let next =
                    needed.iter().chain([&own]).filter(|keep| keep.end > start).min_by_key(|keep| keep.start);
                let (end, resume) = match next {
                    Some(keep) if keep.start < line.range.end => {
                        (page_of(keep.start).max(start), page_after(keep.end))
                    }
                    _ => (line.range.end, line.range.end),
                };
                if end > start {
                    // SAFETY: as the caller has promised: nothing uses it.
                    unsafe { sys::unmap(start, end - start) };
                }
                start = resume;
            }
        }
    })
}

const PAGE: usize = 4096;

fn page_of(address: usize) -> usize {
    address & !(PAGE - 1)
}

fn page_after(address: usize) -> usize {
    page_of(address.saturating_add(PAGE - 1))
}

/// Reads the list of mappings. The kernel goes on by address, so it may change meanwhile.
fn each_line(mut each: impl FnMut(Line)) -> bool {
    let Some(file) = sys::open(c"/proc/self/maps", libc::O_RDONLY) else { return false };
    let whole = each_line_of(|into| sys::read(file, into), &mut each);
    sys::close(file);
    whole
}

fn each_line_of(mut read: impl FnMut(&mut [u8]) -> Option<usize>, each: &mut impl FnMut(Line)) -> bool {
    // A line is longer than this only by its name, of which the beginning is enough.
    let mut bytes = [0u8; 8192];
    let mut filled = 0;
    // The rest of a line that was too long is left out.
    let mut skipping = false;
    loop {
        match read(&mut bytes[filled..]) {
            None => return false,
            Some(0) => return true,
            Some(length) => filled += length,
        }
        let mut start = 0;
        while let Some(length) = bytes[start..filled].iter().position(|byte| *byte == b'\n') {
            if !std::mem::take(&mut skipping)
                && let Some(line) = Line::parse(&bytes[start..start + length])
            {
                each(line);
            }
            start += length + 1;
        }
        bytes.copy_within(start..filled, 0);
        filled -= start;
        if filled == bytes.len() {
            if !skipping && let Some(line) = Line::parse(&bytes) {
                each(line);
            }
            skipping = true;
            filled = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn lines_are_read() {
        let found = line("55d0c0a00000-55d0c0a21000 r-xp 00001000 fe:01 131 /usr/bin/driver (deleted)");
        assert_eq!(found.range, 0x55d0_c0a0_0000..0x55d0_c0a2_1000);
        assert!(found.executable && found.private && !found.kernels);
        assert_eq!((found.major, found.minor, found.inode), (0xfe, 1, 131));
        assert!(line("7ffd1000-7ffd3000 r-xp 00000000 00:00 0                          [vdso]").kernels);
        assert!(!line("1000-2000 rw-s 00000000 00:01 9 /memfd:x (deleted)").private);
        assert_eq!(Line::parse(b"nonsense"), None);
        assert_eq!(Line::parse(b"10-zz rw-p 0 0:0 0"), None);
    }

    #[test]
    fn code_and_its_variables_stay() {
        let program = line("1000-2000 r-xp 0 fe:01 5 /driver");
        let code = [program.file()];
        let mut keeper = Keeper { code: &code, after: 0 };
        let mut keeps = |text| keeper.keeps(&line(text));
        assert!(keeps("1000-2000 r-xp 0 fe:01 5 /driver"));
        assert!(keeps("2000-3000 rw-p 0 fe:01 5 /driver"));
        assert!(keeps("3000-4000 rw-p 0 00:00 0"), "what began as zero");
        assert!(!keeps("5000-6000 rw-p 0 00:00 0 [heap]"));
        assert!(!keeps("6000-7000 r--p 0 fe:01 6 /some/data"));
        assert!(!keeps("7000-8000 rw-p 0 00:0f 5 /anon_hugepage (deleted)"));
        assert!(!keeps("8000-9000 rw-s 0 fe:01 5 /driver"), "shared");
        assert!(!keeps("9000-a000 rw-p 0 00:00 0"), "it follows what goes");
        assert!(keeps("a000-b000 r--p 0 00:00 0 [vvar]"));
    }

    #[test]
    fn this_process_has_code_and_is_read_to_the_end() {
        let (mut lines, mut code) = (0, false);
        let here = this_process_has_code_and_is_read_to_the_end as fn() as usize;
        assert!(each_line(|line| {
            lines += 1;
            code |= line.executable && line.inode != 0 && line.range.contains(&here);
        }));
        let text = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(code && lines + 3 >= text.lines().count(), "{lines}\n{text}");
    }
}
