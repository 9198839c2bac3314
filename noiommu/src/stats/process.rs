//! Other processes' shared memory: found in their list of mappings, and copied.

use std::ffi::CStr;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use crate::memory::{Vma, read_maps_of};

/// The mappings of a process that have the name of a memory file.
///
/// # Errors
/// What reading its list of mappings answers.
pub(super) fn memory_files(process: u32) -> std::io::Result<Vec<Vma>> {
    let mut mappings = read_maps_of(Some(process))?;
    mappings.retain(|vma| vma.shared && vma.path.starts_with("/memfd:noiommu-"));
    Ok(mappings)
}

/// Whether a mapping is of the memory file called `name`.
pub(super) fn is_of(vma: &Vma, name: &CStr) -> bool {
    let path = vma.path.strip_prefix("/memfd:").and_then(|path| path.strip_suffix(" (deleted)"));
    path.is_some_and(|path| path.as_bytes() == name.to_bytes())
}

/// Copies `length` bytes of what a process has mapped there, `N` times one after the other, into words.
///
/// By the file itself, which needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE; else out of the process's memory, which needs the right
/// to trace it. Neither stops it or changes anything in it.
///
/// # Errors
/// What the system answers to the second.
pub(crate) fn copy<const N: usize>(process: u32, vma: &Vma, length: usize) -> std::io::Result<[Vec<u64>; N]> {
    let path = format!("/proc/{process}/map_files/{:x}-{:x}", vma.start, vma.end);
    let file = File::open(path).ok();
    let mut copies = [const { Vec::new() }; N];
    for copy in &mut copies {
        *copy = vec![0u64; length / 8];
        // SAFETY: the words, as bytes, borrowed for as long.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(copy.as_mut_ptr().cast::<u8>(), size_of_val(&copy[..])) };
        match file.as_ref().map(|file| file.read_exact_at(bytes, 0)) {
            Some(Ok(())) => {}
            _ => copy_memory(process, vma.start, bytes)?,
        }
    }
    Ok(copies)
}

fn copy_memory(process: u32, address: usize, into: &mut [u8]) -> std::io::Result<()> {
    let here = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let there = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: into.len() };
    // SAFETY: writes to `into` alone, at most as long as it is.
    let copied =
        unsafe { libc::process_vm_readv(process.cast_signed(), &raw const here, 1, &raw const there, 1, 0) };
    match usize::try_from(copied) {
        Ok(copied) if copied == into.len() => Ok(()),
        Ok(_) => Err(std::io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(std::io::Error::last_os_error()),
    }
}
