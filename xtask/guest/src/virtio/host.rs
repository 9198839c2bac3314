//! Our side of the wire: a host with an address, by smoltcp, that answers pings and serves one page.

use std::io::{Read as _, Write as _, stdin, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use noiommu_virtio::Net;
use serde_json::json;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address};

use super::wire::Wire;
use crate::disk::pattern;

/// Its address, and the bits of it that are the network's.
pub(super) const ADDRESS: [u8; 4] = [10, 67, 89, 2];
pub(super) const NETWORK: u8 = 24;
pub(super) const PORT: u16 = 80;

/// Connections at once: while one is being closed, another one can be opened.
const CONNECTIONS: usize = 4;

/// Bytes of the page: many segments and a rest.
const PAGE: usize = 100_003;

/// The page of a seed: text, as pages are, that no other seed has.
pub(super) fn page(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE / 2 + 1];
    pattern::fill(seed, 0, &mut bytes);
    let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text.truncate(PAGE);
    text.into_bytes()
}

/// Serves the page of `seed` until nobody holds the other end of its input any more.
pub(super) fn serve(net: Net, seed: u64) -> Result<()> {
    let (mac, provider) = (net.mac(), net.device().provider().name());
    let mut wire = Wire::new(net);
    let began = Instant::now();
    let now = || smoltcp::time::Instant::from_micros(began.elapsed().as_micros() as i64);
    let mut config = Config::new(EthernetAddress(mac).into());
    config.random_seed = seed;
    let mut interface = Interface::new(config, &mut wire, now());
    let mut full = false;
    interface.update_ip_addrs(|addresses| {
        full = addresses.push(IpCidr::new(Ipv4Address::from(ADDRESS).into(), NETWORK)).is_err();
    });
    ensure!(!full, "no room for an address");
    let mut sockets = SocketSet::new(Vec::new());
    let buffer = || tcp::SocketBuffer::new(vec![0; 32 << 10]);
    let mut connections: Vec<_> = (0..CONNECTIONS)
        .map(|_| Connection::new(sockets.add(tcp::Socket::new(buffer(), buffer()))))
        .collect();
    let (page, mut pages) = (page(seed), 0);

    println!("ready");
    stdout().flush()?;
    let ended = until_input_ends();
    // What is being sent when the input ends is sent to its end.
    while !ended.load(Ordering::Acquire) || connections.iter().any(|connection| connection.answer.is_some()) {
        interface.poll(now(), &mut wire, &mut sockets);
        wire.check()?;
        let mut busy = false;
        for connection in &mut connections {
            busy |= connection.serve(&page, &mut pages, &mut sockets)?;
        }
        if !busy {
            let pause = interface.poll_delay(now(), &sockets).map_or(Duration::MAX, Into::into);
            std::thread::sleep(pause.min(Duration::from_micros(100)));
        }
    }
    ensure!(wire.net().shared() > 0, "nothing is shared with the card, which is to receive");
    let (received, sent, echoes) = (wire.received, wire.sent, wire.echoes);
    let quiet = wire.into_net().close()?;
    ensure!(quiet.bus_master_off && quiet.recipe == Some(true), "it is not quiet by its reset: {quiet:?}");
    println!(
        "{}",
        json!({
            "provider": provider, "mac": mac.map(|byte| format!("{byte:02x}")).join(":"),
            "received": received, "sent": sent, "echoes": echoes, "pages": pages,
        })
    );
    Ok(())
}

/// Whether the input has ended, from some time on.
fn until_input_ends() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let tell = ended.clone();
    std::thread::spawn(move || {
        let _ = stdin().read_to_end(&mut Vec::new());
        tell.store(true, Ordering::Release);
    });
    ended
}

/// A connection of HTTP/1.0, one after the other.
struct Connection {
    socket: SocketHandle,
    /// What has been asked so far.
    asked: Vec<u8>,
    /// What is being answered, and how much of it has been given to the connection.
    answer: Option<(Vec<u8>, usize)>,
}

impl Connection {
    fn new(socket: SocketHandle) -> Self {
        Self { socket, asked: Vec::new(), answer: None }
    }

    /// Goes on as far as the connection is, and counts pages; `true`: something was done.
    fn serve(&mut self, page: &[u8], pages: &mut u64, sockets: &mut SocketSet<'_>) -> Result<bool> {
        let socket = sockets.get_mut::<tcp::Socket<'_>>(self.socket);
        if !socket.is_open() {
            self.asked.clear();
            self.answer = None;
            socket.listen(PORT).map_err(|error| anyhow::anyhow!("listening: {error}"))?;
            return Ok(true);
        }
        let mut done = false;
        if self.answer.is_none() && socket.can_recv() {
            let asked = &mut self.asked;
            let taken = socket.recv(|bytes| {
                asked.extend_from_slice(bytes);
                (bytes.len(), ())
            });
            taken.map_err(|error| anyhow::anyhow!("receiving: {error}"))?;
            done = true;
            // The headers' end.
            if self.asked.windows(4).any(|end| end == b"\r\n\r\n") {
                self.answer = Some((self.respond(page, pages), 0));
            }
        }
        let mut finished = false;
        if let Some((bytes, given)) = &mut self.answer
            && socket.can_send()
        {
            let rest = bytes.get(*given..).unwrap_or_default();
            let more = socket.send_slice(rest).map_err(|error| anyhow::anyhow!("sending: {error}"))?;
            *given += more;
            finished = *given == bytes.len();
            done |= more > 0;
        }
        if finished {
            self.answer = None;
            self.asked.clear();
            socket.close();
        }
        // The other side has closed, or gone, in the middle.
        if !socket.may_send() && self.answer.is_some() {
            socket.abort();
        }
        Ok(done)
    }

    fn respond(&self, page: &[u8], pages: &mut u64) -> Vec<u8> {
        let (status, page) = if self.asked.starts_with(b"GET / ") {
            *pages += 1;
            ("200 OK", page)
        } else {
            ("404 Not Found", &b"there is one page\n"[..])
        };
        let head = format!(
            "HTTP/1.0 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            page.len()
        );
        [head.as_bytes(), page].concat()
    }
}
