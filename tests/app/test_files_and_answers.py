"""Files are embedded, answer questions, and are deleted."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from conftest import eventually
from serving import HERON, App, docx_of, events, long_text, pdf, serving

LIGHTHOUSE = "The lighthouse of Rubjerg was moved seventy metres inland."


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    with serving(tmp_path_factory.mktemp("app") / "data") as app:
        yield app


@pytest.fixture(autouse=True)
def nothing_is_left(app: App) -> Iterator[None]:
    yield
    for file in app.files():
        app.client.delete(f"/api/files/{file['file_id']}")
    assert eventually(lambda: app.databases() == [])


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("birds.txt", f"Of birds.\n\n{HERON}", "paragraphs 1-2"),
        ("birds.md", f"# Birds\n\n{HERON}\n", "paragraphs 1-2"),
        ("birds.pdf", pdf("Of birds.", HERON), "page 2"),
        ("birds.docx", docx_of("Of birds.", HERON), "paragraphs 1-2"),
    ],
    ids=["txt", "md", "pdf", "docx"],
)
def test_a_file_answers_with_the_passage_and_where_it_stands(
    app: App, name: str, content: bytes | str, place: str
) -> None:
    file_id = app.add(name, content)
    passages, answer = app.ask("Where does the heron stand?")
    assert HERON in passages[0]["text"]
    assert (passages[0]["file_id"], passages[0]["name"], passages[0]["place"]) == (file_id, name, place)
    assert 0.15 < passages[0]["score"] <= 1
    assert HERON in answer
    assert "[1]" in answer


def test_several_files_are_asked_at_once(app: App) -> None:
    first, second = app.add("birds.txt", HERON), app.add("towers.txt", LIGHTHOUSE)
    passages, answer = app.ask("the heron and the lighthouse", [first, second])
    assert {passage["file_id"] for passage in passages} == {first, second}
    assert HERON in answer
    assert LIGHTHOUSE in answer


def test_only_the_chosen_files_are_asked(app: App) -> None:
    app.add("birds.txt", HERON)
    second = app.add("towers.txt", LIGHTHOUSE)
    passages, answer = app.ask("the heron and the lighthouse", [second])
    assert {passage["file_id"] for passage in passages} == {second}
    assert HERON not in answer


@pytest.mark.parametrize("question", ["What does quantum chromodynamics say?", "What is this about?", "???"])
def test_a_question_that_no_file_answers_is_told_so(app: App, question: str) -> None:
    app.add("birds.txt", HERON)
    app.add("questions.txt", "What is it, and why not?")
    passages, answer = app.ask(question)
    assert [abs(passage["score"]) < 0.1 for passage in passages] == [True, True]
    assert answer == "None of the passages that come closest says anything about that."


def test_a_file_whose_database_is_damaged_is_named_and_the_others_are_asked(app: App) -> None:
    sound, damaged = app.add("birds.txt", HERON), app.add("towers.txt", LIGHTHOUSE)
    # A change of engines closes all databases.
    assert app.client.put("/api/engine", json={"engine": "embedded"}).status_code == 200
    database = app.data / "chroma" / damaged / "local" / "chroma.sqlite3"
    content = database.read_bytes()
    database.write_bytes(content[:100] + b"\xff" * 12_000 + content[12_100:])
    assert app.client.put("/api/engine", json={"engine": "isolated"}).status_code == 200
    told = next(events(app.chat("the heron and the lighthouse").text.splitlines()))[1]
    assert (told["gone"], told["failed"]) == ([], ["towers.txt"])
    assert [passage["file_id"] for passage in told["passages"]] == [sound]
    answer = app.chat("the lighthouse", [damaged])
    assert answer.status_code == 503
    assert answer.json()["detail"].startswith("Cannot be asked: towers.txt. Try again")
    assert f"towers.txt, which is {damaged}, cannot be asked" in app.said()


def test_a_question_needs_files_that_are_there_and_ready(app: App) -> None:
    assert app.chat("heron").status_code == 404
    assert "Add one first" in app.chat("heron").json()["detail"]
    unknown = app.chat("heron", ["0" * 32])
    assert unknown.status_code == 404
    assert "0" * 32 in unknown.json()["detail"]
    waiting = app.upload("rivers.txt", long_text(500)).json()["file_id"]
    early = app.chat("rivers", [waiting])
    assert early.status_code == 409
    assert early.json()["detail"] == "Not ready to be asked: rivers.txt."


def test_a_question_is_asked_of_a_thousand_files_at_most(app: App) -> None:
    values = ((f"{number:032}", "a.txt", "txt", 1, str(number), "local", "ready", number) for number in range(1001))
    with closing(sqlite3.connect(app.data / "catalog.sqlite3", timeout=30)) as catalog:
        columns = "file_id, name, kind, bytes, digest, embedding_type, status, added"
        with catalog:
            catalog.executemany(f"insert into files ({columns}) values (?, ?, ?, ?, ?, ?, ?, ?)", values)
        answers = [app.chat("heron", file_ids) for file_ids in (None, [f"{number:032}" for number in range(1001)])]
        with catalog:
            catalog.execute("delete from files")
    for answer in answers:
        assert answer.status_code == 422
        assert answer.json()["detail"] == "1,001 files are more than the 1,000 that are asked at once. Choose fewer."


@pytest.mark.parametrize("question", ["", "  ", "x" * 2001, "\ud800"])
def test_a_question_has_words_and_an_end(app: App, question: str) -> None:
    # httpx would not send half a surrogate pair.
    content = json.dumps({"question": question})
    answer = app.client.post("/api/chat", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"].startswith("body.question: ")


def test_a_file_id_that_is_no_text_is_refused(app: App) -> None:
    content = json.dumps({"question": "heron", "file_ids": ["\ud800"]})
    answer = app.client.post("/api/chat", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"].startswith("body.file_ids.0: ")


def test_files_are_embedded_at_the_same_time_and_their_progress_is_streamed(app: App) -> None:
    seen: list[dict[str, tuple[str, int, int]]] = []
    pulses: list[list[float]] = []
    connected = threading.Event()

    def watch() -> None:
        with app.client.stream("GET", "/api/events") as stream:
            for name, data in events(stream.iter_lines()):
                connected.set()
                if name == "pulse":
                    pulses.extend(data)
                elif name == "state":
                    seen.append({file["name"]: (file["status"], file["done"], file["total"]) for file in data["files"]})
                if seen and [status for status, _, _ in seen[-1].values()] == ["ready", "ready"]:
                    return

    watching = threading.Thread(target=watch)
    watching.start()
    assert connected.wait(20)
    for name in ("rivers.txt", "lakes.txt"):
        assert app.upload(name, long_text(400, name)).status_code == 201
    watching.join(60)
    assert not watching.is_alive()
    both = [files for files in seen if [status for status, _, _ in files.values()] == ["embedding", "embedding"]]
    assert both
    assert any(0 < done < total == 400 for files in both for _, done, total in files.values())
    numbers = [sample[0] for sample in pulses]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_a_deleted_file_leaves_nothing(app: App) -> None:
    file_id = app.add("birds.txt", HERON)
    assert app.databases() == [file_id]
    assert sorted(path.name for path in (app.data / "bucket" / file_id).iterdir()) == ["original.txt", "passages.json"]
    assert app.client.delete(f"/api/files/{file_id}").status_code == 204
    assert app.files() == []
    assert app.databases() == []
    assert list((app.data / "bucket").iterdir()) == []
    assert app.client.delete(f"/api/files/{file_id}").status_code == 404
    assert app.chat("heron", [file_id]).status_code == 404


def test_a_deleted_file_can_be_added_again(app: App) -> None:
    first = app.add("birds.txt", HERON)
    app.client.delete(f"/api/files/{first}")
    second = app.add("birds.txt", HERON)
    assert second != first
    assert app.ask("heron")[0][0]["file_id"] == second


def test_only_a_file_that_has_failed_is_embedded_again(app: App) -> None:
    file_id = app.add("birds.txt", HERON)
    answer = app.client.post(f"/api/files/{file_id}/retry")
    assert answer.status_code == 409
    assert answer.json()["detail"] == "birds.txt has not failed."
