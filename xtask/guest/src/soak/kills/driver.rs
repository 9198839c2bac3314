//! A driver that dies in the middle of its device's DMA.

use std::io::{BufRead as _, Write as _, stdin, stdout};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use noiommu::{Context, Device, ErrorKind, optin};

use super::super::cgroup::{DOOMED, OOM, OOM_MOST};
use super::busy::Kind;
use crate::matrix::driver::PATIENCE;

/// What it says when its device is writing.
pub(super) const ARMED: &str = "armed";

/// What it says, and ends, when its device was done before that could be said: the machine is busy.
pub(super) const LATE: &str = "late";

/// The exit status by which it is known that it went on its own.
pub(super) const STATUS: i32 = 7;

/// What one that is to run out of memory takes before, and at once in the end: all that its cgroup has is soon gone then.
const MUCH: usize = OOM_MOST / 4 * 3;
const TOO_MUCH: usize = OOM_MOST;

/// Has the device write, says so, waits for a line, and dies that way; those that are killed wait for ever.
pub(in crate::soak) fn run(kind: &str, address: &str, way: &str) -> Result<()> {
    // Before the device is opened: whatever is started with it is in there, too, unless it leaves by itself.
    match way {
        "oom" => OOM.enter()?,
        "cgroup" => DOOMED.enter()?,
        _ => {}
    }
    let much = if way == "oom" { vec![1_u8; MUCH] } else { Vec::new() };
    optin::enable()?;
    let context = Context::new()?;
    let ioas = context.ioas()?;
    let device = open(&context, address)?;
    let mut busy = (Kind::find(kind)?.start)(device, &ioas)?;
    let armed = busy.is_writing()?;
    println!("{}", if armed { ARMED } else { LATE });
    stdout().flush()?;
    if !armed {
        return Ok(());
    }
    let told = stdin().lock().read_line(&mut String::new())?;
    ensure!(told > 0, "nobody is there to tell how to die");
    match way {
        // SAFETY: ends the process without any of its clean-up, which is what this is about.
        "exit" => unsafe { libc::_exit(STATUS) },
        "abort" => std::process::abort(),
        "panic" => panic!("as told"),
        "exec" => Err(Command::new("/bin/sleep").arg("1000").exec()).context("/bin/sleep"),
        "oom" => {
            let memory = vec![1_u8; TOO_MUCH];
            bail!("{} bytes were no more than there was", std::hint::black_box((memory, much)).0.len())
        }
        _ => bail!("{way} is no way to die by oneself"),
    }
}

/// Makes the device quiet that a dead driver has left as it was.
pub(in crate::soak) fn quiet(kind: &str, address: &str) -> Result<()> {
    (Kind::find(kind)?.stop)(open(&Context::new()?, address)?)
}

/// Opens the device, which a guardian may still have.
fn open(context: &Context, address: &str) -> Result<Device> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match context.open(address) {
            Err(error) if error.kind() == ErrorKind::Busy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            opened => return Ok(opened?),
        }
    }
}
