//! Pins by the memory area (umem) of an AF_XDP socket, for machines where io_uring is switched off.
//!
//! Registering an umem pins its pages for writing and for long (FOLL_WRITE, FOLL_LONGTERM); the socket is bound to no
//! interface, so nothing ever uses them. One socket holds one piece. Needs CAP_NET_RAW.

use std::os::fd::{AsRawFd, OwnedFd};

use noiommu_core::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::pagemap::Piece;
use super::pin::{Pin, PinKind, PinSource, refused};
use crate::error::{ErrorKind, errno_of};
use crate::{Error, Result, guardian};

/// struct xdp_umem_reg up to its flags, which every kernel since 5.4 takes.
#[repr(C)]
struct UmemRegistration {
    address: u64,
    length: u64,
    chunk_size: u32,
    headroom: u32,
    flags: u32,
    padding: u32,
}

/// A socket that holds a piece.
pub(crate) struct Held {
    /// Told of no more before it is closed.
    _guarded: guardian::Held,
    _socket: OwnedFd,
}

/// Pins by AF_XDP.
pub(crate) struct AfXdpPins {
    page_size: usize,
}

impl AfXdpPins {
    /// Opens a socket, to see whether the kernel allows it.
    pub(crate) fn new(page_size: usize) -> Result<Self> {
        drop(socket()?);
        Ok(Self { page_size })
    }
}

fn socket() -> Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None).map_err(
        |error| {
            let (why, remedy) = match error {
                rustix::io::Errno::PERM => ("AF_XDP needs CAP_NET_RAW", "give the program CAP_NET_RAW"),
                rustix::io::Errno::AFNOSUPPORT => {
                    ("this kernel has no AF_XDP", "use a kernel with CONFIG_XDP_SOCKETS, or io_uring")
                }
                _ => ("no AF_XDP socket", "check the open-file limit (ulimit -n)"),
            };
            let error = std::io::Error::from(error);
            Error::new(ErrorKind::NoPinSource, errno_of(&error), format!("{why}: {error}"))
                .with_remedy(remedy)
        },
    )
}

impl PinSource for AfXdpPins {
    fn kind(&self) -> PinKind {
        PinKind::AfXdp
    }

    fn pin(&self, pieces: &[Piece]) -> Result<Pin> {
        let mut held = Vec::with_capacity(pieces.len());
        for &piece in pieces {
            let socket = socket()?;
            let guarded = guardian::Held::new(socket.as_raw_fd())?;
            // Whole pages around it: the umem must begin and end at page borders.
            let address = piece.address / self.page_size * self.page_size;
            let end = (piece.address + piece.length).next_multiple_of(self.page_size);
            let registration = UmemRegistration {
                address: address as u64,
                length: (end - address) as u64,
                chunk_size: u32::try_from(self.page_size.min(4096)).map_err(|_| Errno::EINVAL)?,
                headroom: 0,
                flags: 0,
                padding: 0,
            };
            // SAFETY: the option value is a live structure of the length told. The kernel only pins the pages named in
            // it: no ring is set up, so it never writes to them.
            let answer = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_XDP,
                    libc::XDP_UMEM_REG,
                    (&raw const registration).cast(),
                    size_of::<UmemRegistration>() as libc::socklen_t,
                )
            };
            if answer != 0 {
                return Err(refused(
                    "pinning with AF_XDP",
                    piece.address,
                    piece.length,
                    &std::io::Error::last_os_error(),
                ));
            }
            held.push(Held { _guarded: guarded, _socket: socket });
        }
        Ok(Pin::AfXdp { sockets: held })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_or_says_why_not() {
        let pins = match AfXdpPins::new(rustix::param::page_size()) {
            Ok(pins) => pins,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoPinSource);
                assert!(error.remedy().is_some());
                return;
            }
        };
        let memory = vec![1u8; 3 * 4096];
        let address = (memory.as_ptr() as usize).next_multiple_of(4096);
        let piece = Piece { address, length: 8192, huge: false };
        drop(pins.pin(&[piece, piece]).unwrap());
        let error = pins.pin(&[Piece { address: 4096, length: 4096, huge: false }]).err().unwrap();
        assert_eq!((error.kind(), error.errno()), (ErrorKind::BadMemory, Errno::EFAULT));
    }
}
