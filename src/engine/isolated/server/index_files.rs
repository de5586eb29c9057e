//! When Chroma has rewritten its index files. It does so every so many records; what was written before then need not be
//! applied again when the database is reopened.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// The file that Chroma writes last.
const LAST_FILE: &str = "index_metadata.pickle";

/// The index files of the database in a directory.
#[derive(Debug)]
pub struct IndexFiles {
    directory: PathBuf,
    /// When each was written, by the name of its index.
    written: Mutex<HashMap<OsString, SystemTime>>,
}

impl IndexFiles {
    /// The index files of the database in a directory, as they are now. Detached only.
    pub fn of(directory: &Path) -> Self {
        Self { directory: directory.to_path_buf(), written: Mutex::new(times(directory)) }
    }

    /// How long ago Chroma has last rewritten any; `None` where it has not since this was last asked. Detached only.
    pub fn since_rewritten(&self) -> Option<Duration> {
        let now = times(&self.directory);
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let rewritten = now.iter().filter(|(name, time)| written.get(*name) != Some(time));
        let last = rewritten.map(|(_, time)| *time).max();
        *written = now;
        // A time in the future is that of a clock that was set back.
        last.map(|time| time.elapsed().unwrap_or_default())
    }
}

/// What cannot be read counts as not written.
fn times(directory: &Path) -> HashMap<OsString, SystemTime> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let time = |entry: fs::DirEntry| {
        entry.file_type().ok()?.is_dir().then_some(())?;
        let file = fs::metadata(entry.path().join(LAST_FILE)).ok()?;
        Some((entry.file_name(), file.modified().ok()?))
    };
    entries.filter_map(time).collect()
}

#[cfg(all(test, not(feature = "explore")))]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_rewritten_when_it_is_created_and_when_its_last_file_is_written_again() {
        let directory = std::env::temp_dir().join(format!("chroma-manager-index-files-{}", std::process::id()));
        let file = directory.join("0a1b").join(LAST_FILE);
        fs::create_dir_all(directory.join(".chroma_manager")).unwrap();
        let files = IndexFiles::of(&directory);
        assert_eq!(files.since_rewritten(), None);
        fs::create_dir(directory.join("0a1b")).unwrap();
        assert_eq!(files.since_rewritten(), None, "Chroma has only created the directory");
        fs::write(&file, "1").unwrap();
        assert!(files.since_rewritten().is_some());
        assert_eq!(files.since_rewritten(), None);
        let minute = Duration::from_secs(60);
        let modify = |time| fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
        modify(SystemTime::now() - minute);
        assert!(files.since_rewritten().is_some_and(|since| since >= minute));
        modify(SystemTime::now() + minute);
        assert_eq!(files.since_rewritten(), Some(Duration::ZERO), "the clock was set back");
        fs::remove_dir_all(&directory).unwrap();
    }
}
