//! The result of `ChromaDBManager.stats()`. `results.py` documents each field.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::prelude::*;

use super::registry::Holders;
use super::supervisor::Supervisor;
use crate::engine::Instance;
use crate::python::gil::Lock;

/// The statistics of a manager.
#[derive(IntoPyObject)]
pub struct Stats {
    instances: BTreeMap<String, InstanceStats>,
    openings: u64,
    hits: u64,
    cleanups: u64,
    evictions: u64,
    errors: u64,
}

/// The statistics of an open instance.
#[derive(IntoPyObject)]
struct InstanceStats {
    file_id: String,
    embedding_type: String,
    path: OsString,
    engine: &'static str,
    threads: usize,
    clients: usize,
    opened_at: f64,
    last_used_at: f64,
    memory: Option<u64>,
}

impl Stats {
    /// Returns the current statistics.
    pub fn of(py: Python<'_>, supervisor: &Supervisor) -> Self {
        let holders = supervisor.registry.holders(py);
        let of_instance = |instance: &Instance| {
            let holders = holders.get(instance.key()).copied().unwrap_or_default();
            let memory = supervisor.memory_of(py, instance);
            let stats = InstanceStats::of(py, instance, supervisor.engine_name(), holders, memory)?;
            Some((instance.key().to_string(), stats))
        };
        let counters = &supervisor.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            instances: supervisor.registry.instances(py).iter().filter_map(|instance| of_instance(instance)).collect(),
            openings: count(&counters.openings),
            hits: supervisor.registry.hits(py),
            cleanups: count(&counters.cleanups),
            evictions: count(&counters.evictions),
            errors: count(&counters.errors),
        }
    }
}

impl InstanceStats {
    /// Returns the statistics of an instance, or `None` if it is not open.
    fn of(
        py: Python<'_>,
        instance: &Instance,
        engine: &'static str,
        holders: Holders,
        memory: Option<u64>,
    ) -> Option<Self> {
        let opened_at = instance.state.take(py).opened_at()?;
        Some(Self {
            file_id: instance.key().file_id().into(),
            embedding_type: instance.key().embedding_type().into(),
            path: instance.path().into(),
            engine,
            threads: holders.threads,
            clients: holders.clients,
            opened_at,
            last_used_at: instance.last_used(),
            memory,
        })
    }
}
