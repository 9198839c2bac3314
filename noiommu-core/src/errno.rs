//! The kernel's error numbers, as the uAPI answers them.

use core::fmt;

/// An error number of Linux (asm-generic numbering: x86, ARM, RISC-V), always above 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Errno(u16);

macro_rules! errnos {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl Errno {
            $(#[doc = concat!($text, " (", stringify!($number), ").")]
            pub const $name: Self = Self($number);)*

            /// The symbolic name, `None` for a number that this crate has no name for.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted";
    ENOENT = 2, "No such object";
    ESRCH = 3, "No such process";
    EINTR = 4, "Interrupted by a signal";
    EIO = 5, "Input or output error";
    ENXIO = 6, "No such device or address";
    E2BIG = 7, "Structure larger than known, with a nonzero tail";
    EBADF = 9, "Bad file descriptor";
    EAGAIN = 11, "Try again";
    ENOMEM = 12, "Out of memory, or over a memory limit";
    EACCES = 13, "Permission denied";
    EFAULT = 14, "Bad address";
    EBUSY = 16, "In use";
    EEXIST = 17, "Overlaps something that exists";
    ENODEV = 19, "No such device";
    EINVAL = 22, "Invalid argument";
    ENFILE = 23, "Too many open files in the system";
    EMFILE = 24, "Too many open files";
    ENOTTY = 25, "Unknown ioctl";
    ENOSPC = 28, "No space left";
    ESPIPE = 29, "Illegal seek";
    ERANGE = 34, "Out of range";
    ENOSYS = 38, "Not implemented by this kernel";
    EOVERFLOW = 75, "Value too large";
    EBADFD = 77, "File descriptor of the wrong kind";
    EMSGSIZE = 90, "More than the buffer holds";
    EOPNOTSUPP = 95, "Not supported";
    EADDRINUSE = 98, "Address in use";
    ENOBUFS = 105, "No buffer space";
}

impl Errno {
    /// The error with this number; `None` for 0, negative numbers and those above 4095 (the kernel's limit).
    #[must_use]
    pub const fn from_raw(number: i32) -> Option<Self> {
        if number >= 1 && number <= 4095 { Some(Self(number as u16)) } else { None }
    }

    /// The positive number.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0 as i32
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl core::error::Error for Errno {}
