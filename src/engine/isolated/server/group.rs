//! Group commit: short writes of several connections that wait for the exclusive slot go to Chroma as one call, where they
//! can.
//!
//! A call of Chroma's costs two syncs and some milliseconds, however few records it has. While others are in flight, a
//! short write is listed here until it has the slot. Whoever has the slot takes along those that its call can be joined
//! with: the same method and collection, the same arguments left out, no id twice, and together no more records than the
//! first slice of a long write. Nobody waits for others to come, and a write that was taken along does not need the
//! interpreter any more. If Chroma refuses the joined call, it has written nothing, and each write is made alone.

use std::collections::HashSet;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::batch_checks::{Batch, slice_of};
use super::orphans::is_disconnected;
use crate::chroma::{EMBEDDINGS, IDS, Method};
use crate::engine::isolated::protocol::values::{DecodedCall, decode_call};
use crate::python::arguments::Arguments;

/// The short writes that wait for the exclusive slot.
#[derive(Default)]
pub struct Groups(Mutex<Vec<Arc<Write>>>);

/// A short write that waits. Dropping it removes it from the list.
pub struct Waiting<'a> {
    groups: &'a Groups,
    write: Arc<Write>,
}

/// Writes that are made with another one, in one call.
pub struct Group(Vec<Arc<Write>>);

/// That call.
pub struct JoinedCall<'py> {
    pub group: Group,
    /// By place.
    pub arguments: Bound<'py, PyTuple>,
    /// How many records it has.
    pub records: usize,
}

struct Write {
    method: &'static Method,
    /// As it was sent.
    call: Vec<u8>,
    records: usize,
    caller: Arc<UnixStream>,
    outcome: Mutex<Outcome>,
}

enum Outcome {
    /// Nobody has made it yet.
    Open,
    /// It is to be made alone.
    Alone,
    /// It was made in a group, and has returned this, encoded.
    Made(Vec<u8>),
}

impl Groups {
    /// Lists a write with so many records as one that waits.
    pub fn list(&self, method: &'static Method, call: &[u8], records: usize, caller: &Arc<UnixStream>) -> Waiting<'_> {
        let (call, caller, outcome) = (call.to_vec(), Arc::clone(caller), Mutex::new(Outcome::Open));
        let write = Arc::new(Write { method, call, records, caller, outcome });
        self.writes().push(Arc::clone(&write));
        Waiting { groups: self, write }
    }

    fn writes(&self) -> MutexGuard<'_, Vec<Arc<Write>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting<'_> {
    /// What the write has returned, if it was made in a group.
    pub fn made(&self) -> Option<Vec<u8>> {
        match &*self.write.outcome() {
            Outcome::Made(result) => Some(result.clone()),
            Outcome::Open | Outcome::Alone => None,
        }
    }

    /// With the exclusive slot: the writes that can be made with this one, whose arguments these are. `None` where there are
    /// none.
    pub fn take_others<'py>(&self, own: &Batch<'_, 'py>) -> Option<JoinedCall<'py>> {
        let py = own.arguments.py();
        let others: Vec<_> = self.groups.writes().iter().filter(|write| self.may_join(write)).map(Arc::clone).collect();
        if others.is_empty() || !matches!(*self.write.outcome(), Outcome::Open) || !own.looks_sound() {
            return None;
        }
        let mut joined = Joined::of(own)?;
        // What cannot be decoded or joined says so to its own caller.
        let members = others.into_iter().filter(|other| {
            let joined = decode_call(py, &other.call).and_then(|call| joined.add(own, &call, other.records));
            joined.unwrap_or(false)
        });
        let members: Vec<_> = members.collect();
        let arguments = PyTuple::new(py, joined.arguments).ok()?;
        (!members.is_empty()).then_some(JoinedCall { group: Group(members), arguments, records: joined.ids.len() })
    }

    fn may_join(&self, other: &Arc<Write>) -> bool {
        !Arc::ptr_eq(other, &self.write)
            && std::ptr::eq(other.method, self.write.method)
            && matches!(*other.outcome(), Outcome::Open)
            && !is_disconnected(&other.caller)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.groups.writes().retain(|write| !Arc::ptr_eq(write, &self.write));
    }
}

impl Group {
    /// The joined call has returned this, encoded: so has each write.
    pub fn made(self, result: &[u8]) {
        for member in self.0 {
            *member.outcome() = Outcome::Made(result.to_vec());
        }
    }

    /// Chroma has refused the joined call: each write is made alone.
    pub fn refused(self) {
        for member in self.0 {
            *member.outcome() = Outcome::Alone;
        }
    }
}

impl Write {
    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The arguments of a joined call, as they grow.
struct Joined<'py> {
    arguments: Vec<Bound<'py, PyAny>>,
    ids: HashSet<String>,
}

impl<'py> Joined<'py> {
    fn of(first: &Batch<'_, 'py>) -> Option<Self> {
        // Lists of its own, which grow.
        let copied = |argument| slice_of(argument, first.count, 0, first.count);
        let ids: HashSet<String> = ids_of(first).ok()?.into_iter().collect();
        (ids.len() == first.count).then(|| Self { arguments: first.arguments.iter().map(copied).collect(), ids })
    }

    /// Adds the arguments of another call with so many records, if it can be joined.
    fn add(&mut self, first: &Batch<'_, 'py>, other: &DecodedCall<'py>, records: usize) -> PyResult<bool> {
        let given = Arguments::of(first.method, &other.arguments, other.keywords.as_ref());
        let Some(arguments) = given.by_place() else { return Ok(false) };
        let other = Batch { arguments: &arguments, count: records, is_finite: other.is_finite, ..*first };
        let most = first.method.slices.map_or(0, |slices| slices.first);
        if self.ids.len() + records > most || !is_like(first, &other) || !other.looks_sound() {
            return Ok(false);
        }
        let ids: HashSet<String> = ids_of(&other)?.into_iter().collect();
        if ids.len() != records || !ids.is_disjoint(&self.ids) {
            return Ok(false);
        }
        for (all, argument) in self.arguments.iter().zip(arguments.iter()) {
            if is_list(&argument, records) {
                all.call_method1("extend", (argument,))?;
            }
        }
        self.ids.extend(ids);
        Ok(true)
    }
}

/// Whether both can be in one call: what has no value for each record is the same, and the vectors are of one length.
fn is_like(own: &Batch<'_, '_>, other: &Batch<'_, '_>) -> bool {
    own.arguments.len() == other.arguments.len()
        && own.arguments.iter().zip(other.arguments.iter()).all(|(ours, theirs)| {
            let (ours_is_list, theirs_is_list) = (is_list(&ours, own.count), is_list(&theirs, other.count));
            ours_is_list == theirs_is_list && (ours_is_list || ours.eq(theirs).unwrap_or(false))
        })
        && dimension_of(own) == dimension_of(other)
}

fn dimension_of(batch: &Batch<'_, '_>) -> Option<usize> {
    batch.argument(EMBEDDINGS)?.get_item(0).ok()?.len().ok()
}

fn ids_of(batch: &Batch<'_, '_>) -> PyResult<Vec<String>> {
    batch.argument(IDS).map_or(Ok(Vec::new()), |ids| ids.extract())
}

fn is_list(argument: &Bound<'_, PyAny>, records: usize) -> bool {
    argument.cast::<PyList>().is_ok_and(|list| list.len() == records)
}
