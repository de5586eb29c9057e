//! Parking daemon threads once the interpreter is shutting down.

use std::thread;

use pyo3::prelude::*;

/// Parks the calling thread forever if it is a daemon thread and the main thread has ended. Otherwise returns.
///
/// Called where an error is about to be raised. At this point the database of a daemon thread may have been closed by
/// an exit hook of the app, or cannot be opened because imports no longer work. No code is left to handle the
/// exception, and its traceback would be the last output of the app. Python itself stops such threads only later.
pub fn park_daemon_thread_at_exit(py: Python<'_>) {
    if let Ok(true) = is_daemon_thread_at_exit(py) {
        py.detach(|| {
            loop {
                thread::park();
            }
        });
    }
}

fn is_daemon_thread_at_exit(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?;
    let is_main = threading.call_method0("get_ident")?.eq(main.getattr("ident")?)?;
    Ok(!is_main && !main.call_method0("is_alive")?.is_truthy()?)
}
