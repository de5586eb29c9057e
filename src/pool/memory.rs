//! Returning the memory that the allocator keeps after databases were closed.

use pyo3::prelude::*;

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
