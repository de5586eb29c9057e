"""What an engine process leaves in its database where it dies of Chroma: the next one is to be told.

Python's own handler of fatal signals writes the note, into a file that is open all the time. Who is killed leaves none.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# As `faulthandler` says it. An illegal instruction says something of the machine, and nothing of the database.
CRASH = re.compile(
    rb"^Fatal Python error: (Segmentation fault|Bus error|Floating-point exception|Aborted)$", re.MULTILINE
)

# What a process dies of, too, where no memory is left: no reason to refuse a database.
PASSING = ("Aborted", "Bus error")

LARGEST = 1 << 16


class CrashNote:
    """The note. Where it cannot be read it says nothing, and where it cannot be written there is none."""

    def __init__(self, file: Path) -> None:
        """Touches nothing.

        Args:
            file: Where it is.
        """
        self._file = file
        self._descriptor: int | None = None

    def begin(self) -> list[str]:
        """Has it noted what this process dies of, from now on.

        Returns:
            What the processes before died of, since it was last cleared.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            self._descriptor = os.open(self._file, flags, 0o600)
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                return []
            said = os.read(self._descriptor, LARGEST)
            faulthandler.enable(self._descriptor, all_threads=False)
        except OSError:
            return []
        return [cause.decode() for cause in CRASH.findall(said)]

    def clear(self) -> None:
        """Forgets what was noted: the database could be opened, or is another one now."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)

    def keep_one(self, cause: str) -> None:
        """Forgets all but one: the next process is to try it once more, because causes pass."""
        self.clear()
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, f"Fatal Python error: {cause}\n".encode())

    def end(self) -> None:
        """Removes it, at an orderly end."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                if not os.fstat(self._descriptor).st_size:
                    self._file.unlink()
