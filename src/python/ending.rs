//! What threads do once the interpreter has begun to end.

use std::thread;

use pyo3::prelude::*;

/// Once the interpreter has begun to end, a daemon thread whose database was closed (by the app's own exit hook, say), or
/// cannot be opened because nothing can be imported any more, does not come back to raise about it: nobody is left to
/// handle it, and its traceback would be the app's last words. Python stops such threads too, only later.
pub fn stop_daemon_thread_at_end(py: Python<'_>) {
    if let Ok(true) = is_daemon_thread_at_end(py) {
        py.detach(|| {
            loop {
                thread::park();
            }
        });
    }
}

fn is_daemon_thread_at_end(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?;
    let is_main = threading.call_method0("get_ident")?.eq(main.getattr("ident")?)?;
    Ok(!is_main && !main.call_method0("is_alive")?.is_truthy()?)
}
