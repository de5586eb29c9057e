"""Finds the other programs that have a file open: ``chroma run``, a ``PersistentClient``, a shell of SQLite.

What is done about them is in ``foreign_writers.py``. Only for a database that Chroma has closed in this process.
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

# How many seconds a program may have a file open before it counts.
MOMENT = 0.2

# How much of a command line a message shows, in characters.
LONGEST_COMMAND = 200


def is_open_elsewhere(file: Path) -> bool:
    """Whether any process has a file open for writing; ``False`` where the system cannot tell."""
    if sys.platform != "linux":
        return False
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        # A program that opens the file meanwhile waits for the end of the lease, and this process gets a signal, which
        # it ignores.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        # Refused where there is a writer.
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False


def writers_of(file: Path) -> list[int] | None:
    """The other processes that have a file open for writing, which this process has closed.

    Returns:
        Those that can be seen from here, perhaps none. ``None`` where no process has it open, or only for a moment, as
        one that has just been killed.
    """
    deadline = time.monotonic() + MOMENT
    while is_open_elsewhere(file):
        if time.monotonic() > deadline:
            found = _writers_of(file)
            return None if found == [os.getpid()] else [pid for pid in found if pid != os.getpid()]
        time.sleep(MOMENT / 10)
    return None


def visible_writers_of(file: Path) -> list[int]:
    """The other processes that can be seen to have a file open for writing."""
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
    """Names processes, each with its command line, for a message; also where none can be seen."""
    if not writers:
        return "a process that cannot be seen from here (another user's, or in another container)"
    return ", ".join(f"process {pid} ({_command_of(pid)})" for pid in writers)


def _command_of(pid: int) -> str:
    """The beginning of a process's command line, on one line.

    Without the directory of its program, behind which is often what tells two programs apart.
    """
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        command = " ".join(" ".join([Path(words[0]).name, *words[1:]]).split())
        if command:
            return command if len(command) <= LONGEST_COMMAND else f"{command[:LONGEST_COMMAND]}..."
    return "it has ended"
