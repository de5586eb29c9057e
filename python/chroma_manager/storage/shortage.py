"""What is short (memory, space, permissions) when Chroma fails: its own message seldom names the cause.

Every engine process imports this file, and needs it where nothing more can be imported, so it imports next to nothing.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Steps in which Chroma applies the log to the indexes. They do not always raise an InternalError.
FAILED_STEPS = ("Error in compaction", "Error sending backfill request")

# A read that meets a write: a query searches the index first and reads the ids of its results in a second step, while
# another call has just written or removed one of the records.
FAILED_READS = ("Error finding id", "Error getting embedding")

# A failed step has released what it had taken: where resources are short, less than this is left.
PROBE_OF_DISK = 1 << 20
PROBE_OF_MEMORY = 64 << 20

ADVICE = "What was acknowledged is safe; this handle goes on once that has passed"


def explained(error: BaseException, directory: str | Path) -> BaseException:
    """What a call that raised `error` is to raise: the error with its cause, if that can be found."""
    # PanicException is PyO3's.
    may_be_shortage = is_failure(error) or type(error).__name__ == "PanicException"
    shortage = shortage_in(directory) if may_be_shortage else None
    return error if shortage is None else type(error)(f"{error}; {shortage}. {ADVICE}")


def is_failure(error: BaseException) -> bool:
    """Whether an explained error may have damaged the binding, so that it is to be reopened.

    At the least its pool of SQLite connections is damaged: a transaction that failed can stay open, and other calls
    wait a quarter of an hour for its end. A panic while nothing is short is about arguments that Chroma cannot convert.
    """
    text = str(error)
    # Where memory was short between two slices of a batch, the rest of it is to be completed.
    if isinstance(error, MemoryError) or any(part in text for part in (*FAILED_STEPS, ADVICE)):
        return True
    return type(error).__name__ == "InternalError" and not is_failed_read(error)


def is_failed_read(error: BaseException) -> bool:
    """Whether a read has failed because of a concurrent write, so that it is to be retried."""
    return type(error).__name__ == "InternalError" and any(part in str(error) for part in FAILED_READS)


def shortage_in(directory: str | Path) -> str | None:
    """What is short in a directory, or in this process; ``None`` where nothing seems to be."""
    try:
        mmap.mmap(-1, PROBE_OF_MEMORY).close()  # allocated, but not touched
    except OSError as error:
        return f"no memory is left for process {os.getpid()}, which works in {directory} ({error.strerror})"
    try:
        _write_in(directory)
    except OSError as error:
        return f"no file can be written in {directory} ({error.strerror})"
    return None


def _write_in(directory: str | Path) -> None:
    try:
        # A file without a name is left behind by no kill.
        descriptor = os.open(directory, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except (AttributeError, OSError) as error:
        if getattr(error, "errno", errno.EOPNOTSUPP) not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        descriptor = _open_named(os.path.join(directory, f".chroma_manager.{os.getpid()}.probe"))
    try:
        left = PROBE_OF_DISK
        while left:
            left -= os.write(descriptor, bytes(left))
    finally:
        os.close(descriptor)


def _open_named(name: str) -> int:
    """Opens a file for systems and file systems that have no files without a name."""
    temporary = getattr(os, "O_TEMPORARY", 0)
    descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | temporary, 0o600)
    if not temporary:
        os.unlink(name)
    return descriptor
