"""What is done about another program that has a database open, or has written to it.

Two Chromas that have one database open see each other's writes, for both read the log. But each rewrites the same index
files from what it has in memory, and neither knows of the other. The Rust half notices that somebody has written
(``src/engine/isolated/server/``); which processes have a file open is found out in ``other_programs.py``.

Only for a database that Chroma has closed in this process.
"""

from __future__ import annotations

import os
from pathlib import Path

from chroma_manager.durability import other_programs
from chroma_manager.errors import InstanceLockedError
from chroma_manager.storage.connection import release_shared_connection
from chroma_manager.storage.files import make_directory, remove_tree, write_durably
from chroma_manager.storage.journal_mode import write_back
from chroma_manager.storage.paths import DATABASE_FILE, HOME, WRITTEN_ELSEWHERE

WRITTEN = (
    "another program has written to the database while it was open here ({who}). Two Chromas with one database open "
    "damage its index files: no checkpoint is taken of them, and they are recovered from the last one and the log as "
    "soon as that program has closed the database. Let one of them have it at a time"
)
CLOSED = "it has closed the database since"
OPEN = (
    "another program has the database open for writing, too ({who}). As soon as both write to it, its index files are "
    "damaged. End that program, or let it have a copy (snapshot())"
)
REFUSED = (
    "{who}. It has written to the database while it was open here, and both would damage its index files. End that "
    "program; then the next call recovers all that both have written"
)
READING = (
    "{who}. While it is in the middle of a transaction, {file} cannot be copied: some of what was written is in the "
    "write-ahead log only. Nothing is lost. End that program, or its transaction, and repeat the call"
)


class ForeignWriters:
    """The other programs that have one database open."""

    def __init__(self, directory: Path) -> None:
        """Touches nothing.

        Args:
            directory: The database's.
        """
        self._database = directory / DATABASE_FILE
        self._home = directory / HOME
        self._flag = self._home / WRITTEN_ELSEWHERE

    @property
    def processes(self) -> list[int] | None:
        """The other processes that have the database open for writing, as far as they can be seen.

        ``None`` where there are none.
        """
        release_shared_connection()
        return other_programs.writers_of(self._database) if self._database.exists() else None

    @property
    def have_written(self) -> bool:
        """Whether one was seen to write to the open database, which is not recovered since."""
        return os.path.lexists(self._flag)

    def refuse(self) -> None:
        """Raises while a program that was seen to write to the database has it open.

        Raises:
            InstanceLockedError: It has.
        """
        writers = self.processes
        if writers is not None:
            message = REFUSED.format(who=other_programs.named(writers))
            raise InstanceLockedError(message, writers[0] if writers else None)

    def wait_for_readers(self) -> None:
        """Waits until SQLite has written all of its write-ahead log into the file, which is to be copied.

        Raises:
            InstanceLockedError: A program that is in the middle of a transaction holds that back for too long.
        """
        if self._database.exists() and not write_back(self._database):
            # One that only reads has opened the index of the log for writing, all the same.
            readers = other_programs.visible_writers_of(Path(f"{self._database}-shm"))
            message = READING.format(who=other_programs.named(readers), file=self._database.absolute())
            raise InstanceLockedError(message, readers[0] if readers else None)

    def notice(self) -> str | None:
        """What to say before the database is opened; ``None`` where no other program has it open."""
        writers = self.processes
        return None if writers is None else OPEN.format(who=other_programs.named(writers))

    def note_write(self) -> str:
        """Notes that one has written to the open database, and returns what to say of it."""
        make_directory(self._home)
        write_durably(self._flag, "")
        writers = other_programs.visible_writers_of(self._database)
        return WRITTEN.format(who=other_programs.named(writers) if writers else CLOSED)

    def forget(self) -> None:
        """Forgets what was noted: the database is being recovered, or no row of the log was written."""
        remove_tree(self._flag)
