//! Faults on purpose, on real memory: every system call of the kit failing in turn, signals, threads that close and map at once,
//! forks and execs in the middle, limits, want of memory. Whatever is done to it, the kit answers with a typed error or does
//! what was asked; no byte is wrong, and once its values are dropped no page is pinned and no descriptor or mapping is left.
//!
//! Each test runs in a process of its own ([`alone`]), as it counts what belongs to a process, and may end it.

mod allocation;
mod alone;
mod areas;
mod calls;
mod counts;
mod discovery;
mod exec;
mod fork;
mod life;
mod limits;
mod machine;
mod pressure;
mod rights;
mod signals;
mod supervisor;
mod syscalls;
mod threads;
mod turns;
