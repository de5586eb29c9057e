//! When a checkpoint is due. What one is, and how it is taken, is in the Python half (`durability/checkpoint.py`).

use std::time::Duration;

/// Records that are written before the first checkpoint; later ones depend on how many there are (`durability/checkpoint.py`).
const FIRST_CHECKPOINT_AFTER: usize = 20_000;

/// Time that Chroma spends on writes before a checkpoint is due, however few they were: a recovery takes about as long to
/// do them again. A record costs from 30 us to 10 ms.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(10);

/// The writes between two checkpoints are to take so many times as long as the last checkpoint did, so that checkpoints
/// add little to them (`benches/checkpoints.py`: less than a tenth, with what Chroma has to read again).
const TIMES_THE_CHECKPOINT: u32 = 20;

/// A checkpoint is due earlier when there have been no calls for so long.
const QUIET: Duration = Duration::from_secs(30);

/// While fewer records have been written since the last checkpoint, Chroma has not changed its index files.
const FEWEST_RECORDS: usize = 1_000;

/// Work that a recovery would have to do again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// How many records.
    pub records: usize,
    /// How long Chroma took for them.
    pub time: Duration,
}

/// What is known of the checkpoints of one database.
#[derive(Debug)]
pub struct CheckpointPolicy {
    /// Not of a database in memory, which is lost when it is closed.
    is_on_disk: bool,
    /// Since the last checkpoint.
    written: Written,
    /// After how many records the next one is due.
    after: usize,
    /// How long calls had to wait for the last checkpoint.
    last_pause: Duration,
    /// Chroma may not have read the log that it found when it opened the database: a checkpoint would make none of it
    /// purgeable. The first call that reads the log takes the time to do so.
    replays: bool,
}

impl CheckpointPolicy {
    /// Of a database with so many rows in its log that no checkpoint covers; `None` where no checkpoints are taken.
    pub fn new(log_length: Option<usize>) -> Self {
        let records = log_length.unwrap_or(0);
        Self {
            is_on_disk: log_length.is_some(),
            written: Written { records, time: Duration::ZERO },
            after: FIRST_CHECKPOINT_AFTER,
            last_pause: Duration::ZERO,
            replays: records > 0,
        }
    }

    /// Whether the database can be closed and opened again, and still be there.
    pub fn is_on_disk(&self) -> bool {
        self.is_on_disk
    }

    /// A call has written that.
    pub fn wrote(&mut self, written: Written) {
        if self.is_on_disk && (written.records > 0 || self.replays) {
            self.written.records += written.records;
            self.written.time += written.time;
            self.replays &= written.records == 0;
        }
    }

    /// Whether one is due, where there have been no calls for so long.
    pub fn is_due(&self, quiet_for: Duration) -> bool {
        let Written { records, time } = self.written;
        let is_much = time >= CHECKPOINT_AFTER || (!self.replays && records >= self.after);
        let is_worth_it = time >= self.last_pause * TIMES_THE_CHECKPOINT;
        let is_quiet = !self.replays && quiet_for >= QUIET;
        records >= FEWEST_RECORDS && (is_quiet || (is_much && is_worth_it))
    }

    /// How long until one may be due for lack of calls; `None` where none will be.
    pub fn due_in(&self, quiet_for: Duration) -> Option<Duration> {
        (self.written.records >= FEWEST_RECORDS).then(|| QUIET.saturating_sub(quiet_for))
    }

    /// One was taken, which took so long; the next one is due after so many records.
    pub fn taken(&mut self, took: Duration, next: Option<usize>) {
        self.written = Written::default();
        self.after = next.unwrap_or(FIRST_CHECKPOINT_AFTER);
        self.last_pause = took;
        self.replays = false;
    }
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;

    fn policy(records: usize, seconds: u64, pause: u64) -> CheckpointPolicy {
        CheckpointPolicy {
            written: Written { records, time: Duration::from_secs(seconds) },
            last_pause: Duration::from_secs(pause),
            ..CheckpointPolicy::new(Some(0))
        }
    }

    #[test]
    fn a_checkpoint_is_due_for_many_records_or_for_slow_ones_and_if_it_is_worth_it() {
        let is_due = |policy: CheckpointPolicy| policy.is_due(Duration::ZERO);
        assert!(!is_due(policy(19_999, 9, 0)));
        assert!(is_due(policy(20_000, 0, 0)));
        assert!(is_due(policy(1_000, 10, 0)));
        assert!(!is_due(policy(999, 1_000, 0)), "Chroma has not changed its files");
        assert!(!is_due(policy(20_000, 19, 1)), "it would take a twentieth of the writing");
        assert!(is_due(policy(20_000, 20, 1)));
        assert!(policy(1_000, 0, 1).is_due(QUIET));
        assert!(!policy(1_000, 0, 0).is_due(QUIET / 2));
        let replaying = CheckpointPolicy { replays: true, ..policy(20_000, 0, 0) };
        assert!(!replaying.is_due(QUIET), "the log was not read yet");
        assert!(is_due(CheckpointPolicy { replays: true, ..policy(20_000, 10, 0) }));
    }
}
