"""The commands that look after databases, run as their users run them: beside an app, on damage, and interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import chromadb
import numpy as np
import psutil
import pytest
from chroma_manager.cli.arguments import main
from chroma_manager.options import ENGINES
from conftest import Script, eventually, files_open_in
from terminal import run_at_a_terminal

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")

RECORDS, INDEXED = 1200, 1000
TIMEOUT = 90
UUID = "0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"

# It writes one record after the other, each in a call of its own, until told to end; then it says what there should be.
APP = """
manager = ChromaDBManager(base_path=base)
collection = manager.get_collection("doc", "azure", "rag_collection")
collection.upsert(ids=["first"], embeddings=[[1.0, 2.0]])
done, written = threading.Event(), 0
def write():
    global written
    while not done.is_set():
        collection.upsert(ids=[str(written)], embeddings=[[float(written), 1.0]])
        written += 1
writer = threading.Thread(target=write)
writer.start()
print("writing")
sys.stdin.readline()
done.set()
writer.join()
print(written)
if collection.count() != 1 + written:
    print("it has", collection.count(), "records", file=sys.stderr)
"""


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that stock Chroma made, with an index that has files."""
    directory = tmp_path_factory.mktemp("original") / "db"
    client = chromadb.PersistentClient(directory)
    collection = client.create_collection("rag_collection", embedding_function=None)
    vectors = np.random.default_rng(3).random((RECORDS, 8), dtype=np.float32)
    # Those of the first call are in the files of the index alone, the others in the log too.
    for part in (slice(0, INDEXED), slice(INDEXED, RECORDS)):
        ids = [str(i) for i in range(part.start, part.stop)]
        collection.add(ids=ids, embeddings=vectors[part], documents=ids)
    client.close()
    assert eventually(lambda: files_open_in(directory) == [])
    return directory


@pytest.fixture
def place(original: Path, tmp_path: Path) -> Callable[..., Path]:
    """Puts a copy of it to a key under the base path `tmp_path/db`."""

    def copy(key: str, damaged: bool = False) -> Path:
        directory = tmp_path / "db" / key
        shutil.copytree(original, directory)
        if damaged:
            (vectors,) = directory.glob("*/data_level0.bin")
            os.truncate(vectors, 100)
        return directory

    return copy


@pytest.fixture(scope="session")
def original_snapshot(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("snapshots")
    shutil.copytree(original, directory / "db" / "doc" / "azure")
    ran = run("snapshot", directory / "db" / "doc" / "azure", directory / "snapshot")
    assert (ran.returncode, ran.stderr) == (0, "")
    return directory / "snapshot"


@pytest.fixture
def snapshot(original_snapshot: Path, tmp_path: Path) -> Path:
    """A snapshot of it."""
    return shutil.copytree(original_snapshot, tmp_path / "snapshot")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "db"


@pytest.fixture
def app(script: Callable[..., Script]) -> Script:
    """An app that has the database doc/azure open and keeps writing into it."""
    started = script(APP)
    assert started.read_line() == "writing"
    return started


@pytest.fixture(autouse=True)
def no_process_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert eventually(lambda: engines_below(tmp_path) == [])


def engines_below(path: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if any("engine_process.py" in part for part in command) and process.cwd().startswith(str(path)):
                found.append(process)
    return found


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "chroma_manager.cli", *map(str, arguments)]


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=TIMEOUT,
        check=False,
    )
    assert "Traceback" not in ran.stderr
    return ran


def objects(stdout: str) -> dict[str, dict]:
    """What --json printed, by key."""
    parsed = [json.loads(line) for line in stdout.splitlines()]
    return {f"{one['file_id']}/{one['embedding_type']}": one for one in parsed}


def count(directory: Path) -> int:
    with contextlib.closing(sqlite3.connect(directory / "chroma.sqlite3")) as sql:
        return sql.execute("select count(*) from embeddings").fetchone()[0]


def index(directory: Path) -> dict[str, bytes]:
    """The files of its index."""
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.glob("[!.]*/*.bin")}


def state(path: Path) -> dict[str, tuple[int, int]]:
    """All that is below a path, directories too, with sizes and times."""
    return {str(entry): (entry.lstat().st_size, entry.lstat().st_mtime_ns) for entry in path.rglob("*")}


def finish(app: Script) -> int:
    """How many records it has written, all of which it has."""
    app.say()
    return int(app.finish().split()[-1])


# list


def test_list_has_a_line_for_each_database_and_changes_nothing(place, base: Path) -> None:
    place("b/azure"), place("a/openai")
    (base / "notes").mkdir()
    (base / "notes" / "readme.txt").write_text("no database")
    before = state(base)
    ran = run("list", base)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert [re.split(" {2,}", line)[:2] for line in lines] == [
        ["a/openai", "1,200 records"],
        ["b/azure", "1,200 records"],
    ]
    assert all(line.endswith("closed") for line in lines)
    assert state(base) == before


def test_list_tells_records_size_and_owner_beside_an_app(place, base: Path, app: Script) -> None:
    closed, (engine,) = place("closed/azure"), engines_below(base)
    for _ in range(3):
        listed = objects(run("list", base, "--json").stdout)
        records = listed["doc/azure"]["records"]
        assert (listed["doc/azure"]["open"], listed["doc/azure"]["pid"]) == (True, engine.pid)
        assert records >= 1
    assert run("list", base).stdout.rstrip().endswith(f"open in process {engine.pid}")
    assert engines_below(base) == [engine]
    assert finish(app) >= records - 1
    sizes = [file.stat().st_size for file in closed.rglob("*") if file.is_file()]
    assert listed["closed/azure"] == {
        "file_id": "closed",
        "embedding_type": "azure",
        "path": str(closed),
        "records": RECORDS,
        "size": sum(sizes),
        "deleted_vectors": 0,
        "reclaimable": listed["closed/azure"]["reclaimable"],
        "open": False,
        "pid": None,
    }


def test_list_does_not_take_the_signature_of_a_killed_owner_for_an_owner(base: Path, app: Script) -> None:
    (engine,) = engines_below(base)
    app.process.kill()
    engine.kill()
    assert eventually(lambda: engines_below(base) == [])
    assert (base / "doc" / "azure" / ".chroma_manager.lock").read_text() != ""
    assert objects(run("list", base, "--json").stdout)["doc/azure"]["open"] is False


def test_list_counts_no_records_where_it_cannot_read_them(place, base: Path) -> None:
    (place("broken/azure") / "chroma.sqlite3").write_bytes(b"no database" * 1000)
    with contextlib.closing(sqlite3.connect(place("wal/azure") / "chroma.sqlite3")) as sql:
        sql.execute("pragma journal_mode = wal")
    before = state(base)
    ran = run("list", base)
    assert ran.returncode == 0
    assert [re.split(" {2,}", line)[1] for line in ran.stdout.splitlines()] == ["? records", "? records"]
    assert state(base) == before, "even a log that only reading would make"


def test_list_leaves_out_what_is_on_its_way_from_elsewhere(place, base: Path) -> None:
    place("doc/azure"), place("doc/.chroma_manager.0a.incoming")
    assert objects(run("list", base, "--json").stdout).keys() == {"doc/azure"}


def test_list_prints_odd_names_on_one_line_each(place, base: Path) -> None:
    place("new\nline\x1b[31m/az ure"), place("\u202efile/日本語 & $(x)")
    os.rename(place("latin/azure").parent, os.fsencode(base) + b"/\xff")
    for encoding in ("utf-8", "ascii"):
        ran = run("list", base, PYTHONIOENCODING=encoding)
        assert (ran.returncode, len(ran.stdout.splitlines())) == (0, 3)
        assert "new\\nline\\x1b[31m/az ure" in ran.stdout
        assert "\x1b" not in ran.stdout
        assert "\u202e" not in ran.stdout
    assert len(objects(run("list", base, "--json").stdout)) == 3


def test_list_of_one_database_is_that_one(place, base: Path) -> None:
    place("other/azure")
    assert list(objects(run("list", place("doc/azure"), "--json").stdout)) == ["doc/azure"]


# compact


def thinned(directory: Path) -> Path:
    """Most of its records are deleted, by stock Chroma."""
    with chromadb.PersistentClient(directory) as client:
        collection = client.get_collection("rag_collection", embedding_function=None)
        collection.delete(ids=[str(i) for i in range(INDEXED)])
        collection.add(ids=[f"new {i}" for i in range(INDEXED)], embeddings=np.ones((INDEXED, 8)))
        collection.delete(ids=[f"new {i}" for i in range(INDEXED)])
    assert eventually(lambda: files_open_in(directory) == [])
    return directory


@pytest.mark.long
def test_compact_makes_the_databases_of_a_base_path_smaller(place, base: Path) -> None:
    thin = thinned(place("a/azure"))
    place("b/azure"), place("c/azure", damaged=True)
    listed = objects(run("list", base, "--json").stdout)
    assert listed["a/azure"]["deleted_vectors"] > INDEXED
    assert listed["b/azure"]["deleted_vectors"] == 0
    assert re.search(r"a/azure .* MB reclaimable  closed", run("list", base).stdout)
    before = sum(file.stat().st_size for file in thin.rglob("*") if file.is_file())
    ran = run("compact", base)
    assert ran.returncode == 1, "one is damaged"
    first, second = ran.stdout.splitlines()
    assert re.fullmatch(
        r"a/azure: 200 records, 2,\d\d\d deleted vectors removed, \d\.\d MB before, \d\.\d MB now", first
    )
    assert second.startswith("b/azure: 1,200 records, 0 deleted vectors removed")
    assert "c/azure" in ran.stderr
    assert sum(file.stat().st_size for file in thin.rglob("*") if file.is_file()) < before
    again = objects(run("compact", thin, "--json").stdout)["a/azure"]
    assert (again["records"], again["deleted_vectors"], again["rebuilt_indexes"]) == (200, 0, 0)
    assert again["size_after"] <= again["size_before"]
    assert objects(run("list", base, "--json").stdout)["a/azure"]["deleted_vectors"] == 0


# verify


def test_verify_of_a_base_path_goes_on_after_a_bad_one_and_the_worst_counts(place, base: Path) -> None:
    place("a/azure", damaged=True), place("b/azure"), place("line\nfeed/azure")
    shutil.rmtree(base / "c", ignore_errors=True)
    (base / "c" / "azure" / UUID).mkdir(parents=True)
    (base / "c" / "azure" / UUID / "header.bin").touch()
    ran = run("verify", base)
    assert ran.returncode == 3
    damaged, sound, missing = ran.stdout.splitlines()
    assert damaged.startswith("a/azure: damaged, 1 collection, 1,200 records; collection 'rag_collection': ")
    assert sound == "b/azure: sound, 1 collection, 1,200 records"
    assert missing.startswith("c/azure: damaged, 0 collections, 0 records; chroma.sqlite3 is missing")
    (failed,) = ran.stderr.splitlines()
    assert failed.startswith("chroma-manager: line\\nfeed/azure: ")


def test_verify_repairs_and_says_what_and_where_the_rest_is(place) -> None:
    directory = place("doc/azure", damaged=True)
    ran = run("verify", directory, "--repair")
    assert (ran.returncode, ran.stderr) == (0, "")
    (line,) = ran.stdout.splitlines()
    left = count(directory)
    assert RECORDS > left >= RECORDS - INDEXED
    assert line.startswith(f"doc/azure: repaired, 1 collection, {left} records; ")
    assert "what was repaired: collection 'rag_collection': its index is damaged" in line
    _, _, aside = line.partition("set aside in ")
    assert aside.startswith(f"{directory}/")
    assert len({json.loads(record)["id"] for record in Path(aside).read_text().splitlines()}) == RECORDS - left


@pytest.mark.long
def test_all_of_them_work_beside_an_app_that_keeps_writing(base: Path, tmp_path: Path, app: Script) -> None:
    directory = base / "doc" / "azure"
    (engine,) = engines_below(base)
    verified = objects(run("verify", base, "--json").stdout)["doc/azure"]
    assert (verified["ok"], verified["problems"], verified["path"]) == (True, [], str(directory))
    assert [collection["name"] for collection in verified["collections"]] == ["rag_collection"]
    taken = run("snapshot", directory, tmp_path / "snapshot")
    assert (taken.returncode, taken.stderr) == (0, "")
    records = count(tmp_path / "snapshot")
    assert taken.stdout.startswith(f"doc/azure: {records:,} records, ")
    assert engines_below(base) == [engine], "the app's engine process did the work"
    compacted = run("compact", directory)
    assert (compacted.returncode, compacted.stderr) == (0, "")
    assert finish(app) > records - 1
    assert run("restore", tmp_path / "snapshot", directory).returncode == 0
    assert count(directory) == records


def test_a_database_that_an_app_has_in_its_own_process_is_an_error_that_names_it(base: Path, script) -> None:
    app = script(
        'm = ChromaDBManager(base_path=base, engine="embedded"); m.get_client("doc", "azure"); print("open"); input()\n'
        "time.sleep(1); m.shutdown()"
    )
    assert app.read_line() == "open"
    ran = run("verify", base, "--json")
    assert ran.returncode == 1
    assert objects(ran.stdout)["doc/azure"]["error"] in ran.stderr
    assert f"(pid {app.process.pid})" in ran.stderr
    assert str(base / "doc" / "azure") in ran.stderr
    app.say()
    assert run("verify", base, "--wait", "60").returncode == 0
    app.finish()


# snapshot and restore


def test_the_snapshots_of_a_base_path_are_restored_to_one(base: Path, snapshot: Path, tmp_path: Path) -> None:
    shutil.copytree(snapshot, tmp_path / "snapshots" / "a" / "azure")
    shutil.copytree(snapshot, tmp_path / "snapshots" / "b" / "openai")
    ran = run("restore", tmp_path / "snapshots", base)
    assert (ran.returncode, ran.stderr, len(ran.stdout.splitlines())) == (0, "", 2)
    for directory in (base / "a" / "azure", base / "b" / "openai"):
        assert count(directory) == RECORDS
        assert index(directory) == index(snapshot)


def test_a_snapshot_of_one_goes_to_the_destination_itself_and_never_over_another(place, snapshot: Path) -> None:
    directory, before = place("doc/azure"), state(snapshot)
    assert (snapshot / "snapshot.json").is_file()
    again = run("snapshot", directory, snapshot)
    assert (again.returncode, again.stdout) == (1, "")
    assert re.search(rf"doc/azure.*{re.escape(str(snapshot))} exists already", again.stderr)
    assert state(snapshot) == before


def test_a_damaged_database_has_no_snapshot_and_the_others_have(place, base: Path, tmp_path: Path) -> None:
    place("a/azure", damaged=True), place("b/azure")
    ran = run("snapshot", base, tmp_path / "snapshots")
    assert ran.returncode == 1
    assert ran.stdout.startswith("b/azure: 1,200 records")
    assert "a/azure" in ran.stderr
    assert [entry.parent.parent.name for entry in (tmp_path / "snapshots").rglob("snapshot.json")] == ["b"]


def test_a_damaged_snapshot_is_not_restored_and_the_database_is_as_it_was(
    place, snapshot: Path, original: Path
) -> None:
    directory = place("doc/azure")
    (vectors,) = snapshot.glob("*/data_level0.bin")
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"!")
    ran = run("restore", snapshot, directory)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.search(r"doc/azure.*data_level0\.bin is damaged", ran.stderr)
    assert count(directory) == RECORDS
    assert index(directory) == index(original)


def test_a_damaged_database_is_replaced_by_its_snapshot(place, snapshot: Path) -> None:
    directory = place("doc/azure", damaged=True)
    (directory / "chroma.sqlite3").write_bytes(b"no database" * 1000)
    ran = run("restore", snapshot, directory)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"doc/azure: restored from {snapshot}\n"
    assert count(directory) == RECORDS
    assert index(directory) == index(snapshot)


def test_snapshots_are_not_restored_into_a_database(place, snapshot: Path, tmp_path: Path) -> None:
    directory = place("doc/azure")
    before = state(directory)
    shutil.copytree(snapshot, tmp_path / "snapshots" / "a" / "azure")
    ran = run("restore", tmp_path / "snapshots", directory)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "azure is a database" in ran.stderr
    assert state(directory) == before


def test_a_snapshot_is_not_restored_over_a_base_path(place, base: Path, snapshot: Path) -> None:
    """It would remove the directories of all files."""
    place("doc/azure")
    before = state(base)
    for path in (base, base / "doc"):
        ran = run("restore", snapshot, path)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert "is not the directory of one database" in ran.stderr
    assert state(base) == before


def test_a_snapshot_is_neither_verified_nor_copied_nor_restored_in_its_place(snapshot: Path, tmp_path: Path) -> None:
    """To open it would be to change what its checksums are of."""
    before = state(snapshot)
    copying = ("snapshot", snapshot, tmp_path / "copy"), ("restore", snapshot, snapshot)
    for arguments in (("verify", snapshot), ("compact", snapshot), *copying):
        ran = run(*arguments)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert "is a snapshot" in ran.stderr
    assert state(snapshot) == before


# What all have in common


def test_without_a_standard_output_it_works_as_well(place, base: Path) -> None:
    place("doc/azure")
    shell = f"{shlex.join(map(str, command('verify', base)))} >&-"
    ran = subprocess.run(shell, shell=True, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("name", ["list", "verify", "snapshot", "restore", "compact"])
def test_every_command_tells_its_exit_codes(name: str) -> None:
    ran = run(name, "--help")
    assert ran.returncode == 0
    for code in (0, 1, 2, 3, 130):
        assert re.search(rf"^  {code} +\w", ran.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "missing"], "'missing': No such file or directory"),
        (["list", ""], "it is empty"),
        (["list", "file"], "'file' is not a directory"),
        (["verify", "missing"], "'missing': No such file or directory"),
        (["verify", ".", "--wait", "nan"], "'nan' is not a number of seconds"),
        (["verify", ".", "--wait", "-1"], "'-1' is not a number of seconds"),
        (["verify", ".", "--wait", "1e99"], "seconds from 0 to 315,360,000"),
        (["verify", ".", "--engine", "other"], "invalid choice"),
        (["snapshot", "."], "DESTINATION"),
        (["compact", "missing"], "'missing': No such file or directory"),
        (["restore", "missing", "."], "'missing': No such file or directory"),
    ],
)
def test_wrong_arguments_are_2_and_nothing_is_done(arguments, said: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    ran = run(*arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert said in ran.stderr
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "arguments", [["list", "."], ["verify", "."], ["snapshot", ".", "out"], ["restore", ".", "out"], ["compact", "."]]
)
def test_a_path_without_what_it_should_have_is_an_error(arguments, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(*arguments)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.search(r"there is no (database|snapshot) .*in \.", ran.stderr)
    assert os.listdir(tmp_path) == []


def test_a_directory_that_may_not_be_read_is_not_passed_over(place, base: Path, tmp_path: Path, capsys) -> None:
    place("a/azure"), place("b/azure")
    (base / "a").chmod(0)
    user = os.geteuid()
    if user == 0:
        # Root may read everything: for a moment this is somebody else, who can get as far as the directory.
        for parent in (tmp_path, *tmp_path.parents):
            if not parent.stat().st_mode & 0o077:
                parent.chmod(0o711)
        os.seteuid(65534)
    try:
        code = main(["list", str(base)])
    finally:
        os.seteuid(user)
        (base / "a").chmod(0o700)
    listed, failed = capsys.readouterr()
    assert (code, len(listed.splitlines())) == (1, 1)
    assert "Permission denied" in failed
    assert str(base / "a") in failed


def test_a_reader_that_goes_away_is_neither_traceback_nor_word(place, base: Path) -> None:
    place("doc/azure")
    for arguments in (("list", base), ("verify", base)):
        process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        process.stderr.close()
        assert process.wait(TIMEOUT) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_behind_stdout_is_an_error_and_no_traceback(place, base: Path) -> None:
    place("doc/azure")
    with open("/dev/full", "w") as full:
        ran = subprocess.run(command("list", base), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr == "chroma-manager: [Errno 28] No space left on device\n"


def test_ctrl_c_is_130_and_leaves_no_process_and_no_database_open(place, base: Path) -> None:
    for number in range(8):
        place(f"doc{number}/azure")
    process = subprocess.Popen(
        command("verify", base),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell without job control starts what it puts in the background with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("doc0/azure: sound")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, stderr) == (130, "chroma-manager: interrupted\n")
    assert len(stdout.splitlines()) < 7
    assert eventually(lambda: engines_below(base) == [])
    listed = objects(run("list", base, "--json").stdout).values()
    assert {(database["records"], database["open"]) for database in listed} == {(RECORDS, False)}


def test_progress_goes_to_the_terminal_and_results_to_stdout_alone(place, base: Path) -> None:
    place("a/azure"), place("b/azure")
    code, stdout, said = run_at_a_terminal(command("verify", base))
    assert (code, stdout) == (0, "".join(f"{key}/azure: sound, 1 collection, 1,200 records\n" for key in "ab"))
    assert "verifying b/azure" in said
    assert "\x1b[" in said


def test_progress_is_plain_lines_without_rich(snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError(\"No module named 'rich'\", name='rich')")
    code, stdout, said = run_at_a_terminal(command("verify", snapshot), PYTHONPATH=str(tmp_path))
    assert (code, stdout) == (1, "")
    progress, refused = said.splitlines()
    assert progress == f"verifying {tmp_path.name}/snapshot (1 of 1)"
    assert "is a snapshot" in refused
