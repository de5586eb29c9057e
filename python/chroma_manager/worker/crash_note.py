"""What engine processes of a database have died of, noted in a file for the engine processes after them.

Python's handler of fatal signals writes the note, into a file that is open all the time. A process that was killed
(SIGKILL) leaves none.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import stat
from typing import TYPE_CHECKING

from chroma_manager.errors import InstanceCorruptError
from chroma_manager.storage.paths import CRASHES, HOME

if TYPE_CHECKING:
    from pathlib import Path

# As `faulthandler` writes it. An illegal instruction is a fault of the machine, and says nothing of the database.
CRASH = re.compile(
    rb"^Fatal Python error: (Segmentation fault|Bus error|Floating-point exception|Aborted)$", re.MULTILINE
)

# A process also dies of these where no memory is left, which is no reason to refuse the database.
PASSING = ("Aborted", "Bus error")

LARGEST = 1 << 16


class CrashNote:
    """The note of one database. Where it cannot be read it is taken for empty; where it cannot be written, for absent.

    Attributes:
        causes: What earlier processes died of, since the database was last opened.
    """

    def __init__(self, directory: Path) -> None:
        """Touches nothing.

        Args:
            directory: The database's.
        """
        self._file = directory / HOME / CRASHES
        self._descriptor: int | None = None
        self.causes: list[str] = []

    def begin(self) -> None:
        """Reads what earlier processes died of, and has a crash of this process noted from now on."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            self._descriptor = os.open(self._file, flags, 0o600)
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                return
            noted = os.read(self._descriptor, LARGEST)
            faulthandler.enable(self._descriptor, all_threads=False)
        except OSError:
            return
        self.causes = [cause.decode() for cause in CRASH.findall(noted)]

    def refuse_deadly(self) -> None:
        """Raises where two processes have died of opening the database: this one would be the third.

        Raises:
            InstanceCorruptError: It is so. The next process tries once more, because causes can pass.
        """
        causes = [cause for cause in self.causes if cause not in PASSING]
        if len(causes) > 1:
            self._write_one(causes[-1])
            raise InstanceCorruptError(
                f"Chroma dies when it opens it ({causes[-1]}), although its index files look as they should"
            )

    def clear(self) -> None:
        """Forgets the causes: the database could be opened, or was replaced or repaired."""
        self.causes = []
        self._truncate()

    def end(self) -> None:
        """Removes an empty note, at an orderly end of the process."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                if not os.fstat(self._descriptor).st_size:
                    self._file.unlink()

    def _write_one(self, cause: str) -> None:
        self._truncate()
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, f"Fatal Python error: {cause}\n".encode())

    def _truncate(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
