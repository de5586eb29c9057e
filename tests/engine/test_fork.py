"""A fork hangs nothing: the child begins empty, the parent goes on. Every script is a process of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from chroma_manager.options import LOCAL_ENGINES
from conftest import Script

CHILD = """
def in_child(body):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        # It says where it hangs.
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(20)
        try:
            body()
            os._exit(0)
        except BaseException as error:
            print("child:", type(error).__name__, error, flush=True)
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with status {status}"
from conftest import *
manager = ChromaDBManager(base_path=base, engine=engine)
"""


@pytest.fixture(params=LOCAL_ENGINES)
def forking(request: pytest.FixtureRequest, script: Callable[..., Script]) -> Callable[[str], Script]:
    """Starts a script that has a manager of each engine, and `in_child`."""
    return lambda code: script(f"engine = {request.param!r}\n{CHILD}{code}")


def test_a_child_begins_empty_and_the_parent_goes_on(forking) -> None:
    code = """
collection = new_collection(manager)
parent = os.getpid()
def body():
    assert ChromaDBManager() is manager
    assert manager.stats()["instances"] == {}
    assert new_collection(manager, "other").count() == 1
    assert len(set(map(id, all_at_once(4, lambda _: manager.get_client("third", "azure"))))) == 4
    for call in (lambda: manager.get_client("doc", "azure").count_collections(), collection.count):
        try:
            assert (engine, call()) == ("isolated", 1)
        except InstanceLockedError as error:
            assert (engine, error.pid) == ("embedded", parent), error
    manager.cleanup_all_instances()
    assert manager.stats()["instances"] == {}
in_child(body)
collection.add(ids=["2"], embeddings=[[3.0, 4.0]])
print(collection.get()["ids"], list(manager.stats()["instances"]))
"""
    assert forking(code).finish() == "['1', '2'] ['doc/azure']"


def test_a_child_opens_what_its_parent_has_given_up(forking) -> None:
    code = """
collection = new_collection(manager)
read, write = os.pipe()
def body():
    os.read(read, 1)
    assert new_collection(manager).count() == 1
    collection = manager.get_collection("doc", "azure", "rag_collection")
    collection.add(ids=["child"], embeddings=[[3.0, 4.0]])
    assert collection.query(query_embeddings=[[3.0, 4.0]], n_results=1)["ids"] == [["child"]]
    manager.cleanup_all_instances()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    try:
        body()
        os._exit(0)
    except BaseException as error:
        print("child:", type(error).__name__, error, flush=True)
        os._exit(1)
manager.cleanup_all_instances()
os.write(write, b"x")
assert os.waitpid(pid, 0)[1] == 0
print(new_collection(manager).get()["ids"])
"""
    assert forking(code).finish() == "['1', 'child']"


def test_a_handle_goes_on_in_the_child_where_the_parent_does_not_hold_its_database(forking) -> None:
    code = """
collection, ended = new_collection(manager), new_collection(manager, "ended")
assert manager.cleanup_old_instances(max_idle=0) == 2
manager.cleanup_instance("ended", "azure")
def body():
    assert collection.count() == 1
    assert manager.get_collection("doc", "azure", "rag_collection").count() == 1
    try:
        ended.count()
        raise AssertionError("a cleaned up handle came back to life")
    except ClientClosedError:
        pass
    manager.cleanup_all_instances()
in_child(body)
print(collection.count())
"""
    assert forking(code).finish() == "1"


def test_forks_in_the_middle_of_everything_hang_nothing(forking) -> None:
    code = """
stop = threading.Event()
errors = []
def work(i):
    collection = new_collection(manager, f"doc{i}")
    n = 0
    try:
        while not stop.is_set():
            n += 1
            collection.add(ids=[f"{i}-{n}"], embeddings=[[1.0, n]])
            collection.query(query_embeddings=[[1.0, n]], n_results=3)
            if n % 20 == 0:
                manager.cleanup_old_instances(max_idle=0)
            manager.get_client(f"churn{i}", "azure").heartbeat()
            if n % 7 == 0:
                manager.cleanup_instance(f"churn{i}", "azure")
        assert collection.count() == n + 1
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for thread in threads: thread.start()
def body():
    collection = new_collection(manager, f"child{os.getpid()}")
    assert collection.query(query_embeddings=[[1.0, 2.0]], n_results=1)["ids"] == [["1"]]
    assert ChromaDBManager() is manager
    manager.shutdown()
for _ in range(25):
    in_child(body)
stop.set()
for thread in threads: thread.join()
print(errors)
"""
    assert forking(code).finish() == "[]"


def test_a_child_that_ends_as_python_does_ends(forking) -> None:
    """`sys.exit` in a forked child runs the exit hooks there."""
    code = """
collection = new_collection(manager)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    new_collection(manager, "mine")
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
print(collection.count())
"""
    assert forking(code).finish() == "1"


def test_a_child_of_a_child_works_too(forking) -> None:
    code = """
new_collection(manager)
def body():
    new_collection(manager, "one")
    in_child(lambda: (new_collection(manager, "two"), manager.cleanup_all_instances()))
    assert new_collection(manager, "one").count() == 1
    manager.cleanup_all_instances()
in_child(body)
print(new_collection(manager).count())
"""
    assert forking(code).finish() == "1"


def test_a_killed_parent_s_database_is_free_although_its_child_lives(forking) -> None:
    code = """
new_collection(manager)
if os.fork() == 0:
    parent = os.getppid()
    signal.alarm(20)
    while os.getppid() == parent: time.sleep(0.01)
    print(new_collection(manager).count(), flush=True)
    manager.cleanup_all_instances()
    os._exit(0)
time.sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
"""
    started = forking(code)
    assert started.read_line() == "1"


def test_idle_databases_are_closed_in_the_child_too(forking) -> None:
    code = """
manager.shutdown()
manager = ChromaDBManager(base_path=base, engine=engine, idle_timeout=0.1)
new_collection(manager)
def body():
    new_collection(manager, "mine")
    end = time.monotonic() + 10
    while manager.stats()["instances"] and time.monotonic() < end: time.sleep(0.02)
    assert manager.stats()["instances"] == {}
in_child(body)
print("ok")
"""
    assert forking(code).finish() == "ok"


def test_a_child_forked_while_another_thread_makes_a_manager_makes_its_own(forking) -> None:
    code = """
from chroma_manager.manager import _process
held, released = threading.Event(), threading.Event()
def hold():
    with _process.construction:
        held.set()
        released.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
in_child(lambda: (ChromaDBManager(), manager.shutdown()))
released.set()
thread.join()
print("ok")
"""
    assert forking(code).finish() == "ok"


def test_a_child_whose_temporary_directory_runs_no_programs_works_too(forking) -> None:
    code = """
import contextlib
@contextlib.contextmanager
def refuse(original):
    raise OSError("noexec")
    yield
refuse.__name__ = "_temporary_file"
import chroma_manager.engine.after_fork
chroma_manager.engine.after_fork._temporary_file = refuse
new_collection(manager)
def body():
    collection = new_collection(manager, "mine")
    collection.add(ids=["a", "b"], embeddings=[[1.0, 2.0]] * 2)
    assert collection.count() == 3
    manager.cleanup_all_instances()
in_child(body)
print("ok")
"""
    assert forking(code).finish() == "ok"


def test_a_fork_does_not_wait_for_calls_in_other_processes(script) -> None:
    code = """
import psutil
collection = new_collection(manager)
engine = psutil.Process().children()[0]
suspend(engine)
new_collection(manager, "other")  # whose socket waits for a call
# The first has the socket that waited for a call, the second one of its own.
calls = [InCall(engine, collection.count) for _ in range(2)]
begun = time.monotonic()
def body():
    sockets = [c for c in psutil.Process().net_connections("unix")]
    assert not sockets, sockets
    assert new_collection(manager, "mine").count() == 1
    manager.cleanup_all_instances()
in_child(body)
assert time.monotonic() - begun < 3, "the fork waited"
engine.resume()
print([call.finish() for call in calls])
"""
    assert script(f"engine = 'isolated'\n{CHILD}{code}").finish() == "[1, 1]"


def test_a_call_whose_signal_handler_forks_gets_its_own_answer_in_both(script) -> None:
    code = """
import psutil, stat
collection = new_collection(manager)
engine = psutil.Process().children()[0]
pid = None
files = []
def fork(*_):
    global pid
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        files.extend(open(os.devnull) for _ in range(10))
    else: engine.resume()
signal.signal(signal.SIGUSR2, fork)
suspend(engine)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR2)).start()
assert collection.count() == 1
if pid == 0:
    try:
        mine = all(stat.S_ISCHR(os.fstat(file.fileno()).st_mode) for file in files)
    except OSError:
        mine = False
    os._exit(0 if mine else 3)
assert os.waitpid(pid, 0)[1] == 0
print(collection.count())
"""
    assert script(f"engine = 'isolated'\n{CHILD}{code}").finish() == "1"


def test_what_the_parent_has_open_takes_no_place_in_the_child(forking) -> None:
    code = """
manager.shutdown()
manager = ChromaDBManager(base_path=base, engine=engine, max_engines=1)
collection = new_collection(manager)
def body():
    assert new_collection(manager, "mine").count() == 1
    manager.cleanup_all_instances()
in_child(body)
print(collection.count())
"""
    assert forking(code).finish() == "1"


FILES = """
import psutil, stat
def new_files_are_those_of_the_child_too():
    files = [open(os.devnull) for _ in range(10)]
    def body():
        assert all(stat.S_ISCHR(os.fstat(file.fileno()).st_mode) for file in files)
    in_child(body)
"""


def test_a_child_leaves_a_file_alone_that_has_the_number_of_a_socket_of_a_call_that_failed(script) -> None:
    code = """
manager.shutdown()
manager = ChromaDBManager(base_path=base, engine=engine, call_timeout=0.2)
collection = new_collection(manager)
process = psutil.Process().children()[0]
suspend(process)
try:
    collection.count()
except CallTimeoutError:
    print("left")
new_files_are_those_of_the_child_too()
process.resume()
print(collection.count())
"""
    assert script(f"engine = 'isolated'\n{CHILD}{FILES}{code}").finish().splitlines() == ["left", "1"]


def test_a_child_leaves_a_file_alone_that_has_the_number_of_a_socket_of_a_closed_database(script) -> None:
    code = """
collection = new_collection(manager)
process = psutil.Process().children()[0]
calls = [InCall(process, collection.count) for _ in range(3)]
process.resume()
print([call.finish() for call in calls])
manager.cleanup_all_instances()
new_files_are_those_of_the_child_too()
"""
    assert script(f"engine = 'isolated'\n{CHILD}{FILES}{code}").finish() == "[1, 1, 1]"


def test_a_fork_waits_for_chroma_s_python(forking) -> None:
    """It imports, and a child that inherits half an import waits for it for ever."""
    code = """
import chroma_manager.client
made, begun, original = [], threading.Event(), chroma_manager.client.make_client
def make_client(*arguments):
    begun.set()
    time.sleep(0.3)
    made.append(original(*arguments))
    return made[0]
chroma_manager.client.make_client = make_client
thread = threading.Thread(target=manager.get_client, args=("doc", "azure"))
thread.start()
begun.wait()
def body():
    assert len(made) == 1, "the child was forked in the middle"
in_child(body)
thread.join()
print("ok")
"""
    assert forking(code).finish() == "ok"
