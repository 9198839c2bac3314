//! The terminal while it is shown on: a screen of its own, keys one by one, and everything as before in the end.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anstream::ColorChoice;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::termios::{self, OptionalActions, Termios};

/// What somebody wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Key {
    /// The end.
    Quit,
    /// Sort by the next column.
    Sort,
    /// The other way round.
    Reverse,
    /// Stop, or go on.
    Pause,
    /// Nothing, but the screen may have another size.
    Other,
}

impl Key {
    fn of(byte: u8) -> Self {
        const END_OF_TEXT: u8 = 3;
        match byte {
            b'q' | b'Q' | END_OF_TEXT => Self::Quit,
            b's' => Self::Sort,
            b'r' => Self::Reverse,
            b'p' | b' ' => Self::Pause,
            _ => Self::Other,
        }
    }
}

/// The terminal, taken over.
pub(super) struct Screen {
    before: Termios,
    signals: OwnedFd,
    blocked: libc::sigset_t,
    coloured: bool,
}

impl Screen {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// Standard input is none.
    pub(super) fn open() -> io::Result<Self> {
        let stdin = rustix::stdio::stdin();
        let before = termios::tcgetattr(stdin)?;
        let (signals, blocked) = signals()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(stdin, OptionalActions::Flush, &raw)?;
        let coloured = anstream::AutoStream::choice(&io::stdout()) != ColorChoice::Never;
        // Another screen, no cursor, no wrapping of lines.
        control("\x1b[?1049h\x1b[?25l\x1b[?7l");
        Ok(Self { before, signals, blocked, coloured })
    }

    /// Its columns.
    pub(super) fn width(&self) -> usize {
        size().0
    }

    /// Shows lines; those that have no room are left out.
    pub(super) fn show(&self, lines: &[String]) {
        let texts = lines.iter().take(size().1).map(|line| match self.coloured {
            true => line.clone(),
            false => anstream::adapter::strip_str(line).to_string(),
        });
        // From the upper left on; the rest of each line is emptied, and what is below the last one. No line end follows that, which
        // would roll the screen on.
        let frame = format!("\x1b[H{}\x1b[K\x1b[J", texts.collect::<Vec<_>>().join("\x1b[K\r\n"));
        control(&frame);
    }

    /// Waits for a key; `None`: the time is over.
    pub(super) fn wait(&mut self, time: Duration) -> Option<Key> {
        let deadline = Instant::now() + time;
        let stdin = rustix::stdio::stdin();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let mut poll = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            match rustix::event::poll(&mut poll, Some(&timeout)) {
                Ok(0) => return None,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Some(Key::Quit),
                Ok(_) => {}
            }
            if !poll[1].revents().is_empty() {
                return Some(self.signal());
            }
            let mut byte = [0];
            // The end of the input: nobody is there any more.
            return Some(match rustix::io::read(stdin.as_fd(), &mut byte) {
                Ok(1) => Key::of(byte[0]),
                _ => Key::Quit,
            });
        }
    }

    fn signal(&self) -> Key {
        let mut bytes = [0; size_of::<libc::signalfd_siginfo>()];
        let read = rustix::io::read(&self.signals, &mut bytes);
        // The number is the first field.
        let number = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if read.is_ok() && number == libc::SIGWINCH as u32 { Key::Other } else { Key::Quit }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        control("\x1b[?7h\x1b[?25h\x1b[?1049l");
        let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, &self.before);
        // SAFETY: a set that the kernel gave.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.blocked, std::ptr::null_mut()) };
    }
}

/// Columns and lines.
fn size() -> (usize, usize) {
    match termios::tcgetwinsize(rustix::stdio::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    }
}

/// Writes what is for the terminal. One that has gone is noticed by its input.
fn control(text: &str) {
    let mut out = io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Has signals that would end the program, or tell of another size, come as something to read; answers what was blocked before.
fn signals() -> io::Result<(OwnedFd, libc::sigset_t)> {
    // SAFETY: plain data, for which zeros are a value.
    let (mut set, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: both are live.
    unsafe {
        for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGWINCH] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before);
    }
    // SAFETY: the set is live.
    let file = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, for us alone.
    Ok((unsafe { OwnedFd::from_raw_fd(file) }, before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for (byte, key) in
            [(b'q', Key::Quit), (3, Key::Quit), (b's', Key::Sort), (b' ', Key::Pause), (b'x', Key::Other)]
        {
            assert_eq!(Key::of(byte), key, "{byte}");
        }
    }
}
