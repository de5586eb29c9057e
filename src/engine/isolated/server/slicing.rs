//! A long write is made of slices, and between them others get a turn: Chroma itself would keep the interpreter for all of
//! it.

use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::batch_checks::{Batch, slice_of};
use super::journal::step;
use crate::chroma::Slices;

/// What a call in slices needs of whoever makes it.
pub trait Slicing<T>: Sync {
    /// The next turn, if there is one yet. Detached.
    fn take_turn(&self, is_first: bool) -> Option<T>;

    /// Whether the rest is to be written at once: nobody waits for an answer, and all others for the end.
    fn is_orphan(&self) -> bool;

    /// With the first turn: whether the batch may be sliced. If not, it is made whole.
    fn begin(&mut self, py: Python<'_>) -> bool;

    /// So many records have been written.
    fn wrote(&self, py: Python<'_>, records: usize) -> PyResult<()>;
}

/// Calls once for each slice of the arguments that have one value for each record, each in a turn of its own; `None` where
/// there is none any more. A turn in which the call failed is left to the caller. The time is that of the slices alone,
/// without what others do between them.
pub fn call_in_slices<'py, T: Send>(
    batch: &Batch<'_, 'py>,
    slices: Slices,
    time: &mut Duration,
    turn: &mut Option<T>,
    slicing: &mut impl Slicing<T>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = batch.function.py();
    let (mut at, mut size) = (0, slices.first);
    for number in 1.. {
        let taker = &*slicing;
        *turn = py.detach(|| taker.take_turn(at == 0));
        if turn.is_none() {
            return Ok(None);
        }
        if at == 0 && !(batch.is_taken()? && slicing.begin(py)) {
            size = batch.count;
        }
        let end = batch.count.min(at + size);
        let slice = batch.arguments.iter().map(|argument| slice_of(argument, batch.count, at, end));
        let slice = PyTuple::new(py, slice.collect::<Vec<_>>())?;
        let began = Instant::now();
        let result = batch.function.call1(slice);
        let took = began.elapsed();
        *time += took;
        let result = result?;
        slicing.wrote(py, end - at)?;
        *turn = None;
        at = end;
        step(&format!("slice {number} taken"));
        if at == batch.count {
            return Ok(Some(result));
        }
        size = if slicing.is_orphan() { batch.count } else { next_size(size, took, slices.time) };
    }
    Ok(None)
}

/// As many as fit the time that a slice should take; it grows by steps, because the first is slower than the rest.
fn next_size(size: usize, took: Duration, time: Duration) -> usize {
    let fitting = time.as_secs_f64() / took.as_secs_f64().max(1e-6);
    if fitting >= 2.0 {
        size * 2
    } else {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        // of a small number
        let fitting = (size as f64 * fitting) as usize;
        fitting.max(1)
    }
}
