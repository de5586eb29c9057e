//! What an engine process counts as a change of its database's catalogue, in the page that apps look at: the collections,
//! and what is known of each besides its records.
//!
//! A call that always changes it (`chroma/table.rs`) is counted before it is made, in its exclusive slot: whoever finds the
//! catalogue changed asks, and waits for that slot. One that may have changed it is counted when it has, before its caller
//! hears of it. So are the records that are the first of their collection, or have metadata that no other has, because
//! Chroma then changes the dimension or the schema. A reopening counts as well: the database may be another one by then.

use pyo3::prelude::*;

use super::binding::Binding;
use crate::chroma::Changes;
use crate::engine::isolated::protocol::page::OwnPage;
use crate::storage::directory::Seen;

/// The catalogue of this process's database.
pub struct Catalogue {
    /// `None` where the system has no such thing: then apps ask every time.
    page: Option<OwnPage>,
}

impl Catalogue {
    pub fn new() -> Self {
        Self { page: OwnPage::create().ok() }
    }

    pub fn page(&self) -> Option<&OwnPage> {
        self.page.as_ref()
    }

    /// It has changed, or is about to.
    pub fn count(&self) {
        if let Some(page) = &self.page {
            page.count();
        }
    }

    /// The database was opened: that of these files, if it is known.
    pub fn opened(&self, seen: Option<Seen>) {
        if let Some(page) = &self.page {
            page.set_place(seen.map_or_else(Default::default, |seen| seen.numbers()));
        }
    }

    /// Makes a call that changes the catalogue, perhaps. Its caller has the exclusive slot if it does.
    pub fn during<T>(&self, py: Python<'_>, changes: Changes, binding: &Binding, call: impl FnOnce() -> T) -> T {
        match changes {
            Changes::Never => call(),
            Changes::Always => {
                self.count();
                call()
            }
            Changes::IfItWrites => {
                let before = binding.transactions(py);
                let result = call();
                if before.is_none() || binding.transactions(py) != before {
                    self.count();
                }
                result
            }
        }
    }

    /// Counts what the records of a write tell of their collection. A write that has failed may have written some of them.
    pub fn count_news(
        &self,
        is_done: bool,
        binding: &Binding,
        collection: &Bound<'_, PyAny>,
        metadatas: Option<Bound<'_, PyAny>>,
    ) {
        let host = binding.host(collection.py());
        let tells_news = || host.call_method1("tells_news", (collection, metadatas))?.is_truthy();
        if !is_done || tells_news().unwrap_or(true) {
            self.count();
        }
    }
}
