//! Where the preload library is.

use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use super::Refusal;

const NAME: &str = "libnoiommu_preload.so";
/// Says where the library is, before all places that are looked at.
const VARIABLE: &str = "NOIOMMU_PRELOAD_LIBRARY";

/// The library: where the variable says, or near this program.
pub(super) fn find() -> Result<PathBuf, Refusal> {
    if let Some(path) = env::var_os(VARIABLE).map(PathBuf::from) {
        return path.canonicalize().map_err(|error| {
            Refusal::new(
                format!("{VARIABLE}={}: {error}", path.display()),
                format!("unset it, or let it name {NAME}"),
            )
        });
    }
    let program = env::current_exe().ok().and_then(|path| path.canonicalize().ok());
    let places = program.as_deref().and_then(Path::parent).map(places).unwrap_or_default();
    if let Some(found) = places.iter().find_map(|path| path.canonicalize().ok()) {
        return Ok(found);
    }
    let places: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
    Err(Refusal::new(
        format!("{NAME} is not there (looked for {})", places.join(", ")),
        format!("build it with `cargo build --release`, or name it in {VARIABLE}"),
    ))
}

/// Where cargo puts what it builds for the program (a copy beside it may be an older one), beside it, and where an installation
/// has it.
fn places(directory: &Path) -> Vec<PathBuf> {
    ["deps", "", "../lib/noiommu"].iter().map(|place| directory.join(place).join(NAME)).collect()
}

/// LD_PRELOAD with the library before what is preloaded anyhow.
pub(super) fn before_others(library: &Path) -> Result<OsString, Refusal> {
    let mut list = library.as_os_str().as_bytes().to_vec();
    // The dynamic linker takes both as the end of a name, and knows no quotes.
    if list.iter().any(|byte| b" :".contains(byte)) {
        return Err(Refusal::new(
            format!("{} cannot be preloaded: its path has a space or a colon in it", library.display()),
            format!("copy it elsewhere and name it in {VARIABLE}"),
        ));
    }
    if let Some(others) = env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        list.push(b':');
        list.extend_from_slice(others.as_bytes());
    }
    Ok(OsString::from_vec(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_the_dynamic_linker_would_split() {
        assert!(before_others(Path::new("/a b/lib.so")).is_err());
        assert!(before_others(Path::new("/a:b/lib.so")).is_err());
        assert!(
            before_others(Path::new("/a/lib.so")).is_ok_and(|list| list.as_bytes().starts_with(b"/a/lib.so"))
        );
    }

    /// The library is a dependency so that cargo builds it. Were it linked as well, its functions would stand before the C
    /// library's in this program.
    #[test]
    fn the_library_is_not_part_of_this_program() {
        let address = |name: &std::ffi::CStr| {
            // SAFETY: a string that ends with a NUL.
            let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
            // SAFETY: all zeros is one, and it is here.
            unsafe {
                let mut info: libc::Dl_info = std::mem::zeroed();
                assert_ne!(libc::dladdr(found, &raw mut info), 0);
                std::ffi::CStr::from_ptr(info.dli_fname).to_string_lossy().into_owned()
            }
        };
        assert!(address(c"ioctl").contains("libc"), "{}", address(c"ioctl"));
    }
}
