"""Apps whose model is another one than before, or refuses them: each has a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from clouds import API_KEY
from serving import HERON, Clouds, serving


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clouds]:
    started = Clouds(tmp_path_factory.mktemp("clouds"))
    yield started
    started.process.kill()
    started.process.wait()


@pytest.mark.long
def test_what_was_embedded_by_another_model_is_embedded_again(clouds: Clouds, tmp_path: Path) -> None:
    with serving(tmp_path / "data") as local:
        file_id = local.add("birds.txt", HERON)
        local.end()
    with serving(tmp_path / "data", azure_endpoint=clouds.address, azure_api_key=API_KEY) as app:
        app.wait(file_id)
        passages, answer = app.ask("Where does the heron stand?", [file_id])
        assert passages[0]["text"] == HERON
        assert answer.startswith("word 0")
        assert app.client.delete(f"/api/files/{file_id}").status_code == 204
        assert app.databases() == []


def test_a_wrong_key_fails_the_file_and_stays_secret(clouds: Clouds, tmp_path: Path) -> None:
    with serving(tmp_path / "data", azure_endpoint=clouds.address, azure_api_key="a-wrong-secret") as app:
        file_id = app.upload("birds.txt", HERON).json()["file_id"]
        assert "(AuthenticationError)" in app.wait(file_id, "failed")["message"]
        assert "a-wrong-secret" not in json.dumps(app.files()) + app.said()
