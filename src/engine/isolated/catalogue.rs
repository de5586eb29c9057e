//! The catalogue of a database as an app has seen it, and whether it has changed since. Nobody is asked: the engine process
//! counts the changes in a page of memory that it shares (`protocol/page.rs`).

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;

use super::client::connections;
use super::client::launcher::Launcher;
use super::protocol::page::Page;
use crate::engine::Catalogue;
use crate::storage::directory::Seen;

/// The catalogue as it was at one moment.
pub struct SeenCatalogue {
    /// The id under which the connections to the engine process are kept.
    database: u64,
    directory: PathBuf,
    page: Arc<Page>,
    generation: u64,
}

impl SeenCatalogue {
    /// Returns the catalogue as it is now; `None` if its engine process has passed no page.
    pub fn now(py: Python<'_>, launcher: &Launcher) -> Option<Self> {
        let page = launcher.page(py)?;
        let generation = page.generation();
        Some(Self { database: launcher.id, directory: launcher.path.clone(), page, generation })
    }

    fn is_in_place(&self) -> bool {
        Seen::at(&self.directory).is_some_and(|seen| seen.numbers() == self.page.place())
    }
}

impl Catalogue for SeenCatalogue {
    fn is_current(&self, py: Python<'_>) -> bool {
        self.page.generation() == self.generation
            && py.detach(|| self.is_in_place())
            && connections::is_alive(py, self.database, &self.page)
            // It never returns to what it was, so if it is the same at the end, it was all the time.
            && self.page.generation() == self.generation
    }
}
