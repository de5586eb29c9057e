"""The command line with buckets: `snapshot` and `restore` with a URL, `snapshots`, and `prune`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest
from buckets import Folder, Server
from chroma_manager import ChromaDBManager
from chroma_manager.bucket.store import Store
from chroma_manager.cli.arguments import main
from conftest import new_collection


class Ran(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Two databases."""
    with ChromaDBManager(base_path=tmp_path / "base") as manager:
        new_collection(manager, "a b")
        new_collection(manager, "c").add(ids=["2"], embeddings=[[1.0, 2.0]])
    return tmp_path / "base"


def counts(run: Callable[..., Ran], base: Path) -> dict[str, int]:
    ran = run("list", base, "--json")
    return {row["file_id"]: row["records"] for row in map(json.loads, ran.stdout.splitlines())}


def test_all_databases_of_a_base_path_go_to_a_bucket_and_come_back(run, base: Path, url: str, tmp_path: Path) -> None:
    ran = run("snapshot", base, url)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.search(r"^a b/azure: 1 record, \d file.*MB of it sent, in " + re.escape(url), ran.stdout, re.MULTILINE)
    shutil.rmtree(base / "c")
    one = run("restore", url, base / "c" / "azure")
    assert (one.returncode, one.stdout) == (0, f"c/azure: restored from {url}\n")
    assert counts(run, base) == {"a b": 1, "c": 2}
    every = run("restore", url, tmp_path / "new", "--all")
    assert every.returncode == 0
    assert counts(run, tmp_path / "new") == {"a b": 1, "c": 2}
    missing = run("restore", url, base / "missing" / "azure")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert f"{url} has no snapshot of missing/azure" in missing.stderr


def test_the_snapshots_are_listed_and_each_can_be_restored(run, base: Path, folder_url: str) -> None:
    for _ in range(2):
        run("snapshot", base, folder_url)
    rows = [json.loads(line) for line in run("snapshots", folder_url, "--json").stdout.splitlines()]
    assert [row["file_id"] for row in rows] == ["a b", "a b", "c", "c"]
    assert rows[0]["created_at"] < rows[1]["created_at"]
    text = run("snapshots", folder_url, "--only", "c", "azure").stdout.splitlines()
    assert len(text) == 2
    assert re.search(r"^c/azure  \d{4}-\d\d-\d\d .* UTC  2 records .*" + re.escape(rows[2]["url"]), text[0])
    assert run("restore", rows[2]["url"], base / "c" / "azure").returncode == 0


def test_a_damaged_manifest_hides_no_other_snapshot(run, base, folder_url, objects: Folder, monkeypatch) -> None:
    for _ in range(3):
        run("snapshot", base / "c" / "azure", folder_url)
    oldest, damaged, _ = sorted((objects.path / "c/azure/snapshots").iterdir())
    damaged.write_text("{")
    ran = run("snapshots", folder_url)
    assert (ran.returncode, len(ran.stdout.splitlines())) == (1, 2)
    assert ran.stderr.endswith(f" c/azure: the snapshot {folder_url}/c/azure/snapshots/{damaged.name} is damaged\n")
    # One that is pruned between the list and its manifest is no failure.
    damaged.unlink()
    read = Store.read

    async def late(store: Store, name: str, limit: int) -> bytes:
        oldest.unlink(missing_ok=True)
        return await read(store, name, limit)

    monkeypatch.setattr(Store, "read", late)
    ran = run("snapshots", folder_url)
    assert (ran.returncode, len(ran.stdout.splitlines()), ran.stderr) == (0, 1, "")


def test_old_snapshots_are_pruned_and_all_of_one_database_if_it_is_named(
    run, base, folder_url, objects: Folder
) -> None:
    for _ in range(3):
        run("snapshot", base, folder_url)
    objects.age(3)
    ran = run("prune", folder_url, "--keep", 1)
    assert ran.returncode == 0
    assert ran.stdout.startswith("a b/azure: 2 snapshots, ")
    assert len(run("snapshots", folder_url).stdout.splitlines()) == 2
    assert run("snapshot", base, folder_url, "--keep", 5, "--keep-for", "0.5").returncode == 0
    assert run("prune", folder_url, "--keep", 0, "--only", "a b", "azure").returncode == 0
    assert {line.split("/")[0] for line in run("snapshots", folder_url).stdout.splitlines()} == {"c"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("prune", "{url}"), "--keep or --keep-for"),
        (("prune", "{url}", "--keep", "0"), "--only"),
        (("prune", "{url}", "--keep", "-1"), "--keep"),
        (("prune", "{url}", "--keep-for", "week"), "number of days"),
        (("prune", "ftp://bucket", "--keep", "1"), "gs, s3, az, file"),
        (("snapshots", "directory"), "gs, s3, az, file"),
        (("snapshots", "{url}", "--bucket-option", "name"), "NAME=VALUE"),
    ],
)
def test_wrong_arguments_are_refused(run, folder_url: str, arguments: tuple[str, ...], says: str) -> None:
    ran = run(*(argument.format(url=folder_url) for argument in arguments))
    assert ran.returncode == 2
    assert says in ran.stderr


def test_names_in_a_bucket_that_lead_elsewhere_are_left_out(
    run, base: Path, folder_url: str, objects: Folder, tmp_path
) -> None:
    run("snapshot", base, folder_url)
    (objects.path / "%2E%2E%2Fbase" / "azure").mkdir(parents=True)
    shutil.copytree(objects.path / "c" / "azure", objects.path / "..%2Fbase" / "azure")
    before = counts(run, base)
    ran = run("restore", folder_url, tmp_path / "new", "--all")
    assert ran.returncode == 1
    for name in ("%2E%2E%2Fbase/azure", "..%2Fbase/azure"):
        assert f"{folder_url}/{name} does not have the name of an instance" in ran.stderr
    assert counts(run, base) == before == counts(run, tmp_path / "new")


def test_folders_of_others_in_a_bucket_are_named_and_left_out(
    run, base: Path, s3: str, s3_server: Server, tmp_path: Path
) -> None:
    run("snapshot", base, s3)
    for name in ("my folder/x y/z", "users//z"):
        s3_server.ask("PUT", quote(f"/{s3.removeprefix('s3://')}/{name}"), b"theirs")
    for arguments, is_done in {
        ("snapshots", s3): "c/azure  ",
        ("prune", s3, "--keep", 1): "c/azure: 0 snapshots",
        ("restore", s3, tmp_path / "new", "--all"): "c/azure: restored",
    }.items():
        ran = run(*arguments)
        assert (ran.returncode, is_done in ran.stdout) == (1, True)
        assert f"{s3}/my folder/x y does not have the name of an instance" in ran.stderr
        assert f"{s3}/users: " in ran.stderr
    assert counts(run, tmp_path / "new") == counts(run, base)


def test_an_option_reaches_the_bucket(run, base: Path, s3: str, proxy, monkeypatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    endpoint = f"endpoint=http://127.0.0.1:{proxy.port}"
    assert run("snapshot", base, s3, "--bucket-option", endpoint).returncode == 0
    assert len(run("snapshots", s3, "--bucket-option", endpoint).stdout.splitlines()) == 2
