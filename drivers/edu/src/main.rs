//! Copies a sentence through an edu device and back: `noiommu-edu ADDRESS`; without an address, through a simulated one.

use noiommu::{Context, Contiguity, DmaBuffer, Result};
use noiommu_edu::Edu;

const SENTENCE: &[u8] = b"An address of memory is a promise that it stays there.";

fn main() -> Result<()> {
    let (context, device) = match std::env::args().nth(1) {
        Some(address) => {
            let context = Context::new()?;
            let device = context.open(&address)?;
            (context, device)
        }
        None => {
            let context = Context::simulated();
            let device = context.sim_edu()?;
            (context, device)
        }
    };
    let ioas = context.ioas()?;
    let edu = Edu::new(device, &ioas)?;
    let (name, provider) = (edu.device().name(), edu.device().provider().name());
    println!("{name} by {provider}: 10! = {}", edu.factorial(10)?);

    // Two pages, and the sentence where they meet: two segments, wherever the pages are.
    let mapping = ioas.map(DmaBuffer::new(8192, Contiguity::Pages)?)?;
    let view = mapping.for_device(edu.device())?;
    let (offset, length) = (4096 - 20, SENTENCE.len() as u64);
    if let Some(memory) = mapping.buffer() {
        memory.write(offset, SENTENCE)?;
        edu.load(&view, offset as u64, length)?;
        memory.fill(offset, SENTENCE.len(), 0)?;
        edu.store(&view, offset as u64, length)?;
        let mut back = vec![0; SENTENCE.len()];
        memory.read(offset, &mut back)?;
        println!("{}", String::from_utf8_lossy(&back));
    }
    let quiet = edu.close()?;
    println!("quiet: bus mastering off {}, reset {}", quiet.bus_master_off, quiet.reset);
    Ok(())
}
