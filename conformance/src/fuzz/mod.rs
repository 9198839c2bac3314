//! Random sequences of calls: the same for every provider of the uAPI, so that their answers can be compared.
//!
//! Sequence `index` of a `seed` is always the same text in the language of the cases ([`generator`]), run by the same steps that
//! cases are made of. One line of output a sequence tells a digest of all its answers; where two providers' digests differ,
//! `--log` prints that sequence with its answers, which is a case to be kept.
//!
//! What sequences do not do, since the answers could not be the same, or not every time:
//!
//! * map memory that is only readable for reading only (io_uring cannot pin it; among the listed differences);
//! * map several pages at the very end of the IOVA space with leaves of one page (7.3 maps what lies behind the first page
//!   instead, whosever that is), nor anything without access by VFIO_IOMMU_MAP_DMA (7.3 refuses it once there is a domain, with
//!   a warning in the kernel's log);
//! * ask for contiguous bytes where the pages are not known to be neighbours, or not: all memory is put together page by page;
//! * map the file of a descriptor of the uAPI: natively that holds itself open for ever, and the device with it;
//! * go on with a descriptor's number after it is closed: what gets that number next is a matter of the provider.

mod calls;
mod generator;
mod ground;
mod random;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::cases::Library;
use crate::parse::{self, Step};
use crate::process;
use crate::roles::Roles;
use crate::steps;
use crate::sys;
use crate::world::{Mistake, World};
use random::Digest;

/// Which sequences to run, and what to print.
#[derive(Debug, Args)]
pub struct Fuzz {
    /// What all sequences are made from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The index of the first sequence
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many sequences
    #[arg(long, default_value_t = 1000)]
    sequences: u64,
    /// Print each sequence as a case, with its answers, instead of their digest
    #[arg(long)]
    log: bool,
    /// Run the sequences with these indices instead
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    only: Vec<u64>,
    /// Run the first sequence with only these of its steps, counted from 1 (may be given again, each time a sequence)
    #[arg(long, value_name = "N,N,...", value_delimiter = ' ', value_parser = numbers)]
    keep: Vec<Vec<usize>>,
    /// Sequences that one process runs before another one takes over
    #[arg(long, default_value_t = 1000)]
    batch: u64,
    /// Which device plays which part, as in edu=0000:00:03.0 (may be given again)
    #[arg(long, value_name = "ROLE=ADDRESS", value_parser = crate::command::role)]
    devices: Vec<(String, String)>,
}

fn numbers(text: &str) -> Result<Vec<usize>, String> {
    let number = |word: &str| word.parse().map_err(|_| format!("{word:?} is no number of a step"));
    text.split(',').filter(|word| !word.is_empty()).map(number).collect()
}

/// How long a sequence may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the descriptor for answers is, out of the way.
const REPORT: i32 = 902;

impl Fuzz {
    /// Runs them.
    ///
    /// # Errors
    /// What is missing, in a sentence.
    pub(crate) fn execute(&self) -> Result<ExitCode, String> {
        let roles = Roles::find_apart(&self.devices)?;
        for role in ["edu", "edu2"] {
            if roles.get(role).is_none_or(|device| device.cdev.is_none()) {
                return Err(format!("there is no device to play {role}"));
            }
        }
        let library = Library::embedded(None)?;
        let count = match (self.keep.len(), self.only.len()) {
            (0, 0) => self.sequences,
            (0, only) => only as u64,
            (keep, _) => keep as u64,
        };
        let mut next = 0;
        while next < count {
            next = self.batch(&roles, &library, next, count.min(next + self.batch.max(1)))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Lets a child run the sequences from `next` to `end`; answers the first that has not been run. That is `end`, or the one
    /// after which the child died.
    fn batch(&self, roles: &Roles, library: &Library, next: u64, end: u64) -> Result<u64, String> {
        let pipe = sys::pipe().map_err(|errno| format!("no pipe: {}", crate::names::errno(errno)))?;
        let pid = match sys::fork() {
            Ok(0) => {
                sys::alone();
                let _ = sys::close(pipe.0);
                let report = sys::fcntl(pipe.1, libc::F_DUPFD_CLOEXEC, REPORT).map_or(pipe.1, |fd| fd as i32);
                let _ = sys::close(pipe.1);
                let mut world = World::new(roles, &library.setups, report, String::new());
                let done = ground::make(&mut world).map(|()| {
                    for number in next..end {
                        let text = self.sequence(&mut world, number).unwrap_or_else(|Mistake(what)| what);
                        tell(report, &text);
                    }
                });
                if let Err(Mistake(what)) = done {
                    tell(report, &format!("{what}\n"));
                }
                sys::exit(0)
            }
            Ok(pid) => pid,
            Err(errno) => return Err(format!("no process: {}", crate::names::errno(errno))),
        };
        let _ = sys::close(pipe.1);
        let (ran, why) = self.listen(pipe.0, next);
        let _ = sys::kill(-pid);
        let ended = process::ending(sys::wait(pid));
        let _ = sys::close(pipe.0);
        if next + ran == end {
            return Ok(end);
        }
        if ran == 0 && why.is_empty() && ended.is_empty() {
            return Err("a sequence could not be run".to_owned());
        }
        let _ = writeln!(
            std::io::stdout(),
            "{} {}",
            self.index(next + ran),
            if why.is_empty() { &ended } else { &why }
        );
        Ok(next + ran + 1)
    }

    /// Passes on what a child tells; answers how many sequences it has told of, and what is wrong.
    fn listen(&self, from: i32, next: u64) -> (u64, String) {
        let mut pending = Vec::new();
        let mut ran = 0;
        let mut piece = [0_u8; 4096];
        loop {
            match sys::poll(from, libc::POLLIN, PATIENCE.as_millis() as i32) {
                Ok(0) => return (ran, "timeout".to_owned()),
                Err(libc::EINTR) => continue,
                _ => {}
            }
            match sys::pread(from, piece.as_mut_ptr() as u64, piece.len(), None) {
                Ok(count @ 1..) => pending.extend_from_slice(piece.get(..count as usize).unwrap_or_default()),
                Err(libc::EINTR) => continue,
                _ => return (ran, String::new()),
            }
            // A zero byte ends what a sequence tells.
            while let Some(end) = pending.iter().position(|byte| *byte == 0) {
                let text: Vec<u8> = pending.drain(..=end).collect();
                let text = String::from_utf8_lossy(text.get(..end).unwrap_or_default());
                let _ = write!(
                    std::io::stdout(),
                    "{}{text}",
                    if self.log { String::new() } else { format!("{} ", self.index(next + ran)) }
                );
                ran += 1;
            }
        }
    }

    /// The index of the sequence that is run as number `number`, from 0.
    fn index(&self, number: u64) -> u64 {
        self.only.get(number as usize).copied().unwrap_or(self.first + number)
    }

    /// The steps of the sequence that is run as number `number`.
    fn steps(&self, number: u64) -> Vec<String> {
        let Some(keep) = self.keep.get(number as usize) else {
            return generator::sequence(self.seed, self.index(number));
        };
        let all = generator::sequence(self.seed, self.first);
        (1..).zip(all).filter(|(number, _)| keep.contains(number)).map(|(_, step)| step).collect()
    }

    /// Runs a sequence: its digest, or the case that it is.
    fn sequence(&self, world: &mut World<'_>, number: u64) -> Result<String, Mistake> {
        let steps = self.steps(number);
        let text = format!("case fuzz-{}-{}\n  {}\n", self.seed, self.index(number), steps.join("\n  "));
        let parsed = parse::parse(&text).map_err(Mistake)?;
        let parsed = parsed.first().map_or([].as_slice(), |case| case.steps.as_slice());
        ground::begin(world);
        let (mut digest, mut answers) = (Digest::EMPTY, Vec::new());
        for step in parsed {
            let answer = run(world, step);
            digest.add(&answer);
            answers.push(answer);
        }
        let texts: Vec<&str> = steps.iter().map(String::as_str).collect();
        ground::end(world, &texts);
        if self.log { Ok(self.case(number, &texts, &answers)) } else { Ok(format!("{:016x}\n", digest.0)) }
    }

    /// The sequence as a case that needs nothing else.
    fn case(&self, number: u64, steps: &[&str], answers: &[String]) -> String {
        let mut text = format!("case fuzz-{}-{}\n", self.seed, self.index(number));
        for (name, step) in ground::PRELUDE {
            let says = |text: &&str| text.split([' ', '=', '+']).any(|word| word == *name);
            if steps.iter().any(says) {
                text.push_str(&format!("  {step}\n"));
            }
        }
        for (step, answer) in steps.iter().zip(answers) {
            let arrow = if answer.is_empty() { "" } else { " => " };
            text.push_str(&format!("  {step}{arrow}{answer}\n"));
        }
        text.push('\n');
        text
    }
}

fn run(world: &mut World<'_>, step: &Step) -> String {
    let answer = steps::run(world, step).unwrap_or_else(|Mistake(what)| format!("{}{what}", steps::MISTAKE));
    if step.verb() == "close" {
        // The number may come again as another file's.
        if let Some(fd) = step.arguments().first().and_then(|name| world.files.get_mut(name)) {
            *fd = -1;
        }
    }
    answer
}

/// Tells the parent, which waits for the zero byte.
fn tell(report: i32, text: &str) {
    let text = format!("{text}\0");
    let _ = sys::pwrite(report, text.as_ptr() as u64, text.len(), None);
}
