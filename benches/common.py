"""What the benches share that run one engine: a way to a database, scenarios run alone, and tables.

`bench/` has contenders, and shares nothing of this.

    chromadb   stock: chromadb.PersistentClient in each thread
    embedded   this manager, with Chroma in the app's own process
    isolated   this manager, with a process of its own for each database: what it does if it is told nothing

A scenario is a function `(engine, base) -> result`; what it returns goes through JSON, because each run is a process of
its own: some do not survive it, and none is to be slowed down by what another left behind.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

LONGEST_SECONDS = 90

Scenario = Callable[[str, str], Any]


def opener(engine: str, base: str) -> Callable[[str], Any]:
    """A function from a file_id to this thread's client of its database."""
    if engine == "chromadb":
        import chromadb

        return lambda file_id: chromadb.PersistentClient(os.path.join(base, file_id, "azure"))
    from chroma_manager import ChromaDBManager

    manager = ChromaDBManager(base_path=base, engine=engine)
    return lambda file_id: manager.get_client(file_id, "azure")


def collection(client: Any) -> Any:
    """The collection that every scenario uses."""
    return client.get_or_create_collection("rag_collection", embedding_function=None)


def alone(scenario: Scenario, engine: str, base: str, *, longest: float = LONGEST_SECONDS, **environment: str) -> Any:
    """The result of a scenario in a process of its own; where there is none, a few words on why, as a `str`."""
    print(f"{scenario.__name__}, {engine} ...", file=sys.stderr)
    command = [sys.executable, os.path.abspath(sys.argv[0]), scenario.__name__, engine, base]
    # A session of its own, so that what it has started can be ended with it.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, **environment}
    )
    try:
        output, _ = process.communicate(timeout=longest)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "hangs"
    lines = output.splitlines()
    return json.loads(lines[-1]) if process.returncode == 0 and lines else f"exit {process.returncode}"


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A directory for the databases of a scenario."""
    return tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints Markdown."""
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")


def print_circumstances() -> None:
    """Prints what the figures are of."""
    import chromadb

    print(f"\nchromadb {chromadb.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores")


def main(scenarios: Iterable[Scenario], report: Callable[[], None]) -> None:
    """Without arguments everything; with `SCENARIO ENGINE DIRECTORY` that one, here, its result as JSON."""
    if len(sys.argv) == 1:
        report()
        return
    name, engine, base = sys.argv[1:]
    print(json.dumps(next(scenario for scenario in scenarios if scenario.__name__ == name)(engine, base)), flush=True)
    if engine == "chromadb":
        os._exit(0)  # after a hang it does not always end by itself
