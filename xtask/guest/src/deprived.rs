//! `noiommu-guest without CAPABILITIES PROGRAM ARGUMENTS...`: a program without some capabilities, for good; `noiommu-guest as USER
//! PROGRAM ARGUMENTS...`: one as another user, without any.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// The capabilities that can be taken away, as the kernel's *include/uapi/linux/capability.h* numbers them.
const NAMES: [(&str, u32); 4] = [("net_raw", 13), ("ipc_lock", 14), ("sys_rawio", 17), ("sys_admin", 21)];

/// Runs a program without capabilities: comma-separated names. It does not come back.
pub(crate) fn without(arguments: &[String]) -> Result<()> {
    let [names, program @ ..] = arguments else { bail!("name capabilities and a program") };
    let mut kept = capabilities(None)?;
    for name in names.split(',') {
        let &(_, number) = NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .with_context(|| format!("no capability {name}"))?;
        // From the bounding set first, which takes CAP_SETPCAP: root gets all that is in it anew with every program.
        // SAFETY: changes nothing but this process's rights.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) } != 0 {
            return Err(std::io::Error::last_os_error()).context("PR_CAPBSET_DROP");
        }
        let left = |set: CapabilitySet| set - CapabilitySet::from_bits_retain(1 << number);
        kept = CapabilitySets {
            effective: left(kept.effective),
            permitted: left(kept.permitted),
            inheritable: left(kept.inheritable),
        };
    }
    set_capabilities(None, kept)?;
    exec(program)
}

/// Runs a program as a user by number, and group. It does not come back.
pub(crate) fn as_user(arguments: &[String]) -> Result<()> {
    let [user, program @ ..] = arguments else { bail!("name a user and a program") };
    let user: u32 = user.parse().context("the user's number")?;
    // SAFETY: these change nothing but this process's rights, and no list of groups is read.
    let failed = unsafe {
        libc::setgroups(0, std::ptr::null()) != 0 || libc::setgid(user) != 0 || libc::setuid(user) != 0
    };
    if failed {
        return Err(std::io::Error::last_os_error()).context("becoming another user");
    }
    exec(program)
}

fn exec(program: &[String]) -> Result<()> {
    let (name, arguments) = program.split_first().context("no program")?;
    Err(Command::new(name).args(arguments).exec()).with_context(|| name.clone())
}
