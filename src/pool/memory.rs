//! The memory of engine processes, with the budget for it; and the memory that the allocator keeps after databases were
//! closed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pyo3::prelude::*;

use super::supervisor::Supervisor;
use crate::engine::Instance;
use crate::python::gil::Lock;
use crate::storage::lock_file;
use crate::sync::fork_gate::Work;

/// How often the budget is compared, and how long a database must be unused to be closed for it.
pub const ROUND: Duration = Duration::from_secs(2);

impl Supervisor {
    /// Closes idle databases, the largest first, until the engine processes of the others have at most `budget` bytes.
    pub(super) fn keep_within(&self, py: Python<'_>, budget: u64) -> PyResult<()> {
        let open = self.registry.instances(py).into_iter().filter(|instance| instance.state.take(py).is_open());
        let open: Vec<Arc<Instance>> = open.collect();
        let mut sizes = py.detach(|| {
            let processes: Vec<_> = open.into_iter().filter_map(|one| Some((process_of(&one)?, one))).collect();
            // What is resident is more than what is counted here, and much cheaper to read.
            if processes.iter().filter_map(|(process, _)| resident(process)).sum::<u64>() <= budget {
                return Vec::new();
            }
            processes.into_iter().filter_map(|(process, one)| Some((size_of(&process)?, one))).collect()
        });
        sizes.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
        let mut total: u64 = sizes.iter().map(|(size, _)| size).sum();
        for (size, instance) in sizes {
            if total <= budget {
                break;
            }
            if instance.is_idle_for(ROUND) && self.try_close(py, &instance, None)? {
                total -= size;
                self.counters.evictions.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Returns how many bytes the engine process of an instance has, if there is one.
    pub(super) fn memory_of(&self, py: Python<'_>, instance: &Instance) -> Option<u64> {
        let has_process = self.engine.work() == Work::Elsewhere && instance.state.take(py).is_open();
        has_process.then(|| py.detach(|| size_of(&process_of(instance)?))).flatten()
    }
}

/// Returns the directory in `/proc` of the engine process of an instance. Must not be called while attached to the
/// interpreter.
fn process_of(instance: &Instance) -> Option<PathBuf> {
    let owner =
        lock_file::owner(instance.path()).filter(|owner| !owner.is_momentary() && owner.sees_our_processes())?;
    Some(PathBuf::from(format!("/proc/{}", owner.pid?)))
}

/// Returns the size of a process: its proportional set size, or, where that may not be read, what is resident of it.
fn size_of(process: &Path) -> Option<u64> {
    bytes_in(&process.join("smaps_rollup"), "Pss:").or_else(|| resident(process))
}

fn resident(process: &Path) -> Option<u64> {
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
