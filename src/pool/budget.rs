//! The budget for the memory of engine processes: closes idle databases to keep within it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pyo3::prelude::*;

use super::idle::MEMORY_ROUND;
use super::memory::{process_of, resident, size_of};
use super::supervisor::Supervisor;
use crate::engine::Instance;
use crate::python::gil::Lock;
use crate::sync::fork_gate::Work;

impl Supervisor {
    /// Closes idle databases, the largest first, until the engine processes of the others have at most `budget` bytes.
    pub(super) fn keep_within(&self, py: Python<'_>, budget: u64) -> PyResult<()> {
        let open = self.registry.instances(py).into_iter().filter(|instance| instance.state.take(py).is_open());
        let open: Vec<Arc<Instance>> = open.collect();
        let mut sizes = py.detach(|| {
            let processes: Vec<_> = open.into_iter().filter_map(|one| Some((process_of(&one)?, one))).collect();
            // Mostly that suffices.
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
            if instance.is_idle_for(MEMORY_ROUND) && self.try_close(py, &instance, None)? {
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
