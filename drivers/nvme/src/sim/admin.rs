//! Commands of the admin queue (5).

use noiommu::sim::Bus;

use super::controller::{
    ABORTED, Controller, INVALID_FIELD, INVALID_NAMESPACE, INVALID_OPCODE, INVALID_PRP, SUCCESS,
    TRANSFER_ERROR,
};
use super::data;
use super::queues::{Completions, Entry, Submission};

/// Status codes of commands: 4.6.1.2.2.
const INVALID_COMPLETION_QUEUE: u16 = 0x100;
const INVALID_QUEUE: u16 = 0x101;
const INVALID_SIZE: u16 = 0x102;
const INVALID_VECTOR: u16 = 0x108;
const INVALID_DELETION: u16 = 0x10c;

impl Controller {
    pub(super) fn admin(&mut self, bytes: &[u8; 64], bus: &mut Bus<'_>) {
        let entry = Entry(bytes);
        let (status, result) = match entry.opcode() {
            0x00 => (self.delete_submission(entry), 0),
            0x01 => (self.create_submission(entry), 0),
            0x04 => (self.delete_completion(entry), 0),
            0x05 => (self.create_completion(entry, bus), 0),
            0x06 => (self.identify(entry, bus), 0),
            0x08 => (SUCCESS, self.abort(entry, bus)),
            // 5.7.
            0x7c if self.takes_doorbells => (self.take_doorbells(entry), 0),
            // 5.21.1.7, the number of queues.
            0x09 if entry.word(10) & 0xff == 7 => {
                let wanted = entry.word(11);
                let granted = u32::from(self.granted.saturating_sub(1));
                (SUCCESS, (wanted & 0xffff).min(granted) | (wanted >> 16).min(granted) << 16)
            }
            _ => (INVALID_OPCODE, 0),
        };
        self.complete(0, entry.identifier(), status, result, bus);
    }

    fn create_completion(&mut self, entry: Entry<'_>, bus: &mut Bus<'_>) -> u16 {
        let (id, entries) = (entry.word(10) as u16, (entry.word(10) >> 16) as u16);
        let (flags, vector) = (entry.word(11) as u16, (entry.word(11) >> 16) as u16);
        if id == 0 || id > self.granted || self.completions.contains_key(&id) {
            return INVALID_QUEUE;
        }
        let Some(entries) = entries.checked_add(1).filter(|entries| *entries > 1) else {
            return INVALID_SIZE;
        };
        if flags & 1 == 0 {
            return INVALID_FIELD;
        }
        if flags & 2 != 0 && u32::from(vector) >= bus.vectors().max(1) {
            return INVALID_VECTOR;
        }
        let [address, _] = entry.prp();
        if address % self.page() != 0 {
            return INVALID_PRP;
        }
        let vector = (flags & 2 != 0).then_some(vector);
        self.completions.insert(id, Completions { address, entries, vector, ..Completions::default() });
        SUCCESS
    }

    fn create_submission(&mut self, entry: Entry<'_>) -> u16 {
        let (id, entries) = (entry.word(10) as u16, (entry.word(10) >> 16) as u16);
        let (flags, completion) = (entry.word(11) as u16, (entry.word(11) >> 16) as u16);
        if completion == 0 || !self.completions.contains_key(&completion) {
            return INVALID_COMPLETION_QUEUE;
        }
        if id == 0 || id > self.granted || self.submissions.contains_key(&id) {
            return INVALID_QUEUE;
        }
        let Some(entries) = entries.checked_add(1).filter(|entries| *entries > 1) else {
            return INVALID_SIZE;
        };
        let [address, _] = entry.prp();
        if flags & 1 == 0 || address % self.page() != 0 {
            return INVALID_FIELD;
        }
        self.submissions.insert(id, Submission { address, entries, completion, ..Submission::default() });
        SUCCESS
    }

    fn delete_submission(&mut self, entry: Entry<'_>) -> u16 {
        let id = entry.word(10) as u16;
        if id == 0 || self.submissions.remove(&id).is_none() {
            return INVALID_QUEUE;
        }
        self.silent.retain(|(queue, ..)| *queue != id);
        self.late.retain(|(queue, _)| *queue != id);
        SUCCESS
    }

    fn delete_completion(&mut self, entry: Entry<'_>) -> u16 {
        let id = entry.word(10) as u16;
        if self.submissions.values().any(|submission| submission.completion == id) {
            return INVALID_DELETION;
        }
        if self.completions.remove(&id).is_some() { SUCCESS } else { INVALID_QUEUE }
    }

    fn take_doorbells(&mut self, entry: Entry<'_>) -> u16 {
        let pages = entry.prp();
        if pages.iter().any(|page| page % self.page() != 0) {
            return INVALID_FIELD;
        }
        self.doorbells = Some(pages);
        SUCCESS
    }

    /// 5.1: the answer is 1 where the command is not aborted.
    fn abort(&mut self, entry: Entry<'_>, bus: &mut Bus<'_>) -> u32 {
        let (queue, identifier) = (entry.word(10) as u16, (entry.word(10) >> 16) as u16);
        let found = self.silent.iter().position(|silent| *silent == (queue, identifier, true));
        let Some(at) = found else { return 1 };
        self.silent.swap_remove(at);
        self.complete(queue, identifier, ABORTED, 0, bus);
        0
    }

    /// 5.15.
    fn identify(&mut self, entry: Entry<'_>, bus: &mut Bus<'_>) -> u16 {
        let mut bytes = vec![0; 4096];
        let mut put = |at: usize, from: &[u8]| bytes[at..at + from.len()].copy_from_slice(from);
        let which = entry.word(10) & 0xff;
        match (which, entry.namespace()) {
            (0x00, 1) => {
                let blocks = (self.media.len() as u64 / u64::from(self.block_size)).to_le_bytes();
                // Size, capacity, utilization.
                [0, 8, 16].into_iter().for_each(|at| put(at, &blocks));
                // LBADS of format 0.
                put(130, &[self.block_size.trailing_zeros() as u8]);
            }
            (0x00, _) => return INVALID_NAMESPACE,
            (0x01, _) => {
                put(0, &[0x36, 0x1b, 0xf4, 0x1a]);
                put(4, b"sim-1               ");
                put(24, b"noiommu simulated controller            ");
                put(64, b"1.0     ");
                put(77, &[self.transfer_shift]);
                put(257, &[u8::from(self.takes_doorbells)]);
                put(512, &[0x66, 0x44]);
                put(516, &1_u32.to_le_bytes());
                put(525, &[1]);
            }
            (0x02, last) => {
                if last == 0 {
                    put(0, &1_u32.to_le_bytes());
                }
            }
            _ => return INVALID_FIELD,
        }
        if let Some(forge) = &mut self.forge {
            forge(which, &mut bytes);
        }
        let Some(pieces) = data::pieces(entry.prp(), bytes.len() as u64, self.page(), bus) else {
            return INVALID_PRP;
        };
        let mut rest = &bytes[..];
        for (address, length) in pieces {
            let (part, after) = rest.split_at(length as usize);
            if bus.write(address, part).is_err() {
                return TRANSFER_ERROR;
            }
            rest = after;
        }
        SUCCESS
    }
}
