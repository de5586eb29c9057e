//! How many records a slice of a long write has: as many as fit into the time that it may take.
//!
//! That time is short while others call, and longer while nobody does. Large slices are cheaper: each costs some
//! milliseconds whatever its size, and at its end Chroma's threads wait for the slowest of them.

use std::collections::HashMap;
use std::time::Duration;

use crate::chroma::{Method, Slices};

/// How long a slice takes while nobody else calls. A call that comes then waits for the rest of it.
const ALONE: Duration = Duration::from_millis(400);

/// The part of a slice by which it may be longer while nobody else calls, if no slice is left to be made then.
const REST: usize = 4;

/// How many times larger than usual the first slice of a write may be where the records of the last one were fast. Those
/// of this one may be slower: Chroma passes over an `add` of ids that exist, for example.
const TRUST: usize = 4;

/// Of at most so many collections it is known how long a record takes.
const COLLECTIONS: usize = 1_000;

/// How long a record took when a method last wrote to a collection.
#[derive(Debug, Default)]
pub struct Pace(HashMap<(&'static str, String), Duration>);

impl Pace {
    /// Notes how long Chroma took for some records.
    pub fn note(&mut self, method: &Method, collection: &str, records: usize, took: Duration) {
        let Some(slices) = method.slices else { return };
        if records < slices.first {
            // What a call costs whatever its size would be most of it.
            return;
        }
        if self.0.len() >= COLLECTIONS {
            self.0.clear();
        }
        let records = u32::try_from(records).unwrap_or(u32::MAX);
        self.0.insert((method.name, collection.to_owned()), took / records);
    }

    /// Returns how many of `count` records the first slice of a write may have.
    pub fn first_size(
        &self,
        method: &Method,
        collection: &str,
        slices: Slices,
        count: usize,
        has_company: bool,
    ) -> usize {
        let size = match self.0.get(&(method.name, collection.to_owned())) {
            Some(record) => fitting(1, *record, time_of(slices, has_company)).clamp(1, slices.first * TRUST),
            None => slices.first,
        };
        with_rest(size, count, has_company)
    }
}

/// Returns how many of the records that are `left` the next slice may have, where one of `size` took so long. The size at
/// most doubles, because the first slice is slower than the rest, and some records are faster than others.
pub fn next_size(size: usize, took: Duration, slices: Slices, left: usize, has_company: bool) -> usize {
    let fitting = fitting(size, took, time_of(slices, has_company)).clamp(1, size * 2);
    with_rest(fitting, left, has_company)
}

fn with_rest(size: usize, left: usize, has_company: bool) -> usize {
    let largest = if has_company { size } else { size + size / REST };
    if left <= largest { left } else { size }
}

fn time_of(slices: Slices, has_company: bool) -> Duration {
    if has_company { slices.time } else { slices.time.max(ALONE) }
}

/// Returns how many records fit into a time, where so many took that long.
fn fitting(records: usize, took: Duration, time: Duration) -> usize {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    // What does not fit into an integer becomes the largest one.
    let fitting = (records as f64 * time.as_secs_f64() / took.as_secs_f64().max(1e-9)) as usize;
    fitting
}
