//! The driver against the simulated device, on made-up memory and on real memory.

use noiommu::{Context, Contiguity, DmaBuffer, Mapping};
use noiommu_edu::{BUFFER_SIZE, Edu};

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn contents(mapping: &Mapping) -> Vec<u8> {
    let mut bytes = vec![0; mapping.len() as usize];
    mapping.buffer().unwrap().read(0, &mut bytes).unwrap();
    bytes
}

/// Copies a buffer through the device, in pieces that cross page borders anyhow.
fn copies_all(context: &Context, contiguity: Contiguity) {
    let length = 40_000u64;
    let ioas = context.ioas().unwrap();
    let edu = Edu::new(context.sim_edu().unwrap(), &ioas).unwrap();
    assert!(edu.is_alive().unwrap());
    assert_eq!(edu.factorial(10).unwrap(), 3_628_800);
    assert_eq!(edu.version().unwrap(), (1, 0));
    let from = ioas.map(DmaBuffer::new(length as usize, contiguity).unwrap()).unwrap();
    let to = ioas.map(DmaBuffer::new(length as usize, Contiguity::Pages).unwrap()).unwrap();
    let bytes = pattern(0x5eed, length as usize);
    from.buffer().unwrap().write(0, &bytes).unwrap();
    let (source, target) = (from.for_device(edu.device()).unwrap(), to.for_device(edu.device()).unwrap());
    let mut done = 0;
    let mut step = 1;
    while done < length {
        let part = step.min(length - done).min(BUFFER_SIZE);
        edu.load(&source, done, part).unwrap();
        edu.store(&target, done, part).unwrap();
        done += part;
        step = step * 3 % 2049 + 1;
    }
    assert_eq!(contents(&to), bytes);
    assert_eq!(contents(&from), bytes);
    assert!(edu.load(&source, 0, BUFFER_SIZE + 1).is_err());
    assert!(edu.load(&source, length - 10, 11).is_err());
    let quiet = edu.close().unwrap();
    assert!(quiet.bus_master_off);
}

#[test]
fn copies_on_simulated_memory() {
    copies_all(&Context::simulated(), Contiguity::Best);
}

#[test]
fn copies_on_real_memory() {
    match Context::new() {
        Ok(context) => {
            copies_all(&context, Contiguity::Pages);
            copies_all(&context, Contiguity::Best);
        }
        Err(error) => {
            assert!(error.remedy().is_some(), "{error}");
            eprintln!("not run on real memory: {error}");
        }
    }
}

#[test]
fn nothing_moves_with_bus_mastering_off() {
    let context = Context::simulated();
    let ioas = context.ioas().unwrap();
    let edu = Edu::new(context.sim_edu().unwrap(), &ioas).unwrap();
    let mapping = ioas.map(DmaBuffer::new(4096, Contiguity::Pages).unwrap()).unwrap();
    mapping.buffer().unwrap().fill(0, 4096, 0xaa).unwrap();
    let view = mapping.for_device(edu.device()).unwrap();
    edu.load(&view, 0, 100).unwrap();
    edu.device().quiesce().unwrap();
    edu.store(&view, 1000, 100).unwrap();
    edu.device().quiesce().unwrap();
    mapping.buffer().unwrap().fill(0, 4096, 0xbb).unwrap();
    edu.store(&view, 0, 100).unwrap();
    assert!(contents(&mapping).iter().all(|&byte| byte == 0xbb));
}
