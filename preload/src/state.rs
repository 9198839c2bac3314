//! Whether the library serves, and what.

use std::ffi::CStr;
use std::fmt::Display;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};

use noiommu::serve::{Provider, Settings, VARIABLE};

use crate::overlay::{Entry, Overlay};
use crate::raw::{result, system};
use crate::server::{Serve, Start};
use crate::{fault, gate, process, real, server};

/// Before the library's own constructor: others are setting up, and nothing but the kernel may be asked for anything.
const EARLY: u8 = 0;
/// Not asked for: everything goes to the C library.
const OFF: u8 = 1;
/// Asked for.
const ON: u8 = 2;

static PHASE: AtomicU8 = AtomicU8::new(EARLY);
static SETTINGS: OnceLock<Settings> = OnceLock::new();
static SERVED: OnceLock<Served> = OnceLock::new();
/// What starts the server, a [`Start`]; null for the engine's own.
static START: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());

/// The server and what it makes visible.
pub(crate) struct Served {
    pub(crate) server: Box<dyn Serve>,
    pub(crate) overlay: Overlay,
}

/// Whether the constructors of other libraries may still be running before ours.
#[inline]
pub(crate) fn is_early() -> bool {
    PHASE.load(Ordering::Relaxed) == EARLY
}

/// Whether the library was asked for.
#[inline]
pub(crate) fn is_on() -> bool {
    PHASE.load(Ordering::Acquire) == ON
}

/// Has another server start instead of the engine's, for tests of the library itself. To be called before the first node is
/// looked for.
pub fn serve_with(start: Start) {
    START.store(start as *mut (), Ordering::Release);
}

/// A line on standard error.
pub(crate) fn say(line: impl Display) {
    let line = format!("noiommu: {line}\n");
    // SAFETY: the bytes are here.
    unsafe { system!(SYS_write, libc::STDERR_FILENO, line.as_ptr(), line.len()) };
}

/// Whether the server has been started.
pub(crate) fn is_started() -> bool {
    SERVED.get().is_some()
}

/// The server, started when it is first needed; without nodes when it could not be.
pub(crate) fn served() -> &'static Served {
    SERVED.get_or_init(|| {
        gate::engine(|| {
            let settings = SETTINGS.get().cloned().unwrap_or_default();
            let custom = START.load(Ordering::Acquire);
            let start = if custom.is_null() {
                server::start
            } else {
                // SAFETY: only ever stored from a `Start`.
                unsafe { std::mem::transmute::<*mut (), Start>(custom) }
            };
            let server = start(&settings).unwrap_or_else(|reason| {
                say(format_args!("not serving: {reason}"));
                Box::new(server::Nothing)
            });
            let nodes = server.nodes();
            if nodes.is_empty() && settings.verbose {
                say(format_args!("standing aside: {}", server.provider()));
            }
            // Root's, as in the kernel; where nothing is real, whoever runs the program may use it.
            let owner = match settings.provider {
                Provider::Auto => 0,
                // SAFETY: takes nothing, and always succeeds.
                Provider::Sim => unsafe { libc::geteuid() },
            };
            Served { overlay: Overlay::new(nodes, owner), server }
        })
    })
}

/// Says once that and through what nodes are served; called when the first one is opened.
pub(crate) fn announce(served: &Served) {
    if SAID.is_first() {
        say(format_args!("serving {} in the kernel's place", served.server.provider()));
    }
}

/// Something that a program does once, its forked children included.
struct Once(AtomicPtr<AtomicBool>);

static SAID: Once = Once(AtomicPtr::new(std::ptr::null_mut()));

impl Once {
    /// Makes the flag: in a page that forked processes share.
    fn share(&self) {
        const PAGE: usize = 4096;
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        let nowhere = std::ptr::null_mut::<AtomicBool>();
        // SAFETY: a new mapping at a place of the kernel's choice.
        let page = result(unsafe { system!(SYS_mmap, nowhere, PAGE, protection, flags, -1, 0) });
        self.0.store(page.map_or(nowhere, |page| page as *mut AtomicBool), Ordering::Relaxed);
    }

    /// Whether nobody has asked this before.
    fn is_first(&self) -> bool {
        // SAFETY: null, or the page made above: zeroed, never unmapped, and only ever used as this atomic.
        unsafe { self.0.load(Ordering::Relaxed).as_ref() }
            .is_some_and(|said| !said.swap(true, Ordering::Relaxed))
    }
}

/// What is at a path without links in it. Starts the server only for names that it may have.
pub(crate) fn entry(path: &[u8]) -> Option<&'static Entry> {
    if !(path.starts_with(b"/dev/") || path.starts_with(b"/sys/")) {
        return None;
    }
    if !is_started() && !is_telling(path) {
        return None;
    }
    served().overlay.get(path)
}

/// Whether a path has a name in it that only our nodes, and a few things near them, have.
pub(crate) fn is_telling(path: &[u8]) -> bool {
    let has = |name: &[u8]| path.windows(name.len()).any(|window| window == name);
    // Simulated devices are in a PCI domain that no firmware numbers.
    has(b"vfio") || has(b"iommu") || has(b"/ffff:")
}

extern "C" fn construct() {
    // SAFETY: a string that ends with a NUL, and what is found is one; nobody changes the environment while constructors run.
    let value = unsafe {
        let name = std::ffi::CString::new(VARIABLE).unwrap_or_default();
        let value = libc::getenv(name.as_ptr());
        if value.is_null() { None } else { Some(CStr::from_ptr(value).to_string_lossy().into_owned()) }
    };
    real::find_all();
    let settings = value.map_or(Ok(None), |value| Settings::parse(&value));
    match settings {
        Ok(Some(settings)) => {
            let _ = SETTINGS.set(settings);
            SAID.share();
            process::adopt();
            fault::install();
            #[cfg(target_arch = "x86_64")]
            noiommu::serve::serve_touches();
            gate::guard_forks();
            PHASE.store(ON, Ordering::Release);
        }
        Ok(None) => PHASE.store(OFF, Ordering::Release),
        Err(reason) => {
            say(format_args!("not serving: {reason}"));
            PHASE.store(OFF, Ordering::Release);
        }
    }
}

/// Gives back what the program still has open when it ends by `exit`: devices are quiet then.
extern "C" fn destruct() {
    if is_on() && !process::is_borrowed() {
        // The exit status is the program's, whatever happens here.
        let _ = std::panic::catch_unwind(crate::hooks::close_all);
    }
}

#[used]
#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
static CONSTRUCTOR: extern "C" fn() = construct;

#[used]
#[cfg_attr(not(test), unsafe(link_section = ".fini_array"))]
static DESTRUCTOR: extern "C" fn() = destruct;
