"""What a database is short of when Chroma fails: its own message names the step that failed, and seldom the cause.

It imports next to nothing, because it is imported in every engine process, and needed where nothing can be any more.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# Steps of taking the log into the indexes. What they raise is not always an InternalError.
FAILED_STEPS = ("Error in compaction", "Error sending backfill request")

# A read that is told of a record by one part of Chroma, while another call has just written it or taken it away in the
# other part: a query looks for the id of what its index has found in a second step.
FAILED_READS = ("Error finding id", "Error getting embedding")

# What failed has given back what it had taken: less than this is left where it was too little.
PROBE_OF_DISK = 1 << 20
PROBE_OF_MEMORY = 64 << 20

ADVICE = "What was acknowledged is safe; this handle goes on once that has passed"


def explained(error: BaseException, directory: str | Path) -> BaseException:
    """What a call is to raise that raised `error`: a failure with its cause, if that can be found."""
    # PanicException is PyO3's.
    may_be_shortage = is_failure(error) or type(error).__name__ == "PanicException"
    shortage = shortage_in(directory) if may_be_shortage else None
    return error if shortage is None else type(error)(f"{error}; {shortage}. {ADVICE}")


def is_failure(error: BaseException) -> bool:
    """Whether an explained error may have left the binding damaged, so that it is to be opened anew.

    Its pool of SQLite connections is, at the least: a transaction that failed can stay open, and other calls wait for
    its end for a quarter of an hour. A panic while nothing is missing is of arguments that Chroma cannot convert.
    """
    text = str(error)
    if any(part in text for part in (*FAILED_STEPS, ADVICE)):
        return True
    return type(error).__name__ == "InternalError" and not is_failed_read(error)


def is_failed_read(error: BaseException) -> bool:
    """Whether a read has failed of what other calls did meanwhile, so that it is to be made again."""
    return type(error).__name__ == "InternalError" and any(part in str(error) for part in FAILED_READS)


def shortage_in(directory: str | Path) -> str | None:
    """What is missing for work in a directory, or in this process; ``None`` where nothing seems to be."""
    try:
        mmap.mmap(-1, PROBE_OF_MEMORY).close()  # taken, but not used
    except OSError as error:
        return f"no memory is left for process {os.getpid()}, which works in {directory} ({error.strerror})"
    try:
        _write_in(directory)
    except OSError as error:
        return f"no file can be written in {directory} ({error.strerror})"
    return None


def _write_in(directory: str | Path) -> None:
    try:
        # Without a name: a process that has failed may be killed at any moment.
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
    """Where a system or file system has no files without a name."""
    temporary = getattr(os, "O_TEMPORARY", 0)
    descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | temporary, 0o600)
    if not temporary:
        os.unlink(name)
    return descriptor
