//! The memory of engine processes, and that which the allocator keeps after databases were closed. What is done about it
//! is in `budget.rs`.

use std::fs;
use std::path::{Path, PathBuf};

use pyo3::prelude::*;

use crate::engine::Instance;
use crate::storage::lock_file;

/// Returns the directory in `/proc` of the engine process of an instance. Must not be called while attached to the
/// interpreter.
pub fn process_of(instance: &Instance) -> Option<PathBuf> {
    let owner =
        lock_file::owner(instance.path()).filter(|owner| !owner.is_momentary() && owner.sees_our_processes())?;
    Some(PathBuf::from(format!("/proc/{}", owner.pid?)))
}

/// Returns the size of a process: its proportional set size, or, where that may not be read, what is resident of it.
pub fn size_of(process: &Path) -> Option<u64> {
    bytes_in(&process.join("smaps_rollup"), "Pss:").or_else(|| resident(process))
}

/// Returns how much of a process is resident: at least its proportional set size, and much cheaper to find out.
pub fn resident(process: &Path) -> Option<u64> {
    bytes_in(&process.join("status"), "VmRSS:")
}

/// Returns the number in a line of a file of `/proc`.
fn bytes_in(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let size = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(size.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Returns the allocator's free pages to the system. After 50 closed databases it would otherwise keep 170 MB.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub fn release_free_memory(py: Python<'_>) {
    py.detach(|| {
        // SAFETY: `malloc_trim` takes no pointer, and any thread may call it at any time.
        unsafe { libc::malloc_trim(0) };
    });
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn release_free_memory(_: Python<'_>) {}
