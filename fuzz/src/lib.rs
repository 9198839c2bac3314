//! What libFuzzer calls with bytes of its choice. Each target reads them as a sequence of steps, takes what is under test and a
//! model of it through them, and panics where they part ways; `tell` prints each step before it is done, and the answer is how
//! many there were.
//!
//! | target | what | held to |
//! |---|---|---|
//! | [`ioctl`] | the engine's ioctl face | a model of all that it answers and holds |
//! | [`table`] | the page table and its writer | a map of leaves |
//! | [`space`] | IOVA space and placement | `rangemap`, and a search through its gaps |
//! | [`pci`] | the rules of a vfio-pci device | a hostile device: nothing out of its space, nothing left on |
//! | [`config`] | the kit's walks of config space | a hostile device: every walk ends, within its space |
//! | [`serve`] | programs' calls on served nodes | who holds what; everything comes back when all is closed |
//! | [`guardian`] | the guardian's protocol | no panic, no hang |
//! | [`nvme`] | the NVMe driver | a hostile controller: every command ends once, all memory comes back |

pub mod config;
pub mod guardian;
pub mod ioctl;
mod model;
pub mod nvme;
mod op;
pub mod pci;
pub mod serve;
pub mod space;
mod steps;
pub mod table;
mod world;

/// Replays the files that the program was given, and prints what they do.
///
/// # Errors
/// A file that cannot be read.
pub fn replay(run: fn(&[u8], bool) -> usize) -> std::io::Result<()> {
    for path in std::env::args_os().skip(1) {
        let bytes = std::fs::read(&path)?;
        println!("{}", path.display());
        println!("{} steps", run(&bytes, true));
    }
    Ok(())
}
