//! What a driver and the service say to each other: messages on a socket of whole packets (SOCK_SEQPACKET), each answered by one.
//!
//! | message | argument | what it says |
//! |---|---|---|
//! | hello | version | the first one |
//! | hold | a descriptor's number in the driver | keep it open: it pins memory; answered by a number for `release` |
//! | release | such a number | it is needed no more |
//! | set | slot, state, record, descriptors | what is to be known of a device: all of it, in place of what was said before |
//!
//! Descriptors of rings cannot be sent (the kernel refuses io_uring in SCM_RIGHTS): the service fetches them by pidfd_getfd. In a
//! record that is sent, descriptors are places in the list of those that come with the message.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::record::Record;

/// The version of this protocol.
pub(super) const VERSION: u32 = 1;

/// The most descriptors of a message: config space, reset and six BARs.
pub(super) const MOST_FILES: usize = 8;

/// Bytes of the longest message.
pub(super) const LONGEST: usize = size_of::<Head>() + size_of::<Record>();

const HELLO: u32 = 1;
const HOLD: u32 = 2;
const RELEASE: u32 = 3;
const SET: u32 = 4;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    kind: u32,
    argument: u32,
    state: u32,
    reserved: u32,
}

/// A message of a driver.
pub(super) enum Request {
    Hello { version: u32 },
    Hold { file: i32 },
    Release { number: u32 },
    Set { slot: u32, state: u32, record: Box<Record> },
}

impl Request {
    /// Its bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, argument, state) = match self {
            Self::Hello { version } => (HELLO, *version, 0),
            Self::Hold { file } => (HOLD, file.cast_unsigned(), 0),
            Self::Release { number } => (RELEASE, *number, 0),
            Self::Set { slot, state, .. } => (SET, *slot, *state),
        };
        let mut bytes = Head { kind, argument, state, reserved: 0 }.as_bytes().to_vec();
        if let Self::Set { record, .. } = self {
            bytes.extend_from_slice(record.as_bytes());
        }
        bytes
    }

    /// What the bytes say; `None`: nothing that there is.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = Head::read_from_prefix(bytes).ok()?;
        let Head { kind, argument, state, .. } = head;
        match kind {
            HELLO if rest.is_empty() => Some(Self::Hello { version: argument }),
            HOLD if rest.is_empty() => Some(Self::Hold { file: argument.cast_signed() }),
            RELEASE if rest.is_empty() => Some(Self::Release { number: argument }),
            SET => {
                let record = Box::new(Record::read_from_bytes(rest).ok()?);
                Some(Self::Set { slot: argument, state, record })
            }
            _ => None,
        }
    }
}

/// An answer of the service.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Reply {
    /// 0, or the number of an error.
    pub(super) errno: u32,
    /// For `hold`: the number for `release`.
    pub(super) number: u32,
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;

    #[test]
    fn messages_survive_being_bytes() {
        let record = Box::new(Record::new_zeroed());
        for request in [
            Request::Hello { version: VERSION },
            Request::Hold { file: 7 },
            Request::Release { number: u32::MAX },
            Request::Set { slot: 3, state: 2, record },
        ] {
            let bytes = request.encode();
            assert!(bytes.len() <= LONGEST);
            assert_eq!(Request::decode(&bytes).unwrap().encode(), bytes);
            assert!(Request::decode(&bytes[..bytes.len() - 1]).is_none(), "too short");
            assert!(Request::decode(&[&bytes[..], &[0]].concat()).is_none(), "too long");
        }
        assert!(Request::decode(&[9; 16]).is_none());
    }
}
