"""The package: what it exports, what importing it costs, what it logs, and that its stubs tell the truth."""

from __future__ import annotations

import importlib.metadata
import logging
import pickle
import subprocess
import sys
import time
from pathlib import Path

import chroma_manager
import pytest
from chroma_manager import ChromaDBManager, InstanceLockedError
from chroma_manager.options import LOCAL_ENGINES
from conftest import CallInside, in_thread, new_collection


def test_everything_exported_is_there_and_documented() -> None:
    for name in chroma_manager.__all__:
        exported = getattr(chroma_manager, name)
        assert name == "__version__" or exported.__doc__
    assert chroma_manager.__version__ == importlib.metadata.version("chroma-manager")


def test_it_is_marked_as_typed() -> None:
    assert (Path(chroma_manager.__file__).parent / "py.typed").is_file()
    assert (Path(chroma_manager.__file__).parent / "_native.pyi").is_file()


def test_importing_it_does_not_import_chromadb() -> None:
    code = "import sys, chroma_manager; print('chromadb' in sys.modules, 'numpy' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (said.stdout, said.stderr) == ("False False\n", "")


@pytest.mark.parametrize("engine", LOCAL_ENGINES)
def test_making_the_manager_imports_what_the_first_opening_needs(tmp_path: Path, engine: str) -> None:
    code = f"""
import sys, chroma_manager
manager = chroma_manager.ChromaDBManager({str(tmp_path)!r}, engine={engine!r})
before = set(sys.modules)
manager.get_collection("doc", "azure", "docs").add(ids=["1"], embeddings=[[1.0, 2.0]])
print("chromadb" in before, sorted(name for name in set(sys.modules) - before if "telemetry" not in name))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (said.stdout, said.stderr) == ("True []\n", "")


def test_all_exceptions_have_one_base() -> None:
    for name in chroma_manager.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(chroma_manager, name), chroma_manager.ChromaManagerError)


def test_an_exception_survives_a_process_pool() -> None:
    error = InstanceLockedError("open elsewhere")
    error.pid, error.path, error.file_id, error.embedding_type = 7, "/x/y", "x", "y"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.pid, again.path) == ("open elsewhere", 7, "/x/y")


def test_messages_go_to_python_s_logging(manager: ChromaDBManager, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="chroma_manager"):
        new_collection(manager)
        manager.cleanup_all_instances()
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("chroma_manager")]
    path = manager._get_db_path("doc", "azure")
    assert [message for message in messages if path in message] == [
        f"opened doc/azure ({path})",
        f"closed doc/azure ({path})",
    ]


def test_a_log_handler_may_use_the_manager(manager: ChromaDBManager) -> None:
    seen: list[int] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(len(manager.stats()["instances"]))

    handler, logger = Handler(), logging.getLogger("chroma_manager")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        new_collection(manager)
        manager.cleanup_all_instances()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert seen == [1, 0]


def test_stats_tell_what_is_open_and_what_happened(manager: ChromaDBManager) -> None:
    assert manager.stats() == {"instances": {}, "openings": 0, "hits": 0, "cleanups": 0, "evictions": 0, "errors": 0}
    new_collection(manager)
    for _ in range(3):
        manager.get_client("doc", "azure")
    in_thread(lambda: [manager.get_client("doc", "azure") for _ in range(5)])
    stats = manager.stats()
    instance = stats["instances"]["doc/azure"]
    assert (stats["openings"], stats["hits"]) == (1, 3 + 4)
    assert instance["file_id"] == "doc"
    assert instance["embedding_type"] == "azure"
    assert instance["path"] == manager._get_db_path("doc", "azure")
    assert instance["engine"] == manager._options.engine
    assert (instance["threads"], instance["clients"]) == (1, 1)
    assert 0 <= instance["last_used_at"] - instance["opened_at"] < 60
    manager.cleanup_all_instances()
    manager.cleanup_instance("doc", "azure")
    assert manager.stats() == {"instances": {}, "openings": 1, "hits": 7, "cleanups": 2, "evictions": 0, "errors": 0}


def test_a_call_counts_as_use_when_it_begins_and_when_it_ends(manager: ChromaDBManager) -> None:
    def last_used() -> float:
        return manager.stats()["instances"]["doc/azure"]["last_used_at"]

    collection = new_collection(manager)
    before = last_used()
    time.sleep(0.05)
    call = CallInside(collection)
    begun = last_used()
    assert begun > before
    time.sleep(0.05)
    assert call.finish() == ["1"]
    assert last_used() > begun


def test_a_connection_answers_only_for_what_chroma_calls(manager: ChromaDBManager) -> None:
    connection = manager.get_client("doc", "azure")._server.bindings
    assert connection.heartbeat() > 0
    assert not hasattr(connection, "__array__")
    with pytest.raises(AttributeError, match="no_such_method"):
        connection.no_such_method()


def test_the_binding_has_no_owner_but_the_engine(tmp_path: Path) -> None:
    import gc

    from chromadb_rust_bindings import Bindings

    manager = ChromaDBManager(base_path=tmp_path, engine="embedded")
    new_collection(manager)
    gc.collect()
    bindings = [found for found in gc.get_objects() if isinstance(found, Bindings)]
    assert all(not gc.get_referrers(found) for found in bindings)
    manager.cleanup_all_instances()
