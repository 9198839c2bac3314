//! The machine code of lookups: no lock, and no store but to the stack.
//!
//! Readers that only read do not wait for each other, however many there are. That they do is easy to say of the source, and easy to
//! lose: a counter, a reference that is cloned, a lock in a library. So the release program is disassembled.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command;

/// What must hold, by the functions' names, and how many calls each may have: of what is out of its way, an address that the index does
/// not have.
const CLEAN: &[(&str, usize)] =
    &[("noiommu_bench::lookup::code::address", 1), ("noiommu_bench::lookup::code::view", 0)];

/// Functions that do on purpose what must not be, and what has to be found in them.
const CONTROLS: &[(&str, Find)] = &[
    ("noiommu_bench::lookup::code::control_counts", Find::Lock),
    ("noiommu_bench::lookup::code::control_stores", Find::Store),
];

/// What can be found in an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Find {
    /// It locks the bus or a cache line.
    Lock,
    /// It writes to memory other than the stack.
    Store,
    /// It calls another function.
    Call,
}

/// Looks at a program for x86-64; `None` for another processor, whose instructions this does not know.
///
/// # Errors
/// What was found, or is not there.
pub(crate) fn check(program: &Path) -> Result<Option<String>> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(None);
    }
    let mut objdump = Command::new("objdump");
    let listing =
        command::output(objdump.args(["--disassemble", "--demangle", "--no-show-raw-insn"]).arg(program))?;
    let functions = functions(&listing);
    let mut looked_at = 0;
    for (name, calls) in CLEAN {
        let codes = functions.get(name).map_or(&[][..], Vec::as_slice);
        if codes.is_empty() {
            bail!("{name} is not in the program: its code was not looked at");
        }
        for code in codes {
            let found: Vec<_> = code.iter().filter_map(|line| Some((find(name, line)?, *line))).collect();
            if let Some((what, line)) = found.iter().find(|(what, _)| *what != Find::Call) {
                bail!("{what:?} in {name}: {line}");
            }
            if found.len() > *calls {
                bail!("{} calls in {name}, not {calls} at most: {:?}", found.len(), found);
            }
            looked_at += code.len();
        }
    }
    for (name, what) in CONTROLS {
        let codes = functions.get(name).map_or(&[][..], Vec::as_slice);
        if !codes.iter().flatten().any(|line| find(name, line) == Some(*what)) {
            bail!("no {what:?} is found in {name}, where it is on purpose");
        }
    }
    Ok(Some(format!("{looked_at} instructions without a lock or a store to shared memory")))
}

/// The instructions of each function, by its name; several where it is there several times.
fn functions(listing: &str) -> BTreeMap<&str, Vec<Vec<&str>>> {
    let mut all: BTreeMap<&str, Vec<Vec<&str>>> = BTreeMap::new();
    let mut name = "";
    for line in listing.lines() {
        if let Some((_, named)) = line.strip_suffix(">:").and_then(|line| line.split_once(" <")) {
            name = named;
            all.entry(name).or_default().push(Vec::new());
        } else if let Some((_, instruction)) = line.split_once(":\t")
            && let Some(code) = all.get_mut(name).and_then(|codes| codes.last_mut())
        {
            code.push(instruction.trim());
        }
    }
    all
}

/// What an instruction does that a lookup must not, or may not do freely. Operands are in AT&T's order: the last one is written to.
/// `name`: of the function that it is in.
fn find(name: &str, instruction: &str) -> Option<Find> {
    /// Instructions that only read their last operand.
    const READ: &[&str] =
        &["cmp", "test", "bt", "j", "nop", "lea", "prefetch", "ucomis", "comis", "data16", "cs", "push"];
    let instruction = instruction.split('#').next().unwrap_or_default().trim();
    let (mnemonic, operands) = instruction.split_once(char::is_whitespace).unwrap_or((instruction, ""));
    // Exchange with memory locks without saying so.
    if mnemonic == "lock" || (mnemonic.starts_with("xchg") && operands.contains('(')) {
        return Some(Find::Lock);
    }
    // A jump into another function is a call whose answer is this one's.
    let leaves = || {
        let target = operands.split_once('<').and_then(|(_, target)| target.trim_end().strip_suffix('>'));
        target.is_none_or(|target| target.rsplit_once("+0x").map_or(target, |(name, _)| name) != name)
    };
    if mnemonic.starts_with("call") || (mnemonic.starts_with('j') && leaves()) {
        return Some(Find::Call);
    }
    let written = last_operand(operands);
    // Strings are written through a register that has no brackets.
    let writes = written.contains('(') && !READ.iter().any(|read| mnemonic.starts_with(read))
        || mnemonic.starts_with("rep");
    (writes && !written.contains("(%rsp")).then_some(Find::Store)
}

/// The last operand: commas within brackets part nothing.
fn last_operand(operands: &str) -> &str {
    let mut depth = 0;
    let mut begin = 0;
    for (at, character) in operands.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => begin = at + 1,
            _ => {}
        }
    }
    operands[begin..].trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_told_apart() {
        for (instruction, what) in [
            ("mov    0x18(%rdi),%rax", None),
            ("mov    %rax,0x18(%rsp)", None),
            ("mov    %rax,(%rsp,%rcx,8)", None),
            ("mov    %rax,0x18(%rdi)", Some(Find::Store)),
            ("mov    %rax,(%rdi,%rcx,8)", Some(Find::Store)),
            ("movq   $0x0,0x10(%rbp)", Some(Find::Store)),
            ("add    (%r15,%rdx,8),%r9", None),
            ("add    %r9,(%r15,%rdx,8)", Some(Find::Store)),
            ("incq   (%rdi)", Some(Find::Store)),
            ("cmp    0x30(%rdi),%rax", None),
            ("cmpq   $0x1,0x30(%rdi)", None),
            ("testb  $0x1,(%rdi)", None),
            ("lea    0x10(%r10),%rdi", None),
            ("nopw   %cs:0x0(%rax,%rax,1)", None),
            ("lock incq (%rdi)", Some(Find::Lock)),
            ("xchg   %rax,(%rdi)", Some(Find::Lock)),
            ("xchg   %ax,%ax", None),
            ("rep stos %al,%es:(%rdi)", Some(Find::Store)),
            ("movups %xmm0,(%rdi)", Some(Find::Store)),
            ("sete   (%rdi)", Some(Find::Store)),
            ("call   *0xb0abd(%rip)        # f6d50 <_DYNAMIC+0x478>", Some(Find::Call)),
            ("jmp    *0x8(%rax)", Some(Find::Call)),
            ("jmp    1234 <c>", Some(Find::Call)),
            ("jae    1234 <a<M>::b+0x10>", None),
            ("jmp    1234 <a<M>::b>", None),
            ("ret", None),
        ] {
            assert_eq!(find("a<M>::b", instruction), what, "{instruction}");
        }
    }

    #[test]
    fn functions_have_their_instructions() {
        let listing = "\n0000000000001000 <a::b>:\n    1000:\tpush   %rbp\n    1001:\tret\n\n0000000000002000 <c>:\n    2000:\tret\n";
        let functions = functions(listing);
        assert_eq!(functions["a::b"], [["push   %rbp", "ret"]]);
        assert_eq!(functions["c"], [["ret"]]);
    }
}
