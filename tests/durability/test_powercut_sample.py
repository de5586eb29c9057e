"""What was acknowledged is on the disk when the power is cut: a sample of `make powercut`, on ext4."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "benches" / "powercut"
CANNOT_RUN = 3


@pytest.mark.skipif(sys.platform != "linux", reason="a logged disk is made of FUSE and a loop device of Linux")
def test_what_was_acknowledged_survives_a_power_cut(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH), "--workload", "sample", "--acknowledged", "--recordings", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    if done.returncode == CANNOT_RUN:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 cuts, 0 failures" in done.stdout
