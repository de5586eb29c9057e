"""Other programs that have a database open: ``chroma run``, a ``PersistentClient``, a shell of SQLite.

Two Chromas that have one database open see each other's writes, for both read the log. But each rewrites the same index
files from what it has in memory, and neither knows that the other does. ``witness.rs`` notices that somebody has
written; here is who has the database open, and what is said of it.

Only for a database that Chroma has closed in this process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from pathlib import Path

if sys.platform == "linux":
    import fcntl

# For how long somebody may have a file open, in seconds, before it is said.
MOMENT = 0.2

# How much of a command line a message shows, in characters.
LONGEST_COMMAND = 200

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


def is_open_elsewhere(file: Path) -> bool:
    """Whether anybody has a file open for writing, in whatever process; ``False`` where the system cannot tell."""
    if sys.platform != "linux":
        return False
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Who opens it meanwhile waits until the lease is gone, and this process is told with a signal that is ignored.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        # A lease is not given where there is a writer.
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False


def writers_of(file: Path) -> list[int] | None:
    """The processes, other than this one, that have a file open for writing, which this one has not.

    Returns:
        Those that this process may look into: there may be none. ``None`` where nobody has it open, or for a moment
        only, as one that has just been killed.
    """
    deadline = time.monotonic() + MOMENT
    while is_open_elsewhere(file):
        if time.monotonic() > deadline:
            found = _writers_of(file)
            return None if found == [os.getpid()] else [pid for pid in found if pid != os.getpid()]
        time.sleep(MOMENT / 10)
    return None


def visible_writers_of(file: Path) -> list[int]:
    """The processes, other than this one, of which this one can see that they have a file open for writing."""
    return [pid for pid in _writers_of(file) if pid != os.getpid()]


def _writers_of(file: Path) -> list[int]:
    with contextlib.suppress(OSError):
        wanted = file.stat()
        processes = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [int(process.name) for process in processes if _has_open(process, wanted)]
    return []


def _has_open(process: Path, wanted: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(descriptor.stat(), wanted):
                    flags = (process / "fdinfo" / descriptor.name).read_text().partition("flags:")[2].split()[0]
                    if int(flags, 8) & os.O_ACCMODE != os.O_RDONLY:
                        return True
    return False


def named(writers: list[int]) -> str:
    """The processes, each with its command line; what is said where none can be seen."""
    if not writers:
        return "a process that cannot be seen from here (another user's, or in another container)"
    return ", ".join(f"process {pid} ({_command_of(pid)})" for pid in writers)


def _command_of(pid: int) -> str:
    """The beginning of a process's command line, in one line, without the directory of its program.

    What tells two programs apart often stands behind that.
    """
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        command = " ".join(" ".join([Path(words[0]).name, *words[1:]]).split())
        if command:
            return command if len(command) <= LONGEST_COMMAND else f"{command[:LONGEST_COMMAND]}..."
    return "it has ended"
