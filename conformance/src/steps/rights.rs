//! Steps on who asks: users, capabilities, limits.

use crate::names;
use crate::sys;
use crate::world::{Answer, World, mistake, quiet, word};

/// The user that `user` becomes where the case names none: nobody in particular, so nothing else is charged to it.
const SOMEBODY: u64 = 23456;

/// The step, if its verb is one of these.
pub(super) fn step(world: &mut World<'_>, verb: &str, words: &[String]) -> Option<Answer> {
    Some(match verb {
        "drop" | "raise" => capability(words, verb == "raise"),
        "user" => user(world, words),
        "memlock" => memlock(world, words),
        _ => return None,
    })
}

/// `drop CAP_...` takes a capability out of the effective set, `raise CAP_...` puts it back.
fn capability(words: &[String], raise: bool) -> Answer {
    for name in words {
        let Some(number) = names::capability(name) else { return mistake(format!("no capability `{name}`")) };
        if let Err(errno) = sys::capability(number, raise) {
            return Ok(names::errno(errno));
        }
    }
    Ok(String::new())
}

/// `user [NUMBER]`: becomes another user and keeps all capabilities.
fn user(world: &mut World<'_>, words: &[String]) -> Answer {
    world.memory.open();
    let number = words.first().map_or(Ok(SOMEBODY), |number| world.value(number))?;
    quiet(sys::become_user(number as u32))
}

/// `memlock SIZE`: the soft limit of locked memory.
fn memlock(world: &mut World<'_>, words: &[String]) -> Answer {
    quiet(sys::limit_memlock(world.size(word(words, 0)?)?))
}
