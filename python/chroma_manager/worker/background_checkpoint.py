"""A checkpoint that is taken while the database is open, by a process of its own (``checkpoint_process.py``).

A thread of the Rust half (``src/engine/isolated/server/background.rs``) begins it, has the files copied while nobody
writes to the database, and rows purged likewise. Whoever closes the database ends it before.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Any

from chroma_manager.durability.copies import remove_unnamed
from chroma_manager.storage.files import step, sync_directory
from chroma_manager.storage.manifest import Checkpoint, Manifest, read_manifest, write_manifest
from chroma_manager.storage.paths import DATABASE_FILE, HOME
from chroma_manager.storage.sealed import DamagedFileError
from chroma_manager.worker.checkpoint_process import COPIED, COPY, PURGE, READY

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable
    from pathlib import Path


# How many seconds the process may take to start, and to prove the copies: nobody waits for that.
STARTS_WITHIN = 60
PROVES_WITHIN = 600

# How many seconds it may take for what writes wait for, and how many bytes a slow disk copies or purges in one.
ANSWERS_WITHIN = 5
BYTES_A_SECOND = 25_000_000

# How many seconds somebody waits for it who waits for the database to be closed.
INTERRUPTED_AFTER = 1.0

SECONDS_BETWEEN_LOOKS = 0.1


def nobody_waits() -> bool:
    """Whoever closes the database need not wait, but ends the process."""
    return False


class BackgroundCheckpoint:
    """The checkpoints in the background of one database: one at a time.

    Attributes:
        is_interrupted: Whether the last one was ended in the middle, because the database was to be closed.
    """

    def __init__(self, arguments: dict[str, Any], directory: Path) -> None:
        """Starts nothing yet.

        Args:
            arguments: What ``engine.isolated.prepare`` says.
            directory: The database's.
        """
        self._arguments = arguments
        self._directory = directory
        self._home = directory / HOME
        # Held while the process is started, ended, or what it has made is kept.
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        # What it has said after the last line that was read.
        self._said = b""
        self.is_interrupted = False

    @property
    def is_there(self) -> bool:
        """Whether the process was started, and not ended."""
        return self._process is not None

    def begin(self, damaged: Iterable[str]) -> bool:
        """Starts the process; whether it is ready.

        Args:
            damaged: The ids of the collections that have no checkpoint.
        """
        import subprocess  # noqa: PLC0415 - takes milliseconds

        packages = {"packages": self._arguments["packages"], "version": self._arguments["version"]}
        python = self._arguments["python"]
        command = [*python["command"], *python["checkpoint"], json.dumps(packages), json.dumps([*damaged])]
        with self._lock:
            self._said, self.is_interrupted = b"", False
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        return self._next_line(STARTS_WITHIN, nobody_waits) == READY

    def copy(self, is_awaited: Callable[[], bool]) -> bool:
        """Has the index files copied; whether they are.

        Args:
            is_awaited: Tells whether somebody waits for the database to be closed. Then it is interrupted.
        """
        return self._ask(COPY, is_awaited) == COPIED

    def keep(self) -> bool:
        """Waits until the copies are proven, and keeps them; whether they are kept."""
        proven = self._next_line(PROVES_WITHIN, nobody_waits)
        with self._lock:
            if self._process is None or not proven:
                return False
            checkpoints, segments = json.loads(proven)
            self._keep({segment: Checkpoint(**fields) for segment, fields in checkpoints.items()}, segments)
        return True

    def purge(self, is_awaited: Callable[[], bool]) -> list[dict[str, list[int | None]]] | None:
        """Has the rows purged that are in a checkpoint. Not after the process was ended.

        Args:
            is_awaited: As for ``copy``.

        Returns:
            What the log had before, and what it has afterwards: of each collection the first row, and how many.
            ``None`` where that is not known.
        """
        # A journal of a batch that is complete must not come back after a power cut, when the batch is purged.
        sync_directory(self._home)
        extents = self._ask(PURGE, is_awaited)
        return json.loads(extents) if extents else None

    def end(self) -> None:
        """Ends the process, whatever it does, and removes the copies that are not kept."""
        self.is_interrupted |= self.is_there
        self._stop()

    def _keep(self, proven: Manifest, segments: Iterable[str]) -> None:
        """Names the proven copies in the manifest, and no longer those of deleted collections."""
        checkpoints = {**(read_manifest(self._home) or {}), **proven}
        write_manifest(self._home, {segment: checkpoints[segment] for segment in segments if segment in checkpoints})
        step("manifest written in the background")

    def _ask(self, word: str, is_awaited: Callable[[], bool]) -> str:
        """What the process says to a word; empty where it does not, and has ended."""
        files = [self._directory / DATABASE_FILE, *self._directory.glob("[!.]*/*")]
        seconds = ANSWERS_WITHIN + sum(file.stat().st_size for file in files if file.exists()) / BYTES_A_SECOND
        process = self._process
        if process is None or process.stdin is None:
            return ""
        with contextlib.suppress(OSError):
            process.stdin.write(f"{word}\n".encode())
        said = self._next_line(seconds, is_awaited)
        if not said:
            # Before anybody writes again: it may be about to purge more rows.
            self._stop()
        return said

    def _next_line(self, seconds: float, is_awaited: Callable[[], bool]) -> str:
        """What the process says next; empty where it has ended, or says nothing for so long, or was interrupted."""
        process = self._process
        if process is None or process.stdout is None:
            return ""
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        ends, interrupted = time.monotonic() + seconds, math.inf
        while b"\n" not in self._said:
            now = time.monotonic()
            if is_awaited():
                interrupted = min(interrupted, now + INTERRUPTED_AFTER)
            if now > interrupted:
                self.end()
            if now > min(ends, interrupted):
                return ""
            if poll.poll(SECONDS_BETWEEN_LOOKS * 1000):
                more = os.read(process.stdout.fileno(), 1 << 16)
                if not more:
                    return ""
                self._said += more
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def _stop(self) -> None:
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return
            process.kill()
            process.wait()
            with contextlib.suppress(OSError, DamagedFileError):
                remove_unnamed(self._home, read_manifest(self._home) or {})
