"""A scenario in a process of its own: some do not survive it, and none is slowed down by what another left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from scenario import Figures, Sizes

PROGRAM = Path(__file__).parent
LONGEST_SECONDS = 300


class Started:
    """A process that runs a scenario, or what prepares it."""

    def __init__(self, command: list[str], longest_seconds: float) -> None:
        self._longest_seconds = longest_seconds
        # A session of its own, so that what it has started can be ended with it.
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "ANONYMIZED_TELEMETRY": "False"},
        )

    def result(self) -> Figures | str:
        """Its figures; where there are none, a few words on why."""
        try:
            output, errors = self._process.communicate(timeout=self._longest_seconds)
        except subprocess.TimeoutExpired:
            return "hangs"
        finally:
            self.end()
        lines = output.splitlines()
        if self._process.returncode == 0 and lines:
            return json.loads(lines[-1])
        print(errors, file=sys.stderr)
        last_words = (errors.splitlines() or [f"exit {self._process.returncode}"])[-1]
        return last_words.split(":")[0].split(".")[-1] or "crashes"

    def end(self) -> None:
        """Ends it, and what it has left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


def start_alone(
    scenario: str,
    contender: str,
    base: Path,
    sizes: Sizes,
    *,
    part: str = "run",
    longest_seconds: float = LONGEST_SECONDS,
) -> Started:
    """Starts a part of a scenario: `run` or `prepare`."""
    as_json = json.dumps(dataclasses.asdict(sizes))
    command = [sys.executable, str(PROGRAM), "alone", scenario, contender, str(base), as_json, part]
    return Started(command, longest_seconds)


def run_alone(
    scenario: str,
    contender: str,
    base: Path,
    sizes: Sizes,
    *,
    part: str = "run",
    longest_seconds: float = LONGEST_SECONDS,
) -> Figures | str:
    """What it says in the end."""
    return start_alone(scenario, contender, base, sizes, part=part, longest_seconds=longest_seconds).result()
