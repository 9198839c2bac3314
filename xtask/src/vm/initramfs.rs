//! Writing an initramfs: the "newc" archive of cpio, which the kernel unpacks before its first process.

use std::io::{self, Write};

/// A file's kind as `st_mode` has it.
const DIRECTORY: u32 = 0o040000;
const REGULAR: u32 = 0o100000;
const SYMLINK: u32 = 0o120000;
const CHARACTER_DEVICE: u32 = 0o020000;

/// Writes one archive.
pub(crate) struct Archive<W> {
    out: W,
    /// Bytes written: headers and contents begin at multiples of four.
    len: u64,
    /// The last inode number: each entry has its own, since equal ones mean hard links.
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// Begins an archive.
    pub(crate) fn new(out: W) -> Self {
        Self { out, len: 0, inode: 0 }
    }

    /// Adds a directory; one must come before what is in it.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a file; `mode` is its permission bits.
    pub(crate) fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | mode, (0, 0), contents)
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub(crate) fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// Writes the entry that ends an archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.header("TRAILER!!!", 0, 0, (0, 0), 0)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) -> io::Result<()> {
        let size = u32::try_from(contents.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is 4 GiB or more")))?;
        self.inode += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        self.header(path, mode, links, device, size)?;
        self.put(contents)?;
        self.pad()
    }

    fn header(&mut self, path: &str, mode: u32, links: u32, device: (u32, u32), size: u32) -> io::Result<()> {
        let name_size = path.len() as u32 + 1;
        // Magic; then inode, mode, owner, group, links, time, size, device of the archive (two), device of the entry
        // (two), size of the name with its final zero, and a checksum that this form does not use.
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        self.put(header.as_bytes())?;
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.len += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = self.len.next_multiple_of(4) - self.len;
        self.put(&[0; 3][..missing as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One header field of the entry that begins at `at`.
    fn field(archive: &[u8], at: usize, index: usize) -> u32 {
        let from = at + 6 + index * 8;
        u32::from_str_radix(std::str::from_utf8(&archive[from..from + 8]).unwrap(), 16).unwrap()
    }

    /// Reads an archive back by the format's rules: (path, mode, contents) of each entry.
    fn entries(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let (mut at, mut found) = (0, Vec::new());
        loop {
            assert_eq!(&archive[at..at + 6], b"070701");
            let (mode, size, name_size) =
                (field(archive, at, 1), field(archive, at, 6) as usize, field(archive, at, 11) as usize);
            let name = &archive[at + 110..at + 110 + name_size];
            assert_eq!(name.last(), Some(&0));
            let name = String::from_utf8(name[..name_size - 1].to_vec()).unwrap();
            let contents = (at + 110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(archive.len(), contents);
                return found;
            }
            found.push((name, mode, archive[contents..contents + size].to_vec()));
            at = (contents + size).next_multiple_of(4);
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("bin").unwrap();
        // Names and contents of every length modulo four, so that each padding occurs.
        for len in 0..8 {
            archive.file(&format!("bin/{}", "x".repeat(len + 1)), 0o755, &vec![b'#'; len]).unwrap();
        }
        archive.symlink("bin/sh", "busybox").unwrap();
        archive.character_device("console", 5, 1).unwrap();
        let archive = archive.finish().unwrap();

        let entries = entries(&archive);
        assert_eq!(entries.len(), 11);
        assert_eq!(entries[0], ("bin".into(), 0o040755, vec![]));
        for (len, entry) in entries[1..9].iter().enumerate() {
            assert_eq!(entry, &(format!("bin/{}", "x".repeat(len + 1)), 0o100755, vec![b'#'; len]));
        }
        assert_eq!(entries[9], ("bin/sh".into(), 0o120777, b"busybox".to_vec()));
        assert_eq!(entries[10].1, 0o020600);
    }

    #[test]
    fn devices_and_inodes_are_in_the_header() {
        let mut archive = Archive::new(Vec::new());
        archive.character_device("console", 5, 1).unwrap();
        archive.character_device("null", 1, 3).unwrap();
        let archive = archive.finish().unwrap();
        let second = (110 + "console".len() + 1_usize).next_multiple_of(4);
        assert_eq!((field(&archive, 0, 9), field(&archive, 0, 10)), (5, 1));
        assert_eq!((field(&archive, second, 9), field(&archive, second, 10)), (1, 3));
        assert_ne!(field(&archive, 0, 0), field(&archive, second, 0));
    }
}
