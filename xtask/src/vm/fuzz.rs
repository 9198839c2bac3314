//! Differential fuzzing of the uAPI: the same random sequences of calls on the reference kernel and through the preload library,
//! each in a guest. The first sequence whose answers differ is made as short as it can be, shown, and written down as a case.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::conformance::RUNNER;
use super::guest::{self, Scenario};
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
const SLOWEST: u64 = 20;

/// Rounds of leaving out steps. Each boots both guests.
const MOST_ROUNDS: usize = 12;

/// Compares the answers to all sequences.
pub(crate) fn fuzz(project: &Project, options: &Fuzz) -> Result<()> {
    let other = if options.natively { Side::Native } else { Side::Preload };
    let words =
        format!("--seed {} --first {} --sequences {}", options.seed, options.first, options.sequences);
    if options.log {
        print!("{}", answers(project, options, Side::Native, &format!("{words} --log"))?);
        return Ok(());
    }
    let sides = [Side::Native, other];
    let [native, engine] = both(project, options, sides, &words)?;
    let told = native.lines().count();
    ensure!(
        told as u64 == options.sequences,
        "the reference kernel answered {told} of {} sequences",
        options.sequences
    );
    let Some((expected, got)) = first_difference(&native, &engine) else {
        println!("{told} sequences of seed {}, no difference", options.seed);
        return Ok(());
    };
    let differences = native.lines().zip(engine.lines()).filter(|(one, other)| one != other).count();
    let index: u64 = expected.split(' ').next().and_then(|index| index.parse().ok()).context("no index")?;
    eprintln!("sequence {index} differs: {expected} and {got}; {differences} of {told} differ");
    let case = shortest(project, options, sides, index)?;
    let place = project.run_dir("fuzz-uapi").join(format!("fuzz-{}-{index}.txt", options.seed));
    fs::create_dir_all(project.run_dir("fuzz-uapi"))?;
    fs::write(&place, format!("needs edu edu2\n\n{}", case.native))?;
    bail!(
        "{differences} of {told} sequences differ. The first, with the reference kernel's answers, is a case now:\n  {}\n\n{}",
        place.display(),
        side_by_side(&case.native, &case.engine)
    );
}

/// A sequence with the answers of both sides.
struct Compared {
    native: String,
    engine: String,
}

/// The first line that differs; what one side did not answer is empty.
fn first_difference<'a>(native: &'a str, engine: &'a str) -> Option<(&'a str, &'a str)> {
    let mut others = engine.lines();
    native.lines().map(|line| (line, others.next().unwrap_or_default())).find(|(one, other)| one != other)
}

/// The answers of both sides to the same words.
fn both(project: &Project, options: &Fuzz, sides: [Side; 2], words: &str) -> Result<[String; 2]> {
    let [one, other] = sides;
    Ok([answers(project, options, one, words)?, answers(project, options, other, words)?])
}

/// Leaves out steps of a differing sequence for as long as it differs still.
fn shortest(project: &Project, options: &Fuzz, sides: [Side; 2], index: u64) -> Result<Compared> {
    let words = |keep: &[Vec<usize>], log: &str| {
        let list = |keep: &Vec<usize>| keep.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let keep: Vec<String> = keep.iter().map(|keep| format!("--keep {}", list(keep))).collect();
        format!("--seed {} --first {index} --sequences 1 {log} {}", options.seed, keep.join(" "))
    };
    let whole = both(project, options, sides, &words(&[], "--log"))?;
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
        let [native, engine] = both(project, options, sides, &words(&tries, ""))?;
        let differs: Vec<bool> =
            native.lines().zip(engine.lines()).map(|(one, other)| one != other).collect();
        let shorter = tries.iter().zip(differs).filter(|(_, differs)| *differs).map(|(steps, _)| steps);
        match shorter.min_by_key(|steps| steps.len()) {
            Some(steps) => keep.clone_from(steps),
            None => break,
        }
    }
    let [native, engine] = both(project, options, sides, &words(std::slice::from_ref(&keep), "--log"))?;
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
            let answer = other.split_once(" => ").map_or("nothing", |(_, answer)| answer);
            text.push_str(&format!("{}\n", ui::paint(format_args!("      here: {answer}"), ui::Look::Red)));
        }
    }
    text
}

/// What one side answers.
fn answers(project: &Project, options: &Fuzz, side: Side, words: &str) -> Result<String> {
    let variant = match side {
        Side::Native => Variant::Reference,
        Side::Preload => Variant::Legacy,
    };
    let mut run = options.run.clone();
    run.at_least(60 + options.sequences / SLOWEST);
    let mut on = OnKernel::native(Choice::Built(variant));
    on.preload = matches!(side, Side::Preload);
    let kernel = on.kernel(project)?;
    let (mut files, arguments) = on.prepare(project, &[])?;
    files.add_programs(&pack::build(project, &[RUNNER])?)?;
    // Too long for the kernel's command line.
    let file = project.run_dir("fuzz-uapi").join("words");
    fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
    fs::write(&file, words)?;
    files.add("words", 0o644, &file)?;
    let scenario = Scenario {
        name: "fuzz-uapi",
        arguments,
        devices: &[EDU, EDU],
        drives: &[],
        nets: &[],
        append: &[UNSAFE_NOIOMMU],
        witnessed: false,
    };
    let output = guest::run(project, &scenario, &kernel, files, &run)?;
    fs::read_to_string(output.join("answers")).context("the guest left no answers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_found() {
        assert_eq!(first_difference("0 a\n1 b\n", "0 a\n1 b\n"), None);
        assert_eq!(first_difference("0 a\n1 b\n2 c\n", "0 a\n1 x\n2 y\n"), Some(("1 b", "1 x")));
        assert_eq!(first_difference("0 a\n1 b\n", "0 a\n"), Some(("1 b", "")));
        let case = |answer: &str| format!("case x\n  buf b 24\n  open /dev/iommu i\n  close i => {answer}\n");
        assert_eq!(last_step(&[case("EBADF"), case("EBADF")]), None);
        assert_eq!(last_step(&[case("EBADF"), case("EIO")]), Some(2));
    }
}
