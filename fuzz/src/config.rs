//! The kit's walks of config space, and the life of a device, on a device that answers what it likes.
//!
//! Bytes mean a device as `noiommu::play_device` says: how it lies, how long its config space is, and what is in it. So that lists
//! of capabilities come up, a sequence of places and ids is written over what is there.

use arbitrary::{Arbitrary, Unstructured};

/// A capability: where, which, and what is in it.
#[derive(Arbitrary, Debug)]
struct Capability {
    at: u16,
    id: u16,
    next: u16,
    bytes: [u8; 6],
}

#[derive(Arbitrary, Debug)]
struct Device {
    how: u8,
    long: bool,
    flips: u8,
    filling: u8,
    header: [u8; 16],
    bars: [u8; 6],
    first: u8,
    capabilities: Vec<Capability>,
    /// Links go from each to the next, as in an honest device; else where they say.
    linked: bool,
}

impl Device {
    fn config(&self) -> Vec<u8> {
        let size = if self.long { 4096 } else { 256 };
        let mut config = vec![self.filling; size];
        config[..16].copy_from_slice(&self.header);
        for (index, kind) in self.bars.iter().enumerate() {
            config[0x10 + 4 * index] = *kind;
        }
        config[0x34] = self.first;
        let mut link = 0x34;
        let mut extended = None;
        for capability in self.capabilities.iter().take(300) {
            if capability.at < 256 {
                let at = usize::from(capability.at).clamp(0x40, 0xf6);
                config[at] = capability.id as u8 % 0x18;
                config[at + 1] = capability.next as u8;
                config[at + 2..at + 8].copy_from_slice(&capability.bytes);
                if self.linked {
                    config[link] = at as u8;
                    link = at + 1;
                }
            } else if self.long {
                let at = usize::from(capability.at & 0xffc).clamp(0x100, 0xff4);
                let head =
                    u32::from(capability.id % 0x34) | 0x1_0000 | u32::from(capability.next & 0xffc) << 20;
                config[at..at + 4].copy_from_slice(&head.to_le_bytes());
                config[at + 4..at + 10].copy_from_slice(&capability.bytes);
                if let Some(before) = extended.filter(|_| self.linked) {
                    let before: usize = before;
                    config[before + 2] = config[before + 2] & 0xf | ((at as u16) << 4) as u8;
                    config[before + 3] = (at >> 4) as u8;
                }
                extended = Some(at);
            }
        }
        config
    }
}

/// Plays the device that `bytes` mean.
///
/// # Panics
/// Where a walk does not end, leaves config space, or memory goes before the device is quiet.
pub fn run(bytes: &[u8], tell: bool) -> usize {
    let Ok(device) = Device::arbitrary(&mut Unstructured::new(bytes)) else { return 0 };
    if tell {
        println!("  {device:x?}");
    }
    let mut data = vec![device.how, u8::from(device.long), device.flips];
    data.extend(device.config());
    noiommu::play_device(&data);
    1
}
