"""The program of a checkpoint in the background: it copies index files, proves the copies, and purges the log.

The engine process that has the database open starts it (``background_checkpoint.py``), because it needs an SQLite of
its own, and no process may have one beside Chroma's. Both speak in lines: this process says that it is ready, and then
what has become of each thing that it is told to do. It ends when the engine process does, which removes copies that are
not kept.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

NAME = "chroma-copy"

READY, COPY, COPIED, PURGE = "ready", "copy", "copied", "purge"


def run(damaged: list[str]) -> None:
    """Takes a checkpoint of the database in the working directory.

    Args:
        damaged: The ids of the collections that have none.
    """
    from chroma_manager.durability import proof  # noqa: F401, PLC0415 - found only now, and loaded before it is needed
    from chroma_manager.durability.open_checkpoint import OpenCheckpoint  # noqa: PLC0415 - found only now
    from chroma_manager.storage import reclaimable  # noqa: F401, PLC0415 - likewise
    from chroma_manager.storage.connection import shared_connection  # noqa: PLC0415 - likewise

    told: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(told,), daemon=True).start()
    checkpoint = OpenCheckpoint(Path())
    with shared_connection():
        _wait_for(COPY, told, READY)
        checkpoint.copy(damaged)
        _say(COPIED)
        proven, segments = checkpoint.prove()
        _wait_for(PURGE, told, json.dumps([{key: copied._asdict() for key, copied in proven.items()}, segments]))
        _say(json.dumps(checkpoint.purge()))


def _listen(told: SimpleQueue[str]) -> None:
    """Ends this process at once when the engine process has closed the pipe, as it does at its end."""
    for line in sys.stdin:
        told.put(line.strip())
    os._exit(1)


def _wait_for(word: str, told: SimpleQueue[str], said: str) -> None:
    _say(said)
    while told.get() != word:
        pass


def _say(what: str) -> None:
    print(what, flush=True)
