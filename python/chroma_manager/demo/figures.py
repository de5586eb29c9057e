"""What the demo measures, and how that is printed. What is measured happens in ``run.py``."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if sys.platform != "win32":
    import resource


@dataclass(frozen=True)
class Ingest:
    """How long an engine took to store the chunks.

    Attributes:
        engine: Its name.
        chunks: How many were stored, each as a record.
        seconds: For all of them.
        worst_stall: The longest time, in seconds, that another thread could not run.
    """

    engine: str
    chunks: int
    seconds: float
    worst_stall: float


def table(ingests: Sequence[Ingest]) -> str:
    """Returns a line of titles, and one for each ingest."""
    rows = [("engine", "chunks", "records a second", "worst stall of another thread")]
    for ingest in ingests:
        rate, stall = f"{ingest.chunks / ingest.seconds:.0f}", f"{ingest.worst_stall * 1000:.0f} ms"
        rows.append((ingest.engine, f"{ingest.chunks}", rate, stall))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


@dataclass(frozen=True)
class Report:
    """What a run did. The memory, in MB, is that of this process while all databases are open."""

    files: int
    chunks: int
    memory: float | None
    open_before: int
    open_after: int

    def __str__(self) -> str:
        """Returns a line per figure: its label, two spaces or more, its value."""
        rows = {
            "files": f"{self.files}",
            "chunks": f"{self.chunks}",
            "memory": "unknown" if self.memory is None else f"{self.memory:.0f} MB",
            "open databases before cleanup": f"{self.open_before}",
            "open databases after cleanup": f"{self.open_after}",
        }
        width = max(map(len, rows))
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows.items())


class StallMeter:
    """A thread that sleeps a millisecond at a time; ``worst`` is the longest of these times, in seconds."""

    def __init__(self) -> None:
        """Measures nothing yet."""
        self.worst = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="stall-meter", daemon=True)

    def __enter__(self) -> StallMeter:
        """Begins to measure."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends measuring."""
        self._done.set()
        self._thread.join()

    def _tick(self) -> None:
        before = time.perf_counter()
        while not self._done.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            self.worst = max(self.worst, now - before)
            before = now


def resident_megabytes() -> float | None:
    """Returns the memory of this process in MB: the present one, else the peak, else None."""
    status = Path("/proc/self/status")
    resident = re.search(r"VmRSS:\s+(\d+) kB", status.read_text("ascii", "replace")) if status.exists() else None
    if resident:
        return int(resident[1]) / 1024
    if sys.platform == "win32":
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
