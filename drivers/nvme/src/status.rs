//! What a controller says of a command that it has done.

use std::fmt;

/// The status field of a completion, without its phase (NVM Express Base Specification 1.4, 4.6.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(u16);

impl Status {
    /// Done as it was told to.
    pub const SUCCESS: Self = Self(0);
    /// The command was aborted because an Abort command said so.
    pub const ABORT_REQUESTED: Self = Self(0x07);
    /// The command's queue was deleted.
    pub const QUEUE_DELETED: Self = Self(0x08);

    /// The upper 16 bits of the last word of a completion, phase included.
    #[must_use]
    pub(crate) const fn of_entry(bits: u16) -> Self {
        Self(bits >> 1)
    }

    /// The status code type: 0 generic, 1 of the command, 2 media and data integrity, 3 path, 7 of the vendor.
    #[must_use]
    pub const fn code_type(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// The status code, of its type.
    #[must_use]
    pub const fn code(self) -> u8 {
        self.0 as u8
    }

    /// Whether the command was done as it was told to.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// Whether the same command would fail again: "do not retry".
    #[must_use]
    pub const fn is_final(self) -> bool {
        self.0 >> 14 & 1 != 0
    }

    /// Whether the controller keeps more about it in its error log.
    #[must_use]
    pub const fn has_more(self) -> bool {
        self.0 >> 13 & 1 != 0
    }

    /// In words, where this driver has some (4.6.1.2).
    #[must_use]
    pub const fn text(self) -> &'static str {
        match (self.code_type(), self.code()) {
            (0, 0x00) => "success",
            (0, 0x01) => "invalid opcode",
            (0, 0x02) => "a field of the command is invalid",
            (0, 0x03) => "the command identifier is in use",
            (0, 0x04) => "data transfer error",
            (0, 0x05) => "aborted: power is going",
            (0, 0x06) => "internal error of the controller",
            (0, 0x07) => "aborted on request",
            (0, 0x08) => "aborted: its queue was deleted",
            (0, 0x0b) => "no such namespace, or a format that does not fit",
            (0, 0x0c) => "the command is out of sequence",
            (0, 0x13) => "an offset in the PRPs is invalid",
            (0, 0x15) => "the operation was denied",
            (0, 0x20) => "the namespace is write protected",
            (0, 0x80) => "the blocks pass the end of the namespace",
            (0, 0x81) => "the capacity of the namespace is used up",
            (0, 0x82) => "the namespace is not ready",
            (0, 0x83) => "a reservation of another host is in the way",
            (0, 0x84) => "the namespace is being formatted",
            (1, 0x00) => "the completion queue is invalid",
            (1, 0x01) => "the queue identifier is invalid",
            (1, 0x02) => "the queue size is invalid",
            (1, 0x03) => "too many commands are to be aborted",
            (1, 0x08) => "the interrupt vector is invalid",
            (1, 0x0c) => "the queue is not to be deleted yet",
            (1, 0x80) => "conflicting attributes",
            (1, 0x82) => "the blocks are read-only",
            (2, 0x80) => "write fault",
            (2, 0x81) => "unrecovered read error",
            (2, 0x82..=0x84) => "the protection information does not match",
            (2, 0x85) => "compare failure",
            (2, 0x86) => "access denied",
            (2, 0x87) => "the block was deallocated or never written",
            (3, _) => "path error",
            (7, _) => "a status of the vendor's own",
            _ => "an error",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (status type {}, code {:#04x})", self.text(), self.code_type(), self.code())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({:#06x}: {})", self.0, self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_completion() {
        // Phase, code 0x81, type 2, more, do not retry.
        let status = Status::of_entry(1 | 0x81 << 1 | 2 << 9 | 1 << 14 | 1 << 15);
        assert_eq!((status.code_type(), status.code()), (2, 0x81));
        assert!(status.is_final() && status.has_more() && !status.is_success());
        assert_eq!(status.text(), "unrecovered read error");
        assert!(Status::of_entry(1).is_success() && Status::of_entry(0).is_success());
        assert_eq!(Status::of_entry(0x07 << 1), Status::ABORT_REQUESTED);
    }
}
