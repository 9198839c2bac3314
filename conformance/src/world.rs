//! What a case has while it runs: descriptors, variables, memory, and the values that its steps name.

use std::collections::BTreeMap;

use crate::memory::Memory;
use crate::names;
use crate::parse::Step;
use crate::roles::Roles;

/// The case's text is wrong, in a sentence: no answer of a provider.
#[derive(Debug)]
pub(crate) struct Mistake(pub(crate) String);

/// What a step answers; empty where there is nothing to tell.
pub(crate) type Answer = Result<String, Mistake>;

/// How the answer of a step begins that names what an earlier step should have made.
pub(crate) const WITHOUT: &str = "without ";

/// Something is named that is not there: a mistake when answers are recorded, otherwise what comes of an earlier difference.
pub(crate) fn without<T>(name: &str) -> Result<T, Mistake> {
    mistake(format!("{WITHOUT}{name}"))
}

/// A mistake in the case's text.
pub(crate) fn mistake<T>(what: impl Into<String>) -> Result<T, Mistake> {
    Err(Mistake(what.into()))
}

/// Steps that cases run by name.
pub(crate) type Setups = BTreeMap<String, Vec<Step>>;

/// The state of one process of a running case.
pub(crate) struct World<'a> {
    /// The devices by role.
    pub(crate) roles: &'a Roles,
    /// The setups by name.
    pub(crate) setups: &'a Setups,
    /// Descriptors by name; a name stays when its descriptor is closed.
    pub(crate) files: BTreeMap<String, i32>,
    /// Variables by name, without their `$`.
    pub(crate) variables: BTreeMap<String, u64>,
    /// The buffers.
    pub(crate) memory: Memory,
    /// Where answers go.
    pub(crate) report: i32,
    /// Children that have not ended, by name.
    pub(crate) children: BTreeMap<String, crate::process::Child>,
    /// The pipe by which this process, a child, tells that it waits, and the one by which it is told to go on.
    pub(crate) rendezvous: Option<(i32, i32)>,
    /// The case, as its processes find it again after exec.
    pub(crate) identity: String,
}

impl<'a> World<'a> {
    pub(crate) fn new(roles: &'a Roles, setups: &'a Setups, report: i32, identity: String) -> Self {
        Self {
            roles,
            setups,
            files: BTreeMap::new(),
            variables: BTreeMap::new(),
            memory: Memory::default(),
            report,
            children: BTreeMap::new(),
            rendezvous: None,
            identity,
        }
    }

    /// The descriptor of that name.
    pub(crate) fn file(&self, name: &str) -> Result<i32, Mistake> {
        match self.files.get(name) {
            Some(fd) => Ok(*fd),
            // A number stands for itself.
            None => name.parse().or_else(|_| without(name)),
        }
    }

    /// The value of an expression: terms joined by `+ - * |`, from left to right.
    ///
    /// A term is a number (decimal, 0x hexadecimal, with K, M or G), a `$variable`, a constant, a buffer (its address), or a
    /// descriptor. Arithmetic wraps.
    pub(crate) fn value(&self, expression: &str) -> Result<u64, Mistake> {
        let mut total = 0_u64;
        let mut operator = '+';
        let mut rest = expression;
        if let Some(negative) = rest.strip_prefix('-') {
            operator = '-';
            rest = negative;
        }
        loop {
            let end = rest.find(['+', '-', '*', '|']).unwrap_or(rest.len());
            let (term, after) = rest.split_at(end);
            let term = self.term(term)?;
            total = match operator {
                '+' => total.wrapping_add(term),
                '-' => total.wrapping_sub(term),
                '*' => total.wrapping_mul(term),
                _ => total | term,
            };
            let mut chars = after.chars();
            match chars.next() {
                Some(next) => operator = next,
                None => return Ok(total),
            }
            rest = chars.as_str();
        }
    }

    fn term(&self, term: &str) -> Result<u64, Mistake> {
        if let Some(name) = term.strip_prefix('$') {
            return match self.variables.get(name) {
                Some(value) => Ok(*value),
                None => without(term),
            };
        }
        if let Some(value) = number(term) {
            return Ok(value);
        }
        if let Some(value) = names::constant(term) {
            return Ok(value);
        }
        if let Some(address) = self.memory.address(term) {
            return Ok(address);
        }
        match self.files.get(term) {
            Some(fd) => Ok(*fd as i64 as u64),
            None => without(term),
        }
    }

    /// A count of bytes: a plain number counts pages, one with K, M, G or 0x counts bytes.
    pub(crate) fn size(&self, expression: &str) -> Result<u64, Mistake> {
        let value = self.value(expression)?;
        let pages = expression.bytes().all(|c| c.is_ascii_digit());
        Ok(if pages { value.wrapping_mul(4096) } else { value })
    }
}

/// A literal number.
fn number(term: &str) -> Option<u64> {
    if let Some(hex) = term.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let (digits, unit) = match term.char_indices().next_back()? {
        (at, 'K') => (term.get(..at)?, 1 << 10),
        (at, 'M') => (term.get(..at)?, 1 << 20),
        (at, 'G') => (term.get(..at)?, 1 << 30),
        (at, 'T') => (term.get(..at)?, 1 << 40),
        _ => (term, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// The option `name=` among a step's words, if it is there.
pub(crate) fn option<'s>(words: &'s [String], name: &str) -> Option<&'s str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// Whether the word is among a step's words.
pub(crate) fn has(words: &[String], word: &str) -> bool {
    words.iter().any(|other| other == word)
}

/// The step's word at `index`.
pub(crate) fn word(words: &[String], index: usize) -> Result<&str, Mistake> {
    match words.get(index) {
        Some(word) => Ok(word),
        None => mistake("a word is missing"),
    }
}

/// Nothing where a call succeeded, else the errno's name.
pub(crate) fn quiet<T>(result: Result<T, i32>) -> Answer {
    Ok(result.err().map_or_else(String::new, names::errno))
}

/// The call's value, else the errno's name.
pub(crate) fn shown(result: Result<i64, i32>) -> Answer {
    Ok(match result {
        Ok(value) => value.to_string(),
        Err(errno) => names::errno(errno),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let roles = Roles::default();
        let setups = Setups::new();
        let mut world = World::new(&roles, &setups, -1, String::new());
        world.variables.insert("x".to_owned(), 7);
        world.files.insert("f".to_owned(), -1);
        let value = |text| world.value(text).ok();
        assert_eq!(value("0x10"), Some(16));
        assert_eq!(value("FIXED|R|W"), Some(7));
        assert_eq!(value("$x*0x1000+4K"), Some(0x8000));
        assert_eq!(value("-1"), Some(u64::MAX));
        assert_eq!(value("0-4096"), Some(4096_u64.wrapping_neg()));
        assert_eq!(value("f"), Some(u64::MAX));
        assert_eq!(value("BAR2+8"), Some((2 << 40) + 8));
        assert_eq!(value("nothing"), None);
        assert_eq!(world.size("2").ok(), Some(8192));
        assert_eq!(world.size("2M").ok(), Some(2 << 20));
    }
}
