//! Differential fuzzing of the uAPI: the same random sequences of calls on the reference kernel and through the preload library,
//! each in a guest. The first sequence whose answers differ is made as short as it can be, shown, and written down as a case.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;

use super::conformance::RUNNER;
use super::guest::{self, Scenario};
use super::kernel::Kernel;
use super::pack;
use super::{Choice, EDU, OnKernel, Options, UNSAFE_NOIOMMU, Variant};
use crate::project::Project;
use crate::ui;

/// What to compare.
#[derive(Args, Debug)]
pub(crate) struct Fuzz {
    /// How many sequences
    #[arg(long, default_value_t = 100_000)]
    sequences: u64,

    /// What all sequences are made from
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// The index of the first sequence
    #[arg(long, default_value_t = 0)]
    first: u64,

    /// Ask the reference kernel twice instead of two providers: it must answer the same
    #[arg(long)]
    natively: bool,

    /// Print the sequences with the reference kernel's answers, and compare nothing
    #[arg(long)]
    log: bool,

    #[command(flatten)]
    run: Options,
}

impl Fuzz {
    /// That many sequences of the first seed.
    pub(crate) fn of(sequences: u64) -> Self {
        Self { sequences, seed: 1, first: 0, natively: false, log: false, run: Options::default() }
    }
}

/// Who answers.
#[derive(Clone, Copy, Debug)]
enum Side {
    /// The reference kernel.
    Native,
    /// The preload library, on a kernel without iommufd.
    Preload,
}

/// Sequences that an emulated machine runs in a second at the very least.
const SLOWEST: u64 = 10;

/// Sequences that a guest is given at once: a difference is told when it comes up, not when all are done.
const BATCH: u64 = 5000;

/// Rounds of leaving out steps. Each boots both guests.
const MOST_ROUNDS: usize = 12;

/// Compares the answers to all sequences.
pub(crate) fn fuzz(project: &Project, options: &Fuzz) -> Result<()> {
    let seed = options.seed;
    if options.log {
        let words = format!("--seed {seed} --first {} --sequences {}", options.first, options.sequences);
        print!("{}", Guest::new(project, options, Side::Native)?.answers(&format!("{words} --log"))?);
        return Ok(());
    }
    let other = if options.natively { Side::Native } else { Side::Preload };
    let both = Both(Guest::new(project, options, Side::Native)?, Guest::new(project, options, other)?);
    let mut compared = 0;
    for (first, sequences) in batches(options.first, options.sequences) {
        let words = format!("--seed {seed} --first {first} --sequences {sequences}");
        let [native, engine] = both.answers(&words)?;
        let told = native.lines().count() as u64;
        ensure!(told == sequences, "the reference kernel answered {told} of {sequences} sequences");
        let differing = differing(&native, &engine);
        if !differing.is_empty() {
            return tell(project, &both, seed, &differing, sequences);
        }
        compared += sequences;
        if compared < options.sequences {
            println!("{compared} of {} sequences of seed {seed}, no difference so far", options.sequences);
        }
    }
    println!("{compared} sequences of seed {seed}, no difference");
    Ok(())
}

/// The sequences in parts: the first one's index, and how many.
fn batches(first: u64, sequences: u64) -> impl Iterator<Item = (u64, u64)> {
    let starts = (0..sequences).step_by(BATCH as usize);
    starts.map(move |start| (first.saturating_add(start), BATCH.min(sequences - start)))
}

/// Makes the first of the differing sequences a case, and fails with it.
fn tell(project: &Project, both: &Both<'_>, seed: u64, differing: &[&str], sequences: u64) -> Result<()> {
    let Some(first) = differing.first() else { return Ok(()) };
    eprintln!("{} of {sequences} sequences differ", differing.len());
    overview(both, seed, differing.get(..MOST_TOLD).unwrap_or(differing))?;
    let case = shortest(both, seed, first)?;
    let place = project.run_dir("fuzz-uapi").join(format!("fuzz-{seed}-{first}.txt"));
    fs::create_dir_all(place.parent().unwrap_or(Path::new(".")))?;
    fs::write(&place, format!("needs edu edu2\n\n{}", case.native))?;
    bail!(
        "{} of {sequences} sequences differ. The first one is a case now, with the reference kernel's answers:\n  {}\n\n{}",
        differing.len(),
        place.display(),
        side_by_side(&case.native, &case.engine)
    );
}

/// Of how many differing sequences the step is told.
const MOST_TOLD: usize = 50;

/// A sequence with the answers of both sides.
struct Compared {
    native: String,
    engine: String,
}

/// The indices of the sequences whose digests differ.
fn differing<'a>(native: &'a str, engine: &str) -> Vec<&'a str> {
    let engine: HashSet<&str> = engine.lines().collect();
    let differing = native.lines().filter(|line| !engine.contains(line));
    differing.map(|line| line.split(' ').next().unwrap_or_default()).collect()
}

/// Tells the first step of each sequence that is answered differently.
fn overview(both: &Both<'_>, seed: u64, indices: &[&str]) -> Result<()> {
    let [native, engine] = both.answers(&format!("--seed {seed} --log --only {}", indices.join(",")))?;
    for (native, engine) in native.split("\n\n").zip(engine.split("\n\n")) {
        let mut lines = native.lines().zip(engine.lines());
        let name = native.lines().next().unwrap_or_default();
        match lines.find(|(one, other)| one != other) {
            Some((one, other)) => eprintln!("{name}:\n{one}\n      here: {}", answer(other)),
            None => eprintln!("{name}: no difference this time"),
        }
    }
    Ok(())
}

/// The answer in a step's line.
fn answer(line: &str) -> &str {
    line.split_once(" => ").map_or("nothing", |(_, answer)| answer)
}

/// Leaves out steps of a differing sequence for as long as it differs still.
fn shortest(both: &Both<'_>, seed: u64, index: &str) -> Result<Compared> {
    let words = |keep: &[Vec<usize>], log: &str| {
        let list = |keep: &Vec<usize>| keep.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let keep: Vec<String> = keep.iter().map(|keep| format!("--keep {}", list(keep))).collect();
        format!("--seed {seed} --first {index} --sequences 1 {log} {}", keep.join(" "))
    };
    let whole = both.answers(&words(&[], "--log"))?;
    let Some(last) = last_step(&whole) else {
        bail!("sequence {index} does not differ when it runs alone:\n{}", whole[0]);
    };
    let mut keep: Vec<usize> = (1..=last).collect();
    for _ in 0..MOST_ROUNDS {
        // Without each of its pieces: large ones first, single steps once nothing larger can go.
        let mut tries: Vec<Vec<usize>> = Vec::new();
        for piece in [keep.len() / 2, keep.len() / 4, 2, 1] {
            for at in (0..keep.len()).step_by(piece.max(1)).filter(|_| piece > 0) {
                let without = |number: &usize| !keep.iter().skip(at).take(piece).any(|other| other == number);
                tries.push(keep.iter().copied().filter(without).collect());
            }
        }
        tries.retain(|steps| !steps.is_empty());
        if tries.is_empty() {
            break;
        }
        let [native, engine] = both.answers(&words(&tries, ""))?;
        let differs: Vec<bool> =
            native.lines().zip(engine.lines()).map(|(one, other)| one != other).collect();
        let shorter = tries.iter().zip(differs).filter(|(_, differs)| *differs).map(|(steps, _)| steps);
        match shorter.min_by_key(|steps| steps.len()) {
            Some(steps) => keep.clone_from(steps),
            None => break,
        }
    }
    let [native, engine] = both.answers(&words(std::slice::from_ref(&keep), "--log"))?;
    Ok(Compared { native, engine })
}

/// The number of the first step with different answers; those behind it say nothing.
fn last_step([native, engine]: &[String; 2]) -> Option<usize> {
    // Before the steps there are the name and the memory that is used, which have no answers.
    let steps =
        |text: &str| text.lines().skip(1).filter(|line| !is_prelude(line)).map(str::to_owned).collect();
    let (native, engine): (Vec<String>, Vec<String>) = (steps(native), steps(engine));
    native.iter().zip(&engine).position(|(one, other)| one != other).map(|at| at + 1)
}

fn is_prelude(line: &str) -> bool {
    ["buf ", "memfd "].iter().any(|step| line.trim_start().starts_with(step))
}

/// Both cases as one: where answers differ, that of the engine stands below.
fn side_by_side(native: &str, engine: &str) -> String {
    let mut text = String::new();
    for (one, other) in native.lines().zip(engine.lines()) {
        text.push_str(&format!("{one}\n"));
        if one != other {
            let answer = format!("      here: {}", answer(other));
            text.push_str(&format!("{}\n", ui::paint(answer, ui::Look::Red)));
        }
    }
    text
}

/// One side: all that it takes to boot its guest.
struct Guest<'a> {
    project: &'a Project,
    side: Side,
    kernel: Kernel,
    on: OnKernel,
    runner: Vec<PathBuf>,
    run: Options,
}

impl<'a> Guest<'a> {
    fn new(project: &'a Project, options: &Fuzz, side: Side) -> Result<Self> {
        let variant = match side {
            Side::Native => Variant::Reference,
            Side::Preload => Variant::Legacy,
        };
        let on = OnKernel::new(Choice::Built(variant), matches!(side, Side::Preload));
        let kernel = on.kernel(project)?;
        // Built here, one after the other, so that guests that run side by side do not wait for cargo.
        on.prepare(project, &[])?;
        let mut run = options.run.clone();
        run.at_least(60 + options.sequences.min(BATCH) / SLOWEST);
        Ok(Self { project, side, kernel, on, runner: pack::build(project, &[RUNNER])?, run })
    }

    /// What it answers to the words for the runner.
    fn answers(&self, words: &str) -> Result<String> {
        let (mut files, arguments) = self.on.prepare(self.project, &[])?;
        files.add_programs(&self.runner)?;
        // Too long for the kernel's command line.
        files.add_text("words", words);
        let scenario = Scenario {
            name: "fuzz-uapi",
            arguments,
            devices: &[EDU, EDU],
            drives: &[],
            nets: &[],
            append: &[UNSAFE_NOIOMMU],
            witnessed: false,
        };
        let output = guest::run(self.project, &scenario, &self.kernel, files, &self.run)?;
        let answers = fs::read_to_string(output.join("answers"));
        answers.with_context(|| format!("the guest of {:?} left no answers", self.side))
    }
}

/// Both sides.
struct Both<'a>(Guest<'a>, Guest<'a>);

impl Both<'_> {
    /// The answers to the same words, of guests that run side by side; the same one twice runs one after the other, since
    /// what it leaves has one place.
    fn answers(&self, words: &str) -> Result<[String; 2]> {
        let Self(native, other) = self;
        if matches!(other.side, Side::Native) {
            return Ok([native.answers(words)?, other.answers(words)?]);
        }
        thread::scope(|scope| {
            let native = scope.spawn(|| native.answers(words));
            let other = other.answers(words);
            let native =
                native.join().map_err(|_| anyhow!("the reference kernel's guest has no runner any more"))?;
            Ok([native?, other?])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_all_sequences() {
        assert_eq!(batches(7, 3).collect::<Vec<_>>(), [(7, 3)]);
        assert_eq!(batches(0, BATCH).collect::<Vec<_>>(), [(0, BATCH)]);
        assert_eq!(batches(5, BATCH + 1).collect::<Vec<_>>(), [(5, BATCH), (5 + BATCH, 1)]);
        assert_eq!(batches(0, 100_000).map(|(_, sequences)| sequences).sum::<u64>(), 100_000);
        assert_eq!(batches(0, 0).count(), 0);
    }

    #[test]
    fn differences_are_found() {
        assert!(differing("0 a\n1 b\n", "0 a\n1 b\n").is_empty());
        assert_eq!(differing("0 a\n1 b\n2 c\n", "0 a\n1 x\n2 y\n"), ["1", "2"]);
        assert_eq!(differing("0 a\n1 b\n", "0 a\n"), ["1"]);
        let case = |answer: &str| format!("case x\n  buf b 24\n  open /dev/iommu i\n  close i => {answer}\n");
        assert_eq!(last_step(&[case("EBADF"), case("EBADF")]), None);
        assert_eq!(last_step(&[case("EBADF"), case("EIO")]), Some(2));
    }
}
