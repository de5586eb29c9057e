"""Workers share the files and finish what others have left; the app ends in order; its engine can be changed."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from chroma_manager import ChromaDBManager
from conftest import eventually, has_ended
from serving import HERON, events, long_text, serving


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def holders(data: Path) -> set[int]:
    """The pids of the workers that are embedding files."""
    with closing(sqlite3.connect(data / "catalog.sqlite3")) as catalog:
        query = "select pid from workers join files using (worker) where status = 'embedding' and done > 0"
        return {pid for (pid,) in catalog.execute(query)}


def test_workers_share_the_files_and_one_finishes_what_another_leaves(data: Path) -> None:
    with serving(data, workers=2, lease_seconds=2) as app:
        assert eventually(lambda: app.client.get("/api/engine").json()["workers"] == 2, 60)
        small = app.add("birds.txt", HERON)
        answered = set()
        for _ in range(200):
            # A connection of its own for each, which either of them may accept.
            answered.add(httpx.get(f"{app.client.base_url}/api/health", timeout=60).json()["worker"])
            answer = httpx.post(f"{app.client.base_url}/api/chat", json={"question": "heron"}, timeout=60)
            assert HERON in answer.text
            if len(answered) == 2:
                break
        assert len(answered) == 2
        refused = app.client.put("/api/engine", json={"engine": "embedded"})
        assert refused.status_code == 409
        assert refused.json()["detail"].startswith("2 workers share these databases")

        large = [app.upload(f"{name}.txt", long_text(200, name)).json()["file_id"] for name in ("rivers", "lakes")]
        assert eventually(lambda: bool(holders(data)), 60)
        os.kill(holders(data).pop(), signal.SIGKILL)
        with suppress(httpx.TransportError):
            app.files()  # the connection may have been to that one
        for file_id in large:
            file = app.wait(file_id)
            assert (file["done"], file["total"]) == (200, 200)
            name = f"rag_collection_{file_id}_local"
            records = ChromaDBManager(base_path=data / "chroma").get_collection(file_id, "local", name).get(include=[])
            assert sorted(map(int, records["ids"])) == list(range(200))
        assert app.ask("heron", [small])[0][0]["text"] == HERON


def test_the_app_ends_with_a_page_open_and_goes_on_where_it_was(data: Path) -> None:
    with serving(data) as app:
        done = app.add("birds.txt", HERON)
        half = app.upload("rivers.txt", long_text(500)).json()["file_id"]
        assert eventually(lambda: app.file(half)["done"] > 0, 60)
        engines = psutil.Process(app.process.pid).children(recursive=True)
        streamed = threading.Event()

        def watch() -> None:
            with app.client.stream("GET", "/api/events") as stream:
                for _ in events(stream.iter_lines()):
                    streamed.set()

        page = threading.Thread(target=watch)
        page.start()
        assert streamed.wait(20)
        app.end()
        page.join(20)
        assert not page.is_alive()
        said = app.said()
        assert "Application shutdown complete" in said
        assert "Traceback" not in said
        assert eventually(lambda: all(map(has_ended, engines)))
        assert list((data / "chroma").glob("*/*/.chroma_manager/open")) == []
    with serving(data) as app:
        assert app.file(done)["status"] == "ready"
        assert app.wait(half)["done"] == 500
        assert len(app.ask("rivers", [half])[0]) == 5
        assert app.ask("heron", [done])[0][0]["text"] == HERON


def test_the_app_ends_while_an_upload_is_silent_and_removes_what_a_killed_one_has_left(data: Path) -> None:
    incoming = data / "incoming"
    incoming.mkdir(parents=True)
    for name, age in (("old", 4000), ("young", 3000)):
        (incoming / name).write_bytes(b"of rivers")
        os.utime(incoming / name, (time.time() - age,) * 2)
    with serving(data, silent_seconds=1) as app:
        assert [path.name for path in incoming.iterdir()] == ["young"]
        address = app.client.base_url
        with socket.create_connection((address.host, address.port)) as stream:
            stream.sendall(b"POST /api/files?name=a.txt HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\nof rivers")
            assert eventually(lambda: len(list(incoming.iterdir())) == 2)
            app.end()
            assert stream.recv(1000).startswith(b"HTTP/1.1 408")
        assert [path.name for path in incoming.iterdir()] == ["young"]
        assert "Traceback" not in app.said()


def test_a_switch_of_engines_loses_nothing_and_embedding_goes_on(data: Path) -> None:
    with serving(data) as app:
        app.add("birds.txt", HERON)
        half = app.upload("rivers.txt", long_text(300)).json()["file_id"]
        for engine in ("embedded", "embedded", "isolated"):
            answer = app.client.put("/api/engine", json={"engine": engine})
            assert answer.json() == {"engine": engine, "workers": 1}, app.said()
            assert app.client.get("/api/health").json()["engine"] == engine
            passages, _ = app.ask("heron")
            assert passages[0]["text"] == HERON
        assert app.wait(half)["done"] == 300
        assert app.client.put("/api/engine", json={"engine": "server"}).status_code == 422
        app.end()
        assert "Traceback" not in app.said()


@pytest.mark.long
def test_a_question_in_the_middle_of_a_switch_is_answered_or_is_to_be_asked_again(data: Path) -> None:
    answers: list[httpx.Response] = []
    is_over = threading.Event()
    with serving(data, answers=100) as app:
        app.add("birds.txt", HERON)

        def ask() -> None:
            while not is_over.is_set():
                answers.append(app.chat("heron"))

        threads = [threading.Thread(target=ask) for _ in range(32)]
        for thread in threads:
            thread.start()
        for engine in ("embedded", "isolated") * 4:
            count = len(answers)
            assert eventually(lambda count=count: len(answers) > count + 40)
            assert app.client.put("/api/engine", json={"engine": engine}).status_code == 200
        is_over.set()
        for thread in threads:
            thread.join(60)
        assert {answer.status_code for answer in answers} == {200, 503}, app.said()
        for answer in answers:
            if answer.status_code == 200:
                told = list(events(answer.text.splitlines()))
                assert told[0][1]["gone"] == []
                assert told[0][1]["passages"][0]["text"] == HERON
                assert told[-1][0] == "done"
            else:
                assert "The engine is being changed" in answer.json()["detail"]


def test_the_engine_of_the_configuration_is_used(data: Path) -> None:
    with serving(data, engine="embedded") as app:
        app.add("birds.txt", HERON)
        assert app.client.get("/api/health").json() == {"worker": app.process.pid, "engine": "embedded", "open": 1}
        assert not [child for child in psutil.Process(app.process.pid).children() if "engine" in child.name()]
