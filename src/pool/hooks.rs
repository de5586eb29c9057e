//! The hooks at a fork and at process exit.
//!
//! | moment | effect |
//! | --- | --- |
//! | before a fork | new calls wait, those in flight finish (for at most thirty seconds) |
//! | after it, in the parent | calls continue |
//! | after it, in the child | the registry is empty, the locks belong to the parent, calls continue |
//! | at exit | calls of daemon threads finish (for at most thirty seconds) or never begin; databases are closed |

use std::time::Duration;

use parking_lot::Mutex;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::supervisor::WeakSupervisor;
use crate::LOGGER;
#[cfg(unix)]
use crate::engine;
use crate::python::gil::Lock;
use crate::storage::lock_file;
use crate::sync::fork_gate;

const FORK_WAITS_FOR_CALLS: Duration = Duration::from_secs(30);
const EXIT_WAITS_FOR_CALLS: Duration = Duration::from_secs(30);

static SUPERVISORS: Mutex<Vec<WeakSupervisor>> = Mutex::new(Vec::new());

/// Registers a manager whose databases are closed at process exit.
pub fn close_at_exit(py: Python<'_>, supervisor: WeakSupervisor) {
    let mut supervisors = SUPERVISORS.take(py);
    supervisors.retain(|known| known.strong_count() > 0);
    supervisors.push(supervisor);
}

/// Registers the functions below with Python.
pub fn install_hooks(py: Python<'_>) -> PyResult<()> {
    // This module's own hooks acquire a lock before a fork and release it afterwards. If another thread first imported
    // it while our hook waits, only the release would run.
    py.import("concurrent.futures.thread")?;
    let os = py.import("os")?;
    if os.hasattr("register_at_fork")? {
        let hooks = PyDict::new(py);
        hooks.set_item("before", wrap_pyfunction!(before_fork, py)?)?;
        hooks.set_item("after_in_parent", wrap_pyfunction!(after_fork_in_parent, py)?)?;
        hooks.set_item("after_in_child", wrap_pyfunction!(after_fork_in_child, py)?)?;
        os.call_method(intern!(py, "register_at_fork"), (), Some(&hooks))?;
    }
    py.import("atexit")?.call_method1("register", (wrap_pyfunction!(at_exit, py)?,))?;
    Ok(())
}

#[pyfunction]
fn before_fork(py: Python<'_>) {
    if !py.detach(|| fork_gate::pause(FORK_WAITS_FOR_CALLS)) {
        log::warn!(target: LOGGER, "forking during a call that did not end within {FORK_WAITS_FOR_CALLS:?}");
    }
}

#[pyfunction]
fn after_fork_in_parent() {
    fork_gate::resume();
}

#[pyfunction]
fn after_fork_in_child() {
    fork_gate::reset_in_child();
    lock_file::forget_inherited();
    #[cfg(unix)]
    engine::forget_inherited();
}

#[pyfunction]
fn at_exit(py: Python<'_>) -> PyResult<()> {
    // In a sub-interpreter that outlives the main one, a thread that detaches does not come back.
    if py.import("sys")?.call_method0("is_finalizing")?.is_truthy()? {
        return Ok(());
    }
    py.detach(|| fork_gate::end(EXIT_WAITS_FOR_CALLS));
    let supervisors = SUPERVISORS.take(py).clone();
    for supervisor in supervisors {
        if let Some(supervisor) = supervisor.upgrade() {
            supervisor.close_at_exit(py);
        }
    }
    Ok(())
}
