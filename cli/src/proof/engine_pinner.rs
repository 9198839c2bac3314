//! Pins made by the engine itself: the proof is about what drivers get.

use std::ptr::NonNull;

use noiommu::{Context, Ioas, Mapping, PinChoice, PinKind};

use super::{Error, Pinner};

/// Pins memory by mapping it into an IOAS of its own.
#[derive(Debug)]
pub(crate) struct EnginePinner {
    ioas: Ioas,
    kind: PinKind,
}

impl EnginePinner {
    /// Opens the engine on this process's memory.
    pub(crate) fn new() -> Result<Self, Error> {
        let open = || {
            let context = Context::with_pins(PinChoice::Best)?;
            Ok(Self { ioas: context.ioas()?, kind: context.pin_kind()? })
        };
        open().map_err(|error: noiommu::Error| {
            Error::new(error.cause(), error.remedy().unwrap_or("see `noiommu demo` for what is missing"))
        })
    }
}

impl Pinner for EnginePinner {
    type Pin = Mapping;

    fn pin(&self, address: NonNull<u8>, length: usize) -> Result<Mapping, String> {
        // SAFETY: the pool that asks keeps its pages mapped until after the pin is dropped, reaches them through raw
        // pointers alone, and no device is attached to the IOAS.
        unsafe { self.ioas.map_borrowed(address, length) }.map_err(|error| error.to_string())
    }

    fn name(&self) -> &str {
        match self.kind {
            PinKind::IoUring => "io_uring registered buffers (FOLL_LONGTERM)",
            PinKind::AfXdp => "AF_XDP umem (FOLL_LONGTERM)",
            kind => kind.name(),
        }
    }
}
