"""Apps whose model is another one than before, or refuses them: each has a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chroma_manager import ChromaDBManager
from clouds import API_KEY
from rag_app.configs import Configs
from rag_app.embedding_handler import collection_of
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
    azure = {"azure_endpoint": clouds.address, "azure_api_key": API_KEY}
    # The second has as many dimensions as the first, and the third others.
    for deployment in ("text-embedding-3-small", "text-embedding-ada-002", "text-embedding-3-large"):
        embedded = clouds.seen()["embedded"]
        with serving(tmp_path / "data", **azure, azure_embedding_deployment=deployment) as app:
            app.wait(file_id)
            assert clouds.seen()["embedded"] == embedded + 1
            passages, answer = app.ask(HERON, [file_id])
            assert (passages[0]["text"], passages[0]["score"]) == (HERON, 1)
            assert answer.startswith("word 0")
            app.end()
    # What the first has embedded is still there.
    embedded = clouds.seen()["embedded"]
    with serving(tmp_path / "data", **azure, azure_embedding_deployment="text-embedding-3-small") as app:
        app.wait(file_id)
        assert clouds.seen()["embedded"] == embedded
        assert app.ask(HERON, [file_id])[0][0]["score"] == 1
        assert app.client.delete(f"/api/files/{file_id}").status_code == 204
        assert app.databases() == []


def test_every_deployment_has_databases_of_its_own(tmp_path: Path) -> None:
    names = ["text-embedding-3-small", "text-embedding-3-large", "ours/bge", "ours\\bge", "..", "größe", "x" * 300, ""]
    types = [Configs(azure_endpoint="http://a", azure_embedding_deployment=name).embedding_type for name in names]
    assert types[0] == "azure-text-embedding-3-small"
    assert len({*types, Configs().embedding_type}) == len(names) + 1
    manager = ChromaDBManager(base_path=tmp_path / "chroma")
    for name in types:
        assert manager.get_collection("a" * 32, name, collection_of("a" * 32, name)).count() == 0


def test_a_wrong_key_fails_the_file_and_stays_secret(clouds: Clouds, tmp_path: Path) -> None:
    with serving(tmp_path / "data", azure_endpoint=clouds.address, azure_api_key="a-wrong-secret") as app:
        file_id = app.upload("birds.txt", HERON).json()["file_id"]
        assert "(AuthenticationError)" in app.wait(file_id, "failed")["message"]
        assert "a-wrong-secret" not in json.dumps(app.files()) + app.said()
