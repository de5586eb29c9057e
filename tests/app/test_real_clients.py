"""The app with the clients of openai and of google-cloud-storage, against local servers that speak their HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from clouds import API_KEY
from conftest import eventually
from serving import HERON, App, Clouds, events, long_text, pdf, serving


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clouds]:
    started = Clouds(tmp_path_factory.mktemp("clouds"))
    yield started
    started.process.kill()
    started.process.wait()


@pytest.fixture(scope="module")
def app(clouds: Clouds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    configured = {"azure_endpoint": clouds.address, "azure_api_key": API_KEY, "bucket": "files"}
    data = tmp_path_factory.mktemp("app") / "data"
    with serving(data, **configured, STORAGE_EMULATOR_HOST=clouds.address) as app:
        yield app


@pytest.fixture(autouse=True)
def nothing_is_left(app: App, clouds: Clouds) -> Iterator[None]:
    yield
    for file in app.files():
        assert app.client.delete(f"/api/files/{file['file_id']}").status_code == 204
    assert eventually(lambda: clouds.seen()["objects"] == [])


def test_a_file_goes_through_the_bucket_and_the_models(app: App, clouds: Clouds) -> None:
    file_id = app.add("birds.txt", HERON)
    assert clouds.seen()["objects"] == [f"{file_id}/original.txt", f"{file_id}/passages.json"]
    assert [path.name for path in (app.data / "chroma" / file_id).iterdir()] == ["azure-text-embedding-3-small"]
    passages, answer = app.ask("Where does the heron stand?")
    assert answer == "word 0 word 1 word 2 [1]"
    assert passages[0]["text"] == HERON
    assert 0.1 < passages[0]["score"] < 1
    system, passage, question = clouds.seen()["asked"][-1]
    assert "name the passage that says so" in system
    assert passage == f"[1] birds.txt, paragraph 1\n{HERON}"
    assert question == "Where does the heron stand?"


def test_a_large_file_is_uploaded_in_the_way_for_large_files(app: App, clouds: Clouds) -> None:
    content = pdf("of rivers") + b"%" + b"x" * 9_000_000
    file_id = app.add("rivers.pdf", content)
    assert clouds.seen()["resumed"] == 1
    stored = httpx.get(f"{clouds.address}/download/storage/v1/b/files/o/{file_id}/original.pdf", timeout=60)
    assert stored.content == content


def test_a_deletion_removes_every_page_of_the_list_of_objects(app: App, clouds: Clouds) -> None:
    first, second = app.add("birds.txt", HERON), app.add("rivers.txt", "of rivers")
    assert app.client.delete(f"/api/files/{first}").status_code == 204
    assert clouds.seen()["objects"] == [f"{second}/original.txt", f"{second}/passages.json"]


def test_deletions_that_the_bucket_refuses_hold_up_no_file_and_are_made_good(app: App, clouds: Clouds) -> None:
    old = [app.add(f"old-{number}.txt", f"of rivers, {number}") for number in range(4)]
    with clouds.behaving("refuses_deletions"):
        for file_id in old:
            assert app.client.delete(f"/api/files/{file_id}").status_code == 204
        app.add("new.txt", "of lakes")
        assert sorted(clouds.seen()["refused"]) == sorted(f"{file_id}/original.txt" for file_id in old)
    kept = {f"{file['file_id']}/{name}" for file in app.files() for name in ("original.txt", "passages.json")}
    assert eventually(lambda: set(clouds.seen()["objects"]) == kept)


def test_a_model_that_is_busy_is_asked_again(app: App, clouds: Clouds) -> None:
    clouds.trouble("429", "500")
    assert app.ask("heron", [app.add("birds.txt", HERON)])[0][0]["text"] == HERON


def test_a_model_that_stays_away_fails_the_file_which_can_be_embedded_again(app: App, clouds: Clouds) -> None:
    clouds.trouble(*["500"] * 3)
    file_id = app.upload("birds.txt", HERON).json()["file_id"]
    failed = app.wait(file_id, "failed")
    said = "It could not be embedded. The model cannot be reached, or refuses (InternalServerError)."
    assert failed["message"] == said
    assert app.chat("heron", [file_id]).status_code == 409
    assert app.client.post(f"/api/files/{file_id}/retry").status_code == 202
    app.wait(file_id)
    assert app.ask("heron", [file_id])[0][0]["text"] == HERON


def test_a_question_that_the_model_does_not_take_is_answered_with_502(app: App, clouds: Clouds) -> None:
    app.add("birds.txt", HERON)
    clouds.trouble(*["500"] * 3)
    answer = app.chat("heron")
    assert answer.status_code == 502
    assert answer.json()["detail"] == "The model cannot be reached, or refuses (InternalServerError)."
    assert app.chat("heron").status_code == 200


def test_an_answer_that_breaks_off_says_so(app: App, clouds: Clouds) -> None:
    app.add("birds.txt", HERON)
    # The question is embedded first.
    clouds.trouble("", "break off")
    told = list(events(app.chat("heron").text.splitlines()))
    assert [name for name, _ in told] == ["passages", "text", "error"]
    assert told[-1][1] == "The model has failed in the middle of its answer. Ask again."


def test_a_model_whose_client_has_gone_away_is_told_to_stop(app: App, clouds: Clouds) -> None:
    app.add("birds.txt", HERON)
    before = clouds.seen()
    clouds.trouble("", "slow")
    with app.client.stream("POST", "/api/chat", json={"question": "heron"}) as answer:
        lines = answer.iter_lines()
        assert any('"word 1 "' in line for line in lines)
    assert eventually(lambda: clouds.seen()["streams_left"] == before["streams_left"] + 1)
    assert clouds.seen()["streams_ended"] == before["streams_ended"]


def test_a_model_that_is_silent_holds_up_nothing_but_its_answers(app: App, clouds: Clouds) -> None:
    app.add("birds.txt", HERON)
    with ThreadPoolExecutor(44) as pool:
        with clouds.behaving("is_silent"):
            asked = [pool.submit(app.chat, "heron") for _ in range(44)]
            assert eventually(lambda: sum(each.done() for each in asked) == 12)
            for path in ("/api/health", "/", "/api/files"):
                assert app.client.get(path, timeout=5).status_code == 200
        answers = [each.result() for each in asked]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 12
    assert "32 questions are being answered" in refused[0].json()["detail"]
    assert refused[0].headers["Retry-After"] == "1"
    assert sum("event: done" in answer.text for answer in answers) == 32
    assert app.chat("heron").status_code == 200


def test_passages_are_embedded_once_each(app: App, clouds: Clouds) -> None:
    before = clouds.seen()["embedded"]
    file_id = app.add("rivers.txt", long_text(200))
    assert clouds.seen()["embedded"] - before == 200
    assert app.file(file_id)["done"] == 200
