//! Puts the text of all cases into the program: a list of (section, topic, text).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let missing = |name| io::Error::other(format!("cargo sets no {name}"));
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or_else(|| missing("CARGO_MANIFEST_DIR"))?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| missing("OUT_DIR"))?);
    println!("cargo::rerun-if-changed=cases");
    let mut list = String::from("&[\n");
    for section in entries(&root.join("cases"))? {
        for file in entries(&section)?.into_iter().filter(|file| file.extension().is_some_and(|e| e == "txt"))
        {
            let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let _ = writeln!(list, "({:?}, {:?}, include_str!({file:?})),", name(&section), name(&file));
        }
    }
    list.push_str("]\n");
    fs::write(out.join("cases.rs"), list)
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.sort();
    Ok(paths)
}
