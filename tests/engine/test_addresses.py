"""Where an engine process is reached, and how an app knows that it is the right one: containers, copies, lost sockets.

The containers are real namespaces: each has its own processes, of which the app is the first, and its own /tmp.
"""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chroma_manager import ChromaDBManager, InstanceLockedError, InstanceOpenError
from chroma_manager.options import ENGINES
from conftest import Script, directory, engine_of, eventually, has_ended, lock_file, log_of, new_collection, socket_of

fcntl = pytest.importorskip("fcntl")
pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")

# What an opening that cannot succeed may take: far from the sixty seconds of an engine process that starts.
AT_ONCE = 8.0

APP = """
def add(file_id, record):
    collection = manager.get_collection(file_id, "azure", "rag_collection")
    collection.add(ids=[record], embeddings=[[1.0, 2.0]])
    return sorted(collection.get()["ids"])

def ids(file_id):
    return sorted(manager.get_collection(file_id, "azure", "rag_collection").get()["ids"])

def outcome(call):
    began = time.monotonic()
    try:
        return call()
    except Exception as error:
        return type(error).__name__, str(error), getattr(error, "pid", None), time.monotonic() - began

manager = ChromaDBManager(base_path=base, engine="isolated", idle_timeout=None)
print(os.getpid())
for line in sys.stdin:
    print(repr(outcome(lambda: eval(line))))
"""

# From here on this process and its children may make sockets in the runtime directory only, as if the file system of
# the database could hold none.
WITHOUT_SOCKETS = """
import ctypes, os
kernel, MAKE_SOCKET = ctypes.CDLL(None, use_errno=True), 1 << 9
rules = kernel.syscall(444, ctypes.byref(ctypes.c_uint64(MAKE_SOCKET)), 8, 0)
assert rules >= 0, "no Landlock"
place = os.open(os.environ.get("XDG_RUNTIME_DIR", "/tmp"), os.O_PATH)
beneath = MAKE_SOCKET.to_bytes(8, "little") + place.to_bytes(4, "little")
assert kernel.syscall(445, rules, 1, beneath, 0) == 0
assert kernel.prctl(38, 1, 0, 0, 0) == 0
assert kernel.syscall(446, rules, 0) == 0
"""


class App(Script):
    """An app in a process of its own, which evaluates an expression a line."""

    def __init__(self, base: Path | str, before: str = "", within: tuple[str, ...] = ()) -> None:
        super().__init__(APP, Path(base), before, within)
        self.pid = int(self.read_line())

    def does(self, expression: str) -> object:
        self.say(expression)
        return ast.literal_eval(self.read_line())

    def fails(self, expression: str, problem: str) -> int | None:
        """With `InstanceLockedError`, at once; tells the owner's pid."""
        outcome = self.does(expression)
        assert isinstance(outcome, tuple), outcome
        name, message, pid, seconds = outcome
        assert name == "InstanceLockedError", message
        assert problem in message
        assert seconds < AT_ONCE
        return pid


@contextlib.contextmanager
def apps(count: int, volume: Path | str, before: str = "", within: tuple[str, ...] = ()) -> Iterator[list[App]]:
    started = [App(volume, before, within) for _ in range(count)]
    try:
        yield started
    finally:
        for app in started:
            app.process.kill()
            app.process.communicate()


def namespaces(volume: Path, *, private_tmp: bool) -> tuple[str, ...]:
    """A command that starts another as the first process of a pid namespace, with a volume at /mnt."""
    mounts = [f"mount --bind {volume} /mnt"]
    if private_tmp:
        # Made ready elsewhere: what is installed may lie in /tmp, and is to be seen.
        mounts.append("mount -t tmpfs none /media")
        for needed in {sys.prefix, str(Path(__file__).parents[1])}:
            if Path(needed).is_relative_to("/tmp"):
                place = f"/media/{Path(needed).relative_to('/tmp')}"
                mounts.append(f"mkdir -p {place} && mount --bind {needed} {place}")
        mounts.append("mount --rbind /media /tmp")
    return (
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"),
        *(f'{" && ".join(mounts)} && unset XDG_RUNTIME_DIR && exec "$@"', "sh"),
    )


def can(command: tuple[str, ...]) -> bool:
    return subprocess.run([*command, "true"], check=False, capture_output=True).returncode == 0


def can_without_sockets() -> bool:
    return subprocess.run([sys.executable, "-c", WITHOUT_SOCKETS], check=False, capture_output=True).returncode == 0


needs_namespaces = pytest.mark.skipif(
    not can(namespaces(Path("/mnt"), private_tmp=True)), reason="only root can make namespaces here"
)
needs_landlock = pytest.mark.skipif(not can_without_sockets(), reason="this kernel has no Landlock")


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


@pytest.fixture
def in_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets are in the databases' directories, as in a container."""
    monkeypatch.setenv("CHROMA_MANAGER_SOCKETS", "directory")


def test_outside_of_a_container_a_directory_has_no_socket_and_can_be_copied(manager: ChromaDBManager, tmp_path) -> None:
    new_collection(manager)
    assert socket_of(manager).is_absolute()
    shutil.copytree(directory(manager), tmp_path / "copy of an open one")
    engine_of(manager).kill()
    shutil.copytree(directory(manager), tmp_path / "db" / "copy" / "azure")
    assert new_collection(manager, "copy").count() == 1


@needs_namespaces
@pytest.mark.parametrize("private_tmp", [True, False], ids=["private /tmp", "shared /tmp"])
def test_containers_that_share_a_volume_reach_each_other_s_databases(tmp_path: Path, private_tmp: bool) -> None:
    with apps(2, "/mnt", within=namespaces(tmp_path, private_tmp=private_tmp)) as (a, b):
        assert (a.pid, b.pid) == (1, 1)
        assert a.does("add('y', 'of a')") == ["of a"]
        assert b.does("add('x', 'of b')") == ["of b"]
        assert b.does("add('y', 'of b too')") == ["of a", "of b too"]
        assert a.does("ids('y')") == ["of a", "of b too"]
        assert a.does("ids('x')") == b.does("ids('x')") == ["of b"]
        # What the one gives up the other keeps, though neither sees the other's processes.
        assert b.does("manager.cleanup_all_instances()") is None
        assert a.does("add('y', 'of a too')") == ["of a", "of a too", "of b too"]


@needs_namespaces
@needs_landlock
def test_an_owner_in_a_container_that_cannot_be_reached_is_named_at_once(tmp_path: Path) -> None:
    """The volume holds no sockets, so they are in each container's own /tmp."""
    with apps(2, "/mnt", WITHOUT_SOCKETS, namespaces(tmp_path, private_tmp=True)) as (a, b):
        assert a.does("add('y', 'of a')") == ["of a"]
        assert b.does("add('x', 'of b')") == ["of b"]
        owner = int((tmp_path / "y" / "azure" / ".chroma_manager.lock").read_text().split()[0])
        reason = "another mount namespace"
        assert b.fails("add('y', 'of b')", reason) == owner
        for call in (
            "delete_instance('y', 'azure')",
            "verify('y', 'azure')",
            "snapshot('y', 'azure', '/tmp/snapshot')",
        ):
            assert b.fails(f"manager.{call}", reason) == owner
        assert b.does("ids('x')") == ["of b"]
        assert a.does("ids('y')") == ["of a"]
        a.does("manager.cleanup_all_instances()")
        assert b.does("ids('y')") == ["of a"]


@needs_namespaces
@needs_landlock
def test_what_a_container_before_left_behind_costs_no_database_its_socket(tmp_path: Path) -> None:
    """The app is process 1 again, and the lock files name sockets that are others' by now."""
    of_an_earlier_version, copied = (tmp_path / name / "azure" for name in ("a1", "a2"))
    for left in (of_an_earlier_version, copied):
        left.mkdir(parents=True)
    (of_an_earlier_version / ".chroma_manager.lock").write_text("1\n/tmp/chroma-manager-0/1-0.sock\n")
    within = namespaces(tmp_path, private_tmp=True)
    with apps(1, "/mnt", WITHOUT_SOCKETS, within) as (app,):
        assert app.does("add('b', '1')") == ["1"]
        shutil.copyfile(tmp_path / "b" / "azure" / ".chroma_manager.lock", copied / ".chroma_manager.lock")
        sockets = app.does("sorted(os.listdir('/tmp/chroma-manager-0'))")
        began = time.monotonic()
        for name in ("a1", "a2"):
            assert app.does(f"add({name!r}, '1')") == ["1"]
            assert set(sockets) < set(app.does("os.listdir('/tmp/chroma-manager-0')"))
        # More connections than are open already.
        assert app.does("__import__('conftest').all_at_once(4, lambda _: ids('b'))") == [["1"]] * 4
        assert time.monotonic() - began < AT_ONCE


@pytest.mark.parametrize(
    "before",
    ["", pytest.param(WITHOUT_SOCKETS, marks=needs_landlock)],
    ids=["in the directory", "in the runtime directory"],
)
@pytest.mark.usefixtures("in_directory")
def test_an_owner_whose_socket_was_removed_is_reached_again(tmp_path, runtime, before) -> None:
    with apps(1, tmp_path, before) as (owner,):
        assert owner.does("add('doc', '1')") == ["1"]
        manager = ChromaDBManager(base_path=tmp_path, engine="isolated", idle_timeout=None)
        engine, address = engine_of(manager), socket_of(manager)
        assert address.parent == (directory(manager) if not before else runtime / f"chroma-manager-{os.getuid()}")
        for _ in range(2):
            if before:
                shutil.rmtree(runtime / f"chroma-manager-{os.getuid()}")
            else:
                socket_of(manager).unlink()
            assert new_collection(manager).count() == 1
            manager.cleanup_all_instances()
        assert engine_of(manager) == engine
        assert socket_of(manager) != address
        assert owner.does("ids('doc')") == ["1"]
        owner.does("manager.cleanup_all_instances()")
        assert eventually(lambda: has_ended(engine))
        assert list(runtime.glob("*/*")) == list(directory(manager).glob("*.sock")) == []


def test_a_lock_file_that_was_written_over_is_an_error_and_then_signed_anew(tmp_path, manager) -> None:
    collection = new_collection(manager)
    engine = engine_of(manager)
    with apps(1, tmp_path / "db") as (other,):
        for garbage in (b"", os.urandom(100), b"x" * 100_000, b"0\n\n\n\n\n"):
            (directory(manager) / ".chroma_manager.lock").write_bytes(garbage)
            outcome = other.does("ids('doc')")
            assert outcome == ["1"] or outcome[0] == "InstanceLockedError", outcome
            other.does("manager.cleanup_all_instances()")
            assert eventually(lambda: lock_file(manager)[:1] == [str(engine.pid)])
        assert other.does("add('doc', '2')") == ["1", "2"]
    assert engine_of(manager) == engine
    assert collection.count() == 2


@contextlib.contextmanager
def owned(database: Path, text: str) -> Iterator[None]:
    """Somebody holds the lock, and the lock file says that."""
    database.mkdir(parents=True, exist_ok=True)
    with (database / ".chroma_manager.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(text)
        lock.flush()
        yield


@pytest.mark.usefixtures("in_directory")
def test_no_call_is_sent_to_an_engine_process_of_another_database(tmp_path: Path, manager: ChromaDBManager) -> None:
    """Whatever leads to it: the lock file names its socket, and even its secret."""
    collection = new_collection(manager, "x")
    engine = engine_of(manager, "x")
    y = directory(manager, "y")
    y.mkdir(parents=True)
    (y / "chroma.sqlite3").touch()
    pid, name, secret = lock_file(manager, "x")[:3]
    # Short enough for the address of a socket.
    short = Path(tempfile.mkdtemp()) / "x"
    short.symlink_to(directory(manager, "x"))
    calls = (
        lambda: manager.get_collection("y", "azure", "rag_collection"),
        lambda: manager.delete_instance("y", "azure"),
        lambda: manager.verify("y", "azure"),
        lambda: manager.snapshot("y", "azure", tmp_path / "snapshot"),
    )
    for its_secret in (secret, "0" * 32):
        with owned(y, f"{pid}\n{short / name}\n{its_secret}\n"):
            for call in calls:
                began = time.monotonic()
                with pytest.raises(InstanceLockedError, match=r"y/azure .*another database") as caught:
                    call()
                assert caught.value.pid == int(pid)
                assert time.monotonic() - began < AT_ONCE
    shutil.rmtree(short.parent)
    assert collection.get()["ids"] == ["1"]
    assert engine_of(manager, "x") == engine


@pytest.mark.usefixtures("in_directory")
def test_a_copy_of_a_database_that_is_open_is_a_database_of_its_own(manager: ChromaDBManager) -> None:
    collection = new_collection(manager)
    engine, log = engine_of(manager), log_of(manager)
    # With the socket, and the lock file that names it.
    subprocess.run(["cp", "-a", directory(manager).parent, directory(manager, "copy").parent], check=True)
    copied = directory(manager, "copy") / lock_file(manager)[1]
    assert copied.is_socket()
    copy = manager.get_collection("copy", "azure", "rag_collection")
    copy.add(ids=["2"], embeddings=[[1.0, 2.0]])
    assert engine_of(manager, "copy") != engine
    assert not copied.exists()
    assert collection.get()["ids"] == ["1"]
    assert log.exists()
    assert socket_of(manager).is_socket()


@pytest.mark.parametrize("what", ["fifo", "directory", "dangling link", "link to another database's"])
def test_what_stands_in_the_place_of_a_lock_file_is_refused_at_once(manager: ChromaDBManager, what: str) -> None:
    other = new_collection(manager, "x")
    lock = directory(manager) / ".chroma_manager.lock"
    lock.parent.mkdir(parents=True)
    (lock.parent / "chroma.sqlite3").touch()
    {
        "fifo": lambda: os.mkfifo(lock),
        "directory": lock.mkdir,
        "dangling link": lambda: lock.symlink_to("nowhere"),
        "link to another database's": lambda: lock.symlink_to(directory(manager, "x") / ".chroma_manager.lock"),
    }[what]()
    began = time.monotonic()
    for call in (lambda: new_collection(manager), lambda: manager.verify("doc", "azure")):
        with pytest.raises(InstanceOpenError, match=r"doc/azure .*is not a regular file: remove it"):
            call()
    command = [sys.executable, "-m", "chroma_manager.cli", "list", str(lock.parents[2])]
    assert subprocess.run(command, check=False, capture_output=True, timeout=20).returncode in (0, 1)
    assert time.monotonic() - began < 20
    assert other.get()["ids"] == ["1"]
    lock.rmdir() if what == "directory" else lock.unlink()
    assert new_collection(manager).count() == 1


def test_a_lock_that_a_dead_owner_s_child_holds_is_told_of_at_once(manager: ChromaDBManager) -> None:
    new_collection(manager)
    engine, text = engine_of(manager), (directory(manager) / ".chroma_manager.lock").read_text()
    engine.kill()
    manager.cleanup_all_instances()
    with owned(directory(manager), text):
        began = time.monotonic()
        with pytest.raises(InstanceLockedError, match=f"pid {engine.pid}.*it has ended") as caught:
            manager.get_client("doc", "azure")
        assert caught.value.pid == engine.pid
        assert time.monotonic() - began < AT_ONCE
    assert new_collection(manager).count() == 1


@pytest.mark.usefixtures("in_directory")
def test_a_database_deep_in_the_file_system_is_reached_in_its_own_directory(tmp_path: Path) -> None:
    """A socket's address has 108 bytes at most."""
    base = tmp_path / ("deep" * 30) / ("down" * 30)
    manager = ChromaDBManager(base_path=base, engine="isolated", idle_timeout=None)
    new_collection(manager)
    assert socket_of(manager).parent == directory(manager)
    with apps(1, base) as (other,):
        assert other.does("add('doc', '2')") == ["1", "2"]
        engine = engine_of(manager)
        manager.cleanup_all_instances()
        assert other.does("ids('doc')") == ["1", "2"]
        assert engine_of(manager) == engine


@pytest.mark.usefixtures("in_directory")
def test_a_directory_that_is_moved_while_it_is_open_keeps_its_owner(tmp_path: Path, manager: ChromaDBManager) -> None:
    new_collection(manager)
    moved = tmp_path / "moved" / "azure"
    moved.parent.mkdir()
    directory(manager).rename(moved)
    with apps(1, moved.parents[1]) as (other,):
        assert other.does("manager.get_collection('moved', 'azure', 'rag_collection').get()['ids']") == ["1"]


@needs_namespaces
def test_the_first_process_of_a_container_waits_for_the_engine_processes_of_its_workers(tmp_path: Path) -> None:
    worker = "import os, workers; workers.add('/mnt'); os.kill(os.getpid(), 9)"
    ended = "[child.status() for child in psutil.Process().children()]"
    with apps(1, "/mnt", within=namespaces(tmp_path, private_tmp=False)) as (app,):
        assert app.pid == 1
        assert app.does("exec('import psutil, subprocess', globals())") is None
        run = f"subprocess.run([sys.executable, '-c', {worker!r}], env={{**os.environ, 'PYTHONPATH': sys.path[0]}})"
        assert app.does(f"{run}.returncode") == -9
        # One of the app's own, whose end is for the app to see.
        assert app.does("exec('own = subprocess.Popen([\"false\"])', globals())") is None
        assert eventually(lambda: app.does(ended) == ["zombie", "zombie"])
        # The threads of a process may end after its first one.
        waits = "manager.cleanup_old_instances()"
        assert eventually(lambda: app.does(f"({waits}, {ended})") == (0, ["zombie"]))
        assert app.does("own.wait()") == 1


SPOILS = {
    "read-only": "mount -o remount,ro /media",
    "full": "mount -o remount,size=16k /media && ! head -c 32k /dev/zero > /tmp/full",
    "without names": "mount -o remount,nr_inodes=40 /media && ! touch $(seq -f /tmp/%g 50)",
}


@needs_namespaces
@needs_landlock
@pytest.mark.parametrize("how", SPOILS)
def test_where_tmp_takes_nothing_sockets_and_logs_are_elsewhere(tmp_path: Path, how: str) -> None:
    """And the volume can hold no sockets."""
    *within, mounts, shell = namespaces(tmp_path, private_tmp=True)
    within += [mounts.replace(" && unset", f" && ({SPOILS[how]}) 2> /dev/null && unset"), shell]
    before = WITHOUT_SOCKETS.replace('os.environ.get("XDG_RUNTIME_DIR", "/tmp")', "'/dev/shm'")
    with apps(1, "/mnt", before, tuple(within)) as (app,):
        assert app.does("add('doc', '1')") == ["1"]
        lock = (tmp_path / "doc" / "azure" / ".chroma_manager.lock").read_text().splitlines()
        socket, log = Path(lock[1]), Path(lock[4])
        assert socket.parent == Path(f"/dev/shm/chroma-manager-{os.getuid()}")
        assert log.parent == Path(f"/var/tmp/chroma-manager-{os.getuid()}")
        assert app.does("manager.verify('doc', 'azure').ok") is True
        assert app.does("manager.cleanup_all_instances()") is None
        assert not socket.exists()
        assert not log.exists()


@needs_namespaces
@needs_landlock
def test_where_no_place_takes_a_socket_all_that_were_tried_are_named(tmp_path: Path) -> None:
    before = WITHOUT_SOCKETS.replace('os.environ.get("XDG_RUNTIME_DIR", "/tmp")', "'/proc/self'")
    with apps(1, "/mnt", before, namespaces(tmp_path, private_tmp=True)) as (app,):
        name, message, *_ = app.does("add('doc', '1')")
        assert name == "InstanceOpenError"
        assert "no place can hold a socket for it" in message
        for place in ("/mnt/doc/azure", *(f"{place}/chroma-manager-{os.getuid()}" for place in ("/tmp", "/dev/shm"))):
            assert f"{place}: Permission denied" in message
        assert not any(tmp_path.iterdir())


def run_as(user: int) -> str:
    return f"os.setgroups([]); os.setgid({user}); os.setuid({user})"


def let_in(path: Path) -> None:
    """All users, as far down as `path`."""
    temporary = Path(tempfile.gettempdir())
    for place in (path, *path.parents):
        if place.is_relative_to(temporary) and place != temporary:
            place.chmod(0o755)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


@needs_root
def test_a_database_of_another_user_is_refused_with_what_is_missing_and_whose_it_is(manager: ChromaDBManager) -> None:
    new_collection(manager)
    lock = directory(manager) / ".chroma_manager.lock"
    base = directory(manager).parents[1]
    let_in(base)
    with apps(1, base) as (app,):
        # What is installed may be for root alone.
        assert app.does("add('warm', '1')") == ["1"]
        app.does(f"exec({run_as(65534)!r})")
        name, message, *_ = app.does("ids('doc')")
        assert name == "InstanceOpenError"
        assert f"PermissionError: Permission denied (os error 13): {lock} belongs to the user 0" in message
        # Who may write the files still reaches no engine process of another user.
        for each in (directory(manager), *directory(manager).iterdir()):
            each.chmod(0o777)
        app.fails("ids('doc')", "it is another user's (user id 0)")
        app.fails("manager.delete_instance('doc', 'azure')", f"that user alone at its socket {socket_of(manager)}")
        base.chmod(0o700)
        name, message, *_ = app.does("add('new', '1')")
        assert name == "InstanceOpenError"
        assert f"Permission denied (os error 13): {base} belongs to the user 0 and has the mode 700" in message


@needs_root
def test_an_app_that_becomes_another_user_goes_on_with_what_it_has_open_and_is_told_why_not_more(tmp_path) -> None:
    let_in(tmp_path)
    with apps(1, tmp_path) as (app,):
        assert app.does("add('doc', '1')") == ["1"]
        assert app.does("setattr(sys, 'kept', manager.get_collection('doc', 'azure', 'rag_collection'))") is None
        app.does(f"exec({run_as(65534)!r})")
        assert app.does("sys.kept.get()['ids']") == ["1"]
        assert app.does("sys.kept.add(ids=['2'], embeddings=[[1.0, 2.0]])") is None
        place = "belongs to the user 0"
        for call in ("add('other', '1')", "(manager.cleanup_all_instances(), ids('doc'))"):
            name, message, *_ = app.does(call)
            assert name == "InstanceOpenError"
            assert place in message
