"""A Chroma server that is killed, stopped, started again, or behind a proxy: errors are clear, in time, and pass."""

from __future__ import annotations

import threading
import time

import pytest
from chroma_manager import (
    CallTimeoutError,
    ChromaDBManager,
    ClientClosedError,
    EngineProtocolError,
    InstanceOpenError,
    RequestTooLargeError,
    ServerAccessError,
    ServerUnavailableError,
)
from chroma_manager.server_options import LAYOUTS
from chroma_server import HOST, ChromaServer, behind_nginx, free_port, grudging, has_ipv6
from conftest import InCall, all_at_once, eventually, new_collection

QUICK = {"connect_timeout": 1.0, "read_timeout": 2.0, "retry_timeout": 0.5}


class Timer:
    """How long a block takes."""

    def __enter__(self) -> Timer:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began


def test_a_server_that_is_away_is_an_error_in_time_and_work_goes_on_when_it_is_back(own_server: ChromaServer) -> None:
    manager = own_server.manager(**QUICK)
    collection = new_collection(manager)
    own_server.kill()
    where = rf"{HOST}:{own_server.port}"
    for call in (
        collection.count,
        lambda: collection.add(ids=["2"], embeddings=[[3.0, 4.0]]),
        lambda: manager.get_client("doc", "azure").create_collection("other", embedding_function=None),
        lambda: manager.get_client("new", "azure"),
        lambda: manager.delete_instance("third", "azure"),
    ):
        with Timer() as timer, pytest.raises(ServerUnavailableError, match=rf"{where}.*Start it, or check") as caught:
            call()
        assert timer.seconds < 5
        assert caught.value.embedding_type == "azure"
        assert f"{caught.value.file_id}/azure" in str(caught.value)
    assert isinstance(caught.value, (InstanceOpenError, ConnectionError))
    own_server.start()
    assert collection.get()["documents"] == ["one"]
    assert manager.get_client("new", "azure").list_collections() == []


def test_a_call_waits_for_a_server_that_is_started_again(own_server: ChromaServer) -> None:
    collection = new_collection(own_server.manager())
    own_server.kill()
    outcomes: list[object] = []
    calls = [collection.count, lambda: collection.upsert(ids=["2"], embeddings=[[3.0, 4.0]])]
    threads = [threading.Thread(target=lambda call=call: outcomes.append(call())) for call in calls]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert outcomes == []
    own_server.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 2
    assert collection.get()["ids"] == ["1", "2"]


@pytest.mark.long
def test_nothing_acknowledged_is_lost_while_the_server_is_killed_and_started_again(own_server: ChromaServer) -> None:
    manager = own_server.manager()
    stop = threading.Event()
    acknowledged: list[list[str]] = [[] for _ in range(4)]

    def work(i: int) -> None:
        collection = new_collection(manager, f"doc{i % 2}")
        while not stop.is_set():
            name = f"{i}-{len(acknowledged[i])}"
            collection.add(ids=[name], embeddings=[[1.0, 2.0]])
            acknowledged[i].append(name)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        before = sum(map(len, acknowledged))
        assert eventually(lambda before=before: sum(map(len, acknowledged)) > before + 20, 60)
        own_server.kill()
        own_server.start()
    stop.set()
    for thread in threads:
        thread.join(60)
    for i in range(2):
        found = set(new_collection(manager, f"doc{i}").get(include=[])["ids"])
        assert found >= {*acknowledged[i], *acknowledged[i + 2]}


def test_a_call_that_cannot_be_repeated_says_that_its_effect_is_unknown(own_server: ChromaServer) -> None:
    manager = own_server.manager(retry_timeout=20.0)
    client = manager.get_client("doc", "azure")
    with own_server.stopped():
        call = InCall(own_server.process, lambda: client.create_collection("one", embedding_function=None))
        own_server.begin_to_kill()
    with Timer() as timer:
        error = call.finish()
    assert isinstance(error, ServerUnavailableError)
    assert "create_collection() of doc/azure" in str(error)
    assert "whether it took effect is unknown" in str(error)
    assert timer.seconds < 5, "it was repeated"


def test_a_stopped_server_is_an_error_in_time_and_work_goes_on_when_it_goes_on(own_server: ChromaServer) -> None:
    manager = own_server.manager(**{**QUICK, "read_timeout": 0.7})
    collection = new_collection(manager)
    with own_server.stopped():
        for call in (collection.count, lambda: manager.get_client("new", "azure")):
            with Timer() as timer, pytest.raises(ServerUnavailableError, match="no answer in time"):
                call()
            assert 0.6 < timer.seconds < 4
    assert collection.count() == 1


def test_a_call_in_a_server_that_is_stopped_for_a_while_returns(own_server: ChromaServer) -> None:
    collection = new_collection(own_server.manager())
    with own_server.stopped():
        calls = [InCall(own_server.process, collection.count) for _ in range(2)]
    assert [call.finish() for call in calls] == [1, 1]


@pytest.mark.parametrize("way", ["stopped", "killed"])
@pytest.mark.long
def test_a_call_timeout_bounds_a_call_with_its_repetitions(own_server: ChromaServer, way: str) -> None:
    manager = own_server.manager(call_timeout=1.0)
    collection = new_collection(manager)
    if way == "killed":
        own_server.kill()
    else:
        own_server.process.suspend()
    for call, named in ((collection.count, r"get|count"), (lambda: manager.get_client("new", "azure"), "opening new")):
        with Timer() as timer, pytest.raises(CallTimeoutError, match=named) as caught:
            call()
        assert 0.2 < timer.seconds < 4
        assert caught.value.embedding_type == "azure"


def test_ctrl_c_ends_a_call_and_a_wait_for_a_server(own_server: ChromaServer, script) -> None:
    code = f"""
from conftest import new_collection
import psutil
manager = ChromaDBManager(engine="server", host={HOST!r}, port={own_server.port})
collection = new_collection(manager)
server = psutil.Process({own_server.process.pid})
signal.signal(signal.SIGALRM, signal.default_int_handler)
for end in (server.suspend, server.kill):
    end()
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    began = time.monotonic()
    try:
        collection.count()
    except KeyboardInterrupt:
        print(time.monotonic() - began < 3)
"""
    assert script(code).finish().split() == ["True", "True"]


def test_a_cleanup_lets_calls_finish_and_is_final(own_server: ChromaServer) -> None:
    manager = own_server.manager()
    collection = new_collection(manager)
    with own_server.stopped():
        call = InCall(own_server.process, collection.count)
        cleanup = threading.Thread(target=manager.cleanup_instance, args=("doc", "azure"))
        cleanup.start()
        cleanup.join(0.3)
        assert cleanup.is_alive()
        with pytest.raises(ClientClosedError, match="doc/azure"):
            collection.count()
    assert call.finish() == 1
    cleanup.join(60)
    assert manager.stats()["instances"] == {}
    assert new_collection(manager).count() == 1


def test_other_threads_run_while_calls_wait(own_server: ChromaServer) -> None:
    collection = new_collection(own_server.manager())
    with own_server.stopped():
        calls = [InCall(own_server.process, collection.count) for _ in range(3)]
        worst, end = 0.0, time.monotonic() + 1
        while (began := time.monotonic()) < end:
            time.sleep(0.001)
            worst = max(worst, time.monotonic() - began)
        assert worst < 0.5
    assert [call.finish() for call in calls] == [1] * 3


def test_threads_share_a_bounded_number_of_connections_that_are_kept_and_closed_in_the_end(own_server) -> None:
    manager = own_server.manager(max_connections=3)
    seen: list[int] = []

    def work(i: int) -> int:
        collection = new_collection(manager, f"doc{i}")
        for n in range(5):
            collection.add(ids=[str(n)], embeddings=[[1.0, 2.0]])
            seen.append(own_server.connections())
        return collection.count()

    assert all_at_once(12, work) == [5] * 12
    assert max(seen) <= 3
    assert 1 <= own_server.connections() <= 3
    manager.shutdown()
    assert eventually(lambda: own_server.connections() == 0)


def test_a_wait_for_a_connection_ends(own_server: ChromaServer) -> None:
    manager = own_server.manager(max_connections=1, read_timeout=1.0)
    collection = new_collection(manager)
    with own_server.stopped():
        outcomes = all_at_once(2, lambda _: collection.count())
    assert {type(outcome) for outcome in outcomes} == {ServerUnavailableError}
    assert collection.count() == 1


@pytest.mark.long
def test_a_child_uses_no_connection_of_its_parent(own_server: ChromaServer, script) -> None:
    code = f"""
from conftest import *
manager = ChromaDBManager(engine="server", host={HOST!r}, port={own_server.port})
collection = new_collection(manager)
stop = threading.Event()
errors = []
def work(i):
    mine = new_collection(manager, f"doc{{i}}")
    try:
        while not stop.is_set():
            mine.upsert(ids=["1"], embeddings=[[1.0, i]])
            assert mine.get(include=["embeddings"])["embeddings"][0][1] == i
    except BaseException as error:
        errors.append(error)
threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
for thread in threads: thread.start()
def in_child(body):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            body()
            os._exit(0)
        except BaseException as error:
            print("child:", type(error).__name__, error, flush=True)
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
def use():
    assert collection.count() == 1
    assert new_collection(manager, "child").count() == 1
    manager.cleanup_all_instances()
for _ in range(10):
    in_child(use)
stop.set()
for thread in threads: thread.join()
def ports():
    return {{c.laddr.port for c in psutil.Process().net_connections("tcp") if c.status == "ESTABLISHED"}}
parents = ports()
def has_its_own():
    use()
    import gc; gc.collect()  # an HTTP client is in a cycle
    assert ports() and not ports() & parents, (ports(), parents)
in_child(has_its_own)
assert parents <= ports()
print(errors, collection.count())
"""
    assert script(code).finish() == "[] 1"


def test_a_proxy_lets_those_pass_who_have_a_token(own_server: ChromaServer, tmp_path) -> None:
    with behind_nginx(own_server, tmp_path, "s3cret") as port:
        with own_server.manager(port=port, headers={"Authorization": "Bearer s3cret"}) as manager:
            assert new_collection(manager).query(query_embeddings=[[1.0, 2.0]], n_results=1)["ids"] == [["1"]]
        for headers in (None, {"Authorization": "Bearer other"}):
            with (
                own_server.manager(port=port, headers=headers) as manager,
                Timer() as timer,
                pytest.raises(ServerAccessError, match=rf"{port}.*HTTP 401.*headers"),
            ):
                manager.get_client("doc", "azure")
            assert timer.seconds < 5, "it was repeated"


def test_a_server_that_is_too_busy_is_asked_again_when_it_says(chroma_server: ChromaServer) -> None:
    with grudging(chroma_server) as (port, proxy), chroma_server.manager(port=port) as manager:
        collection = new_collection(manager)
        for status in (429, 502, 503, 504):
            del proxy.asked[:]
            proxy.statuses[:] = [(status, {"retry-after": "1"}), (status, {})]
            assert collection.count() == 1
            times = [when for when, _ in proxy.asked]
            assert len(times) == 3
            assert times[1] - times[0] >= 1


def test_what_may_not_be_repeated_is_asked_once(chroma_server: ChromaServer) -> None:
    with grudging(chroma_server) as (port, proxy), chroma_server.manager(port=port) as manager:
        client, collection = manager.get_client("doc", "azure"), new_collection(manager)
        collection.add(ids=["2", "3"], embeddings=[[1.0, 2.0]] * 2)
        for call, repeated in (
            (lambda: client.create_collection("new", embedding_function=None), False),
            (lambda: collection.modify(metadata={"a": 1}), False),
            (lambda: client.delete_collection("new"), False),
            (lambda: client.get_or_create_collection("newer", embedding_function=None), True),
            (lambda: collection.delete(where={"a": 1}, limit=1), False),
            (lambda: collection.delete(ids=["2"]), True),
            (lambda: collection.upsert(ids=["3"], embeddings=[[1.0, 2.0]]), True),
            (lambda: collection.update(ids=["3"], metadatas=[{"a": 2}]), True),
            (lambda: collection.query(query_embeddings=[[1.0, 2.0]]), True),
        ):
            proxy.statuses[:], proxy.asked[:] = [(502, {})], []
            if repeated:
                call()
            else:
                with pytest.raises(ServerUnavailableError, match=r"HTTP 502.*effect is unknown"):
                    call()
            assert len(proxy.asked) == 1 + repeated, proxy.asked


def test_no_call_is_repeated_where_that_is_wanted(chroma_server: ChromaServer) -> None:
    with (
        grudging(chroma_server) as (port, proxy),
        chroma_server.manager(port=port, retry_timeout=0) as manager,
    ):
        collection = new_collection(manager)
        for call in (
            lambda: collection.upsert(ids=["1"], embeddings=[[3.0, 4.0]]),
            lambda: collection.delete(ids=["1"]),
        ):
            proxy.statuses[:], proxy.asked[:] = [(502, {})], []
            with pytest.raises(ServerUnavailableError, match=r"HTTP 502.*effect is unknown"):
                call()
            assert len(proxy.asked) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_request_is_made_for_each_client(chroma_server: ChromaServer, layout: str) -> None:
    with grudging(chroma_server) as (port, proxy), chroma_server.manager(port=port, layout=layout) as manager:
        new_collection(manager)
        proxy.asked[:] = []
        assert len(set(map(id, all_at_once(8, lambda _: manager.get_client("doc", "azure"))))) == 8
        assert proxy.asked == []
        all_at_once(8, lambda i: new_collection(manager))
        assert {what for _, what in proxy.asked} == {"POST collections", "POST upsert"}


def test_what_is_no_chroma_server_is_named(chroma_server: ChromaServer) -> None:
    html, json = {"content-type": "text/html"}, {"content-type": "application/json"}
    with grudging(chroma_server) as (port, proxy), chroma_server.manager(port=port) as manager:
        for answer, said in (
            ((200, html), rf"{port}.* is not a Chroma server of version 1: .*HTTP 200 and text/html.*host"),
            ((404, html), rf"{port}.*, or a proxy before it, answered with HTTP 404 and text/html.*host, port and ssl"),
            ((500, html), rf"{port}.*, or a proxy before it, answered with HTTP 500 and text/html.*log of the proxy"),
            ((500, json, '"an error"'), r"or a proxy before it, answered with HTTP 500 and application/json"),
            ((400, json, '{"error": "invalid_request"}'), r"or a proxy before it, answered with HTTP 400"),
            ((200, {"content-encoding": "gzip"}), rf"{port}.* does not answer as a Chroma server.*DecodingError.*port"),
        ):
            proxy.statuses[:] = [answer]
            with pytest.raises(EngineProtocolError, match=f"opening doc/azure failed: .*{said}"):
                manager.get_client("doc", "azure")


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_are_refused_in_any_words(chroma_server: ChromaServer, status: int) -> None:
    with grudging(chroma_server) as (port, proxy), chroma_server.manager(port=port) as manager:
        client = manager.get_client("doc", "azure")
        for text in (
            "<html>no</html>",
            '{"error": "invalid_token"}',
            '{"error": "ChromaAuthError", "message": "Unauthenticated"}',
            '{"error": "AuthorizationError", "message": "Forbidden"}',
        ):
            for call in (client.list_collections, lambda: manager.get_client("doc2", "azure")):
                proxy.statuses[:] = [(status, {}, text)]
                with pytest.raises(ServerAccessError, match=rf"/azure failed: .*{port}.*HTTP {status}.*api_key"):
                    call()


def test_a_request_that_is_too_large_says_so_and_smaller_ones_go_on(own_server: ChromaServer, tmp_path) -> None:
    def refuses(collection: object, uri: str) -> None:
        said = r"add\(\) of doc/azure failed: .*takes no request of [\d,]{9,} bytes \(HTTP 413\).*fewer records"
        with pytest.raises(RequestTooLargeError, match=said) as caught:
            collection.add(ids=["2", "3"], embeddings=[[1.0, 2.0]] * 2, uris=[uri] * 2)
        assert caught.value.file_id == "doc"
        assert collection.get()["ids"] == ["1"]

    with own_server.manager() as manager:
        refuses(new_collection(manager), "u" * (21 << 20))
        tenant = manager.get_client("doc", "azure").tenant
    with behind_nginx(own_server, tmp_path, "s3cret", "1m") as port:
        headers = {"Authorization": "Bearer s3cret"}
        with own_server.manager(port=port, headers=headers, tenant=tenant) as manager:
            collection = new_collection(manager)
            refuses(collection, "u" * 600_000)
            collection.add(ids=["2"], embeddings=[[1.0, 2.0]], uris=["u" * 600_000])
            assert collection.count() == 2


def test_the_cloud_s_arguments_send_the_key_and_ask_once_for_the_tenant(chroma_server: ChromaServer) -> None:
    with grudging(chroma_server) as (port, proxy):
        options = {
            "api_key": "ck-1",
            "cloud_host": HOST,
            "cloud_port": port,
            "enable_ssl": False,
            "layout": "collection",
        }
        with ChromaDBManager(engine="server", **options) as manager:
            for i in range(3):
                new_collection(manager, f"cloud{i}")
            assert manager.get_client("cloud0", "azure").tenant == "default_tenant"
            assert manager._server.headers["X-Chroma-Token"] == "ck-1"
            for i in range(3):
                assert manager.delete_file(f"cloud{i}") == 1
        assert sum(what == "GET identity" for _, what in proxy.asked) == 1
    with ChromaDBManager(engine="server", api_key="ck-1") as manager:
        assert manager._server.url == "https://api.trychroma.com:443/api/v2"


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
@pytest.mark.parametrize("host", ["::1", "0:0::1", "[::1]", "http://[::1]:{port}"])
def test_a_host_may_be_an_address_of_ipv6(chroma_server: ChromaServer, host: str) -> None:
    with (
        grudging(chroma_server, "::1") as (port, _),
        chroma_server.manager(host=host.format(port=port), port=port) as manager,
    ):
        assert manager._server.url == f"http://[::1]:{port}/api/v2"
        assert new_collection(manager).count() == 1


def test_a_host_that_does_not_exist_is_an_error_in_time() -> None:
    for host, port in (("no-such-host.invalid", 8000), (HOST, free_port())):
        manager = ChromaDBManager(engine="server", host=host, port=port, **QUICK)
        with Timer() as timer, pytest.raises(ServerUnavailableError, match=f"{host}:{port}"):
            manager.get_client("doc", "azure")
        assert timer.seconds < 10
        manager.shutdown()
