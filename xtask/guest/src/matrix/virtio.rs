//! Virtio over PCI, and two kinds of it: block devices and network cards. See *Virtual I/O Device Version 1.2*; sections are
//! named where they are used.

use anyhow::{Context as _, Result, bail, ensure};
use noiommu::{Bar, Device, InterruptKind, Ioas, barrier};

use super::driver::{Driver, PAGE, Shared, Written, arp, expect_id, wait};

/// 4.1.4: the kinds of structures that capabilities in config space lead to.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;
const VENDOR_CAPABILITY: u8 = 0x09;

// 4.1.4.3, the common configuration.
const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const DEVICE_STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY: u64 = 0x1e;
const QUEUE_DESCRIPTORS: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

// 2.1, the device's status.
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

/// 5.1.3, a network card's address is in its configuration.
const FEATURE_MAC: u64 = 1 << 5;
/// 6, a device of version 1, which is the only kind that this drives.
const FEATURE_VERSION_1: u64 = 1 << 32;
/// 6, a device that goes through the platform's IOMMU and so must be told addresses like any other. What it is given here
/// comes from a mapping for it, so it always is.
const FEATURE_ACCESS_PLATFORM: u64 = 1 << 33;

// 2.7.5, flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// 2.7.6, in the flags of the available ring.
const NO_INTERRUPT: u16 = 1;
/// No message for a queue.
const NO_VECTOR: u16 = 0xffff;

/// Descriptors of each queue.
const ENTRIES: u16 = 8;
/// Where the three parts of a queue are in its page, and where a part of the available and of the used ring begins.
const AVAILABLE: usize = 0x400;
const USED: usize = 0x800;
const RING: usize = 4;

/// A structure that a capability leads to.
#[derive(Clone)]
struct Structure {
    bar: Bar,
    at: u64,
}

impl Structure {
    fn read_u8(&self, offset: u64) -> Result<u8> {
        Ok(self.bar.read_u8(self.at + offset)?)
    }

    fn read_u16(&self, offset: u64) -> Result<u16> {
        Ok(self.bar.read_u16(self.at + offset)?)
    }

    fn read_u32(&self, offset: u64) -> Result<u32> {
        Ok(self.bar.read_u32(self.at + offset)?)
    }

    fn write_u8(&self, offset: u64, value: u8) -> Result<()> {
        Ok(self.bar.write_u8(self.at + offset, value)?)
    }

    fn write_u16(&self, offset: u64, value: u16) -> Result<()> {
        Ok(self.bar.write_u16(self.at + offset, value)?)
    }

    fn write_u32(&self, offset: u64, value: u32) -> Result<()> {
        Ok(self.bar.write_u32(self.at + offset, value)?)
    }

    /// In halves, as 4.1.3.1 wants it.
    fn write_u64(&self, offset: u64, value: u64) -> Result<()> {
        self.write_u32(offset, value as u32)?;
        self.write_u32(offset + 4, (value >> 32) as u32)
    }
}

/// A device of any kind, with queues.
struct Transport {
    common: Structure,
    notify: Structure,
    multiplier: u32,
    interrupt: Structure,
    specific: Structure,
    memory: Shared,
    device: Device,
    interrupts: Option<InterruptKind>,
}

impl Transport {
    /// Finds the structures, resets the device and agrees on features (3.1.1); memory of so many pages is made for it.
    fn new(
        device: Device,
        ioas: &Ioas,
        interrupts: Option<InterruptKind>,
        features: u64,
        pages: usize,
    ) -> Result<Self> {
        device.attach(ioas)?;
        let memory = Shared::new(&device, ioas, pages)?;
        let mut found: [Option<Structure>; 5] = Default::default();
        let mut multiplier = 0;
        for capability in device.find_capabilities(VENDOR_CAPABILITY)? {
            let head = config::<16>(&device, capability)?;
            let kind = usize::from(head[3]);
            // The first of each kind is the best one; there are others than these.
            if head[4] > 5 || !(1..=4).contains(&kind) || found[kind].is_some() {
                continue;
            }
            let at = u32::from_le_bytes([head[8], head[9], head[10], head[11]]).into();
            found[kind] = Some(Structure { bar: device.bar(head[4])?, at });
            if head[3] == NOTIFY {
                multiplier = u32::from_le_bytes(config(&device, capability + 16)?);
            }
        }
        let mut structure = |kind: u8| {
            found[usize::from(kind)].take().with_context(|| format!("it has no structure of kind {kind}"))
        };
        let (common, notify) = (structure(COMMON)?, structure(NOTIFY)?);
        let (interrupt, specific) = (structure(ISR)?, structure(DEVICE)?);
        let transport = Self { common, notify, multiplier, interrupt, specific, memory, device, interrupts };

        transport.reset()?;
        let common = &transport.common;
        common.write_u8(DEVICE_STATUS, ACKNOWLEDGE)?;
        common.write_u8(DEVICE_STATUS, ACKNOWLEDGE | DRIVER)?;
        let mut offered = 0;
        for half in 0..2 {
            common.write_u32(DEVICE_FEATURE_SELECT, half)?;
            offered |= u64::from(common.read_u32(DEVICE_FEATURE)?) << (32 * half);
        }
        let features = offered & (features | FEATURE_VERSION_1 | FEATURE_ACCESS_PLATFORM);
        ensure!(features & FEATURE_VERSION_1 != 0, "a device of before version 1: it offers {offered:#x}");
        for half in 0..2 {
            common.write_u32(DRIVER_FEATURE_SELECT, half)?;
            common.write_u32(DRIVER_FEATURE, (features >> (32 * half)) as u32)?;
        }
        common.write_u8(DEVICE_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)?;
        ensure!(common.read_u8(DEVICE_STATUS)? & FEATURES_OK != 0, "it does not take features {features:#x}");
        Ok(transport)
    }

    fn reset(&self) -> Result<()> {
        self.common.write_u8(DEVICE_STATUS, 0)?;
        wait(&self.device, "its reset", || Ok(self.common.read_u8(DEVICE_STATUS)? == 0))
    }

    /// Makes queue `index` (4.1.5.1.3), in the page at `page` of the memory.
    fn queue(&self, index: u16, page: usize, signals: bool) -> Result<Queue> {
        let common = &self.common;
        common.write_u16(QUEUE_SELECT, index)?;
        ensure!(common.read_u16(QUEUE_SIZE)? >= ENTRIES, "its queue {index} is too short");
        common.write_u16(QUEUE_SIZE, ENTRIES)?;
        let vector = if signals && self.interrupts == Some(InterruptKind::Msix) { 0 } else { NO_VECTOR };
        common.write_u16(QUEUE_VECTOR, vector)?;
        ensure!(common.read_u16(QUEUE_VECTOR)? == vector, "it has no vector for its queue {index}");
        common.write_u64(QUEUE_DESCRIPTORS, self.memory.address(page)?)?;
        common.write_u64(QUEUE_DRIVER, self.memory.address(page + AVAILABLE)?)?;
        common.write_u64(QUEUE_DEVICE, self.memory.address(page + USED)?)?;
        let bell = u64::from(common.read_u16(QUEUE_NOTIFY)?) * u64::from(self.multiplier);
        common.write_u16(QUEUE_ENABLE, 1)?;
        // 2.7.7: who only looks wants no interrupt.
        self.memory.memory()?.store_u16(page + AVAILABLE, NO_INTERRUPT)?;
        Ok(Queue { index, page, bell, made: 0, used: 0 })
    }

    fn ready(&self) -> Result<()> {
        self.common.write_u8(DEVICE_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    }

    /// Makes a chain of buffers in the memory (offset, bytes, whether the device writes it), from descriptor `first` on, and
    /// notifies the device (2.7.13).
    fn submit(&self, queue: &mut Queue, first: u16, chain: &[(usize, usize, bool)]) -> Result<()> {
        let memory = self.memory.memory()?;
        let last = chain.len() - 1;
        for (index, &(offset, length, write)) in (first..).zip(chain) {
            let at = queue.page + usize::from(index) * 16;
            let next = usize::from(index - first) < last;
            let flags = if write { WRITE } else { 0 } | if next { NEXT } else { 0 };
            memory.store_u64(at, self.memory.address(offset)?)?;
            memory.store_u32(at + 8, length as u32)?;
            memory.store_u16(at + 12, flags)?;
            memory.store_u16(at + 14, if next { index + 1 } else { 0 })?;
        }
        let slot = usize::from(queue.made % ENTRIES);
        memory.store_u16(queue.page + AVAILABLE + RING + 2 * slot, first)?;
        queue.made = queue.made.wrapping_add(1);
        barrier::dma_write();
        memory.store_u16(queue.page + AVAILABLE + 2, queue.made)?;
        // The device may look at the index while we look at what it wants to be told: 2.7.13.4.1.
        barrier::dma_full();
        self.notify.write_u16(queue.bell, queue.index)
    }

    /// Whether the device has used another chain.
    fn is_used(&self, queue: &Queue) -> Result<bool> {
        let used = self.memory.memory()?.load_u16(queue.page + USED + 2)?;
        barrier::dma_read();
        Ok(used != queue.used)
    }

    /// Takes the next used chain (2.7.14), which has to begin with descriptor `first`; answers how many bytes were written.
    fn take(&self, queue: &mut Queue, first: u16) -> Result<u32> {
        ensure!(self.is_used(queue)?, "queue {} has nothing used", queue.index);
        let at = queue.page + USED + RING + 8 * usize::from(queue.used % ENTRIES);
        let memory = self.memory.memory()?;
        let (chain, length) = (memory.load_u32(at)?, memory.load_u32(at + 4)?);
        ensure!(chain == u32::from(first), "chain {chain} came back, not {first}");
        queue.used = queue.used.wrapping_add(1);
        Ok(length)
    }

    fn wait(&self, queue: &mut Queue, first: u16, what: &str) -> Result<u32> {
        wait(&self.device, what, || self.is_used(queue))?;
        self.take(queue, first)
    }

    /// Has the device interrupt when it uses something of this queue.
    fn want_interrupt(&self, queue: &Queue) -> Result<()> {
        // That was for others, so that the next one is a new one.
        self.interrupt.read_u8(0)?;
        self.memory.memory()?.store_u16(queue.page + AVAILABLE, 0)?;
        Ok(())
    }

    /// Takes an interrupt: by line, reading its reason lets the line fall (4.1.4.5); by message there is no reason to read.
    fn acknowledge(&self) -> Result<()> {
        if self.interrupts == Some(InterruptKind::Intx) {
            let reason = self.interrupt.read_u8(0)?;
            ensure!(reason & 1 != 0, "an interrupt for another reason than a queue: {reason:#x}");
        }
        Ok(())
    }
}

/// A queue: where it is, and how far driver and device are.
struct Queue {
    index: u16,
    page: usize,
    /// Where it is notified, from the beginning of that structure.
    bell: u64,
    /// Chains that were made available, and used chains that were taken; both wrap.
    made: u16,
    used: u16,
}

/// Bytes of config space.
fn config<const N: usize>(device: &Device, offset: u16) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    device.config_read(offset, &mut bytes)?;
    Ok(bytes)
}

// 5.2.6, requests to a block device.
const READ: u32 = 0;
const GET_ID: u32 = 8;
const SECTOR: usize = 512;
const ID_LENGTH: usize = 20;

/// The sector that the host has written something to.
const STAMPED: u64 = 3;

/// Where the block driver has its queue, a request's head, its status and its data.
const REQUESTS: usize = 0;
const HEAD: usize = PAGE;
const STATUS: usize = PAGE + 16;
const DATA: usize = 2 * PAGE;

/// A block device.
pub(super) struct Block {
    transport: Transport,
    queue: Queue,
}

impl Block {
    fn submit(&mut self, kind: u32, sector: u64, length: usize) -> Result<()> {
        let memory = self.transport.memory.memory()?;
        memory.store_u32(HEAD, kind)?;
        memory.store_u32(HEAD + 4, 0)?;
        memory.store_u64(HEAD + 8, sector)?;
        // Neither is a status or an answer.
        memory.store_u8(STATUS, 0xff)?;
        memory.fill(DATA, PAGE, 0)?;
        self.transport.submit(
            &mut self.queue,
            0,
            &[(HEAD, 16, false), (DATA, length, true), (STATUS, 1, true)],
        )
    }

    fn is_good(&self) -> Result<()> {
        let status = self.transport.memory.memory()?.load_u8(STATUS)?;
        ensure!(status == 0, "the request ended with status {status}");
        Ok(())
    }

    fn request(&mut self, kind: u32, sector: u64, length: usize) -> Result<Vec<u8>> {
        self.submit(kind, sector, length)?;
        self.transport.wait(&mut self.queue, 0, "a request")?;
        self.is_good()?;
        self.transport.memory.bytes(DATA, length)
    }
}

impl Driver for Block {
    const ID: (u16, u16) = (0x1af4, 0x1042);

    fn start(device: Device, ioas: &Ioas, interrupts: Option<InterruptKind>) -> Result<Self> {
        expect_id(&device, Self::ID)?;
        let transport = Transport::new(device, ioas, interrupts, 0, 3)?;
        let queue = transport.queue(0, REQUESTS, true)?;
        // SAFETY: the promise of this driver. The device is given addresses in `memory`, which is mapped for it: of a queue
        // in one page, and of buffers that each lie in one page with the lengths that it is told. `memory` lives until the
        // device is reset, or is kept by its IOAS until the device is quiet.
        unsafe { transport.device.enable_bus_master()? };
        transport.ready()?;
        Ok(Self { transport, queue })
    }

    fn device(&self) -> &Device {
        &self.transport.device
    }

    fn identity(&mut self) -> Result<String> {
        // 5.2.4: the capacity, in sectors.
        let sectors = self.transport.specific.read_u32(0)?;
        Ok(format!("{sectors} sectors"))
    }

    fn transfer(&mut self) -> Result<Written> {
        let id = self.request(GET_ID, 0, ID_LENGTH)?;
        let id = String::from_utf8_lossy(&id).trim_end_matches('\0').to_owned();
        let bytes = self.request(READ, STAMPED, SECTOR)?;
        Ok(Written {
            what: format!("serial {id}, sector {STAMPED}"),
            address: self.transport.memory.address(DATA)?,
            bytes,
        })
    }

    fn fire(&mut self) -> Result<()> {
        self.transport.want_interrupt(&self.queue)?;
        self.submit(READ, STAMPED, SECTOR)
    }

    fn acknowledge(&mut self) -> Result<()> {
        self.transport.acknowledge()?;
        self.transport.take(&mut self.queue, 0)?;
        self.is_good()
    }

    fn stop(&mut self) -> Result<()> {
        self.transport.reset()
    }

    fn is_fresh(&self) -> Result<bool> {
        Ok(self.transport.common.read_u8(DEVICE_STATUS)? == 0)
    }
}

/// 5.1.6: what is before each frame. All zeros: nothing is left to the device.
const NET_HEADER: usize = 12;
/// The queues, by their numbers.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Where the network driver has its queues and a frame in each direction.
const RECEIVE_QUEUE: usize = 0;
const TRANSMIT_QUEUE: usize = PAGE;
const INCOMING: usize = 2 * PAGE;
const OUTGOING: usize = 3 * PAGE;
/// The descriptor of a frame: not the first, so that its number in the used ring is written by the device.
const CHAIN: u16 = 5;

/// A network card.
pub(super) struct Net {
    transport: Transport,
    receive: Queue,
    transmit: Queue,
}

impl Net {
    fn mac(&self) -> Result<[u8; 6]> {
        let mut mac = [0; 6];
        for (at, byte) in (0..).zip(&mut mac) {
            *byte = self.transport.specific.read_u8(at)?;
        }
        Ok(mac)
    }

    /// Has the card send a question that QEMU's network answers, and gives it a buffer for the answer.
    fn submit(&mut self) -> Result<()> {
        let request = arp::request(self.mac()?);
        let memory = self.transport.memory.memory()?;
        memory.fill(INCOMING, PAGE, 0)?;
        memory.fill(OUTGOING, NET_HEADER, 0)?;
        memory.write(OUTGOING + NET_HEADER, &request)?;
        self.transport.submit(&mut self.receive, CHAIN, &[(INCOMING, PAGE, true)])?;
        let out = [(OUTGOING, NET_HEADER + request.len(), false)];
        self.transport.submit(&mut self.transmit, CHAIN, &out)
    }

    /// Takes the answer.
    fn answer(&mut self) -> Result<(Vec<u8>, [u8; 6])> {
        let length = self.transport.wait(&mut self.receive, CHAIN, "receiving")? as usize;
        if length < NET_HEADER {
            bail!("a frame of {length} bytes with its header");
        }
        let bytes =
            self.transport.memory.bytes(INCOMING + NET_HEADER, (length - NET_HEADER).min(arp::FRAME))?;
        let gateway = arp::answer(&bytes, self.mac()?)?;
        Ok((bytes, gateway))
    }
}

impl Driver for Net {
    const ID: (u16, u16) = (0x1af4, 0x1041);

    fn start(device: Device, ioas: &Ioas, interrupts: Option<InterruptKind>) -> Result<Self> {
        expect_id(&device, Self::ID)?;
        let transport = Transport::new(device, ioas, interrupts, FEATURE_MAC, 4)?;
        let receive = transport.queue(RECEIVE, RECEIVE_QUEUE, false)?;
        let transmit = transport.queue(TRANSMIT, TRANSMIT_QUEUE, true)?;
        // SAFETY: as for block devices: two queues and two buffers, each in a page of `memory` with the length that is told.
        unsafe { transport.device.enable_bus_master()? };
        transport.ready()?;
        Ok(Self { transport, receive, transmit })
    }

    fn device(&self) -> &Device {
        &self.transport.device
    }

    fn identity(&mut self) -> Result<String> {
        Ok(format!("MAC {}", self.mac()?.map(|byte| format!("{byte:02x}")).join(":")))
    }

    fn transfer(&mut self) -> Result<Written> {
        self.submit()?;
        self.transport.wait(&mut self.transmit, CHAIN, "sending")?;
        let (bytes, gateway) = self.answer()?;
        Ok(Written {
            what: format!("sent a frame, {} answered", gateway.map(|byte| format!("{byte:02x}")).join(":")),
            address: self.transport.memory.address(INCOMING + NET_HEADER)?,
            bytes,
        })
    }

    fn fire(&mut self) -> Result<()> {
        self.transport.want_interrupt(&self.transmit)?;
        self.submit()
    }

    fn acknowledge(&mut self) -> Result<()> {
        self.transport.acknowledge()?;
        self.transport.take(&mut self.transmit, CHAIN)?;
        self.answer()?;
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.transport.reset()
    }

    fn is_fresh(&self) -> Result<bool> {
        Ok(self.transport.common.read_u8(DEVICE_STATUS)? == 0)
    }
}
