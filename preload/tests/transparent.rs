//! What programs notice that have nothing to do with the nodes, or that were not started to be served: nothing.

mod common;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{compiled, ended, library, preloaded};

/// The numbers of the system calls that a program makes between its two calls of getppid; `None` where it cannot be traced.
fn system_calls(command: &mut Command) -> Option<Vec<u64>> {
    // SAFETY: only the system call itself, between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let child = match command.stdout(Stdio::null()).spawn() {
        Ok(child) => child.id() as i32,
        Err(error) => {
            eprintln!("not run: {error}");
            return None;
        }
    };
    let (mut calls, mut markers, mut inside) = (Vec::new(), 0, false);
    loop {
        let mut status = 0;
        // SAFETY: the child made above, traced by this thread; the structures are here.
        unsafe {
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            if !libc::WIFSTOPPED(status) {
                assert_eq!(status, 0, "the program failed");
                assert_eq!(markers, 2);
                return Some(calls);
            }
            let mut signal = libc::WSTOPSIG(status);
            if signal == libc::SIGTRAP | 0x80 {
                signal = 0;
                inside = !inside;
                let mut info: libc::ptrace_syscall_info = std::mem::zeroed();
                let size = size_of_val(&info);
                libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, child, size, &raw mut info);
                if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                    match info.u.entry.nr {
                        nr if nr == libc::SYS_getppid as u64 => markers += 1,
                        nr if markers == 1 => calls.push(nr),
                        _ => {}
                    }
                }
            } else if signal == libc::SIGTRAP {
                signal = 0;
                libc::ptrace(libc::PTRACE_SETOPTIONS, child, 0, libc::PTRACE_O_TRACESYSGOOD);
            }
            libc::ptrace(libc::PTRACE_SYSCALL, child, 0, signal);
        }
    }
}

/// The C library's older calls and the ones that do the same as they.
fn modern(call: u64) -> u64 {
    let same = |old: i64, new: i64| (call == old as u64).then_some(new as u64);
    #[cfg(target_arch = "x86_64")]
    let old = same(libc::SYS_access, libc::SYS_faccessat)
        .or(same(libc::SYS_readlink, libc::SYS_readlinkat))
        .or(same(libc::SYS_dup2, libc::SYS_dup3));
    #[cfg(not(target_arch = "x86_64"))]
    let old = None;
    old.or(same(libc::SYS_fstat, libc::SYS_newfstatat)).unwrap_or(call)
}

#[test]
fn a_program_without_our_nodes_makes_the_same_system_calls() {
    let program = compiled("plain");
    let calls = |command: &mut Command| {
        system_calls(command).map(|calls| calls.into_iter().map(modern).collect::<Vec<_>>())
    };
    if let Some(alone) = calls(&mut Command::new(&program)) {
        assert!(alone.len() > 50, "{alone:?}");
        assert_eq!(calls(&mut preloaded(&program, "0")), Some(alone.clone()), "not asked for");
        assert_eq!(calls(&mut preloaded(&program, "sim")), Some(alone), "asked for");
    }
    fs::remove_file(program).unwrap();
}

#[test]
fn a_program_without_our_nodes_gets_the_same_answers() {
    let program = compiled("plain");
    let alone = ended(&mut Command::new(&program));
    assert!(alone.status.success());
    for value in ["0", "sim", "auto"] {
        let before = ended(&mut preloaded(&program, value));
        let text = |output: &[u8]| String::from_utf8_lossy(output).into_owned();
        assert_eq!(text(&before.stdout), text(&alone.stdout), "{value}");
        assert_eq!(text(&before.stderr), "", "{value}");
        assert_eq!(before.status, alone.status);
    }
    fs::remove_file(program).unwrap();
}

#[test]
fn who_has_not_asked_is_not_served() {
    if Path::new("/dev/iommu").exists() {
        eprintln!("not run: the kernel has the real thing");
        return;
    }
    let there = |value: Option<&str>| {
        let mut command = Command::new("test");
        command.args(["-c", "/dev/iommu"]).env("LD_PRELOAD", library()).env_remove("NOIOMMU_SERVE");
        if let Some(value) = value {
            command.env("NOIOMMU_SERVE", value);
        }
        let output = ended(&mut command);
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(there(None), (false, String::new()));
    assert_eq!(there(Some("")), (false, String::new()));
    assert_eq!(there(Some("0")), (false, String::new()));
    // Looking is not opening: nothing is said yet.
    assert_eq!(there(Some("sim")), (true, String::new()));
    let (found, said) = there(Some("nonsense"));
    assert!(!found && said.starts_with("noiommu: not serving: NOIOMMU_SERVE: \"nonsense\""), "{said}");
}

/// Simulated devices are for whoever runs the program; all others are root's, though the engine is in the program's own process.
#[test]
fn nodes_belong_to_root_unless_nothing_is_real() {
    const NOBODY: u32 = 65534;
    // SAFETY: takes nothing, and always succeeds.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("not run: only root can become another");
        return;
    }
    let copy = std::env::temp_dir().join(format!("noiommu-echo-{}.so", std::process::id()));
    fs::copy(library(), &copy).unwrap();
    let output = |value: &str, script: &str| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env("LD_PRELOAD", &copy).env("NOIOMMU_SERVE", value).uid(NOBODY);
        let output = ended(&mut command);
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    assert!(output("sim", "test -r /dev/iommu && test -w /dev/vfio/noiommu-977 && : < /dev/iommu").0);
    assert_eq!(output("sim", "stat -c '%u %a %F' /dev/iommu").1, "65534 600 character special file\n");
    for refused in ["test -r /dev/iommu", "test -w /dev/vfio/noiommu-977", ": 2>/dev/null < /dev/iommu"] {
        assert!(!output("auto", refused).0, "{refused}");
    }
    assert!(output("auto", "test -w /dev/vfio/vfio && : < /dev/vfio/vfio && test -x /dev/vfio").0, "for all");
    assert_eq!(output("auto", "stat -c '%u %a %F' /dev/iommu").1, "0 600 character special file\n");
    fs::remove_file(copy).unwrap();
}
