"""The directory for a snapshot on its way: its own, while others create and remove theirs."""

from __future__ import annotations

from pathlib import Path

from chroma_manager.bucket.workspace import workspace
from conftest import all_at_once


def test_threads_that_create_and_remove_one_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    def work(i: int) -> int:
        for _ in range(50):
            with workspace(tmp_path / "file" / "azure") as path:
                path.mkdir(parents=True)
                (path / "part").write_bytes(b"x")
                assert [part.name for part in path.iterdir()] == ["part"]
        return i

    assert all_at_once(8, work) == list(range(8))
    assert list(tmp_path.iterdir()) == []
