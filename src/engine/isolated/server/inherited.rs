//! The descriptors that an engine process closes at its start: all that the app lets its children inherit, on purpose or
//! not.
//!
//! With the engine process they would outlive the app: the end of a pipe by which another program sees that the app has
//! ended, say, or a socket that listens at the app's port. They are closed here, not in a hook before `exec`, because with
//! such a hook the app would be forked to start an engine process: its memory would be shared page by page (10 ms for each
//! gigabyte, and as much again for the pages that it writes next), and every library's fork handlers would run in it.

use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use pyo3::prelude::*;

/// The first after standard input, output and error.
const FIRST: RawFd = 3;

/// Where the system says which descriptors a process has.
const DESCRIPTORS: [&str; 2] = ["/proc/self/fd", "/dev/fd"];

/// Closes every descriptor except the standard ones. For a process that has opened none itself.
#[pyfunction]
#[allow(unsafe_code)]
pub fn close_inherited() -> io::Result<()> {
    if close_at_once() {
        return Ok(());
    }
    let place = DESCRIPTORS.iter().map(Path::new).find(|place| place.is_dir());
    let Some(place) = place else { return Ok(()) };
    let open: Vec<RawFd> =
        fs::read_dir(place)?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor >= FIRST) {
        // SAFETY: nothing in this process uses it. The descriptor of the directory that was read is closed already.
        unsafe { libc::close(descriptor) };
    }
    Ok(())
}

/// In one system call, where the system has it.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn close_at_once() -> bool {
    // SAFETY: nothing in this process uses any of them.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn close_at_once() -> bool {
    false
}
