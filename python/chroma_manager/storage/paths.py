"""What is where in the directory of a database: Chroma's own, and ours beside it."""

from __future__ import annotations

import re

DATABASE_FILE = "chroma.sqlite3"

# The directory of an index has the name of its segment: a UUID.
INDEX_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

# What Chroma writes last into it: which record has which label.
METADATA_FILE = "index_metadata.pickle"

# As in lock_file.rs.
LOCK_FILE = ".chroma_manager.lock"

# All else of ours is in a directory:
HOME = ".chroma_manager"

# that an engine process has the database open,
MARK = "open"

# that another program has written to it meanwhile,
WRITTEN_ELSEWHERE = "written-elsewhere"

# which copies of the indexes there are, and what they stand for,
CHECKPOINT = "checkpoint.json"

# and what a repair has replaced, in directories whose names begin so.
DAMAGED = "damaged-"

# What is being removed has a name that ends so.
TRASH = ".trash"

# Where a verification makes a database for Chroma to read indexes in.
SCRATCH = "probe"

# What engine processes have died of.
CRASHES = "crashes"

# Which index files were there when the engine `embedded` last examined or closed them.
EXAMINED = "examined.json"

# What a repair that was interrupted has to put back.
REPAIR = "repair.json"

# The journal of a batch (journal.rs). The number behind the dot is how often a completion has begun.
JOURNAL_NAME = re.compile(r"batch-\d+-\d+(?:\.(\d+))?")
