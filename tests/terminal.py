"""Runs a command at a terminal, which is where it shows its progress."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence

TIMEOUT = 90


def run_at_a_terminal(command: Sequence[str], **environment: str) -> tuple[int, str, str]:
    """Exit code, what was piped, and what a terminal got."""
    ours, theirs = os.openpty()
    surroundings = {**os.environ, "TERM": "xterm", **environment}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=surroundings)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # the terminal's other end was closed
        while part := os.read(ours, 4096):
            said += part
    os.close(ours)
    stdout, _ = process.communicate(timeout=TIMEOUT)
    return process.returncode, stdout, said.decode()
