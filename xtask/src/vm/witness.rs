//! The witness: the host, outside of the guest, checks in physical memory what the guest claims.
//!
//! # The protocol
//!
//! Lines of ASCII over the guest's second serial port (ttyS1, raw). Each request but init's own is answered by one line, in
//! order; the guest waits for the answer, so memory stands still meanwhile unless a device writes it. Addresses are
//! physical, in hex without prefix; lengths and offsets are decimal; bytes are two hex digits each.
//!
//! | the guest says | the host answers | |
//! |---|---|---|
//! | `up SECONDS` | nothing | said by init: the kernel has booted, in so many seconds of its own |
//! | `hello 1 NAME` | `welcome SEED` | begins a session of protocol version 1; the seed is 16 hex digits, new each run |
//! | `peek PA LEN` | `bytes HEX` | what the host reads at PA; judges nothing |
//! | `expect PA HEX` | `same` or `differs HEX` | a check: the bytes at PA are these |
//! | `expect-stream PA LEN OFFSET` | `same` or `differs HEX` | a check: the bytes at PA are the seed's stream from OFFSET on |
//! | `unplug ID` | `ok` | the device that QEMU knows by this id is asked to leave, as by a person at the machine |
//! | `note TEXT` | `ok` | a sentence for the report |
//! | `result JSON` | `ok` | a value for the report |
//! | `done STATUS` | `ok` | ends the session |
//! | `progress DONE TOTAL` | nothing | how far a long run is, for a person at the host; needs no session |
//! | `exit STATUS` | nothing | said by init: the scenario script's exit status |
//!
//! A line that makes no sense is answered `err WHY`. `peek` and `expect` take up to 8192 bytes, `expect-stream` up to
//! 1 MiB (`differs` then shows the first 64 bytes from the first difference on).
//!
//! The stream is SplitMix64 counted by 8-byte words, little-endian. Because the host draws the seed and computes the bytes
//! itself, memory that happens to be there (zeros, leftovers of an earlier run) cannot pass for it. For the same reason an
//! `expect` whose bytes are all alike is refused.
//!
//! # The verdict
//!
//! A run passes only if nothing is missing: at least one session (where the scenario is about memory); each with at least one check, all of them `same`, ended
//! by `done 0`; no `err`; `exit 0` at the end; QEMU ended by itself and in time; no oops on the console. A guest that crashes, hangs, stays silent or checks nothing fails.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// The version of the protocol, which the guest tells in `hello`.
const PROTOCOL: u32 = 1;

/// The most bytes for which a request or an answer carries hex: more would overrun the guest's tty buffers.
const MOST_HEX: usize = 8192;

/// The most bytes that `expect-stream` checks at once.
const MOST_STREAM: usize = 1 << 20;

/// How many faults of the conversation are told one by one: a guest gone wild can make any number.
const MOST_FAULTS: usize = 10;

/// How much of a difference is told.
const SHOWN: usize = 64;

/// What the host can do to the guest without the guest's help.
pub(crate) trait Outside {
    /// The `len` bytes at physical address `pa`.
    fn read(&mut self, pa: u64, len: usize) -> Result<Vec<u8>>;

    /// Asks a device to leave; it is gone when the guest's kernel has let it go.
    fn unplug(&mut self, id: &str) -> Result<()>;
}

/// One program's conversation, from `hello` to `done`.
#[derive(Debug)]
struct Session {
    name: String,
    checks: u64,
    status: Option<u32>,
}

/// What was said, what was checked, and what follows from it.
#[derive(Debug)]
pub(crate) struct Ledger {
    seed: u64,
    /// Whether a run without a session is no run.
    witnessed: bool,
    sessions: Vec<Session>,
    notes: Vec<String>,
    results: Vec<Value>,
    bytes_checked: u64,
    up: Option<String>,
    progress: Option<(u64, u64)>,
    exit: Option<u32>,
    /// Why this run cannot pass any more.
    faults: Vec<String>,
}

impl Ledger {
    /// An empty ledger for a run with this seed; `witnessed` if its programs are to have something checked.
    pub(crate) fn new(seed: u64, witnessed: bool) -> Self {
        Self {
            seed,
            witnessed,
            sessions: Vec::new(),
            notes: Vec::new(),
            results: Vec::new(),
            bytes_checked: 0,
            up: None,
            progress: None,
            exit: None,
            faults: Vec::new(),
        }
    }

    /// Hears one line and answers what to say to it, if anything.
    ///
    /// An error is one of the host (memory cannot be read, a device not unplugged), not of the guest.
    pub(crate) fn hear(&mut self, line: &str, outside: &mut dyn Outside) -> Result<Option<String>> {
        let request = match Request::parse(line) {
            Ok(request) => request,
            Err(error) => return Ok(Some(self.refuse(line, &format!("{error:#}")))),
        };
        let in_session = self.sessions.last().is_some_and(|session| session.status.is_none());
        let needs_session = !matches!(
            request,
            Request::Hello { .. } | Request::Up(_) | Request::Progress(..) | Request::Exit(_)
        );
        if needs_session && !in_session {
            return Ok(Some(self.refuse(line, "no session: say hello first")));
        }
        let answer = match request {
            Request::Hello { protocol, .. } if protocol != PROTOCOL => {
                self.refuse(line, &format!("this host speaks protocol {PROTOCOL}"))
            }
            Request::Hello { .. } if in_session => {
                self.refuse(line, "the session before was not ended by done")
            }
            Request::Hello { name, .. } => {
                self.sessions.push(Session { name: name.to_owned(), checks: 0, status: None });
                format!("welcome {:016x}", self.seed)
            }
            Request::Peek { pa, len } => format!("bytes {}", to_hex(&outside.read(pa, len)?)),
            Request::Expect { pa, bytes } => self.check(pa, &bytes, outside)?,
            Request::ExpectStream { pa, len, offset } => {
                let bytes: Vec<u8> = (offset..).take(len).map(|at| stream_byte(self.seed, at)).collect();
                self.check(pa, &bytes, outside)?
            }
            Request::Unplug(id) => {
                outside.unplug(id)?;
                "ok".to_owned()
            }
            Request::Note(text) => {
                self.notes.push(text.to_owned());
                "ok".to_owned()
            }
            Request::Result(value) => {
                self.results.push(value);
                "ok".to_owned()
            }
            Request::Done(status) => {
                if let Some(session) = self.sessions.last_mut() {
                    session.status = Some(status);
                }
                "ok".to_owned()
            }
            Request::Up(seconds) => {
                if self.up.replace(seconds.to_owned()).is_some() {
                    self.faults.push("init said up twice".to_owned());
                }
                return Ok(None);
            }
            Request::Progress(done, total) => {
                self.progress = Some((done, total));
                return Ok(None);
            }
            Request::Exit(status) => {
                if self.exit.replace(status).is_some() {
                    self.faults.push("init said exit twice".to_owned());
                }
                return Ok(None);
            }
        };
        Ok(Some(answer))
    }

    /// Notes something outside of the conversation that fails the run.
    pub(crate) fn fault(&mut self, why: impl Into<String>) {
        self.faults.push(why.into());
    }

    /// How many checks were asked for so far.
    pub(crate) fn checks(&self) -> u64 {
        self.sessions.iter().map(|session| session.checks).sum()
    }

    /// How many bytes these checks compared.
    pub(crate) fn bytes_checked(&self) -> u64 {
        self.bytes_checked
    }

    /// Whether the guest booted as far as its init.
    pub(crate) fn is_up(&self) -> bool {
        self.up.is_some()
    }

    /// How much of how much the guest says is done, if it says so.
    pub(crate) fn progress(&self) -> Option<(u64, u64)> {
        self.progress
    }

    /// The sentences that the guest put into the report.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Everything that keeps the run from passing; empty means that it passed.
    pub(crate) fn verdict(&self) -> Vec<String> {
        let mut faults: Vec<String> = self.faults.iter().take(MOST_FAULTS).cloned().collect();
        if self.faults.len() > MOST_FAULTS {
            faults.push(format!("and {} more of these", self.faults.len() - MOST_FAULTS));
        }
        if self.witnessed && self.sessions.is_empty() {
            faults.push("no program of the guest ever spoke to the witness".to_owned());
        }
        for Session { name, checks, status } in &self.sessions {
            match status {
                None => faults.push(format!("{name} never said done")),
                Some(0) => {}
                Some(status) => faults.push(format!("{name} ended with status {status}")),
            }
            if *checks == 0 {
                faults.push(format!("{name} had nothing checked"));
            }
        }
        match self.exit {
            None => faults.push("the guest's init never said how the scenario ended".to_owned()),
            Some(0) => {}
            Some(status) => faults.push(format!("the scenario script ended with status {status}")),
        }
        faults
    }

    /// The report, for machines.
    pub(crate) fn report(&self) -> Value {
        let faults = self.verdict();
        let session = |session: &Session| json!({"name": session.name, "checks": session.checks, "status": session.status});
        json!({
            "passed": faults.is_empty(),
            "boot_seconds": self.up,
            "faults": faults,
            "checks": self.checks(),
            "bytes_checked": self.bytes_checked,
            "sessions": self.sessions.iter().map(session).collect::<Vec<_>>(),
            "notes": self.notes,
            "results": self.results,
        })
    }

    fn check(&mut self, pa: u64, expected: &[u8], outside: &mut dyn Outside) -> Result<String> {
        let found = outside.read(pa, expected.len())?;
        // Counted after the read: a check that could not be made is none.
        if let Some(session) = self.sessions.last_mut() {
            session.checks += 1;
        }
        self.bytes_checked += expected.len() as u64;
        let difference = expected.iter().zip(&found).position(|(expected, found)| expected != found);
        let Some(at) = difference else { return Ok("same".to_owned()) };
        let end = |bytes: &[u8]| bytes.len().min(at + SHOWN);
        self.faults.push(format!("at {:#x}: other bytes than expected", pa + at as u64));
        Ok(format!("differs {}", to_hex(&found[at..end(&found)])))
    }

    fn refuse(&mut self, line: &str, why: &str) -> String {
        // A line can be anything, a kernel's oops included: keep what a person can read.
        let shown: String = line.chars().take(60).flat_map(char::escape_debug).collect();
        self.faults.push(format!("not understood: `{shown}`: {why}"));
        format!("err {why}")
    }
}

/// One line of the guest, understood.
#[derive(Debug, PartialEq)]
enum Request<'a> {
    Hello { protocol: u32, name: &'a str },
    Peek { pa: u64, len: usize },
    Expect { pa: u64, bytes: Vec<u8> },
    ExpectStream { pa: u64, len: usize, offset: u64 },
    Unplug(&'a str),
    Note(&'a str),
    Result(Value),
    Done(u32),
    Up(&'a str),
    Progress(u64, u64),
    Exit(u32),
}

impl<'a> Request<'a> {
    fn parse(line: &'a str) -> Result<Self> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split(' ').collect();
        Ok(match (verb, words.as_slice()) {
            ("hello", [protocol, name]) => {
                ensure!(!name.is_empty(), "a session needs a name");
                Self::Hello { protocol: number(protocol)?, name }
            }
            ("peek", [pa, len]) => {
                let (pa, len) = (address(pa)?, number(len)?);
                range(pa, len, MOST_HEX)?;
                Self::Peek { pa, len }
            }
            ("expect", [pa, hex]) => {
                let (pa, bytes) = (address(pa)?, from_hex(hex)?);
                range(pa, bytes.len(), MOST_HEX)?;
                ensure!(
                    bytes.iter().any(|byte| *byte != bytes[0]),
                    "bytes that are all alike prove nothing: memory is often so by itself"
                );
                Self::Expect { pa, bytes }
            }
            ("expect-stream", [pa, len, offset]) => {
                let (pa, len, offset) = (address(pa)?, number(len)?, number::<u64>(offset)?);
                range(pa, len, MOST_STREAM)?;
                ensure!(offset.checked_add(len as u64).is_some(), "the stream ends at 2^64");
                Self::ExpectStream { pa, len, offset }
            }
            ("unplug", [id]) => {
                ensure!(!id.is_empty(), "which device?");
                Self::Unplug(id)
            }
            ("note", _) => Self::Note(rest),
            ("result", _) => Self::Result(serde_json::from_str(rest).context("no JSON")?),
            ("done", [status]) => Self::Done(number(status)?),
            ("up", [seconds]) => {
                ensure!(seconds.parse::<f64>().is_ok(), "{seconds:?} is no number of seconds");
                Self::Up(seconds)
            }
            ("progress", [done, total]) => Self::Progress(number(done)?, number(total)?),
            ("exit", [status]) => Self::Exit(number(status)?),
            _ => bail!("no such request"),
        })
    }
}

fn number<T: std::str::FromStr<Err = std::num::ParseIntError>>(word: &str) -> Result<T> {
    // `parse` takes a sign, the protocol does not.
    ensure!(word.bytes().all(|byte| byte.is_ascii_digit()), "{word:?} is no number");
    word.parse().with_context(|| format!("{word:?} is no number"))
}

fn address(word: &str) -> Result<u64> {
    ensure!(word.bytes().all(|byte| byte.is_ascii_hexdigit()), "{word:?} is no address");
    u64::from_str_radix(word, 16).with_context(|| format!("{word:?} is no address"))
}

fn range(pa: u64, len: usize, most: usize) -> Result<()> {
    ensure!((1..=most).contains(&len), "{len} bytes: 1 to {most} are possible");
    // No machine here has memory beyond 52 bits, and sums stay far from overflow.
    ensure!(pa < 1 << 52, "{pa:#x} is no physical address");
    Ok(())
}

/// Byte `at` of the stream that `seed` names; the guest has its own copy of this function on purpose.
fn stream_byte(seed: u64, at: u64) -> u8 {
    let mut word = seed.wrapping_add((at / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^= word >> 31;
    word.to_le_bytes()[(at % 8) as usize]
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|value| value as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    ensure!(rest.is_empty(), "an odd number of hex digits");
    pairs
        .iter()
        .map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?))
        .collect::<Option<_>>()
        .context("not hex")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 1234567;

    /// Memory that holds the stream from offset 0 at 0x1000, and zeros elsewhere.
    struct Fake;

    impl Outside for Fake {
        fn read(&mut self, pa: u64, len: usize) -> Result<Vec<u8>> {
            let at =
                |pa: u64| if (0x1000..0x2000).contains(&pa) { stream_byte(SEED, pa - 0x1000) } else { 0 };
            Ok((pa..pa + len as u64).map(at).collect())
        }

        fn unplug(&mut self, id: &str) -> Result<()> {
            ensure!(id == "gone", "there is no device {id}");
            Ok(())
        }
    }

    /// Says the lines to a fresh ledger; answers it and the last answer.
    fn say(lines: &[&str]) -> (Ledger, String) {
        let mut ledger = Ledger::new(SEED, true);
        let mut last = None;
        for line in lines {
            last = ledger.hear(line, &mut Fake).unwrap();
        }
        (ledger, last.unwrap_or_default())
    }

    #[test]
    fn stream_is_splitmix64() {
        // The published first outputs for this seed; the guest's copy is tested against the same.
        let words = [6457827717110365317_u64, 3203168211198807973, 9817491932198370423];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!((0..24).map(|at| stream_byte(SEED, at)).collect::<Vec<_>>(), bytes);
    }

    #[test]
    fn an_honest_guest_passes() {
        let literal = format!("expect 1000 {}", to_hex(&[stream_byte(SEED, 0), stream_byte(SEED, 1)]));
        let (ledger, _) = say(&[
            "up 4.25",
            "hello 1 a",
            "expect-stream 1003 100 3",
            &literal,
            "note all is well",
            "result {\"n\": 1}",
            "done 0",
            "progress 3 10",
            "exit 0",
        ]);
        assert_eq!(ledger.verdict(), Vec::<String>::new());
        assert_eq!(ledger.progress(), Some((3, 10)));
        assert!(ledger.is_up());
        let report = ledger.report();
        assert_eq!(report["passed"], true);
        assert_eq!(report["boot_seconds"], "4.25");
        assert_eq!(report["checks"], 2);
        assert_eq!(report["bytes_checked"], 102);
        assert_eq!(report["results"][0]["n"], 1);
    }

    #[test]
    fn answers_are_as_documented() {
        assert_eq!(say(&["hello 1 a"]).1, "welcome 000000000012d687");
        assert_eq!(say(&["hello 1 a", "peek 2000 2"]).1, "bytes 0000");
        assert_eq!(say(&["hello 1 a", "expect-stream 1000 16 0"]).1, "same");
        assert_eq!(say(&["hello 1 a", "note x"]).1, "ok");
        assert_eq!(say(&["hello 1 a", "unplug gone"]).1, "ok");
        // The difference is told from where it begins.
        let (ledger, answer) = say(&["hello 1 a", "expect-stream 1ffe 4 4094"]);
        assert_eq!(answer, "differs 0000");
        assert_eq!(ledger.verdict()[0], "at 0x2000: other bytes than expected");
    }

    /// Each of these runs must fail, and say why.
    #[test]
    fn whatever_is_missing_fails() {
        let fails = |lines: &[&str], why: &str| {
            let verdict = say(lines).0.verdict();
            assert!(verdict.iter().any(|fault| fault.contains(why)), "{lines:?}: {verdict:?}");
        };
        fails(&[], "ever spoke");
        fails(&["exit 0"], "ever spoke");
        fails(&["hello 1 a", "done 0", "exit 0"], "nothing checked");
        fails(&["hello 1 a", "expect-stream 1000 8 0", "exit 0"], "never said done");
        fails(&["hello 1 a", "expect-stream 1000 8 0", "done 0"], "init never said");
        fails(&["hello 1 a", "expect-stream 1000 8 0", "done 3", "exit 0"], "status 3");
        fails(&["hello 1 a", "expect-stream 1000 8 0", "done 0", "exit 1"], "script ended with status 1");
        fails(&["hello 1 a", "expect-stream 3000 8 0", "done 0", "exit 0"], "0x3000");
        fails(&["hello 1 a", "expect 3000 0000000000", "done 0", "exit 0"], "prove nothing");
        fails(&["hello 2 a"], "protocol 1");
        // A second program that checks nothing is not covered by the first one's checks.
        let two = ["hello 1 a", "expect-stream 1000 8 0", "done 0", "hello 1 b", "done 0", "exit 0"];
        fails(&two, "b had nothing checked");
        fails(&["hello 1 a", "hello 1 b"], "not ended by done");
        fails(&["hello 1 a", "done 0", "expect-stream 1000 8 0"], "say hello first");
    }

    #[test]
    fn a_wild_guest_does_not_drown_the_reader() {
        let verdict = say(&["nonsense"; 1000]).0.verdict();
        assert_eq!(verdict[MOST_FAULTS], "and 990 more of these");
        assert!(verdict.len() < 20);
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "",
            "peek",
            "peek 1000",
            "peek 1000 0",
            "unplug",
            "peek 1000 8193",
            "peek 0x1000 8",
            "peek 1000 +8",
            "peek 10000000000000 8",
            "expect 1000 0",
            "expect 1000 zz",
            "expect 1000 ",
            "expect-stream 1000 8 18446744073709551615",
            "expect-stream 1000 1048577 0",
            "result {",
            "done -1",
            "done",
            "up",
            "up soon",
            "progress 3",
            "progress 3 -1",
            "hello 1 ",
            "[    1.2] BUG: unable to handle page fault",
        ] {
            assert!(Request::parse(line).is_err(), "{line:?}");
            let (ledger, answer) = say(&["hello 1 a", line]);
            assert!(answer.starts_with("err "), "{line:?}: {answer}");
            assert!(!ledger.faults.is_empty());
        }
    }
}
