"""The program that an engine process runs: it serves one database over one socket, and closes it at the end.

The Rust half starts it (``src/engine/isolated/client/child.rs``), or has a host fork it (``host.py``), with the lock of
the database as standard input, the listening socket as standard output and the log as standard error. Here are its
arguments, its descriptors and its signals. The database is in ``database.py``, and the serve loop is Rust's
(``src/engine/isolated/server/``).

Of chromadb it loads the binding alone: importing all of it takes a second and 60 MB. Until the packages can be found
nothing of this one can be imported, and importing next to nothing is also why the app may import this module.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from chroma_manager.worker.database import Database

LOCK, LISTENER = 0, 1

NAME = "chroma-engine"

# As the first argument it makes the program a host, which forks engine processes.
HOST = "host"

# As the first argument it makes the program that of a checkpoint in the background.
CHECKPOINT = "checkpoint"

# As the first argument it has the program say on which interpreter it runs, if all that it needs can be imported.
CHECK = "check"

# They ask a process to end: it completes the calls in flight, and closes the database. Windows has no SIGHUP.
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def main() -> None:
    """Runs the program that the command line asks for."""
    _find_own_package()
    if sys.argv[1] == CHECK:
        _find_packages(json.loads(sys.argv[2]))
        _check()
    elif sys.argv[1] == HOST:
        _serve_forks(json.loads(sys.argv[2]))
    elif sys.argv[1] == CHECKPOINT:
        _take_checkpoint(json.loads(sys.argv[2]), json.loads(sys.argv[3]))
    else:
        arguments, socket, log = json.loads(sys.argv[1]), *sys.argv[2:]
        _find_packages(arguments)
        _close_inherited()
        _run(arguments, socket, log, lambda: None)


def _find_own_package() -> None:
    """Makes the modules of this package importable without running its ``__init__``, which is for an app."""
    package = sys.modules["chroma_manager"] = ModuleType("chroma_manager")
    package.__path__ = [str(Path(__file__).parents[1])]


def _find_packages(arguments: dict[str, Any]) -> None:
    from chroma_manager.worker.packages import find_without_running  # noqa: PLC0415 - found only now

    find_without_running(arguments["packages"], arguments["version"])


def _check() -> None:
    """Prints the name and version of the interpreter, once it has imported what an engine process imports."""
    import sqlite3  # noqa: F401, PLC0415 - an interpreter can be built without it

    import chromadb.errors  # noqa: F401, PLC0415 - found only now
    import chromadb_rust_bindings  # noqa: F401, PLC0415 - found only now

    from chroma_manager._native import serve  # noqa: F401, PLC0415 - found only now

    print(json.dumps([sys.implementation.name, *sys.version_info[:2]]), flush=True)


def _serve_forks(arguments: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _find_packages(arguments)
    from chroma_manager.worker import host  # noqa: PLC0415 - found only now

    _close_inherited()
    _call_this_process(host.NAME)
    host.serve(lambda found, permitted: _run(json.loads(found[0]), found[1], found[2], permitted))


def _take_checkpoint(arguments: dict[str, Any], damaged: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _find_packages(arguments)
    from chroma_manager.worker import checkpoint_process  # noqa: PLC0415 - found only now

    _call_this_process(checkpoint_process.NAME)
    checkpoint_process.run(damaged)


def _close_inherited() -> None:
    """Closes what the app lets its children inherit.

    Otherwise the app's port would stay taken, and its pipes open, after its end.
    """
    from chroma_manager._native import close_inherited  # noqa: PLC0415 - found only now

    close_inherited()


def _run(arguments: dict[str, Any], socket: str, log: str, wait_until_permitted: Callable[[], None]) -> None:
    """Opens the database, serves it until nobody needs it, closes it.

    Args:
        arguments: What ``engine.isolated.prepare`` says.
        socket: Name of the listening socket, removed at the end.
        log: Name of the log, likewise; empty where it is kept.
        wait_until_permitted: To be called before anything of the database is touched.
    """
    # Ctrl-C is for the app. When the app ends, its connections do, and then this process ends as well.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The first process of a container recognises orphaned engine processes by this name.
    _call_this_process(NAME)
    # Blocked until the serve loop can handle them.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    sys.stdout = sys.stderr
    from chroma_manager.worker.database import Database  # noqa: PLC0415 - found only now

    database = Database(arguments)
    wait_until_permitted()
    if not _owns_directory():
        sys.exit("the directory was replaced while its engine process started")
    try:
        _serve(database, arguments, socket, log)
    finally:
        # The socket may have been renamed by now, and then it was removed under its new name.
        for name in filter(None, (socket, log)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def _call_this_process(name: str) -> None:
    with contextlib.suppress(OSError):  # there is no /proc on macOS
        Path("/proc/self/comm").write_text(name)


def _owns_directory() -> bool:
    """Whether the working directory is the one whose lock was inherited."""
    from chroma_manager.storage.paths import LOCK_FILE  # noqa: PLC0415 - found only now

    try:
        return os.path.samestat(os.fstat(LOCK), os.lstat(LOCK_FILE))
    except FileNotFoundError:
        return False


def _serve(database: Database, arguments: dict[str, Any], socket: str, log: str) -> None:
    from chroma_manager._native import serve  # noqa: PLC0415 - found only now

    # A signal that the app ignores (SIGHUP under nohup) is ignored here as well.
    signals: list[int] = [ending for ending in ENDING if signal.getsignal(ending) != signal.SIG_IGN]
    inherited = (LOCK, LISTENER, socket, log or None)
    database.note_crashes()
    serve(inherited, arguments["directory"], arguments["linger"], database, signals)
    database.has_ended()


if __name__ == "__main__":
    main()
    # Not `sys.exit`, which would wait for the threads of connections that are still open.
    os._exit(0)
