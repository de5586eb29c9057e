"""The end of the process: no crash, no hang, no traceback, whatever its threads are doing."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from chroma_manager.options import LOCAL_ENGINES
from conftest import long

CLEANUP_AT_EXIT = "import atexit; atexit.register(manager.cleanup_all_instances)"

BUSY = """
from conftest import *
manager = ChromaDBManager(base_path=base, engine=engine)
started = threading.Semaphore(0)
def work(i):
    first = True
    while True:
        collection = new_collection(manager, f"doc{i}")
        collection.add(ids=[str(n) for n in range(50)], embeddings=[[1.0, n] for n in range(50)])
        collection.query(query_embeddings=[[1.0, 2.0]] * 20, n_results=5)
        if first: started.release()
        first = False
for i in range(6): threading.Thread(target=work, args=(i,), daemon=True).start()
for i in range(6): started.acquire()
"""


@pytest.mark.parametrize("end", ["", CLEANUP_AT_EXIT, *long("sys.exit(0)")])
@pytest.mark.parametrize("attempt", [0, *long(1, 2)])
@pytest.mark.parametrize("engine", LOCAL_ENGINES)
def test_daemon_threads_inside_calls_end_quietly(script, end: str, attempt: int, engine: str) -> None:
    assert (
        script(f"engine = {engine!r}\n{BUSY}" + f"time.sleep({attempt} * 0.05)\nprint('end')\n{end}").finish() == "end"
    )


@pytest.mark.parametrize("engine", LOCAL_ENGINES)
def test_a_daemon_thread_in_a_wait_for_another_process_ends_quietly(script, engine: str) -> None:
    holder = script(
        "manager = ChromaDBManager(base_path=base, engine='embedded'); manager.get_client('doc', 'azure')\n"
        "print('holding'); sys.stdin.readline()"
    )
    assert holder.read_line() == "holding"
    code = """
manager = ChromaDBManager(base_path=base, engine=engine, lock_timeout=600)
threading.Thread(target=manager.get_client, args=("doc", "azure"), daemon=True).start()
time.sleep(0.3)
print("end")
"""
    begun = time.monotonic()
    assert script(f"engine = {engine!r}\n{code}").finish() == "end"
    assert time.monotonic() - begun < 30
    holder.say()
    holder.finish()


SUB_INTERPRETER = """
import contextlib
try: import _xxsubinterpreters as interpreters
except ImportError: import _interpreters as interpreters
# From Python 3.12 on, most extensions cannot be imported there.
left = interpreters.create()
with contextlib.suppress(Exception): interpreters.run_string(left, "import chroma_manager")
"""


def test_a_sub_interpreter_that_is_there_at_the_end_does_not_hold_it_up() -> None:
    subprocess.run([sys.executable, "-c", SUB_INTERPRETER], timeout=60, check=True)


def test_databases_are_closed_at_the_end_without_being_asked(script) -> None:
    # Exit hooks run in the reverse order of their registration: this one runs after that of chroma_manager.
    before = """
import atexit, psutil
def open_files():
    return [file.path for file in psutil.Process().open_files() if file.path.startswith(base)]
atexit.register(lambda: print(len(open_files()), manager.stats()["instances"]))
"""
    code = """
from conftest import new_collection
manager = ChromaDBManager(base_path=base, engine="embedded")
new_collection(manager)
assert open_files()
"""
    assert script(code, before=before).finish() == "0 {}"


def test_an_exit_hook_of_the_app_may_still_use_its_database(script) -> None:
    code = """
from conftest import new_collection
import atexit
manager = ChromaDBManager(base_path=base)
collection = new_collection(manager)
atexit.register(lambda: print(collection.count()))
"""
    assert script(code).finish() == "1"


def test_handles_that_outlive_everything_raise_ours(script) -> None:
    code = """
import atexit
def late():
    try:
        collection.count()
    except ChromaManagerError as error:
        print(type(error).__name__)
    manager.cleanup_all_instances()
collection = None
manager = ChromaDBManager(base_path=base)
from conftest import new_collection
collection = new_collection(manager)
manager.shutdown()
atexit.register(late)
"""
    assert script(code).finish() == "ClientClosedError"


def test_objects_in_module_globals_and_cycles_do_no_harm_at_the_end(script) -> None:
    code = """
from conftest import new_collection
class Cycle: pass
manager = ChromaDBManager(base_path=base)
cycle = Cycle()
cycle.self, cycle.collection, cycle.client = cycle, new_collection(manager), manager.get_client("doc", "azure")
class Late:
    def __init__(self, collection): self.collection = collection
    def __del__(self):
        try:
            self.collection.count()
        except ChromaManagerError:
            pass
late = Late(cycle.collection)
cycle.late = Late(cycle.collection)
print("end")
"""
    assert script(code).finish() == "end"
