//! When a checkpoint is due, in the background or with the database closed. What one is, and how it is taken, is in the
//! Python half (`durability/checkpoint.py`, `durability/open_checkpoint.py`).

use std::collections::HashMap;
use std::time::Duration;

/// Records that are written before the first checkpoint; later ones depend on how many there are (`durability/checkpoint.py`).
const FIRST_CHECKPOINT_AFTER: usize = 20_000;

/// Where none are taken in the background: time that Chroma spends on writes, up to those that its index files have, before
/// a checkpoint is due, however few they were. A recovery takes about as long to do them again, and a record costs from
/// 30 us to 10 ms.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(6);

/// The writes between two checkpoints for which the database is closed are to take so many times as long as the last one
/// did, so that they add little to the writes: calls wait for them.
const TIMES_THE_CHECKPOINT: u32 = 10;

/// What Chroma has to apply again after a checkpoint, because it has not written it to its index files yet, is to take no
/// longer than this: the next read waits for it. Where it would take longer, and be more than a small part of the writing,
/// a checkpoint waits until the files are rewritten, or until it would save a recovery so many times as much as makes it
/// due.
const REPLAYED_WITHIN: Duration = Duration::from_millis(500);
const OVERDUE: u32 = 2;

/// A checkpoint in the background is due after so much time that Chroma spends on writes, and so many times as long as the
/// last one took: it needs a core, and a recovery has to do again what is written meanwhile.
const BACKGROUND_AFTER: Duration = Duration::from_secs(3);
const TIMES_IN_BACKGROUND: u32 = 2;

/// A checkpoint is due earlier when there have been no calls for so long.
const QUIET: Duration = Duration::from_secs(30);

/// While fewer records have been written since the last checkpoint, Chroma has not changed its index files.
const FEWEST_RECORDS: usize = 1_000;

/// Work that a recovery would have to do again.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// How many records.
    pub records: usize,
    /// How long Chroma took for them.
    pub time: Duration,
    /// The collection to which they were written, where that is known.
    pub collection: Option<String>,
    /// How much of the time was after Chroma had rewritten its index files; `None` where it has not.
    pub after_rewrite: Option<Duration>,
}

impl Written {
    /// Chroma has taken so long for some of the records, and has rewritten its index files so long before the end; `None`
    /// where it has not.
    pub fn took(&mut self, time: Duration, since_rewritten: Option<Duration>) {
        self.time += time;
        if let Some(since) = since_rewritten {
            // The file's time is that of another clock.
            self.after_rewrite = Some(since.min(time));
        } else if let Some(after) = &mut self.after_rewrite {
            *after += time;
        }
    }
}

/// What a checkpoint in the background has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// How many of the records that were written since the last checkpoint.
    pub records: usize,
    /// How long Chroma took for what its index files have of them.
    pub time: Duration,
    /// Whether their rows of the log were purged.
    pub is_purged: bool,
}

/// Why a checkpoint in the background was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// The database was to be closed.
    Interrupted,
    /// It cannot be taken while the database is open.
    Failed,
}

/// Whether checkpoints are taken in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Background {
    /// They are, when one is due.
    Idle,
    /// One is being taken.
    Busy,
    /// One has failed: none is taken before the database was reopened.
    Failed,
}

/// What is known of the checkpoints of one database.
#[derive(Debug)]
pub struct CheckpointPolicy {
    /// Not of a database in memory, which is lost when it is closed.
    is_on_disk: bool,
    /// How many records were written since the last checkpoint, and how long Chroma took for them.
    records: usize,
    time: Duration,
    /// How long Chroma took for what it has not written to the index files of a collection yet.
    unsaved: HashMap<String, Duration>,
    /// After how many records the next one is due.
    after: usize,
    /// How long calls had to wait for the last checkpoint.
    last_pause: Duration,
    background: Background,
    /// What the last one in the background has, whose rows could not be purged.
    covered: Option<Covered>,
    /// How long the last one in the background took.
    last_in_background: Duration,
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
            records,
            time: Duration::ZERO,
            unsaved: HashMap::new(),
            after: FIRST_CHECKPOINT_AFTER,
            last_pause: Duration::ZERO,
            background: Background::Idle,
            covered: None,
            last_in_background: Duration::ZERO,
            replays: records > 0,
        }
    }

    /// Chroma has read the log at the opening, which took so long.
    pub fn replayed(&mut self, time: Duration) {
        (self.time, self.replays) = (time, false);
    }

    /// Whether the database can be closed and opened again, and still be there.
    pub fn is_on_disk(&self) -> bool {
        self.is_on_disk
    }

    /// A call has written that.
    pub fn wrote(&mut self, written: Written) {
        if self.is_on_disk && (written.records > 0 || self.replays) {
            self.records += written.records;
            self.time += written.time;
            self.replays &= written.records == 0;
            if let Some(collection) = written.collection {
                let unsaved = self.unsaved.entry(collection).or_default();
                *unsaved = written.after_rewrite.unwrap_or(*unsaved + written.time);
            }
        }
    }

    /// Whether one is due for which the database is closed, where there have been no calls for so long.
    pub fn is_due(&self, quiet_for: Duration) -> bool {
        if self.background == Background::Busy {
            return false;
        }
        let is_worth_it = self.time >= self.last_pause * TIMES_THE_CHECKPOINT;
        let is_cheap = self.unsaved() <= REPLAYED_WITHIN.max(self.saved() / TIMES_THE_CHECKPOINT);
        let is_much = is_worth_it && (self.is_much(1) && is_cheap || self.is_much(OVERDUE));
        is_much && self.records >= FEWEST_RECORDS || self.may_be_due_when_quiet() && quiet_for >= QUIET
    }

    /// Whether one is due in the background.
    pub fn is_due_in_background(&self) -> bool {
        let (covered, time) = self.covered.map_or((0, Duration::ZERO), |covered| (covered.records, covered.time));
        let (records, time) = (self.records.saturating_sub(covered), self.saved().saturating_sub(time));
        let is_much = time >= BACKGROUND_AFTER || 2 * records >= self.after;
        let is_worth_it = time >= self.last_in_background * TIMES_IN_BACKGROUND;
        self.takes_in_background() && records >= FEWEST_RECORDS && is_much && is_worth_it
    }

    /// One in the background begins.
    pub fn begin_in_background(&mut self) {
        self.background = Background::Busy;
    }

    /// What one has that is taken now.
    pub fn coverable(&self) -> Covered {
        Covered { records: self.records, time: self.saved(), is_purged: false }
    }

    /// One in the background has ended, after so long.
    pub fn ended_in_background(&mut self, took: Duration, taken: Result<Covered, NotTaken>) {
        self.background = if taken == Err(NotTaken::Failed) { Background::Failed } else { Background::Idle };
        if taken != Err(NotTaken::Interrupted) {
            self.last_in_background = took;
        }
        let Ok(covered) = taken else { return };
        if covered.is_purged {
            self.records = self.records.saturating_sub(covered.records);
            self.time = self.time.saturating_sub(covered.time);
        }
        self.covered = (!covered.is_purged).then_some(covered);
    }

    /// How long until one may be due for lack of calls; `None` where none will be.
    pub fn due_in(&self, quiet_for: Duration) -> Option<Duration> {
        self.may_be_due_when_quiet().then(|| QUIET.saturating_sub(quiet_for))
    }

    /// Whether so many times as much was written as makes a checkpoint due.
    fn is_much(&self, times: u32) -> bool {
        if self.takes_in_background() {
            // Those in the background have purged no rows for long.
            return self.records >= OVERDUE as usize * times as usize * self.after;
        }
        self.saved() >= CHECKPOINT_AFTER * times || (!self.replays && self.records >= self.after * times as usize)
    }

    fn takes_in_background(&self) -> bool {
        self.is_on_disk && !self.replays && self.background == Background::Idle
    }

    /// How long Chroma took for what a checkpoint would have.
    fn saved(&self) -> Duration {
        self.time.saturating_sub(self.unsaved())
    }

    /// How long Chroma took for what it would have to apply again, and no checkpoint would have.
    fn unsaved(&self) -> Duration {
        self.unsaved.values().sum()
    }

    fn may_be_due_when_quiet(&self) -> bool {
        let is_possible = !self.replays && self.background != Background::Busy;
        is_possible && self.records >= FEWEST_RECORDS && self.unsaved() <= REPLAYED_WITHIN
    }

    /// One was taken, which took so long; the next one is due after so many records.
    pub fn taken(&mut self, took: Duration, next: Option<usize>) {
        (self.records, self.time) = (0, Duration::ZERO);
        self.covered = None;
        self.background = Background::Idle;
        self.unsaved.clear();
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
            records,
            time: Duration::from_secs(seconds),
            last_pause: Duration::from_secs(pause),
            background: Background::Failed,
            ..CheckpointPolicy::new(Some(0))
        }
    }

    #[test]
    fn a_checkpoint_is_due_for_many_records_or_for_slow_ones_and_if_it_is_worth_it() {
        let is_due = |policy: CheckpointPolicy| policy.is_due(Duration::ZERO);
        assert!(!is_due(policy(19_999, 5, 0)));
        assert!(is_due(policy(20_000, 0, 0)));
        assert!(is_due(policy(1_000, 6, 0)));
        assert!(!is_due(policy(999, 1_000, 0)), "Chroma has not changed its files");
        assert!(!is_due(policy(20_000, 9, 1)), "it would take more than a tenth of the writing");
        assert!(is_due(policy(20_000, 10, 1)));
        assert!(policy(1_000, 0, 1).is_due(QUIET));
        assert!(!policy(1_000, 0, 0).is_due(QUIET / 2));
        let replaying = CheckpointPolicy { replays: true, ..policy(20_000, 0, 0) };
        assert!(!replaying.is_due(QUIET), "the log was not read yet");
        assert!(is_due(CheckpointPolicy { replays: true, ..policy(20_000, 10, 0) }));
    }
    #[test]
    fn a_checkpoint_waits_for_chroma_to_write_what_it_would_have_to_apply_again_but_not_for_ever() {
        let second = Duration::from_secs(1);
        let written = |records, seconds: u32, after_rewrite| Written {
            records,
            time: second * seconds,
            collection: Some("collection".into()),
            after_rewrite,
        };
        let mut policy = policy(0, 0, 0);
        policy.wrote(written(999, 11, None));
        policy.wrote(Written { collection: Some("other".into()), ..written(100, 0, None) });
        assert!(!policy.is_due(Duration::ZERO));
        assert!(!policy.is_due(QUIET), "the next read would take 11 s");
        assert_eq!(policy.due_in(QUIET), None, "nothing changes by waiting");
        policy.wrote(written(1, 1, Some(second / 10)));
        assert!(policy.is_due(Duration::ZERO));
        policy.wrote(written(10, 2, None));
        assert!(!policy.is_due(Duration::ZERO));
        policy.wrote(written(10, 30, None));
        assert!(!policy.is_due(Duration::ZERO), "a checkpoint would not have that");
        policy.wrote(Written { collection: Some("other".into()), ..written(900, 9, Some(Duration::ZERO)) });
        assert!(policy.is_due(Duration::ZERO), "it would have 20 s of writing");
        policy.taken(Duration::ZERO, None);
        policy.background = Background::Failed;
        policy.wrote(written(20_000, 1, None));
        assert!(!policy.is_due(Duration::ZERO));
        policy.wrote(written(20_000, 1, None));
        assert!(policy.is_due(Duration::ZERO));
        for (seconds, is_due) in [(8, false), (9, true)] {
            policy.taken(Duration::ZERO, None);
            policy.background = Background::Failed;
            policy.wrote(written(1_000, seconds, Some(second * 4 / 5)));
            assert_eq!(policy.is_due(Duration::ZERO), is_due, "a tenth of {seconds} s");
        }
    }

    #[test]
    fn one_in_the_background_is_due_after_seconds_of_writing_and_calls_wait_for_none_while_it_is_taken() {
        let second = Duration::from_secs(1);
        let written = |records, seconds: u32| Written { records, time: second * seconds, ..Written::default() };
        let mut policy = CheckpointPolicy::new(Some(0));
        policy.wrote(written(999, 3));
        assert!(!policy.is_due_in_background(), "Chroma has not changed its files");
        policy.wrote(written(1, 0));
        assert!(policy.is_due_in_background() && !policy.is_due(Duration::ZERO));
        policy.begin_in_background();
        let covered = policy.coverable();
        policy.wrote(written(1_000_000, 2));
        assert!(!policy.is_due_in_background() && !policy.is_due(QUIET));
        assert_eq!(policy.due_in(QUIET), None, "its end is waited for");
        policy.ended_in_background(second, Err(NotTaken::Interrupted));
        assert!(policy.is_due_in_background(), "it was interrupted");
        policy.begin_in_background();
        policy.ended_in_background(second, Ok(Covered { is_purged: true, ..covered }));
        assert!(policy.is_due_in_background(), "many records");
        assert!(policy.is_due(Duration::ZERO), "so many that nothing else bounds the log");

        let mut policy = CheckpointPolicy::new(Some(0));
        policy.wrote(written(1_000, 3));
        policy.ended_in_background(second * 2, Ok(policy.coverable()));
        policy.wrote(written(999, 10));
        assert!(!policy.is_due_in_background(), "its rows could not be purged, but they are in it");
        policy.ended_in_background(second * 2, Ok(policy.coverable()));
        policy.wrote(written(1_000, 3));
        assert!(!policy.is_due_in_background(), "the last one took 2 s");
        policy.wrote(written(1, 1));
        assert!(policy.is_due_in_background());
        policy.ended_in_background(second, Err(NotTaken::Failed));
        assert!(!policy.is_due_in_background() && policy.is_due(Duration::ZERO), "the last one has failed");
        policy.taken(Duration::ZERO, None);
        policy.wrote(written(1_000, 3));
        assert!(policy.is_due_in_background(), "after another try");

        let mut policy = CheckpointPolicy::new(Some(1_000));
        policy.wrote(written(0, 9));
        assert!(!policy.is_due_in_background(), "the log was not read yet");
        policy.replayed(second * 3);
        assert!(policy.is_due_in_background(), "the next recovery is not to take longer");
        let mut policy = CheckpointPolicy::new(None);
        policy.wrote(written(1_000, 9));
        assert!(!policy.is_due_in_background(), "a database in memory");
    }

    #[test]
    fn what_was_written_after_chroma_has_rewritten_its_files_is_to_be_applied_again() {
        let mut written = Written::default();
        let second = Duration::from_secs(1);
        for (seconds, since_rewritten) in [(1, None), (2, Some(second / 2)), (3, None), (4, None)] {
            written.took(second * seconds, since_rewritten);
        }
        assert_eq!(written.time, second * 10);
        assert_eq!(written.after_rewrite, Some(second * 15 / 2));
        written.took(second, Some(second * 60));
        assert_eq!(written.after_rewrite, Some(second), "no more than it took");
    }
}
