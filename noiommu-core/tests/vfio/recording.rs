//! The recordings: what a real kernel answered, line by line.
//!
//! | line | meaning |
//! |---|---|
//! | `device`, `resource`, `reset_method`, `irq`, `config_size`, `scope`, `rom`, `bound` | the device, as sysfs tells it |
//! | `raw OFFSET BYTES` | the device's config space, by sysfs: all that is not zero at first, then what changed |
//! | `virt OFFSET BYTES` | the same as the open device shows it |
//! | `ioctl NUMBER IN = RESULT [OUT]` | a call; OUT where the argument changed |
//! | `read OFFSET LENGTH = RESULT [BYTES]`, `write OFFSET BYTES = RESULT` | transfers |
//! | `event N = COUNT` | how often eventfd N was signalled since the last look |
//! | `mmap OFFSET LENGTH PROT FLAGS = RESULT` | a mapping |
//! | `dmabuf ... = RESULT` | the feature of that name |
//!
//! Bytes are in hexadecimal, runs of one as `(ff*16)`; results are numbers or names of errors.
//!
//! Recorded on the reference kernel (7.3.4) in QEMU 7.2, machine q35 with one processor, each device bound to vfio-pci, opened as
//! a character device and bound to an iommufd alone; descriptors 100 to 102 are eventfds, 0 is /dev/null, 999 is not open. Behind
//! ports of their own: e1000e, *nvme-port* and virtio-net (which has a second function beside it); all others on the root bus.
//! *edu* and *nvme-port* have all steps, the others those that depend on the device: what it tells, its interrupts, resets, and
//! what becomes of writes to config space, chosen ones and then random ones.

/// Bytes as a recording has them.
pub(crate) fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while !rest.is_empty() && rest != "-" {
        if let Some(run) = rest.strip_prefix('(') {
            let (run, after) = run.split_once(')').unwrap();
            let (byte, count) = run.split_once('*').unwrap();
            bytes.extend(vec![u8::from_str_radix(byte, 16).unwrap(); count.parse().unwrap()]);
            rest = after;
        } else {
            bytes.push(u8::from_str_radix(&rest[..2], 16).unwrap());
            rest = &rest[2..];
        }
    }
    bytes
}

/// A line: its words before and after the equals sign.
pub(crate) struct Line<'a> {
    pub(crate) number: usize,
    pub(crate) text: &'a str,
    pub(crate) words: Vec<&'a str>,
    pub(crate) result: Vec<&'a str>,
}

impl Line<'_> {
    pub(crate) fn hex(&self, word: usize) -> u64 {
        u64::from_str_radix(self.words[word], 16).unwrap()
    }
}

/// The lines of a recording, without remarks.
pub(crate) fn lines(text: &str) -> Vec<Line<'_>> {
    let mut lines = Vec::new();
    for (number, text) in text.lines().enumerate() {
        if text.starts_with('#') {
            continue;
        }
        let (before, after) = text.split_once(" = ").unwrap_or((text, ""));
        lines.push(Line {
            number: number + 1,
            text,
            words: before.split(' ').collect(),
            result: after.split(' ').filter(|word| !word.is_empty()).collect(),
        });
    }
    lines
}
