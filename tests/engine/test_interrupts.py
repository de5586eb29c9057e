"""What an interrupted write leaves: nothing of it, or all of it, for whoever calls next; in a notebook as well."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chroma_manager import ChromaDBManager
from chroma_manager.options import ENGINES
from conftest import IDS, directory, eventually, new_collection

pytestmark = pytest.mark.skipif("isolated" not in ENGINES, reason="the engine is not there on this system")

ALL = len(IDS)


@pytest.fixture
def manager(tmp_path: Path) -> ChromaDBManager:
    return ChromaDBManager(base_path=tmp_path / "db", engine="isolated", idle_timeout=None)


def journals(manager: ChromaDBManager) -> list[Path]:
    return list((directory(manager) / ".chroma_manager").glob("batch-*"))


def stays(collection: Any, count: int) -> bool:
    """Whether that many records are there, and nobody adds to them."""
    return collection.count() == count and not eventually(lambda: collection.count() != count, seconds=0.5)


INTERRUPTED_BEFORE = """
from conftest import *
manager = ChromaDBManager(base_path=base, engine="isolated")
collection = new_collection(manager)
engine = psutil.Process(int(sys.stdin.readline()))
suspend(engine)
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.2)
ids = [str(i) for i in range({count})]
try:
    collection.{method}
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted")
engine.resume()
print(collection.count())
sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("call", "count"),
    [
        ("add(ids=ids, embeddings=VECTORS[:len(ids), :2])", 300),
        ("upsert(ids=ids, embeddings=VECTORS[:len(ids), :2])", 300),
        ("add(ids=ids, embeddings=VECTORS[:len(ids), :2])", 5),
        ("delete(ids=['1'])", 0),
        ("modify(name='renamed')", 0),
    ],
)
def test_a_write_that_is_interrupted_before_it_has_begun_is_not_made(manager, script, call: str, count: int) -> None:
    collection = new_collection(manager)
    app = script(INTERRUPTED_BEFORE.format(method=call, count=count))
    engine = (directory(manager) / ".chroma_manager.lock").read_text(errors="replace").splitlines()[0]
    app.say(engine)
    assert [app.read_line(), app.read_line()] == ["interrupted", "1"]
    assert stays(collection, 1)
    assert journals(manager) == []
    assert [c.name for c in manager.get_client("doc", "azure").list_collections()] == ["rag_collection"]
    app.say()
    app.finish()


IN_THE_MIDDLE = """
from conftest import *
manager = ChromaDBManager(base_path=base, engine="isolated")
collection = manager.get_collection("doc", "azure", "rag_collection")
if "{method}" == "update":
    collection.add(ids=IDS, embeddings=VECTORS)

def interrupt():
    # Once a slice is there, and others are not.
    eventually(lambda: len(collection.get(where={{"new": True}}, include=[])["ids"]) > 0, 60)
    os.kill(os.getpid(), {signal})

signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=interrupt).start()
try:
    collection.{method}(ids=IDS[:{count}], embeddings=VECTORS[:{count}], metadatas=[{{"new": True}}] * {count})
    print("not interrupted")
except KeyboardInterrupt:
    print(len(collection.get(where={{"new": True}}, include=[])["ids"]))
sys.stdin.readline()
"""


@pytest.mark.parametrize(("method", "count"), [("add", ALL), ("update", 300)])
def test_a_batch_that_is_interrupted_in_the_middle_is_whole_for_the_next_call(manager, script, method, count) -> None:
    app = script(IN_THE_MIDDLE.format(method=method, count=count, signal="signal.SIGINT"))
    assert app.read_line() == str(count)
    assert len(manager.get_collection("doc", "azure", "rag_collection").get(where={"new": True})["ids"]) == count
    assert journals(manager) == []
    app.say()
    app.finish()


def test_a_batch_whose_app_is_killed_in_the_middle_is_whole_for_the_next_call(manager, script) -> None:
    collection = manager.get_collection("doc", "azure", "rag_collection")
    app = script(IN_THE_MIDDLE.format(method="add", count=ALL, signal="signal.SIGKILL"))
    app.process.wait(60)
    assert collection.count() == ALL


class Notebook:
    """A Jupyter kernel."""

    def __init__(self) -> None:
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(kernel_name="python3")

    def begin(self, cell: str) -> str:
        return str(self.client.execute(cell))

    def end(self, message: str) -> dict[str, Any]:
        """What came of a cell."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                reply = self.client.get_shell_msg(timeout=1)
            except queue.Empty:
                continue
            if reply["parent_header"].get("msg_id") == message:
                return dict(reply["content"])
        raise AssertionError("no reply")

    def value(self, expression: str) -> str:
        message = self.client.execute("", user_expressions={"value": expression})
        return str(self.end(message)["user_expressions"]["value"]["data"]["text/plain"])

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    kernel = Notebook()
    yield kernel
    kernel.close()


def test_an_interrupt_and_a_restart_of_a_notebook_leave_whole_batches(manager, notebook: Notebook) -> None:
    collection = manager.get_collection("doc", "azure", "rag_collection")
    open_it = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from conftest import IDS, VECTORS
from chroma_manager import ChromaDBManager
collection = ChromaDBManager(base_path={manager._options.base_path!r}).get_collection("doc", "azure", "rag_collection")
"""
    assert notebook.end(notebook.begin(open_it))["status"] == "ok"
    adding = notebook.begin("collection.add(ids=IDS, embeddings=VECTORS)")
    assert eventually(lambda: collection.count() > 0, 60)
    notebook.manager.interrupt_kernel()
    assert notebook.end(adding)["ename"] == "KeyboardInterrupt"
    assert notebook.value("collection.count()") == str(ALL)
    assert stays(collection, ALL)
    adding = notebook.begin("collection.add(ids=['b' + i for i in IDS], embeddings=VECTORS)")
    assert eventually(lambda: collection.count() > ALL, 60)
    notebook.manager.restart_kernel(now=True)
    notebook.client.wait_for_ready(60)
    assert collection.count() == 2 * ALL
    assert notebook.end(notebook.begin(open_it))["status"] == "ok"
    assert notebook.value("collection.count()") == str(2 * ALL)
