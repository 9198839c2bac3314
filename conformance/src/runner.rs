//! Runs a case: in a process of its own, which cannot hang or crash the runner.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cases::Library;
use crate::names;
use crate::parse::{self, Block, Step};
use crate::process::{self, Executed};
use crate::roles::Roles;
use crate::steps;
use crate::sys::{self, Ended};
use crate::world::World;

/// The number of the descriptor for answers: out of the way of those that a case counts.
const REPORT: i32 = 902;
/// The answer of a step that another one's failure kept from running.
pub(crate) const NOT_REACHED: &str = "not reached";

/// What stands in the way of a case here, if anything does.
pub(crate) fn obstacle(case: &Block, roles: &Roles) -> Option<String> {
    if !case.needs.is_empty() && !sys::is_root() {
        // Frames, capabilities, other users: nobody else has them to give away.
        return Some("not run by root".to_owned());
    }
    case.needs.iter().find_map(|need| {
        let met = match need.as_str() {
            "hugetlb" => huge_pages() >= 4,
            "thp" => std::fs::metadata("/sys/kernel/mm/transparent_hugepage").is_ok(),
            "iommu" => roles.iommu,
            "container" => roles.container,
            role => match role.split_once('.') {
                _ if names::capability(role).is_some() => {
                    names::capability(role).is_some_and(sys::has_capability)
                }
                Some((role, "group")) => roles.get(role).is_some_and(|device| device.group.is_some()),
                _ => roles.get(role).is_some_and(|device| device.cdev.is_some()),
            },
        };
        (!met).then(|| format!("no {need} here"))
    })
}

fn huge_pages() -> u64 {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The answers of all steps, by line.
pub(crate) fn run(
    library: &Library,
    case: &Block,
    identity: &str,
    roles: &Roles,
    patience: Duration,
) -> BTreeMap<usize, String> {
    let (Ok((from, to)), began) = (sys::pipe(), Instant::now()) else {
        return BTreeMap::from([(case.line, "no pipe".to_owned())]);
    };
    let pid = match sys::fork() {
        Ok(0) => {
            sys::alone();
            let _ = sys::close(from);
            let report = sys::fcntl(to, libc::F_DUPFD_CLOEXEC, REPORT).map_or(to, |fd| fd as i32);
            if report != to {
                let _ = sys::close(to);
            }
            let mut world = World::new(roles, &library.setups, report, identity.to_owned());
            let code = i32::from(steps::run_all(&mut world, &case.steps).is_err());
            sys::exit(code)
        }
        Ok(pid) => pid,
        Err(_) => return BTreeMap::new(),
    };
    let _ = sys::close(to);
    let (text, in_time) = collect(from, began, patience);
    if !in_time {
        // The whole group: a child of the case may be what hangs.
        let _ = sys::kill(-pid);
        let _ = sys::kill(pid);
    }
    let ended = sys::wait(pid);
    // What a case leaves running behind it must not meet the next one.
    let _ = sys::kill(-pid);
    let _ = sys::close(from);
    let mut answers: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        if let Some((number, answer)) = line.split_once('\t')
            && let Ok(number) = number.parse()
        {
            answers.entry(number).or_default().push(answer.to_owned());
        }
    }
    let mut answers: BTreeMap<usize, String> =
        answers.into_iter().map(|(line, answers)| (line, joined(answers))).collect();
    let why = match ended {
        _ if !in_time => "timeout".to_owned(),
        Ok(Ended::Code(0 | 1)) => String::new(),
        ended => process::ending(ended),
    };
    blame(&case.steps, &mut answers, &why);
    answers
}

/// Reads answers until all processes of the case have closed the pipe; false where that takes too long.
fn collect(from: i32, began: Instant, patience: Duration) -> (String, bool) {
    let mut text = Vec::new();
    let mut piece = [0_u8; 4096];
    loop {
        let left = patience.saturating_sub(began.elapsed());
        match sys::poll(from, libc::POLLIN, left.as_millis() as i32) {
            Ok(0) => return (String::from_utf8_lossy(&text).into_owned(), false),
            Ok(_) => {}
            Err(libc::EINTR) => continue,
            Err(_) => break,
        }
        match sys::pread(from, piece.as_mut_ptr() as u64, piece.len(), None) {
            Ok(count @ 1..) => text.extend_from_slice(piece.get(..count as usize).unwrap_or_default()),
            Err(libc::EINTR) => {}
            _ => break,
        }
    }
    (String::from_utf8_lossy(&text).into_owned(), true)
}

/// The answers of a repeated step as one.
fn joined(answers: Vec<String>) -> String {
    let mut runs: Vec<(String, usize)> = Vec::new();
    for answer in answers {
        match runs.last_mut() {
            Some((last, count)) if *last == answer => *count += 1,
            _ => runs.push((answer, 1)),
        }
    }
    let told = |(answer, count): (String, usize)| match (answer.as_str(), count) {
        ("", _) | (_, 1) => answer,
        _ => format!("{answer} (x{count})"),
    };
    runs.into_iter().map(told).collect::<Vec<_>>().join("; ")
}

/// Gives what ended a process to the step that it was at, and the steps after it their answer.
fn blame(steps: &[Step], answers: &mut BTreeMap<usize, String>, why: &str) {
    for step in steps {
        let violent = |answer: &String| answer.starts_with("killed by");
        match answers.get(&step.line).cloned().filter(violent) {
            // The block's process died at one of its steps.
            Some(answer)
                if parse::flatten(&step.body).iter().any(|inner| !answers.contains_key(&inner.line)) =>
            {
                answers.insert(step.line, String::new());
                blame(&step.body, answers, &answer);
            }
            _ => blame(&step.body, answers, ""),
        }
    }
    let mut missing = steps.iter().filter(|step| !answers.contains_key(&step.line)).map(|step| step.line);
    if let Some(first) = missing.next() {
        let rest: Vec<usize> = missing.collect();
        answers.insert(first, if why.is_empty() { NOT_REACHED.to_owned() } else { why.to_owned() });
        for line in rest {
            answers.insert(line, NOT_REACHED.to_owned());
        }
    }
}

/// What this program does when an `exec` step executed it: runs that step's body.
pub(crate) fn go_on(library: &Library, roles: &Roles, executed: Executed) -> i32 {
    let Some(case) = library.case(&executed.identity) else { return 2 };
    let steps = parse::flatten(&case.steps);
    let Some(step) = steps.into_iter().find(|step| step.line == executed.line) else { return 2 };
    let mut world = World::new(roles, &library.setups, executed.report, executed.identity.clone());
    world.files.extend(executed.files);
    world.variables.extend(executed.variables);
    world.memory.open();
    i32::from(steps::run_all(&mut world, &step.body).is_err())
}
