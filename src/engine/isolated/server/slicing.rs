//! A long write is executed in slices, and between them other calls get the exclusive slot: Chroma itself would hold the
//! interpreter for all of it. What a kill or a failure interrupts is completed from its journal.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::batch_checks::{Batch, slice_of};
use super::engine::Engine;
use super::journal::{Journal, step};
use super::orphans::LongWrite;
use super::scheduler::{Call, Slot, Written};
use super::stderr::log_line;
use crate::chroma::Slices;

/// A long write that is executed in slices.
pub struct SlicedCall<'a> {
    engine: &'a Engine,
    write: LongWrite<'a>,
    collection: String,
    /// Not where the database is in memory.
    keeps_journal: bool,
    /// Until the call has returned.
    pub journal: Option<Journal>,
    /// How long Chroma took for the slices, without what other calls did between them. It does not say how many records.
    pub written: Written,
    /// That of the slice in which the call has failed, if it has.
    pub slot: Option<Slot<'a>>,
}

impl<'a> SlicedCall<'a> {
    /// The call with this encoded body, which writes to a collection.
    pub fn new(
        engine: &'a Engine,
        caller: &Arc<UnixStream>,
        py: Python<'_>,
        body: &[u8],
        collection: String,
    ) -> PyResult<Self> {
        let keeps_journal = engine.binding.host(py).getattr("keeps_journals")?.is_truthy()?;
        let journal =
            if keeps_journal { py.detach(|| Journal::write(body)).map_err(report_no_journal).ok() } else { None };
        Ok(Self {
            engine,
            write: engine.long_writes.begin(caller),
            written: Written { collection: Some(collection.clone()), ..Written::default() },
            collection,
            keeps_journal,
            journal,
            slot: None,
        })
    }

    /// Calls Chroma once for each slice of the arguments that have one value for each record; each slice has an exclusive
    /// slot. `first` is the size of the first slice. `None` where the call could not get a slot, and was not executed, or not
    /// completely.
    pub fn execute<'py>(
        &mut self,
        call: &Call<'_>,
        batch: &Batch<'_, 'py>,
        slices: Slices,
        first: usize,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = batch.function.py();
        let (mut at, mut size) = (0, first);
        for number in 1.. {
            self.slot = py.detach(|| self.take_slot(call, at == 0));
            if self.slot.is_none() {
                return Ok(None);
            }
            if at == 0 && !(batch.is_taken()? && self.begin_journal(py)) {
                size = batch.count;
            }
            let end = batch.count.min(at + size);
            let slice = batch.arguments.iter().map(|argument| slice_of(argument, batch.count, at, end));
            let slice = PyTuple::new(py, slice.collect::<Vec<_>>())?;
            let began = Instant::now();
            let result = batch.function.call1(slice);
            let took = began.elapsed();
            self.written.took(took, py.detach(|| self.engine.index_files.since_rewritten()));
            let result = result?;
            self.engine.binding.host(py).call_method1("wrote", (&self.collection, end - at))?;
            call.note_pace(batch.method, &self.collection, end - at, took);
            self.slot = None;
            at = end;
            step(&format!("slice {number} taken"));
            if at == batch.count {
                return Ok(Some(result));
            }
            let is_orphan = self.write.is_orphan();
            size = if is_orphan { batch.count } else { call.next_slice(size, took, slices, batch.count - at) };
        }
        Ok(None)
    }

    fn take_slot(&self, call: &Call<'_>, is_first: bool) -> Option<Slot<'a>> {
        let slot = if is_first { self.engine.take_first_slot(self.write.caller()) } else { self.engine.take_slot() };
        call.let_reads_end();
        slot
    }

    /// With the first slot: whether the batch may be sliced. If not, it is executed whole.
    fn begin_journal(&mut self, py: Python<'_>) -> bool {
        if !self.keeps_journal {
            return true;
        }
        let place = self.engine.binding.host(py).call_method1("begin_batch", (&self.collection,));
        let place = place.and_then(|place| place.extract::<Option<Vec<u8>>>());
        let (Some(journal), Ok(Some(place))) = (self.journal.as_mut(), place) else { return false };
        py.detach(|| journal.begin(&place)).map_err(report_no_journal).is_ok()
    }
}

fn report_no_journal(error: io::Error) {
    log_line(format_args!("a batch is not sliced, because its journal could not be written: {error}"));
}
