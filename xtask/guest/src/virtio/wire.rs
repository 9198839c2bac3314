//! Our card as smoltcp has it.

use noiommu_virtio::{Error, FRAME, Net};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// Where IPv4's protocol and ICMP's type are in a frame without options.
const PROTOCOL: usize = 23;
const TYPE: usize = 34;
const ICMP: u8 = 1;
const ECHO_REPLY: u8 = 0;

/// The card, and what went through it.
pub(super) struct Wire {
    net: Net,
    pub(super) received: u64,
    pub(super) sent: u64,
    /// Answers to pings among those.
    pub(super) echoes: u64,
    /// What has gone wrong, which smoltcp has no place for.
    error: Option<Error>,
}

impl Wire {
    pub(super) fn new(net: Net) -> Self {
        Self { net, received: 0, sent: 0, echoes: 0, error: None }
    }

    pub(super) fn net(&self) -> &Net {
        &self.net
    }

    pub(super) fn into_net(self) -> Net {
        self.net
    }

    /// What has gone wrong.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        self.error.take().map_or(Ok(()), Err)
    }
}

impl phy::Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = ToSend<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, ToSend<'_>)> {
        let mut frame = vec![0; FRAME];
        match self.net.receive(&mut frame) {
            Ok(Some(length)) => {
                frame.truncate(length);
                self.received += 1;
                Some((Received(frame), ToSend(self)))
            }
            Ok(None) => None,
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }

    fn transmit(&mut self, _: Instant) -> Option<ToSend<'_>> {
        Some(ToSend(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME;
        capabilities
    }
}

/// A frame that has come.
pub(super) struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// Room for a frame.
pub(super) struct ToSend<'a>(&'a mut Wire);

impl phy::TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let answer = f(&mut frame);
        match self.0.net.send(&frame) {
            Ok(true) => {
                self.0.sent += 1;
                let is = |at: usize, byte: u8| frame.get(at) == Some(&byte);
                self.0.echoes += u64::from(is(PROTOCOL, ICMP) && is(TYPE, ECHO_REPLY));
            }
            // As on any wire, a frame may be lost: who needs it sends it again.
            Ok(false) => {}
            Err(error) => {
                self.0.error.get_or_insert(error);
            }
        }
        answer
    }
}
