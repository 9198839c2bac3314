//! What each step does, by its first word.

use crate::ioctl;
use crate::parse::Step;
use crate::process;
use crate::sys;
use crate::world::{Answer, Mistake, WITHOUT, World, mistake, word};

mod buffers;
mod device;
mod files;
mod rights;

/// How a mistake in a case's text is told apart from an answer.
pub(crate) const MISTAKE: &str = "mistake: ";

/// Runs steps one after the other and reports each one's answer.
///
/// # Errors
/// A mistake in the case's text, which is reported too and ends the case.
pub(crate) fn run_all(world: &mut World<'_>, steps: &[Step]) -> Result<(), Mistake> {
    for step in steps {
        if step.verb() == "wait" {
            // Told before it happens: who waits may be killed.
            report(world, step.line, "");
            process::wait(world)?;
            continue;
        }
        match run(world, step) {
            Ok(answer) => report(world, step.line, &answer),
            Err(Mistake(what)) if what.starts_with(WITHOUT) => report(world, step.line, &what),
            Err(Mistake(what)) => {
                report(world, step.line, &format!("{MISTAKE}{what}"));
                return Err(Mistake(what));
            }
        }
    }
    Ok(())
}

/// Writes an answer at once, in one piece: processes and threads of a case share the pipe.
fn report(world: &World<'_>, line: usize, answer: &str) {
    let text = format!("{line}\t{}\n", answer.replace(['\n', '\t'], " "));
    let _ = sys::pwrite(world.report, text.as_ptr() as u64, text.len(), None);
}

/// Runs one step.
pub(crate) fn run(world: &mut World<'_>, step: &Step) -> Answer {
    let (verb, words) = (step.verb(), step.arguments());
    if let Some(call) = ioctl::call(verb) {
        return ioctl::step(world, call, words);
    }
    match verb {
        "ioctl" => ioctl::raw(world, words),
        "use" => setup(world, words),
        "repeat" => {
            for round in 0..world.value(word(words, 0)?)? {
                world.variables.insert("n".to_owned(), round);
                run_all(world, &step.body)?;
            }
            Ok(String::new())
        }
        "let" => {
            let Some((name, value)) = word(words, 0)?.split_once('=') else {
                return mistake("let NAME=VALUE");
            };
            let value = world.value(value)?;
            world.variables.insert(name.to_owned(), value);
            Ok(String::new())
        }
        "show" => Ok(format!("{:#x}", world.value(word(words, 0)?)?)),
        "fork" => process::fork(world, step),
        "child" => process::child(world, step),
        "thread" => process::thread(world, step),
        "exec" => process::exec(world, step),
        "resume" => process::resume(world, words),
        "join" => process::join(world, words, false),
        "kill" => process::join(world, words, true),
        "sleep" => process::sleep(world, words),
        _ => files::step(world, verb, words)
            .or_else(|| buffers::step(world, verb, words))
            .or_else(|| device::step(world, verb, words))
            .or_else(|| rights::step(world, verb, words))
            .unwrap_or_else(|| mistake(format!("`{verb}` is no step"))),
    }
}

/// `use NAME`: runs a setup; answers nothing unless some of its steps failed.
fn setup(world: &mut World<'_>, words: &[String]) -> Answer {
    let setups = world.setups;
    let Some(steps) = setups.get(word(words, 0)?) else { return mistake("no such setup") };
    let mut failed = Vec::new();
    for step in steps {
        // One that fails need not keep the others from what they make.
        let answer = match run(world, step) {
            Err(Mistake(what)) if what.starts_with(WITHOUT) => what,
            answer => answer?,
        };
        let good = answer.is_empty() || answer == "fd" || answer.starts_with('0');
        if !good {
            failed.push(format!("{}: {answer}", step.text));
        }
    }
    Ok(failed.join("; "))
}
