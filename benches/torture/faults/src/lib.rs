//! A library for `LD_PRELOAD` that counts the file operations of an engine process and injects faults into them.
//!
//! A seccomp filter turns the system calls that change files (and those that open them) into `SIGSYS`. The handler sees
//! all of them in order, whichever thread and whichever library made them: hnswlib writes with the stdio inside of its
//! own binary, which interposed symbols do not see. What concerns a file below the root of the plan is counted; then it
//! is performed, or fails, or the process is killed first. [`plan`] is shared with the driver in Python.
//!
//! It is active where `TORTURE_PLAN` names a plan, in the programs `engine_process.py` and `probe.py`. A filter outlives
//! an `exec`, and the handler does not. So the filter traps calls out of the text of this process's own libc only: the
//! dynamic loader of a child, and its libc, are elsewhere. A child that is one of these programs installs its own.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("the torture bench knows the system calls of Linux on x86-64 only");

mod filter;
mod handler;
mod operation;
mod plan;
mod signals;
mod stub;

use std::ffi::CStr;
use std::fs;

const PROGRAMS: [&str; 2] = ["engine_process.py", "probe.py"];

/// Runs before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = {
    extern "C" fn construct() {
        let is_engine = fs::read("/proc/self/cmdline").is_ok_and(|line| {
            // The second argument on: the interpreter's options, then its script.
            line.split(|byte| *byte == 0).any(|word| PROGRAMS.iter().any(|program| word.ends_with(program.as_bytes())))
        });
        // SAFETY: the environment is not changed before `main`.
        let path = unsafe { libc::getenv(c"TORTURE_PLAN".as_ptr()) };
        if !is_engine || path.is_null() {
            return;
        }
        // SAFETY: `getenv` returned it.
        let path = unsafe { CStr::from_ptr(path) };
        let installed =
            plan::map(path).and_then(|()| signals::install(handler::on_trap)).and_then(|()| filter::install());
        if let Err(error) = installed {
            // Without it every run would pass.
            eprintln!("torture: no faults can be injected: {error}");
            std::process::exit(99);
        }
    }
    construct
};
