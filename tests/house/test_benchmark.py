"""The tables and figures of the benchmark are made of its files, and a comparison of two files says what is slower."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "benches/bench"
LATEST = ROOT / "benches/results/latest.json"


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def compared(directory: Path, old: dict[str, Any], new: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    files = []
    for name, run in (("old", old), ("new", new)):
        files.append(directory / f"{name}.json")
        files[-1].write_text(json.dumps(run))
    return bench("compare", "--old", files[0], "--new", files[1])


@pytest.fixture
def run() -> dict[str, Any]:
    """The last run, in which `isolated` takes 10 and 11 ms to open a database, and chromadb 10."""
    run = json.loads(LATEST.read_text())
    run["results"] = {"opening_new": {"chromadb": [{"ms": 10}, {"ms": 10}], "isolated": [{"ms": 10}, {"ms": 11}]}}
    return run


def slower(run: dict[str, Any], *times: float) -> dict[str, Any]:
    new = copy.deepcopy(run)
    new["results"]["opening_new"]["isolated"] = [{"ms": time} for time in times]
    return new


def test_the_tables_and_figures_are_what_the_files_of_the_last_runs_make_of_them() -> None:
    checked = bench("report", "--check")
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stderr


def test_a_comparison_names_what_is_slower_than_every_round_before(run: dict[str, Any], tmp_path: Path) -> None:
    said = compared(tmp_path, run, slower(run, 15, 14))
    assert said.returncode == 1, said.stderr
    assert "1.38x | **slower** |" in said.stdout


def test_a_comparison_says_nothing_of_what_is_within_the_spread(run: dict[str, Any], tmp_path: Path) -> None:
    said = compared(tmp_path, run, slower(run, 15, 10.9))
    assert (said.returncode, said.stderr) == (0, "")
    assert "slower" not in said.stdout


def test_runs_of_different_sizes_are_not_compared(run: dict[str, Any], tmp_path: Path) -> None:
    new = {**run, "sizes": {**run["sizes"], "openings": run["sizes"]["openings"] + 1}}
    said = compared(tmp_path, run, new)
    assert (said.returncode, said.stderr) == (1, "the two runs are of different sizes\n")


def test_a_machine_of_half_the_speed_is_no_difference(run: dict[str, Any], tmp_path: Path) -> None:
    new = slower(run, 20, 22)
    new["results"]["opening_new"]["chromadb"] = [{"ms": 20}, {"ms": 20}]
    said = compared(tmp_path, run, new)
    assert (said.returncode, said.stderr) == (0, "")
    assert "1.00x" in said.stdout
