//! What the drivers of the matrix have in common: the same steps for every device, whoever provides it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use noiommu::{Contiguity, Device, DmaBuffer, DmaView, Error, InterruptKind, Ioas, Mapping};

/// The unit of memory that is contiguous for any device, wherever it comes from.
pub(crate) const PAGE: usize = 4096;

/// How long a device may take for anything: an emulated one on a busy machine is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What a device did to memory, for the host to look at.
pub(crate) struct Written {
    /// In words, for the table's reader.
    pub(crate) what: String,
    /// The address that the device was given.
    pub(crate) address: u64,
    /// The bytes that this program finds there.
    pub(crate) bytes: Vec<u8>,
}

/// A device that is driven.
pub(crate) trait Driver: Sized {
    /// Vendor and device id.
    const ID: (u16, u16);

    /// Takes the device, attaches it, lets it reach memory and starts it. `interrupt` is what somebody waits for; without,
    /// it is not to interrupt.
    fn start(device: Device, ioas: &Ioas, interrupt: Option<InterruptKind>) -> Result<Self>;

    /// The device.
    fn device(&self) -> &Device;

    /// What it says of itself in its registers.
    fn identity(&mut self) -> Result<String>;

    /// Has it write memory, and looks whether it wrote what it had to.
    fn transfer(&mut self) -> Result<Written>;

    /// Has it raise an interrupt.
    fn fire(&mut self) -> Result<()>;

    /// Takes what it raised, so that its line falls. An error when it raised nothing.
    fn acknowledge(&mut self) -> Result<()>;

    /// Stops it by its own means, if it is running.
    fn stop(&mut self) -> Result<()>;

    /// Whether it is as after a reset, which came while it was running. Bus mastering is off.
    fn is_fresh(&self) -> Result<bool>;
}

/// Refuses a device of another kind.
pub(crate) fn expect_id(device: &Device, id: (u16, u16)) -> Result<()> {
    let found = device.id()?;
    ensure!(
        found == id,
        "{} is {:04x}:{:04x}, not {:04x}:{:04x}",
        device.name(),
        found.0,
        found.1,
        id.0,
        id.1
    );
    Ok(())
}

/// Polls `done` for as long as a device may take.
pub(crate) fn wait(device: &Device, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        if Instant::now() > deadline {
            return Err(Error::timeout(device.name(), what).into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Memory that program and device share: pages, each of them contiguous for the device.
pub(crate) struct Shared {
    mapping: Mapping,
    view: DmaView,
}

impl Shared {
    /// So many pages, zero, in the IOAS that the device is attached to.
    pub(crate) fn new(device: &Device, ioas: &Ioas, pages: usize) -> Result<Self> {
        let buffer = DmaBuffer::new(pages * PAGE, Contiguity::Pages)?;
        let mapping = ioas.map(buffer).map_err(Error::from)?;
        let view = mapping.for_device(device)?;
        Ok(Self { mapping, view })
    }

    /// The memory, for this program.
    pub(crate) fn memory(&self) -> Result<&DmaBuffer> {
        self.mapping.buffer().context("a mapping without a buffer")
    }

    /// The address of a byte, for the device.
    pub(crate) fn address(&self, offset: usize) -> Result<u64> {
        Ok(self.view.at(offset as u64)?.address.bits())
    }

    /// Bytes of it, as they are now.
    pub(crate) fn bytes(&self, offset: usize, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.memory()?.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// Ethernet frames that make QEMU's network answer: ARP requests (RFC 826) for its gateway, and what comes back.
pub(crate) mod arp {
    use super::{Result, bail, ensure};

    /// The address of the gateway in QEMU's user network, and what this program calls itself.
    const GATEWAY: [u8; 4] = [10, 0, 2, 2];
    const OURS: [u8; 4] = [10, 0, 2, 15];
    /// Ethernet's type of ARP; then Ethernet as hardware, IPv4 as protocol, lengths of their addresses.
    const HEADER: [u8; 8] = [0x08, 0x06, 0, 1, 8, 0, 6, 4];

    /// Bytes of a frame without its checksum: the least that Ethernet allows.
    pub(in crate::matrix) const FRAME: usize = 60;

    /// Who has the gateway's address? Tell `mac`.
    pub(in crate::matrix) fn request(mac: [u8; 6]) -> [u8; FRAME] {
        let mut frame = [0; FRAME];
        let parts: [&[u8]; 8] = [&[0xff; 6], &mac, &HEADER, &[0, 1], &mac, &OURS, &[0; 6], &GATEWAY];
        for (byte, value) in frame.iter_mut().zip(parts.concat()) {
            *byte = value;
        }
        frame
    }

    /// The gateway's hardware address, out of its answer to `mac`.
    pub(in crate::matrix) fn answer(frame: &[u8], mac: [u8; 6]) -> Result<[u8; 6]> {
        let Some((head, _)) = frame.split_first_chunk::<42>() else {
            bail!("a frame of {} bytes", frame.len())
        };
        ensure!(head[..6] == mac, "a frame for somebody else: {head:02x?}");
        ensure!(head[12..20] == HEADER && head[20..22] == [0, 2], "no answer by ARP: {head:02x?}");
        ensure!(
            head[28..32] == GATEWAY && head[38..42] == OURS,
            "an answer to another question: {head:02x?}"
        );
        ensure!(head[22..28] == head[6..12], "the sender is not who it says: {head:02x?}");
        Ok([head[6], head[7], head[8], head[9], head[10], head[11]])
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn an_answer_is_told_from_anything_else() {
            let (mac, gateway) = ([2, 0, 0, 0, 0, 1], [0x52, 0x55, 10, 0, 2, 2]);
            let mut frame = request(mac);
            assert!(answer(&frame, mac).is_err(), "the request itself");
            frame[..6].copy_from_slice(&mac);
            frame[6..12].copy_from_slice(&gateway);
            frame[21] = 2;
            frame[22..28].copy_from_slice(&gateway);
            frame[28..32].copy_from_slice(&GATEWAY);
            frame[38..42].copy_from_slice(&OURS);
            assert_eq!(answer(&frame, mac).unwrap(), gateway);
            assert!(answer(&frame, [2, 0, 0, 0, 0, 2]).is_err());
            assert!(answer(&frame[..41], mac).is_err());
        }
    }
}
