//! The processes that churn memory, as the one sees them who tells them what to do: see [`super::churn`].

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::available_parallelism;

use anyhow::{Context as _, Result, bail};

/// One for each processor.
pub(super) struct Churners {
    all: Vec<Churner>,
}

/// What they found in their memory since the last time that all of it was given back.
#[derive(Default)]
pub(super) struct Foreign {
    /// The first that was not their own.
    pub(super) first: Option<String>,
    /// Bytes, of each processor's.
    bytes: BTreeMap<usize, u64>,
}

impl Churners {
    pub(super) fn start() -> Result<Self> {
        let cpus = available_parallelism().context("how many processors")?.get();
        Ok(Self { all: (0..cpus).map(Churner::start).collect::<Result<_>>()? })
    }

    /// Gives an order to all at once, and takes the answers.
    pub(super) fn tell(&mut self, order: &str, foreign: &mut Foreign) -> Result<()> {
        self.all.iter_mut().for_each(|churner| churner.order(order));
        for (cpu, churner) in self.all.iter_mut().enumerate() {
            match churner.answer()? {
                Some(answer) => foreign.take(cpu, &answer)?,
                // Its own code, stack or tables were hit.
                None => {
                    foreign.killed(cpu);
                    *churner = Churner::start(cpu)?;
                }
            }
        }
        Ok(())
    }
}

impl Foreign {
    /// Bytes in all.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.values().sum()
    }

    fn take(&mut self, cpu: usize, answer: &str) -> Result<()> {
        let words: Vec<&str> = answer.splitn(3, ' ').collect();
        match words[..] {
            ["ok"] => {}
            ["foreign", bytes, place] => {
                let bytes: u64 = bytes.parse().context("how many bytes")?;
                // Of all that it has: bytes that were foreign once stay so, but for those that come to be as they were by chance.
                let most = self.bytes.entry(cpu).or_default();
                *most = bytes.max(*most);
                if bytes > 0 {
                    self.first.get_or_insert_with(|| place.to_owned());
                }
            }
            _ => bail!("a churning process answers {answer:?}"),
        }
        Ok(())
    }

    /// A process died of it.
    fn killed(&mut self, cpu: usize) {
        *self.bytes.entry(cpu).or_default() += 1;
        self.first.get_or_insert_with(|| format!("the process that churned on processor {cpu} died"));
    }
}

/// A process that churns.
struct Churner {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Churner {
    fn start(cpu: usize) -> Result<Self> {
        let mut program = Command::new("/proc/self/exe");
        program.args(["soak", "churn", &cpu.to_string()]);
        let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("churning")?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let mut churner = Self {
            child,
            orders: orders.context("no stdin")?,
            answers: BufReader::new(answers.context("no stdout")?),
        };
        // All of the program that it needs is in memory before it matters.
        for order in ["grow 1 0", "check", "release"] {
            churner.order(order);
            churner.answer()?;
        }
        Ok(churner)
    }

    /// One that is dead is found when it has to answer.
    fn order(&mut self, order: &str) {
        let _ = writeln!(self.orders, "{order}");
    }

    /// `None`: it is dead.
    fn answer(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line).context("a churning process")?;
        Ok((read > 0).then(|| line.trim_end().to_owned()))
    }
}

impl Drop for Churner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_add_up() {
        let mut foreign = Foreign::default();
        for (cpu, answer) in
            [(0, "ok"), (1, "foreign 0 -"), (0, "foreign 4 0x80 07"), (0, "foreign 3 0x80 08")]
        {
            foreign.take(cpu, answer).unwrap();
        }
        assert_eq!((foreign.bytes(), foreign.first.as_deref()), (4, Some("0x80 07")));
        foreign.killed(1);
        assert_eq!(foreign.bytes(), 5);
        assert!(foreign.take(0, "foreign").is_err() && foreign.take(0, "foreign much 0").is_err());
    }
}
