//! Commands as they lie in a submission queue: 64 bytes, as eight words of 64 bits.
//!
//! Source: NVM Express Base Specification 1.4, 4.2 (the entry), 5 (admin commands), 6 (commands of the NVM command set).

/// Words of an entry.
pub(crate) const WORDS: usize = 8;
/// Bytes of an entry, as a power of two.
pub(crate) const ENTRY_SHIFT: u32 = 6;

/// 5, opcodes of the admin queue.
const DELETE_SUBMISSION: u8 = 0x00;
const CREATE_SUBMISSION: u8 = 0x01;
const DELETE_COMPLETION: u8 = 0x04;
const CREATE_COMPLETION: u8 = 0x05;
const IDENTIFY: u8 = 0x06;
const ABORT: u8 = 0x08;
const SET_FEATURES: u8 = 0x09;
const DOORBELL_BUFFER: u8 = 0x7c;

/// 6, opcodes of the other queues.
const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;

/// 5.3 and 5.4, the queue is one piece of memory.
const CONTIGUOUS: u32 = 1;
/// 5.3, it interrupts.
const INTERRUPTS: u32 = 2;
/// 5.21.1.7, the feature: how many queues there are to be.
const NUMBER_OF_QUEUES: u32 = 0x07;

/// A command, but for its identifier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    opcode: u8,
    namespace: u32,
    /// PRP entries 1 and 2 (4.3): where the data is.
    pub(crate) prp: [u64; 2],
    /// Words 10 to 12 of 32 bits, whose meaning is the command's.
    words: [u32; 3],
}

impl Command {
    const fn new(opcode: u8) -> Self {
        Self { opcode, namespace: 0, prp: [0; 2], words: [0; 3] }
    }

    /// The entry of a submission queue, with the identifier.
    #[inline]
    pub(crate) fn entry(&self, identifier: u16) -> [u64; WORDS] {
        let [ten, eleven, twelve] = self.words;
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        [
            pair(u32::from(self.opcode) | u32::from(identifier) << 16, self.namespace),
            0,
            0,
            self.prp[0],
            self.prp[1],
            pair(ten, eleven),
            twelve.into(),
            0,
        ]
    }

    /// 5.15, Identify: 4096 bytes of `structure`, of a namespace where it is of one, go to `page`.
    pub(crate) const fn identify(structure: u32, namespace: u32, page: u64) -> Self {
        Self { namespace, prp: [page, 0], words: [structure, 0, 0], ..Self::new(IDENTIFY) }
    }

    /// 5.21.1.7: so many pairs of I/O queues are wanted, at least 1.
    pub(crate) const fn number_of_queues(count: u16) -> Self {
        let count = count.saturating_sub(1) as u32;
        Self { words: [NUMBER_OF_QUEUES, count << 16 | count, 0], ..Self::new(SET_FEATURES) }
    }

    /// 5.7: doorbells are in memory from now on, and so is when registers are to be written: a page each.
    pub(crate) const fn doorbell_buffer(pages: [u64; 2]) -> Self {
        Self { prp: pages, ..Self::new(DOORBELL_BUFFER) }
    }

    /// 5.3: a completion queue at `address`, which interrupts by a vector or does not.
    pub(crate) const fn create_completion(id: u16, entries: u16, address: u64, vector: Option<u16>) -> Self {
        let flags = match vector {
            Some(vector) => CONTIGUOUS | INTERRUPTS | (vector as u32) << 16,
            None => CONTIGUOUS,
        };
        Self { prp: [address, 0], words: [queue_size(id, entries), flags, 0], ..Self::new(CREATE_COMPLETION) }
    }

    /// 5.4: a submission queue at `address`, whose commands complete in the completion queue of the same number.
    pub(crate) const fn create_submission(id: u16, entries: u16, address: u64) -> Self {
        let words = [queue_size(id, entries), (id as u32) << 16 | CONTIGUOUS, 0];
        Self { prp: [address, 0], words, ..Self::new(CREATE_SUBMISSION) }
    }

    /// 5.6: the submission queue is no more; nor are its commands.
    pub(crate) const fn delete_submission(id: u16) -> Self {
        Self { words: [id as u32, 0, 0], ..Self::new(DELETE_SUBMISSION) }
    }

    /// 5.5: the completion queue is no more.
    pub(crate) const fn delete_completion(id: u16) -> Self {
        Self { words: [id as u32, 0, 0], ..Self::new(DELETE_COMPLETION) }
    }

    /// 5.1: a command of a queue is to end at once.
    pub(crate) const fn abort(queue: u16, identifier: u16) -> Self {
        Self { words: [queue as u32 | (identifier as u32) << 16, 0, 0], ..Self::new(ABORT) }
    }

    /// 6.8: what has been written is to outlive a loss of power.
    pub(crate) const fn flush(namespace: u32) -> Self {
        Self { namespace, ..Self::new(FLUSH) }
    }

    /// 6.9: `count` blocks from `first` on go to memory. `count` is at least 1 and at most 65,536.
    pub(crate) const fn read(namespace: u32, first: u64, count: u32) -> Self {
        Self { namespace, words: span(first, count), ..Self::new(READ) }
    }

    /// 6.15: the other way round.
    pub(crate) const fn write(namespace: u32, first: u64, count: u32) -> Self {
        Self { namespace, words: span(first, count), ..Self::new(WRITE) }
    }
}

/// Word 10 of the commands that create queues: sizes are told less one.
const fn queue_size(id: u16, entries: u16) -> u32 {
    (entries.saturating_sub(1) as u32) << 16 | id as u32
}

/// Words 10 to 12 of reads and writes: the first block, and how many, less one.
const fn span(first: u64, count: u32) -> [u32; 3] {
    [first as u32, (first >> 32) as u32, count.wrapping_sub(1) & 0xffff]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_as_the_specification_has_it() {
        let mut command = Command::read(7, 0x1_0000_0002, 8);
        command.prp = [0x1000, 0x2000];
        let entry = command.entry(0xabcd);
        assert_eq!(entry, [0x7_abcd_0002, 0, 0, 0x1000, 0x2000, 0x1_0000_0002, 7, 0]);
        assert_eq!(Command::write(1, 0, 65536).entry(0)[6], 0xffff);
        assert_eq!(Command::number_of_queues(4).entry(1)[5], 0x0003_0003_0000_0007);
        assert_eq!(Command::create_completion(2, 256, 0x5000, Some(3)).entry(0)[5], 0x0003_0003_00ff_0002);
        assert_eq!(Command::create_completion(2, 256, 0x5000, None).entry(0)[5], 0x0000_0001_00ff_0002);
        assert_eq!(Command::create_submission(2, 64, 0x5000).entry(0)[5], 0x0002_0001_003f_0002);
        assert_eq!(Command::abort(2, 0x1234).entry(0)[5], 0x1234_0002);
    }
}
