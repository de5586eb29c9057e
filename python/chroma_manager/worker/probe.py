"""The program in which Chroma loads the indexes of a database and reads their vectors: it may die of damaged files.

Its argument is a descriptor from which it reads JSON: what an engine process is told (``engine.isolated.prepare``),
``collections``, those to read, ``parent``, the process with which it ends, and ``reconnects``, whether vectors that
cannot be reached are written again. It prints a line of JSON before and after each collection, so that it is known of
which one Chroma died. ``verification/probing.py`` starts it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
import time
from array import array
from pathlib import Path
from types import ModuleType
from typing import Any

RECORDS_A_CALL = 500


def main() -> None:
    """Reads each collection, and prints what Chroma raises."""
    with open(int(sys.argv[1])) as given:
        arguments = json.load(given)
    threading.Thread(target=_end_with, args=(arguments["parent"],), daemon=True).start()
    bindings = _open(arguments)
    for collection in arguments["collections"]:
        _print({"begins": collection["id"]})
        try:
            read = _read(bindings, collection, reconnects=arguments["reconnects"])
        except BaseException as error:  # a panic of Chroma is not an Exception
            _print({"ends": collection["id"], "error": f"{type(error).__name__}: {error}"})
        else:
            _print({"ends": collection["id"], "read": read})


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _open(arguments: dict[str, Any]) -> Any:
    with contextlib.suppress(ImportError, ValueError):  # Windows does not have it
        import resource  # noqa: PLC0415

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The modules of this package are found without running its `__init__`, which is for an app.
    package = sys.modules["chroma_manager"] = ModuleType("chroma_manager")
    package.__path__ = [str(Path(__file__).parents[1])]
    from chroma_manager.worker.binding import construct, migrate  # noqa: PLC0415 - found only now
    from chroma_manager.worker.packages import find_without_running  # noqa: PLC0415 - likewise

    find_without_running(arguments["packages"], arguments["version"])
    migrate(arguments, Path())
    return construct(arguments, Path())


def _read(bindings: Any, collection: dict[str, Any], *, reconnects: bool) -> int:
    """Reads all vectors there are, and searches the graph for the last one, or reconnects those it does not find."""
    key, where = collection["id"], (collection["tenant"], collection["database"])
    read, last, unreachable = 0, None, None
    while True:
        got = bindings.get(key, None, None, RECORDS_A_CALL, read, None, ["embeddings"], *where)
        if not got.ids:
            break
        if reconnects:
            if not read:
                unreachable = _unreachable(collection, len(got.embeddings[0]))
            _reconnect(bindings, collection, got, unreachable)
        last = got.embeddings[-1]
        read += len(got.ids)
    if last is not None:
        bindings.query(key, None, [last], min(10, read), None, None, ["distances"], *where)
    return read


def _unreachable(collection: dict[str, Any], dimension: int) -> set[str] | None:
    """The records that a query may not find, now that Chroma has applied the log; ``None`` where all may be."""
    from chroma_manager.durability.reconnect import unreachable_in  # noqa: PLC0415 - found only now

    return unreachable_in(Path(collection["index"]), {}, dimension)


def _reconnect(bindings: Any, collection: dict[str, Any], got: Any, suspects: set[str] | None) -> None:
    from chroma_manager.durability.reconnect import Vectors, connect  # noqa: PLC0415 - found only now

    vectors = {
        record: array("f", vector).tobytes()
        for record, vector in zip(got.ids, got.embeddings, strict=True)
        if suspects is None or record in suspects
    }
    place = collection["id"], collection["tenant"], collection["database"]
    connect(bindings, [Vectors(*place, collection["space"], vectors)], math.inf)


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)
