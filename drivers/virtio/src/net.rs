//! Network cards (5.1), by the crate's driver.

use noiommu::{Device, Quiet};
use virtio_drivers::Error as CrateError;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::DeviceType;

use crate::device::VirtioDevice;
use crate::error::{Error, Result};
use crate::hal::KitHal;
use crate::hosted::Hosted;
use crate::pool::Shape;
use crate::transport::KitTransport;

/// Bytes of the longest frame, without its checksum.
pub const FRAME: usize = 1514;

/// Descriptors of each of the two queues: a frame takes one.
const DESCRIPTORS: usize = 256;
/// Bytes of a buffer: the crate's header and a frame, a power of two.
const BUFFER: usize = 2048;

const SHAPE: Shape = Shape { slots: 2 * DESCRIPTORS as u16, largest: BUFFER, smallest: BUFFER };

/// 5.1.3: its configuration has its address.
const FEATURE_MAC: u64 = 1 << 5;

type Driver = VirtIONetRaw<KitHal, KitTransport, DESCRIPTORS>;

/// A network card that runs: Ethernet frames in and out, without their checksums.
///
/// Nothing waits: a frame that has not come is none, and one that there is no room for is not sent. Dropping it resets the device.
#[derive(Debug)]
pub struct Net {
    hosted: Hosted<Driver>,
    incoming: Buffers,
    outgoing: Buffers,
    mac: [u8; 6],
    /// Looks since the device was looked after.
    looks: u32,
}

/// A buffer, and how much of it the device is given.
#[derive(Debug)]
struct Buffer {
    bytes: Box<[u8]>,
    given: usize,
}

impl Buffer {
    fn new() -> Self {
        Self { bytes: vec![0; BUFFER].into(), given: BUFFER }
    }

    /// What the device is given.
    fn given(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.given).unwrap_or_default()
    }
}

/// The buffers of one direction, by the crate's numbers of what is outstanding.
#[derive(Debug)]
struct Buffers {
    free: Vec<Buffer>,
    by_token: Vec<Option<Buffer>>,
}

impl Buffers {
    fn new() -> Self {
        Self {
            free: (0..DESCRIPTORS).map(|_| Buffer::new()).collect(),
            by_token: (0..DESCRIPTORS).map(|_| None).collect(),
        }
    }

    /// The buffer of what the device says that it has done, outstanding no more; `None`: there is none.
    fn take(&mut self, token: u16) -> Option<Buffer> {
        self.by_token.get_mut(usize::from(token))?.take()
    }

    /// Keeps a buffer that is outstanding. `false`: the number is no number of such.
    fn keep(&mut self, token: u16, buffer: Buffer) -> bool {
        match self.by_token.get_mut(usize::from(token)) {
            Some(place) if place.is_none() => {
                *place = Some(buffer);
                true
            }
            _ => false,
        }
    }
}

/// How often nothing is found before the device is looked after.
const LOOKS: u32 = 256;

impl Net {
    pub(crate) fn start(device: VirtioDevice) -> Result<Self> {
        let mut hosted = Hosted::start(device, DeviceType::Network, SHAPE, Driver::new)?;
        if hosted.registers().features() & FEATURE_MAC == 0 {
            let _ = hosted.registers().stop();
            return Err(Error::unsupported(format!("{} tells no address", hosted.device().name())));
        }
        let mac = hosted.call(|driver| {
            // Nobody waits for an interrupt.
            driver.disable_interrupts();
            driver.mac_address()
        })?;
        let (incoming, outgoing) = (Buffers::new(), Buffers::new());
        let mut net = Self { hosted, incoming, outgoing, mac, looks: 0 };
        while let Some(buffer) = net.incoming.free.pop() {
            net.give(buffer)?;
        }
        Ok(net)
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.hosted.device()
    }

    /// Its address, as it tells it.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Takes a frame that has come, if one has: its length.
    ///
    /// # Errors
    /// EINVAL for memory of less than [`FRAME`] bytes; EIO when the device breaks the protocol or has failed, ENODEV when it is
    /// gone: it is used no more then.
    pub fn receive(&mut self, into: &mut [u8]) -> Result<Option<usize>> {
        if into.len() < FRAME {
            return Err(Error::argument(format!("{} bytes do not hold every frame", into.len())));
        }
        let Some(token) = self.hosted.call(|driver| driver.poll_receive())? else {
            self.look()?;
            return Ok(None);
        };
        let Some(mut buffer) = self.incoming.take(token) else { return Err(self.unknown(token)) };
        // SAFETY: the buffer that `give` gave for this token.
        let done = self.hosted.call(|driver| unsafe { driver.receive_complete(token, buffer.given()) })?;
        let frame = match done {
            Ok((header, length)) => header
                .checked_add(length)
                .filter(|_| length <= FRAME)
                .and_then(|end| buffer.bytes.get(header..end)),
            // Less than a header.
            Err(CrateError::IoError) => None,
            Err(error) => return Err(self.broken(error)),
        };
        let Some((frame, into)) = frame.and_then(|frame| Some((frame, into.get_mut(..frame.len())?))) else {
            return Err(self
                .hosted
                .registers()
                .violation("it has received a frame of a length that none has"));
        };
        into.copy_from_slice(frame);
        let length = frame.len();
        self.give(buffer)?;
        Ok(Some(length))
    }

    /// Sends a frame; `false`: it is not sent, as the device has not sent enough of those before.
    ///
    /// # Errors
    /// EINVAL for a frame of nothing or of more than [`FRAME`] bytes; as for [`Net::receive`].
    pub fn send(&mut self, frame: &[u8]) -> Result<bool> {
        if frame.is_empty() || frame.len() > FRAME {
            return Err(Error::argument(format!("a frame of {} bytes", frame.len())));
        }
        self.take_sent()?;
        let Some(mut buffer) = self.outgoing.free.pop() else {
            self.look()?;
            return Ok(false);
        };
        let given = self.hosted.call(|driver| {
            let header = driver.fill_buffer_header(&mut buffer.bytes)?;
            buffer.given = header + frame.len();
            let place = buffer.given().get_mut(header..).ok_or(CrateError::InvalidParam)?;
            place.copy_from_slice(frame);
            // SAFETY: what `share` has copied is all that the device has of it, and the crate keeps no pointer. It is used again by
            // `take_sent` alone, with the same buffer.
            unsafe { driver.transmit_begin(buffer.given()) }
        })?;
        match given {
            Ok(token) if self.outgoing.keep(token, buffer) => Ok(true),
            Ok(token) => Err(self.unknown(token)),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// Frames that were given to the device, and not sent as far as it has told.
    ///
    /// # Errors
    /// As for [`Net::receive`].
    pub fn sending(&mut self) -> Result<usize> {
        self.take_sent()?;
        Ok(DESCRIPTORS - self.outgoing.free.len())
    }

    /// Ends the driver and makes the device quiet.
    ///
    /// # Errors
    /// When it cannot be made quiet: its memory stays pinned then.
    pub fn close(self) -> Result<Quiet> {
        self.hosted.close()
    }

    /// Slots of the pool that are in use: those of the receive queue, when nothing is being sent.
    #[doc(hidden)]
    #[must_use]
    pub fn shared(&self) -> usize {
        self.hosted.pool().taken()
    }

    /// Gives the device a buffer to receive into.
    fn give(&mut self, mut buffer: Buffer) -> Result<()> {
        // SAFETY: as for sending; it is used again by `receive` alone.
        let given = self.hosted.call(|driver| unsafe { driver.receive_begin(buffer.given()) })?;
        match given {
            Ok(token) if self.incoming.keep(token, buffer) => Ok(()),
            Ok(token) => Err(self.unknown(token)),
            Err(error) => Err(self.broken(error)),
        }
    }

    /// Takes the buffers back of what has been sent.
    fn take_sent(&mut self) -> Result<()> {
        while let Some(token) = self.hosted.call(Driver::poll_transmit)? {
            let Some(mut buffer) = self.outgoing.take(token) else { return Err(self.unknown(token)) };
            // SAFETY: the part of the buffer that `send` gave for this token.
            let done =
                self.hosted.call(|driver| unsafe { driver.transmit_complete(token, buffer.given()) })?;
            if let Err(error) = done {
                return Err(self.broken(error));
            }
            self.outgoing.free.push(buffer);
        }
        Ok(())
    }

    /// Nothing was found. Now and then the device is asked whether it is there still, and told to look at its queues.
    fn look(&mut self) -> Result<()> {
        self.looks += 1;
        if self.looks < LOOKS {
            return Ok(());
        }
        self.looks = 0;
        self.hosted.registers().look_after()
    }

    fn unknown(&self, token: u16) -> Error {
        self.hosted
            .registers()
            .violation(format_args!("it has done frame {token}, which it was not given, or has done already"))
    }

    fn broken(&self, error: CrateError) -> Error {
        self.hosted.registers().violation(error)
    }
}
