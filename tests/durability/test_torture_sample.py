"""A sample of ``make torture``: some states of each life, together with each kind of fault."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from chroma_manager.options import ENGINES
from conftest import long

BENCH = Path(__file__).parents[2] / "benches" / "torture"
STATES_OF_A_LIFE = 3

LIVES = ["new", "recovery"]
OTHERS = [
    *("restore", "compact", "known", "recovery-without-checkpoint", "snapshot", "collections", "made-by-chroma"),
    *("repair-of-an-index", "repair-of-a-length"),
]

pytestmark = pytest.mark.skipif(
    "isolated" not in ENGINES or not sys.platform.startswith("linux"), reason="it traps the system calls of Linux"
)


@pytest.mark.parametrize("life", [*LIVES, *long(*OTHERS)])
def test_what_was_acknowledged_survives_a_file_operation_that_fails_or_is_the_last(life: str) -> None:
    command = [sys.executable, str(BENCH), "--life", life, "--sample", str(STATES_OF_A_LIFE), "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=80, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    # A fault that never comes proves nothing. Where it was to come at the end, there may be fewer operations this time.
    missed = re.search(r"in (\d+) no fault came", done.stdout)
    assert missed is not None, done.stdout
    assert int(missed[1]) <= 1, done.stdout
