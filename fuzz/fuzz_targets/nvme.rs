//! The NVMe driver on a hostile controller. Under cargo-fuzz libFuzzer calls it; otherwise the program replays the files it is given and prints what they do.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    noiommu_fuzz::nvme::run(bytes, false);
});

#[cfg(not(fuzzing))]
fn main() -> std::io::Result<()> {
    noiommu_fuzz::replay(noiommu_fuzz::nvme::run)
}
