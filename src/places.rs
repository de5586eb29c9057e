//! How many databases may be open at once.

use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::attached::Lock;
use crate::calls;

/// A place for each database that is open, or being opened.
pub struct Places {
    limit: Option<usize>,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    /// What a forked child inherits does not count there.
    generation: u64,
    count: usize,
}

impl Places {
    pub fn new(limit: Option<usize>) -> Self {
        Self { limit, taken: Mutex::default() }
    }

    /// Takes one; tells whether there was one.
    pub fn take(&self, py: Python<'_>) -> bool {
        let mut taken = self.taken(py);
        let is_free = self.limit.is_none_or(|limit| taken.count < limit);
        taken.count += usize::from(is_free);
        is_free
    }

    /// Gives one back.
    pub fn give_back(&self, py: Python<'_>) {
        let mut taken = self.taken(py);
        taken.count = taken.count.saturating_sub(1);
    }

    fn taken(&self, py: Python<'_>) -> parking_lot::MutexGuard<'_, Taken> {
        let mut taken = self.taken.take(py);
        if taken.generation != calls::generation() {
            *taken = Taken { generation: calls::generation(), count: 0 };
        }
        taken
    }
}
