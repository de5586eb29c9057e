"""The engine process: one database, served over one socket. Run as a program by ``src/engine/isolated/process.rs``.

It is started with its lock as standard input, its listening socket as standard output and its log as standard error,
and loads Chroma's binding and nothing else of chromadb: importing all of it takes a second and 60 MB.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

LISTENER = 1


def main() -> None:
    """Opens the database, serves it until nobody needs it, closes it."""
    # The app's Ctrl-C is the app's; it tells us by going away.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout = sys.stderr
    arguments, socket = json.loads(sys.argv[1]), sys.argv[2]
    for name, directory in arguments["packages"].items():
        _find_without_running(name, directory)
    sys.modules["chromadb"].__version__ = arguments["version"]  # type: ignore[attr-defined]  # the binding asks for it
    try:
        _serve(arguments)
    finally:
        for left in (socket, os.path.splitext(socket)[0] + ".log"):
            os.unlink(left)


def _find_without_running(name: str, directory: str) -> None:
    """Makes the modules of a package importable without running its ``__init__``."""
    sys.path.append(os.path.dirname(directory))
    if name != "chromadb_rust_bindings":
        package = ModuleType(name)
        package.__path__ = [directory]
        sys.modules[name] = package


def _serve(arguments: dict[str, Any]) -> None:
    from chroma_manager import _native  # noqa: PLC0415 - it can be found only now

    _native.serve(LISTENER, arguments["directory"], arguments["linger"], Database(arguments))


class Database:
    """What the serve loop opens, closes, and has a checkpoint taken of.

    Attributes:
        log_length: How many rows of the log were in no checkpoint when it was opened; ``None`` where none are taken,
            because the database is in memory.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        """Opens nothing yet."""
        from chroma_manager.checkpoint import Checkpoints  # noqa: PLC0415 - it can be found only now

        self._arguments = arguments
        self._is_created = False
        self.log_length: int | None = None
        in_memory = arguments["bindings"]["persist_path"] is None
        self._checkpoints = None if in_memory else Checkpoints(Path(arguments["directory"]))

    def open(self) -> Any:
        """Chroma's binding; ``None`` where it is to be called again when Chroma has closed its files."""
        if self._checkpoints is not None:
            try:
                if self._checkpoints.is_new and not self._is_created:
                    # It is Chroma that creates a database; what is done before it is opened is done the second time.
                    self._is_created = True
                    self._construct()
                    return None
                self._checkpoints.before_opening()
                self.log_length = self._checkpoints.log_length()
            except self._checkpoints.DATABASE_ERRORS:
                self._construct_and_use()  # Where Chroma cannot open it either, what it says is better known.
                raise
        return self._construct_and_use()

    def checkpoint(self) -> int:
        """Takes a checkpoint while the binding is closed; returns how many records may be written before the next."""
        assert self._checkpoints is not None
        return self._checkpoints.take()

    def closed(self) -> None:
        """To be called when the binding is closed for good."""
        if self._checkpoints is not None:
            self._checkpoints.after_closing()

    def _construct_and_use(self) -> Any:
        bindings = self._construct()
        # As PersistentClient does: a database that cannot be used fails here, and not in the middle of something.
        bindings.get_tenant("default_tenant")
        bindings.get_database("default_database", "default_tenant")
        return bindings

    def _construct(self) -> Any:
        import chromadb_rust_bindings as chroma  # noqa: PLC0415 - it can be found only now

        sqlite = self._arguments["sqlite"]
        config = chroma.SqliteDBConfig(
            hash_type=chroma.MigrationHash.MD5 if sqlite["hash_type"] == "md5" else chroma.MigrationHash.SHA256,
            migration_mode=(
                chroma.MigrationMode.Apply if sqlite["migration_mode"] == "apply" else chroma.MigrationMode.Validate
            ),
            url=sqlite["url"],
        )
        return chroma.Bindings(sqlite_db_config=config, **self._arguments["bindings"])


if __name__ == "__main__":
    main()
    # Threads of connections may be waiting for words that do not come.
    os._exit(0)
