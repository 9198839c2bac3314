//! The guardian's protocol: any messages, with any descriptors, and then the driver's death.

/// Plays the messages that `bytes` mean (`noiommu::guardian::play_service` tells how).
///
/// # Panics
/// Where the service answers what is no error number, or takes for quiet what cannot be reached.
pub fn run(bytes: &[u8], tell: bool) -> usize {
    let mut messages = 0;
    let mut rest = bytes;
    // As many as there are: three bytes and the message's own.
    while let Some(([how, low, high], after)) = rest.split_first_chunk::<3>() {
        if tell {
            println!("  {messages}: {} descriptors, {low:#x} {high:#x}", how & 15);
        }
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        rest = &after[length..];
        messages += 1;
    }
    noiommu::guardian::play_service(bytes);
    messages
}
