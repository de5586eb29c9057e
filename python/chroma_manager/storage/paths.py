"""The names of files and directories in the directory of a database: Chroma's, and ours beside them."""

from __future__ import annotations

import re

DATABASE_FILE = "chroma.sqlite3"

# How the names end of the files of a write-ahead log: the log, and the index that all who have the database open share.
WRITE_AHEAD_ENDINGS = ("-wal", "-shm")

# Those of all files that SQLite applies to a database that it finds beside them.
JOURNAL_ENDINGS = ("-journal", *WRITE_AHEAD_ENDINGS)

# The directory of an index has the name of its segment: a UUID.
INDEX_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

# The file that Chroma writes last into it: which record has which label.
METADATA_FILE = "index_metadata.pickle"

# As in lock_file.rs.
LOCK_FILE = ".chroma_manager.lock"

# The directory of all other files of ours, which are named below.
HOME = ".chroma_manager"

# How the names of directories begin in which a database, or a snapshot, is put together on its way from elsewhere
# (staging.rs, workspace.py, temporary.py).
TEMPORARY_PREFIX = f"{HOME}."

# The dirty marker: an engine process has the database open.
DIRTY_MARKER = "open"

# Another program has written to the database while it was open here.
WRITTEN_ELSEWHERE = "written-elsewhere"

# The manifest of the checkpoints.
CHECKPOINT = "checkpoint.json"

# What was known of the database when it was closed.
CLOSED = "closed.json"

# The files of the database that is about to replace this one: all of them are there.
PREPARED = "restoring"

# How the names of quarantined files and directories begin.
DAMAGED = "damaged-"

# How the names of directories end that are being removed.
TRASH = ".trash"

# The database in which Chroma reads indexes for a verification.
SCRATCH = "probe"

# What engine processes have died of.
CRASHES = "crashes"

# Which index files there were when the engine `embedded` last examined or closed the database.
EXAMINED = "examined.json"

# The setting that a repair puts back at its end. The Rust half knows the name, too (launcher.rs).
REPAIR = "repair.json"

# The journal of a batch (journal.rs). The number after the dot counts the attempts to complete it.
JOURNAL_NAME = re.compile(r"batch-\d+-\d+(?:\.(\d+))?")
