"""A checkpoint that is taken while the database is open, by a process of its own (``checkpoint_process.py``).

A thread of the Rust half (``src/engine/isolated/server/background.rs``) begins it, has the files copied while nobody
writes to the database, and rows purged likewise. Whoever closes the database ends it before.
"""

from __future__ import annotations

import contextlib
import json
import select
import threading
from typing import TYPE_CHECKING, Any

from chroma_manager.storage.files import remove_tree, step, sync_directory
from chroma_manager.storage.manifest import Checkpoint, Manifest, read_manifest, write_manifest
from chroma_manager.storage.paths import HOME
from chroma_manager.worker.checkpoint_process import COPIED, COPY, PURGE, READY

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable
    from pathlib import Path


# How many seconds the process may take to start, and for what writes wait for: copying takes a second for a gigabyte or
# two. A proof takes ten times as long.
ANSWERS_WITHIN = 60
PROVES_WITHIN = 600


class BackgroundCheckpoint:
    """The checkpoints in the background of one database: one at a time."""

    def __init__(self, arguments: dict[str, Any], directory: Path) -> None:
        """Starts nothing yet.

        Args:
            arguments: What ``engine.isolated.prepare`` says.
            directory: The database's.
        """
        self._arguments = arguments
        self._home = directory / HOME
        # Held while the process is started, ended, or what it has made is kept.
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

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
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self._next_line(ANSWERS_WITHIN) == READY

    def copy(self) -> bool:
        """Has the index files copied; whether they are."""
        return self._ask(COPY) == COPIED

    def keep(self) -> bool:
        """Waits until the copies are proven, and keeps them; whether they are kept."""
        proven = self._next_line(PROVES_WITHIN)
        with self._lock:
            if self._process is None or not proven:
                return False
            self._keep({segment: Checkpoint(**fields) for segment, fields in json.loads(proven).items()})
        return True

    def purge(self) -> list[dict[str, list[int | None]]] | None:
        """Has the rows purged that are in a checkpoint.

        Returns:
            What the log had before, and what it has afterwards: of each collection the first row, and how many.
            ``None`` where that is not known, because the process has ended.
        """
        # A journal of a batch that is complete must not come back after a power cut, when the batch is purged.
        sync_directory(self._home)
        extents = self._ask(PURGE)
        return json.loads(extents) if extents else None

    def end(self) -> None:
        """Ends the process, whatever it does. What it has copied is kept already, or removed by the next checkpoint."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _keep(self, proven: Manifest) -> None:
        known = read_manifest(self._home) or {}
        write_manifest(self._home, {**known, **proven})
        step("manifest written in the background")
        for segment in proven.keys() & known.keys():
            remove_tree(self._home / known[segment].copy)

    def _ask(self, word: str) -> str:
        """What the process says to a word; empty where it has ended, or does not answer."""
        process = self._process
        if process is None or process.stdin is None:
            return ""
        with contextlib.suppress(OSError):
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
        return self._next_line(ANSWERS_WITHIN)

    def _next_line(self, seconds: float) -> str:
        """What the process says next; empty where it has ended, or says nothing for so long."""
        process = self._process
        if process is None or process.stdout is None:
            return ""
        # Nothing is in the buffer: a line has been read before the next one is said.
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        return process.stdout.readline().strip() if poll.poll(seconds * 1000) else ""
