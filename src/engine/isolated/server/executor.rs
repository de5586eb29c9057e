//! Executes the calls of apps in Chroma's binding.
//!
//! A call is read and answered detached. It is attached to the interpreter only while it is converted and while Chroma
//! works. What Chroma's methods are is in `chroma/`.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::batch_checks::Batch;
use super::engine::{Answer, Engine};
use super::group::{Group, JoinedCall, Waiting};
use super::journal::{Journal, step};
use super::scheduler::{Call, Effect, Interpreter, Slot, Written};
use super::slicing::SlicedCall;
use super::stderr::log_line;
use crate::chroma::{COLLECTION, IDS, METADATAS, Method, Slices};
use crate::engine::isolated::protocol::frame::Kind;
use crate::engine::isolated::protocol::values::{
    DecodedCall, Encoder, decode_call, encode_exception, items_at, name_of,
};
use crate::python::arguments::Arguments;

/// The classes of exceptions that Chroma raises where it has failed itself.
const FAILURES: [&str; 2] = ["InternalError", "PanicException"];

/// Executes a call of a connection, when it may begin. Detached only.
pub fn execute(engine: &Engine, body: Vec<u8>, connection: u64, caller: &Arc<UnixStream>) -> Answer {
    engine.long_writes.wait_for_orphans();
    if engine.binding.failure().is_some() {
        return (Kind::Closing, Vec::new());
    }
    let method = Method::named(name_of(&body).unwrap_or_default());
    let Some(mut call) = engine.scheduler.begin_call(connection, interpreter(method, &body)) else {
        return (Kind::Closing, Vec::new());
    };
    let effect = Effect::default();
    let mut execution = Execution { engine, caller, method, slot: None, journal: None, group: None, effect };
    let answer = execution.answer(&mut call, body);
    let Execution { slot, journal, effect, .. } = execution;
    drop(journal);
    call.end(effect);
    drop(slot);
    engine.bound_log();
    answer
}

/// What a call does with the interpreter. One that is likely to be sliced lets as many others come between as it has slices.
fn interpreter(method: &Method, body: &[u8]) -> Interpreter {
    if method.releases_interpreter {
        return Interpreter::Released;
    }
    let Some(slices) = method.slices else { return Interpreter::Held };
    let is_long = records_in(method, body).is_none_or(|records| records > slices.first);
    if is_long { Interpreter::HeldInSlices } else { Interpreter::Held }
}

/// How many records a write has, where that can be seen without the interpreter.
fn records_in(method: &Method, body: &[u8]) -> Option<usize> {
    items_at(body, method.place_of(IDS)?)
}

/// A call that is being executed.
struct Execution<'a> {
    engine: &'a Engine,
    caller: &'a Arc<UnixStream>,
    method: &'static Method,
    /// Kept where the call has failed, until its end is known.
    slot: Option<Slot<'a>>,
    /// That of a sliced call, until it is not needed any more.
    journal: Option<Journal>,
    /// The writes that were made with this one.
    group: Option<Group>,
    effect: Effect,
}

impl Execution<'_> {
    fn answer(&mut self, call: &mut Call<'_>, body: Vec<u8>) -> Answer {
        let engine = self.engine;
        if !engine.is_in_place() {
            return (Kind::Stale, Vec::new());
        }
        let Some(_inside) = engine.binding.enter() else {
            self.effect.failed = true;
            Python::attach(|py| engine.binding.note_other_writer(py));
            return (Kind::Retry, engine.binding.take_notices());
        };
        let notices = engine.binding.take_notices();
        if !notices.is_empty() {
            return (Kind::Retry, notices);
        }
        // Before attaching to the interpreter: so the call comes after the slice of another call that holds it now, and
        // not after the next slice. A long write converts its arguments first.
        let short = self.short_write(&body);
        let asks_first = !self.method.releases_interpreter && (short.is_some() || self.method.slices.is_none());
        let waiting = short
            .filter(|_| !call.is_alone())
            .map(|records| engine.groups.list(self.method, &body, records, self.caller));
        let has_slot = !asks_first || self.take_first_slot();
        if let Some(made) = waiting.as_ref().and_then(Waiting::made) {
            self.effect.written.records = short.unwrap_or(0);
            return (Kind::Returned, made);
        }
        if !has_slot {
            return engine.not_executed();
        }
        let writes = self.method.writes;
        let result = Python::attach(|py| {
            let answer = self.call(py, call, body, waiting.as_ref());
            let answer =
                if writes { answer.and_then(|answer| engine.binding.sync(py).map(|()| answer)) } else { answer };
            answer.map_err(|error| self.judge(py, error, call))
        });
        if let (Ok(Some(answer)), Some(group)) = (&result, self.group.take()) {
            group.made(answer);
        }
        if result.is_err() && !self.effect.failed {
            // What Chroma refuses now it would refuse again.
            end(self.journal.take());
        }
        match result {
            Ok(Some(answer)) => (Kind::Returned, answer),
            Err(error) if engine.is_in_place() => (Kind::Raised, error),
            // What is raised because the directory was removed in the middle of the call helps nobody.
            Ok(None) | Err(_) => engine.not_executed(),
        }
    }

    /// The exception that the call raises, encoded. Notes whether the binding must be reopened.
    fn judge(&mut self, py: Python<'_>, error: PyErr, call: &mut Call<'_>) -> Vec<u8> {
        if is_failure(py, &error) {
            call.suspect();
        }
        let (error, failed) = self.engine.binding.judge(py, error);
        self.effect.failed |= failed;
        encode_exception(py, &error)
    }

    /// The result, encoded. `None` where the call was not executed, or not completely: the database is not there.
    fn call(
        &mut self,
        py: Python<'_>,
        call: &Call<'_>,
        body: Vec<u8>,
        waiting: Option<&Waiting<'_>>,
    ) -> PyResult<Option<Vec<u8>>> {
        let DecodedCall { method: name, arguments, keywords, is_finite } = decode_call(py, &body)?;
        if name.starts_with('_') {
            return Err(PyAttributeError::new_err(format!("'Bindings' object has no attribute '{name}'")));
        }
        let Some(binding) = self.engine.binding.get(py) else { return Ok(None) };
        let function = binding.getattr(name.as_str())?;
        let given = Arguments::of(self.method, &arguments, keywords.as_ref());
        let ids = given.ids_written();
        if ids.is_some() && !self.complete_batches(&binding)? {
            return Ok(None);
        }
        // As many rows of the log. Of a delete without ids it is not known.
        self.effect.written.records = ids.as_ref().map_or(0, |ids| ids.len().unwrap_or(1));
        let collection = given.get(COLLECTION).and_then(|collection| collection.extract::<String>().ok());
        let to_slice = ids.as_ref().zip(collection).and_then(|(ids, collection)| self.to_slice(ids, collection, call));
        let arguments = if to_slice.is_some() || waiting.is_some() { given.by_place() } else { None };
        let batch = arguments.as_ref().zip(ids.as_ref()).map(|(arguments, ids)| {
            let count = ids.len().unwrap_or(0);
            Batch { method: self.method, function: &function, arguments, count, is_finite }
        });
        let sliced = batch.as_ref().zip(to_slice).filter(|(batch, _)| batch.looks_sound());
        let written_to = self.method.slices.and_then(|_| given.get(COLLECTION));
        let mut metadatas = given.get(METADATAS);
        let result = if let Some((batch, ToSlice { slices, collection, first })) = sliced {
            let mut sliced = SlicedCall::new(self.engine, self.caller, py, &body, collection)?;
            drop(body);
            let result = sliced.execute(call, batch, slices, first);
            let SlicedCall { slot, journal, written, .. } = sliced;
            (self.slot, self.journal) = (slot, journal);
            self.effect.written = Written { records: self.effect.written.records, ..written };
            result
        } else {
            drop(body);
            let joined = batch.as_ref().zip(waiting).and_then(|(batch, waiting)| waiting.take_others(batch));
            if let Some(joined) = &joined {
                metadatas = self.method.place_of(METADATAS).and_then(|place| joined.arguments.get_item(place).ok());
            }
            self.call_whole(call, &function, given, ids, joined)
        };
        if let Some(collection) = written_to {
            let is_done = matches!(result, Ok(Some(_)));
            let Engine { catalogue, binding, .. } = self.engine;
            catalogue.count_news(is_done, binding, &collection, metadatas);
        }
        let Some(result) = result? else { return Ok(None) };
        py.detach(|| end(self.journal.take()));
        let mut encoder = Encoder::new(py);
        encoder.value(&result)?;
        Ok(Some(encoder.finish()))
    }

    /// Completes batches that were interrupted, before anything else is written. Tells whether the call may go on.
    fn complete_batches(&mut self, binding: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = binding.py();
        let host = self.engine.binding.host(py);
        if !host.getattr("has_half_a_batch")?.is_truthy()? {
            return Ok(true);
        }
        let had_slot = self.slot.is_some();
        if !had_slot && !py.detach(|| self.take_first_slot()) {
            return Ok(false);
        }
        // If that fails, the slot is kept, as that of any call that has failed.
        let completed = host.call_method1("complete_batches_first", (binding,));
        self.engine.catalogue.count();
        completed?;
        if !had_slot {
            self.slot = None;
        }
        Ok(true)
    }

    /// How a write to a collection is to be sliced. `None` where it is not: it has as few records as one slice, or more than
    /// Chroma takes in one call, which is to refuse them as a whole.
    fn to_slice(&self, ids: &Bound<'_, PyAny>, collection: String, call: &Call<'_>) -> Option<ToSlice> {
        let (slices, count) = (self.method.slices?, ids.cast::<PyList>().ok()?.len());
        if count <= slices.first || count > self.engine.binding.largest_batch() {
            return None;
        }
        let first = call.first_slice(self.method, &collection, slices, count);
        (count > first).then_some(ToSlice { slices, collection, first })
    }

    fn call_whole<'py>(
        &mut self,
        in_flight: &Call<'_>,
        function: &Bound<'py, PyAny>,
        given: Arguments<'_, 'py>,
        ids: Option<Bound<'py, PyAny>>,
        joined: Option<JoinedCall<'py>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = function.py();
        if !self.method.releases_interpreter && self.slot.is_none() && !py.detach(|| self.take_first_slot()) {
            return Ok(None);
        }
        // A call with fewer records is as short as a read.
        let own = ids.as_ref().map_or(0, |ids| ids.len().unwrap_or(0));
        let mut records = joined.as_ref().map_or(own, |joined| joined.records);
        if self.method.slices.is_some_and(|slices| records >= slices.first / 2) {
            py.detach(|| in_flight.let_reads_end());
        }
        let began = Instant::now();
        let Engine { catalogue, binding, .. } = self.engine;
        let call = || catalogue.during(py, self.method.changes_catalogue, binding, || given.call(function));
        let result = match joined.map(|joined| (function.call1(joined.arguments), joined.group)) {
            None => call(),
            Some((Err(error), group)) if !is_failure(py, &error) => {
                group.refused();
                records = own;
                call()
            }
            Some((result, group)) => {
                step("group written");
                self.group = Some(group);
                result
            }
        };
        let took = began.elapsed();
        let is_write = ids.is_some();
        let since_rewritten = is_write.then(|| py.detach(|| self.engine.index_files.since_rewritten())).flatten();
        self.effect.written.took(took, since_rewritten);
        if self.method.name == "reset" && result.as_ref().err().is_none_or(|error| is_failure(py, error)) {
            self.engine.binding.host(py).call_method1("was_reset", (result.is_ok(),))?;
            // No call is to come before the log keeps its rows again.
            self.effect.failed = true;
        }
        let result = result?;
        if let (Some(_), Some(collection)) = (ids, given.get(COLLECTION)) {
            let name = collection.extract::<String>().ok();
            if let (true, Some(name)) = (self.method.slices.is_some(), &name) {
                in_flight.note_pace(self.method, name, records, took);
            }
            self.effect.written.collection = name;
            // A delete says how many.
            let rows =
                if self.method.name == "delete" { result.clone() } else { records.into_pyobject(py)?.into_any() };
            self.engine.binding.host(py).call_method1("wrote", (collection, rows))?;
        }
        if self.group.is_none() && !self.effect.failed {
            self.slot = None;
        }
        Ok(Some(result))
    }

    /// How many records the call writes, if it is a write that may be made with others.
    fn short_write(&self, body: &[u8]) -> Option<usize> {
        let most = self.method.slices?.first / 2;
        records_in(self.method, body).filter(|records| (1..=most).contains(records))
    }

    /// Tells whether the call goes on. Detached only.
    fn take_first_slot(&mut self) -> bool {
        self.slot = self.engine.take_first_slot(self.caller);
        self.slot.is_some()
    }
}

/// Whether Chroma has failed itself.
fn is_failure(py: Python<'_>, error: &PyErr) -> bool {
    error.get_type(py).name().is_ok_and(|name| FAILURES.iter().any(|failure| name == *failure))
}

/// How a write is sliced.
struct ToSlice {
    slices: Slices,
    collection: String,
    /// How many records the first slice has.
    first: usize,
}

/// Removes a journal that is not needed any more. Where that fails, the next opening finds that nothing is left to be
/// completed. Detached only.
fn end(journal: Option<Journal>) {
    if let Some(Err(error)) = journal.map(Journal::end) {
        log_line(format_args!("the journal of a batch could not be removed: {error}"));
    }
}
