//! What libFuzzer found worth keeping, once more: on any toolchain, in seconds.

use std::fs;
use std::panic;
use std::path::Path;

#[test]
fn the_corpus_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/ioctl");
    let (mut files, mut steps) = (0, 0);
    for entry in fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        files += 1;
        match panic::catch_unwind(|| noiommu_fuzz::ioctl(&bytes, false)) {
            Ok(more) => steps += more,
            Err(_) => panic!("{} fails", path.display()),
        }
    }
    println!("{files} files, {steps} steps");
    assert!(files > 100 && steps > 1000, "the corpus is gone: {files} files, {steps} steps");
}
