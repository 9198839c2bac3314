//! Steps that run in other processes and threads: `fork`, `child`, `thread`, `exec`.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::names;
use crate::parse::Step;
use crate::steps;
use crate::sys::{self, Ended};
use crate::world::{Answer, Mistake, World, mistake, without, word};

/// The environment variable by which this program finds, executed again, what it shall run.
pub(crate) const EXEC: &str = "NOIOMMU_CONFORMANCE_EXEC";

/// A child that runs beside its parent.
#[derive(Debug)]
pub(crate) struct Child {
    pid: i32,
    /// Written by the child when it waits, at its end closed.
    waits: i32,
    /// Written by the parent to let it go on.
    goes_on: i32,
}

/// How a process ended, where that is not as it should be.
pub(crate) fn ending(ended: Result<Ended, i32>) -> String {
    match ended {
        Ok(Ended::Code(0)) => String::new(),
        Ok(Ended::Code(code)) => format!("exit code {code}"),
        Ok(Ended::Signal(number)) => format!("killed by {}", names::signal(number)),
        Err(errno) => format!("wait: {}", names::errno(errno)),
    }
}

/// `fork ... end`: a child runs the steps, then the parent goes on.
pub(crate) fn fork(world: &mut World<'_>, step: &Step) -> Answer {
    world.memory.look();
    match sys::fork() {
        Ok(0) => in_child(world, &step.body),
        Ok(pid) => Ok(ending(sys::wait(pid))),
        Err(errno) => Ok(names::errno(errno)),
    }
}

/// Runs the steps in a child, and ends it.
fn in_child(world: &mut World<'_>, body: &[Step]) -> ! {
    world.memory.forked();
    world.children.clear();
    let code = i32::from(steps::run_all(world, body).is_err());
    sys::exit(code)
}

/// `child NAME ... end`: a child runs the steps up to `wait` or the end, then the parent goes on.
pub(crate) fn child(world: &mut World<'_>, step: &Step) -> Answer {
    let name = word(step.arguments(), 0)?.to_owned();
    let (Ok((waiting, waits)), Ok((told, goes_on))) = (sys::pipe(), sys::pipe()) else {
        return mistake("no pipes");
    };
    world.memory.look();
    match sys::fork() {
        Ok(0) => {
            // The parent's ends go, or its death would not be seen.
            let _ = (sys::close(waiting), sys::close(goes_on));
            world.rendezvous = Some((waits, told));
            in_child(world, &step.body)
        }
        Ok(pid) => {
            let _ = (sys::close(waits), sys::close(told));
            let child = Child { pid, waits: waiting, goes_on };
            until_it_waits(&child);
            world.children.insert(name, child);
            Ok(String::new())
        }
        Err(errno) => Ok(names::errno(errno)),
    }
}

fn until_it_waits(child: &Child) {
    let mut byte = 0_u8;
    let _ = sys::pread(child.waits, &raw mut byte as u64, 1, None);
}

/// `wait`, in a child: lets the parent go on until it says `resume`.
pub(crate) fn wait(world: &World<'_>) -> Result<(), Mistake> {
    let Some((waits, told)) = world.rendezvous else { return mistake("only a child waits") };
    let mut byte = 1_u8;
    let _ = sys::pwrite(waits, &raw const byte as u64, 1, None);
    let _ = sys::pread(told, &raw mut byte as u64, 1, None);
    Ok(())
}

/// `resume NAME`: lets the child go on, and waits until it waits again or has ended.
pub(crate) fn resume(world: &World<'_>, words: &[String]) -> Answer {
    let name = word(words, 0)?;
    let Some(child) = world.children.get(name) else { return without(name) };
    let byte = 1_u8;
    let _ = sys::pwrite(child.goes_on, &raw const byte as u64, 1, None);
    until_it_waits(child);
    Ok(String::new())
}

/// `join NAME` waits for the child's end, `kill NAME` brings it about.
pub(crate) fn join(world: &mut World<'_>, words: &[String], kill: bool) -> Answer {
    let name = word(words, 0)?;
    let Some(child) = world.children.remove(name) else { return without(name) };
    if kill {
        let _ = sys::kill(child.pid);
    }
    let ended = sys::wait(child.pid);
    let _ = (sys::close(child.waits), sys::close(child.goes_on));
    Ok(match ended {
        Ok(Ended::Signal(libc::SIGKILL)) if kill => String::new(),
        ended => ending(ended),
    })
}

/// `thread ... end`: another thread runs the steps, while this one waits for it.
pub(crate) fn thread(world: &mut World<'_>, step: &Step) -> Answer {
    std::thread::scope(|scope| {
        scope
            .spawn(|| steps::run_all(world, &step.body))
            .join()
            .unwrap_or_else(|_| mistake("the thread panicked"))
    })?;
    Ok(String::new())
}

/// `exec ... end`: a child executes this program again, which runs the steps with the descriptors that are still open.
pub(crate) fn exec(world: &mut World<'_>, step: &Step) -> Answer {
    // The report's descriptor must outlive the exec, under a number that the other program is told.
    let report = match sys::fcntl(world.report, libc::F_DUPFD, 901) {
        Ok(fd) => fd as i32,
        Err(errno) => return Ok(names::errno(errno)),
    };
    let pairs = |pairs: Vec<String>| pairs.join(",");
    let files = pairs(world.files.iter().map(|(name, fd)| format!("{name}={fd}")).collect());
    let variables = pairs(world.variables.iter().map(|(name, value)| format!("{name}={value}")).collect());
    let work = format!("{}:{}:{report}:{files}:{variables}", world.identity, step.line);
    let answer = match sys::fork() {
        Ok(0) => execute_for(&work),
        Ok(pid) => ending(sys::wait(pid)),
        Err(errno) => names::errno(errno),
    };
    let _ = sys::close(report);
    Ok(answer)
}

fn execute_for(work: &str) -> ! {
    let strings = |items: Vec<Vec<u8>>| {
        items.into_iter().filter_map(|item| CString::new(item).ok()).collect::<Vec<_>>()
    };
    let arguments = strings(std::env::args_os().map(|word| word.as_bytes().to_vec()).collect());
    let variables = std::env::vars_os().filter(|(name, _)| name != EXEC);
    let mut environment: Vec<Vec<u8>> =
        variables.map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()).collect();
    environment.push(format!("{EXEC}={work}").into_bytes());
    let environment = strings(environment);
    let pointers = |strings: &[CString]| {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect::<Vec<*const libc::c_char>>()
    };
    let (arguments, environment) = (pointers(&arguments), pointers(&environment));
    // SAFETY: both lists end with a null pointer, and their strings live until the call, which does not return.
    unsafe { libc::execve(c"/proc/self/exe".as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    sys::exit(127)
}

/// What this program was executed for.
pub(crate) struct Executed {
    /// `section/name` of the case.
    pub(crate) identity: String,
    /// The line of the `exec` step whose body it shall run.
    pub(crate) line: usize,
    pub(crate) report: i32,
    pub(crate) files: Vec<(String, i32)>,
    pub(crate) variables: Vec<(String, u64)>,
}

/// Whether this program was executed for an `exec` step, and for what of it.
pub(crate) fn executed() -> Option<Executed> {
    let setting = std::env::var(EXEC).ok()?;
    let mut parts = setting.split(':');
    let identity = parts.next()?.to_owned();
    let line = parts.next()?.parse().ok()?;
    let report = parts.next()?.parse().ok()?;
    let pairs = |part: &str| -> Vec<(String, String)> {
        part.split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .collect()
    };
    let files =
        pairs(parts.next()?).into_iter().filter_map(|(name, fd)| Some((name, fd.parse().ok()?))).collect();
    let variables = pairs(parts.next()?)
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
        .collect();
    Some(Executed { identity, line, report, files, variables })
}

/// `sleep MILLISECONDS`.
pub(crate) fn sleep(world: &World<'_>, words: &[String]) -> Answer {
    std::thread::sleep(Duration::from_millis(world.value(word(words, 0)?)?));
    Ok(String::new())
}
