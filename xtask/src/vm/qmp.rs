//! A client of QMP, the JSON protocol through which QEMU is asked and told things.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::witness::Outside;

/// How long QEMU may take to answer: it answers between two instructions of the guest, so this is a dead QEMU.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to one QEMU.
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
    events: VecDeque<Value>,
    /// Where `pmemsave` leaves what it read.
    scratch: PathBuf,
}

impl Qmp {
    /// Takes over a fresh connection; `dir` is for files that QEMU writes.
    pub(crate) fn new(stream: UnixStream, dir: &Path) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
            events: VecDeque::new(),
            scratch: dir.join("physical-memory"),
        };
        let greeting = qmp.receive()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU greets with {greeting}, which is no QMP");
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and answers its `return`.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        self.stream
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())
            .context("QEMU's monitor is gone")?;
        loop {
            let mut message = self.receive()?;
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if let Some(error) = message.get("error") {
                bail!("QEMU refuses {command}: {}", error["desc"].as_str().unwrap_or("no reason given"));
            } else if message.get("return").is_some() {
                return Ok(message["return"].take());
            } else {
                bail!("QEMU answers {command} with {message}");
            }
        }
    }

    /// Events that came while commands were answered, oldest first.
    pub(crate) fn take_events(&mut self) -> impl Iterator<Item = Value> {
        self.events.drain(..)
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).context("QEMU's monitor does not answer")?;
        if read == 0 {
            bail!("QEMU closed its monitor");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU's monitor says {line:?}"))
    }
}

impl Outside for Qmp {
    fn read(&mut self, pa: u64, len: usize) -> Result<Vec<u8>> {
        let filename = self.scratch.to_str().context("the run's directory is not UTF-8")?;
        self.execute("pmemsave", json!({"val": pa, "size": len, "filename": filename}))?;
        let bytes = fs::read(&self.scratch).context("what pmemsave wrote")?;
        fs::remove_file(&self.scratch).context("what pmemsave wrote")?;
        if bytes.len() != len {
            bail!("pmemsave wrote {} bytes where {len} were asked for", bytes.len());
        }
        Ok(bytes)
    }

    fn unplug(&mut self, id: &str) -> Result<()> {
        self.execute("device_del", json!({"id": id}))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// A QEMU that says `lines`, one after each line that it hears, the first at once.
    fn answering(lines: &'static [&'static str]) -> Result<Qmp> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut theirs = BufReader::new(theirs);
            for line in lines {
                theirs.get_mut().write_all(line.as_bytes()).unwrap();
                theirs.read_line(&mut String::new()).unwrap();
            }
        });
        Qmp::new(ours, Path::new("."))
    }

    #[test]
    fn events_between_are_kept_and_errors_tell() {
        let mut qmp = answering(&[
            "{\"QMP\": {}}\n",
            "{\"return\": {}}\n",
            "{\"event\": \"RESUME\"}\n{\"return\": {\"running\": true}}\n",
            "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}}\n",
        ])
        .unwrap();
        assert_eq!(qmp.execute("query-status", json!({})).unwrap()["running"], true);
        assert_eq!(qmp.take_events().next().unwrap()["event"], "RESUME");
        let error = qmp.execute("nonsense", json!({})).unwrap_err().to_string();
        assert_eq!(error, "QEMU refuses nonsense: no such thing");
    }

    #[test]
    fn a_wrong_greeting_is_refused() {
        assert!(answering(&["{\"hello\": 1}\n"]).is_err());
        assert!(answering(&[]).is_err());
    }
}
