//! The guest's end of the line to the witness: the host, which reads this guest's physical memory from outside.
//!
//! Every request is one line and is answered by one line; `xtask/src/vm/witness.rs` documents them.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context as _, Result, bail};

/// The serial port that the host listens on.
const PORT: &str = "/dev/ttyS1";

/// The version of the line protocol, told in `hello`.
const PROTOCOL: u32 = 1;

/// The most bytes that one `peek` or literal `expect` may name.
const MOST_BYTES: usize = 8192;

/// A session with the witness.
///
/// It must end with [`Witness::done`]: the host fails a run whose session stays open, so a program that crashes fails it.
pub(crate) struct Witness {
    port: BufReader<File>,
    seed: u64,
}

impl Witness {
    /// Opens a session called `name` (one word) and learns the run's seed.
    pub(crate) fn connect(name: &str) -> Result<Self> {
        let port =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(PORT).with_context(
                || format!("{PORT} does not open: this program runs inside `cargo xtask vm` only"),
            )?;
        make_raw(&port)?;
        let mut witness = Self { port: BufReader::new(port), seed: 0 };
        let reply = witness.ask(&format!("hello {PROTOCOL} {name}"))?;
        let seed = reply.strip_prefix("welcome ").with_context(|| format!("no welcome: {reply}"))?;
        witness.seed = u64::from_str_radix(seed, 16).context("the welcome holds no seed")?;
        Ok(witness)
    }

    /// The bytes of this run's stream from `offset` on: what to write where [`Witness::expect_stream`] will look.
    ///
    /// The host chose the seed and computes the same bytes itself, so memory that merely happens to be there (zeros, an
    /// older run) never passes.
    pub(crate) fn stream(&self, offset: u64, len: usize) -> Vec<u8> {
        let skip = (offset % 8) as usize;
        let words = (offset / 8..).map(|index| stream_word(self.seed, index).to_le_bytes());
        words.flatten().skip(skip).take(len).collect()
    }

    /// What the host reads at physical address `pa`.
    pub(crate) fn peek(&mut self, pa: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let part = (len - bytes.len()).min(MOST_BYTES);
            let reply = self.ask(&format!("peek {:x} {part}", pa + bytes.len() as u64))?;
            let hex = reply.strip_prefix("bytes ").with_context(|| format!("no bytes: {reply}"))?;
            bytes.extend(from_hex(hex)?);
        }
        Ok(bytes)
    }

    /// Has the host check that `bytes` are at physical address `pa`; an error when they are not.
    pub(crate) fn expect(&mut self, pa: u64, bytes: &[u8]) -> Result<()> {
        for (at, part) in (0..).step_by(MOST_BYTES).zip(bytes.chunks(MOST_BYTES)) {
            let mut line = format!("expect {:x} ", pa + at);
            for byte in part {
                write!(line, "{byte:02x}")?;
            }
            self.same(&line, pa + at)?;
        }
        Ok(())
    }

    /// Has the host check that the stream's bytes from `offset` on are at physical address `pa`.
    pub(crate) fn expect_stream(&mut self, pa: u64, len: usize, offset: u64) -> Result<()> {
        self.same(&format!("expect-stream {pa:x} {len} {offset}"), pa)
    }

    /// Has the host ask a device of QEMU's to leave.
    pub(crate) fn unplug(&mut self, id: &str) -> Result<()> {
        self.acknowledged(&format!("unplug {id}"))
    }

    /// Puts a sentence into the host's report.
    pub(crate) fn note(&mut self, text: &str) -> Result<()> {
        self.acknowledged(&format!("note {}", text.replace('\n', " ")))
    }

    /// Hands the host a JSON value, on one line.
    pub(crate) fn result(&mut self, json: &str) -> Result<()> {
        self.acknowledged(&format!("result {}", json.replace('\n', " ")))
    }

    /// Ends the session; only 0 passes.
    pub(crate) fn done(mut self, status: u8) -> Result<()> {
        self.acknowledged(&format!("done {status}"))
    }

    fn same(&mut self, line: &str, pa: u64) -> Result<()> {
        match self.ask(line)? {
            reply if reply == "same" => Ok(()),
            reply => bail!("the witness does not see the expected bytes at {pa:#x}: {reply:.120}"),
        }
    }

    fn acknowledged(&mut self, line: &str) -> Result<()> {
        match self.ask(line)? {
            reply if reply == "ok" => Ok(()),
            reply => bail!("the witness refuses `{line:.60}`: {reply:.120}"),
        }
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        let port = self.port.get_mut();
        port.write_all(format!("{line}\n").as_bytes()).context("the line to the witness broke")?;
        let mut reply = String::new();
        let read = self.port.read_line(&mut reply).context("the line to the witness broke")?;
        if read == 0 {
            bail!("the witness hung up");
        }
        Ok(reply.trim_end().to_owned())
    }
}

/// Word `index` (8 bytes, little-endian) of the stream that `seed` names: SplitMix64 of the index.
///
/// Any of them can be computed alone, so host and guest need no common position. The host has its own copy of this function
/// on purpose: a fault in one of them is seen.
fn stream_word(seed: u64, index: u64) -> u64 {
    let mut word = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Takes echo, line editing and translation off a tty, at 115200 baud (QEMU really delays received bytes by the rate).
fn make_raw(port: &File) -> Result<()> {
    // SAFETY: `termios` is plain data, for which all zeros is a value.
    let mut modes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open as long as `port` lives, and `modes` is a `termios` to be filled.
    if unsafe { libc::tcgetattr(port.as_raw_fd(), &mut modes) } != 0 {
        return Err(std::io::Error::last_os_error()).context("tcgetattr of the witness port");
    }
    // SAFETY: it only changes the structure it is given.
    unsafe { libc::cfmakeraw(&mut modes) };
    // By hand: `cfsetspeed` is bound to a symbol version that glibc's static library does not have.
    modes.c_cflag = modes.c_cflag & !libc::CBAUD | libc::B115200;
    // SAFETY: as for tcgetattr; the structure is only read.
    if unsafe { libc::tcsetattr(port.as_raw_fd(), libc::TCSANOW, &modes) } != 0 {
        return Err(std::io::Error::last_os_error()).context("tcsetattr of the witness port");
    }
    Ok(())
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|value| value as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        bail!("an odd number of hex digits");
    }
    pairs
        .iter()
        .map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?))
        .collect::<Option<_>>()
        .context("not hex")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Anchors the stream to SplitMix64's published first outputs for seed 1234567, so that host and guest cannot drift
    /// apart unseen.
    #[test]
    fn stream_is_splitmix64() {
        let words = [6457827717110365317_u64, 3203168211198807973, 9817491932198370423];
        assert_eq!([0, 1, 2].map(|index| stream_word(1234567, index)), words);
    }

    #[test]
    fn hex_is_read_and_refused() {
        assert_eq!(from_hex("00ffA5").unwrap(), [0, 255, 0xa5]);
        assert!(from_hex("0").is_err());
        assert!(from_hex("zz").is_err());
    }
}
