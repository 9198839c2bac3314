//! A driver's end of the line to the service.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use noiommu_core::Errno;
use rustix::event::{PollFd, PollFlags};
use rustix::io::retry_on_intr;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix};
use zerocopy::FromBytes as _;

use super::board::{Board, DIED, FREE, SLOTS, blank};
use super::service::{packets, receive};
use super::wire::{MOST_FILES, Reply, Request, VERSION};
use crate::{Error, ErrorKind, Result};

/// The line to a service.
pub(super) struct Client {
    socket: Arc<OwnedFd>,
}

/// Opens a line. Nothing is said yet.
pub(super) fn connect(path: &Path) -> Result<OwnedFd> {
    let socket = packets()?;
    let address = SocketAddrUnix::new(path)
        .map_err(|error| Error::system(format_args!("the address {}", path.display()), error))?;
    retry_on_intr(|| rustix::net::connect(&socket, &address)).map_err(|error| {
        Error::new(
            ErrorKind::NoGuardian,
            Errno::from_raw(error.raw_os_error()).unwrap_or(Errno::EIO),
            format!("the guardian's service cannot be reached at {}: {error}", path.display()),
        )
        .with_remedy("start it (noiommu guardian --listen), let this user connect, or take a guardian of the process's own: NOIOMMU_GUARDIAN=own")
    })?;
    Ok(socket)
}

fn failed(doing: &str, errno: Errno) -> Error {
    let error = Error::new(
        ErrorKind::NoGuardian,
        errno,
        format!(
            "the guardian's service does not {doing}: {}",
            std::io::Error::from_raw_os_error(errno.raw())
        ),
    );
    error.with_remedy(match errno {
        Errno::EPERM => {
            "it may not fetch descriptors of this process: run it as root with CAP_SYS_PTRACE, in the same user namespace"
        }
        _ => "see its log; a guardian of the process's own needs none of that: NOIOMMU_GUARDIAN=own",
    })
}

impl Client {
    /// Connects, and says all that there is: what is on the board, and what pins memory. `word` is told of the service's end.
    pub(super) fn new(path: &Path, board: &'static Board, holders: &mut [super::Holder]) -> Result<Self> {
        let client = Self { socket: Arc::new(connect(path)?) };
        client.ask("know this version of the kit", &Request::Hello { version: VERSION }, &[])?;
        for holder in holders {
            holder.number = Some(client.hold(holder.file)?);
        }
        for slot in 0..SLOTS {
            if board.state(slot) != FREE {
                client.tell(board, slot)?;
            }
        }
        board.guardian.store(std::process::id(), Ordering::Release);
        client.watch(&board.guardian)?;
        Ok(client)
    }

    /// Has a thread set [`DIED`] when the service has gone.
    fn watch(&self, word: &'static AtomicU32) -> Result<()> {
        let socket = self.socket.clone();
        let spawned = std::thread::Builder::new().name("noiommu-guardian".to_owned()).spawn(move || {
            loop {
                let mut poll = [PollFd::new(&*socket, PollFlags::RDHUP)];
                match rustix::event::poll(&mut poll, None) {
                    Err(rustix::io::Errno::INTR) => {}
                    _ => break,
                }
            }
            word.fetch_or(DIED, Ordering::Release);
        });
        spawned.map(drop).map_err(|error| Error::system("a thread that watches the guardian", error))
    }

    /// Has the service keep a descriptor that pins memory; answers its number there.
    pub(super) fn hold(&self, file: RawFd) -> Result<u32> {
        self.ask("hold what pins memory", &Request::Hold { file }, &[])
    }

    /// The contrary.
    pub(super) fn release(&self, number: u32) {
        if let Err(error) = self.ask("let go", &Request::Release { number }, &[]) {
            tracing::warn!(%error, "memory may stay pinned until the process ends");
        }
    }

    /// Tells what the board has in a slot.
    pub(super) fn tell(&self, board: &Board, slot: usize) -> Result<()> {
        let mut record = Box::new(blank());
        let state = board.get(slot, &mut record);
        let mut files: Vec<RawFd> = Vec::new();
        if state == FREE {
            *record = blank();
        } else {
            record.map_files(|file| {
                let place = files.iter().position(|known| *known == file).unwrap_or_else(|| {
                    files.push(file);
                    files.len() - 1
                });
                Some(place as RawFd)
            });
        }
        self.ask("take the device", &Request::Set { slot: slot as u32, state, record }, &files).map(drop)
    }

    fn ask(&self, doing: &str, request: &Request, files: &[RawFd]) -> Result<u32> {
        let answer = self
            .exchange(request, files)
            .map_err(|error| failed(doing, Errno::from_raw(error.raw_os_error()).unwrap_or(Errno::EIO)))?;
        match Errno::from_raw(answer.errno.cast_signed()) {
            None => Ok(answer.number),
            Some(errno) => Err(failed(doing, errno)),
        }
    }

    fn exchange(&self, request: &Request, files: &[RawFd]) -> rustix::io::Result<Reply> {
        let bytes = request.encode();
        // SAFETY: not negative, as the record has them; descriptors of devices that are open for as long as the board tells of them.
        let files: Vec<_> =
            files.iter().take(MOST_FILES).map(|file| unsafe { BorrowedFd::borrow_raw(*file) }).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&files));
        }
        retry_on_intr(|| {
            rustix::net::sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)
        })?;
        let (bytes, _) = receive(&self.socket)?;
        Reply::read_from_bytes(&bytes).map_err(|_| rustix::io::Errno::PIPE)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // The thread that watches has a share of the socket.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}
