//! `SIGSYS` stays ours: nobody else handles it, resets it or blocks it (a trap that is blocked kills the process).
//!
//! Python resets all handlers and blocks all signals between the fork and the exec of a child.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem;
use std::ptr;

type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Makes `handler` that of `SIGSYS`, for good.
pub fn install(handler: Handler) -> io::Result<()> {
    // SAFETY: the structure is plain data; the handler is written for this.
    let result = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        // Nothing else may run in between, on this thread: it might be trapped itself.
        libc::sigfillset(&raw mut action.sa_mask);
        (real(c"sigaction").cast::<SigAction>())(libc::SIGSYS, &raw const action, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

type SigAction = unsafe extern "C" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;
type SigMask = unsafe extern "C" fn(c_int, *const libc::sigset_t, *mut libc::sigset_t) -> c_int;

/// The function of this name behind ours.
fn real(name: &std::ffi::CStr) -> Symbol {
    // SAFETY: a look-up by name; libc has all that are asked for.
    Symbol(unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) })
}

struct Symbol(*mut c_void);

impl Symbol {
    fn cast<F: Copy>(&self) -> F {
        assert!(!self.0.is_null() && size_of::<F>() == size_of::<*mut c_void>());
        // SAFETY: the callers name a function and its type.
        unsafe { mem::transmute_copy(&self.0) }
    }
}

/// As libc's, except that `SIGSYS` cannot be changed.
///
/// # Safety
///
/// As of libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(signal: c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> c_int {
    let new = if signal == libc::SIGSYS { ptr::null() } else { new };
    // SAFETY: the caller's.
    unsafe { (real(c"sigaction").cast::<SigAction>())(signal, new, old) }
}

/// As libc's, except that `SIGSYS` is never blocked.
///
/// # Safety
///
/// As of libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_sigmask(how: c_int, new: *const libc::sigset_t, old: *mut libc::sigset_t) -> c_int {
    // SAFETY: the caller's.
    unsafe { without_ours(&real(c"pthread_sigmask"), how, new, old) }
}

/// As libc's, except that `SIGSYS` is never blocked.
///
/// # Safety
///
/// As of libc's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigprocmask(how: c_int, new: *const libc::sigset_t, old: *mut libc::sigset_t) -> c_int {
    // SAFETY: the caller's.
    unsafe { without_ours(&real(c"sigprocmask"), how, new, old) }
}

unsafe fn without_ours(function: &Symbol, how: c_int, new: *const libc::sigset_t, old: *mut libc::sigset_t) -> c_int {
    let function = function.cast::<SigMask>();
    if new.is_null() || how == libc::SIG_UNBLOCK {
        // SAFETY: the caller's.
        return unsafe { function(how, new, old) };
    }
    // SAFETY: the caller's set is one.
    let mut changed = unsafe { *new };
    // SAFETY: both are sets.
    unsafe {
        libc::sigdelset(&raw mut changed, libc::SIGSYS);
        function(how, &raw const changed, old)
    }
}
