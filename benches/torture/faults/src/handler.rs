//! What happens to a trapped system call. It runs in a signal handler: no allocation, no locks, nothing of libc.

use std::ffi::{c_int, c_void};

use crate::operation::{PathBuffer, WRITES, describe};
use crate::plan::{self, KILL, TEAR};
use crate::stub::perform;

/// The handler of `SIGSYS`.
pub extern "C" fn on_trap(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel calls it with the context of the trapped call.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let register = |name: c_int| registers[name as usize] as u64;
    let number = registers[libc::REG_RAX as usize];
    let arguments =
        [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_R10, libc::REG_R8, libc::REG_R9].map(register);
    // SAFETY: these are the arguments that the caller wanted the call to have.
    registers[libc::REG_RAX as usize] = unsafe { execute(number, arguments) };
}

/// Performs the call, or what the plan says instead; returns its result.
unsafe fn execute(number: i64, mut arguments: [u64; 6]) -> i64 {
    match unsafe { action(number, &arguments) } {
        0 => {}
        KILL => unsafe { kill() },
        TEAR => {
            arguments[2] /= 2;
            unsafe {
                perform(number, arguments);
                kill();
            }
        }
        error => return -i64::from(error),
    }
    unsafe { perform(number, arguments) }
}

unsafe fn action(number: i64, arguments: &[u64; 6]) -> u32 {
    let Some(plan) = plan::active() else { return 0 };
    let mut path = PathBuffer::new();
    let kinds = unsafe { describe(number, arguments, &mut path) };
    let Some(name) = plan.below_root(path.as_bytes()) else { return 0 };
    let process = unsafe { perform(libc::SYS_getpid, [0; 6]) };
    match plan.count(number, kinds, name, process as u32) {
        TEAR if kinds & WRITES == 0 => KILL,
        action => action,
    }
}

unsafe fn kill() {
    unsafe {
        let process = perform(libc::SYS_getpid, [0; 6]);
        perform(libc::SYS_kill, [process as u64, libc::SIGKILL as u64, 0, 0, 0, 0]);
    }
}
