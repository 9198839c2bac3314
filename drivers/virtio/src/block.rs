//! Block devices (5.2), by the crate's driver.

use std::ops::Range;

use noiommu::{Device, Quiet};
use virtio_drivers::Error as CrateError;
use virtio_drivers::device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::DeviceType;

use crate::device::VirtioDevice;
use crate::error::{Error, ErrorKind, Result};
use crate::hal::KitHal;
use crate::hosted::Hosted;
use crate::pool::Shape;
use crate::transport::KitTransport;

/// Bytes of a sector, whatever blocks the device has (5.2.4).
pub const SECTOR: usize = SECTOR_SIZE;

/// Descriptors of the crate's queue.
const DESCRIPTORS: u16 = 16;
/// Requests that are outstanding at most: each is what is asked, the data, and what became of it.
const REQUESTS: usize = 5;
/// The one queue.
const QUEUE: u16 = 0;

const SHAPE: Shape = Shape { slots: DESCRIPTORS, largest: 64 << 10, smallest: 4096 };

type Driver = VirtIOBlk<KitHal, KitTransport>;

/// A block device that runs.
///
/// A transfer of any length is done in pieces, several at a time, each through pinned memory that was mapped at the start. A call
/// returns when all of it is done. Dropping it resets the device.
#[derive(Debug)]
pub struct Block {
    hosted: Hosted<Driver>,
    requests: Vec<Request>,
    /// By the crate's number of a request, which one it is.
    by_token: [Option<usize>; DESCRIPTORS as usize],
    sectors: u64,
    read_only: bool,
}

/// A request, while the device has it and after.
#[derive(Debug, Default)]
struct Request {
    head: BlkReq,
    status: BlkResp,
    /// The part of the caller's buffer.
    part: Range<usize>,
    outstanding: bool,
}

/// The caller's memory, and which way it goes.
enum Data<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

impl Data<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Read(bytes) => bytes.len(),
            Self::Write(bytes) => bytes.len(),
        }
    }
}

impl Block {
    pub(crate) fn start(device: VirtioDevice) -> Result<Self> {
        let mut hosted = Hosted::start(device, DeviceType::Block, SHAPE, Driver::new)?;
        let (sectors, read_only) = hosted.call(|driver| {
            // Nobody waits for an interrupt.
            driver.disable_interrupts();
            (driver.capacity(), driver.readonly())
        })?;
        let requests = (0..REQUESTS).map(|_| Request::default()).collect();
        Ok(Self { hosted, requests, by_token: [None; DESCRIPTORS as usize], sectors, read_only })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.hosted.device()
    }

    /// How many sectors it says that it has.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether it cannot be written.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Bytes of the longest piece in which transfers are done: as much as is contiguous for the device.
    #[must_use]
    pub fn piece(&self) -> usize {
        self.hosted.pool().longest()
    }

    /// Its serial number, as somebody has given it one: 20 bytes at most.
    ///
    /// # Errors
    /// The device cannot tell; as for [`Block::read`].
    pub fn serial(&mut self) -> Result<String> {
        self.expect_idle()?;
        let mut id = [0; 20];
        let length = self.hosted.call_waiting(QUEUE, |driver| driver.device_id(&mut id))?;
        let length = self.outcome("telling its serial number", length)?;
        Ok(String::from_utf8_lossy(id.get(..length).unwrap_or_default()).into_owned())
    }

    /// Reads from a sector on.
    ///
    /// # Errors
    /// EINVAL for bytes that are no whole sectors or pass the end; EIO when the device says that it failed, does not answer in
    /// time, or breaks the protocol (what `into` holds then is of no meaning); ENODEV when it is gone.
    pub fn read(&mut self, sector: u64, into: &mut [u8]) -> Result<()> {
        self.transfer(sector, Data::Read(into))
    }

    /// Writes from a sector on. It is there for good after a [flush](Block::flush).
    ///
    /// # Errors
    /// As for [`Block::read`] (what the sectors hold then is of no meaning); EOPNOTSUPP for a device that cannot be written.
    pub fn write(&mut self, sector: u64, from: &[u8]) -> Result<()> {
        if self.read_only {
            return Err(Error::unsupported(format!("{} can only be read", self.device().name())));
        }
        self.transfer(sector, Data::Write(from))
    }

    /// Has the device keep what was written, whatever happens. Nothing, where it keeps all at once.
    ///
    /// # Errors
    /// As for [`Block::read`].
    pub fn flush(&mut self) -> Result<()> {
        self.expect_idle()?;
        let flushed = self.hosted.call_waiting(QUEUE, Driver::flush)?;
        self.outcome("flushing", flushed)
    }

    /// Ends the driver and makes the device quiet.
    ///
    /// # Errors
    /// When it cannot be made quiet: its memory stays pinned then.
    pub fn close(self) -> Result<Quiet> {
        self.hosted.close()
    }

    /// Slots of the pool that are in use: none, when nothing is outstanding.
    #[doc(hidden)]
    #[must_use]
    pub fn shared(&self) -> usize {
        self.hosted.pool().taken()
    }

    fn transfer(&mut self, sector: u64, mut data: Data<'_>) -> Result<()> {
        let length = data.len();
        let count = (length / SECTOR) as u64;
        if !length.is_multiple_of(SECTOR) || sector.checked_add(count).is_none_or(|end| end > self.sectors) {
            return Err(Error::argument(format!(
                "{length} bytes from sector {sector} on are no whole sectors, or pass the end of {} ({} sectors)",
                self.device().name(),
                self.sectors
            )));
        }
        self.expect_idle()?;
        let piece = self.piece();
        let (mut given, mut first_failure) = (0, None);
        loop {
            // After a failure the others are waited for, and no more are begun.
            while given < length && first_failure.is_none() {
                let Some(free) = self.requests.iter().position(|request| !request.outstanding) else { break };
                let part = given..length.min(given + piece);
                given = part.end;
                self.submit(free, sector + (part.start / SECTOR) as u64, part, &mut data)?;
            }
            if self.requests.iter().all(|request| !request.outstanding) {
                return first_failure.map_or(Ok(()), Err);
            }
            let token = self.hosted.wait("a request", |driver| driver.peek_used())?;
            let outcome = self.complete(token, &mut data)?;
            if let Err(error) = outcome {
                first_failure.get_or_insert(error);
            }
        }
    }

    /// With nothing outstanding nothing can be done: what comes twice would else pass for the next request.
    fn expect_idle(&mut self) -> Result<()> {
        match self.hosted.call(|driver| driver.peek_used())? {
            None => Ok(()),
            Some(token) => Err(self.unknown(token)),
        }
    }

    fn unknown(&self, token: u16) -> Error {
        self.hosted.registers().violation(format_args!(
            "it has done request {token}, which it was not given, or has done already"
        ))
    }

    /// Gives the device a request for a part of the data.
    fn submit(&mut self, index: usize, sector: u64, part: Range<usize>, data: &mut Data<'_>) -> Result<()> {
        let Some(request) = self.requests.get_mut(index) else { return Err(self.lost("a request")) };
        request.status = BlkResp::default();
        request.part = part.clone();
        // SAFETY: what `share` has copied is all that the device has of these, and the crate keeps no pointer to them. They are used
        // again by `complete` alone, which is given the same ones; after an error that leaves them outstanding, by nobody.
        let token = self.hosted.call(|driver| unsafe {
            match data {
                Data::Read(bytes) => {
                    let bytes = bytes.get_mut(part).unwrap_or_default();
                    driver.read_blocks_nb(sector as usize, &mut request.head, bytes, &mut request.status)
                }
                Data::Write(bytes) => {
                    let bytes = bytes.get(part).unwrap_or_default();
                    driver.write_blocks_nb(sector as usize, &mut request.head, bytes, &mut request.status)
                }
            }
        })?;
        // There is room for it, as no more than `REQUESTS` are outstanding.
        let by_token = token.ok().and_then(|token| self.by_token.get_mut(usize::from(token)));
        match (by_token, self.requests.get_mut(index)) {
            (Some(by_token), Some(request)) => {
                *by_token = Some(index);
                request.outstanding = true;
                Ok(())
            }
            _ => Err(self.lost("a request")),
        }
    }

    /// Takes what the device has done: what became of the request.
    ///
    /// # Errors
    /// The device has broken the protocol, and is used no more.
    fn complete(&mut self, token: u16, data: &mut Data<'_>) -> Result<Result<()>> {
        // The number is the device's; the crate takes any for good that comes twice alike.
        let index = self.by_token.get_mut(usize::from(token)).and_then(Option::take);
        let Some(request) = index.and_then(|index| self.requests.get_mut(index)) else {
            return Err(self.unknown(token));
        };
        let part = request.part.clone();
        // SAFETY: the same buffers that `submit` gave for this token.
        let done = self.hosted.call(|driver| unsafe {
            match data {
                Data::Read(bytes) => {
                    let bytes = bytes.get_mut(part).unwrap_or_default();
                    driver.complete_read_blocks(token, &request.head, bytes, &mut request.status)
                }
                Data::Write(bytes) => {
                    let bytes = bytes.get(part).unwrap_or_default();
                    driver.complete_write_blocks(token, &request.head, bytes, &mut request.status)
                }
            }
        })?;
        request.outstanding = false;
        match done {
            Err(CrateError::WrongToken) => {
                Err(self.hosted.registers().violation("the number of a request changed after it was done"))
            }
            // No status there is: what stood there before the device had the request.
            Err(CrateError::NotReady) => {
                Err(self.hosted.registers().violation("it has done a request and not told what became of it"))
            }
            done => Ok(self.outcome("a request", done)),
        }
    }

    /// What the crate answers, in this driver's words.
    fn outcome<T>(&self, what: &str, answer: Result<T, CrateError>) -> Result<T> {
        answer.map_err(|error| match error {
            CrateError::Unsupported => {
                Error::unsupported(format!("{} cannot do that: {what}", self.device().name()))
            }
            CrateError::WrongToken | CrateError::NotReady => {
                self.hosted.registers().violation(format_args!("{what}: {error}"))
            }
            error => Error::new(ErrorKind::Failed, format!("{}: {what}: {error}", self.device().name())),
        })
    }

    /// Something of this driver's own is not as it has to be. Nothing is believed any more.
    fn lost(&self, what: &str) -> Error {
        self.hosted.registers().violation(format_args!("{what} has been lost"))
    }
}
