"""The example app on a Chroma server: workers on any machine share its databases."""

from __future__ import annotations

from pathlib import Path

import pytest
from chroma_server import ChromaServer
from rag_app.configs import Configs
from serving import HERON, long_text, serving

OWL = "The barn owl hunts mice at night and hears them under snow."


@pytest.mark.long
def test_workers_share_the_databases_of_a_server_and_go_on_after_an_outage(tmp_path, own_server: ChromaServer) -> None:
    data = tmp_path / "data"
    configured = {"engine": "server", "chroma_host": "localhost", "chroma_port": own_server.port}
    with serving(data, workers=2, lease_seconds=2, **configured) as app:
        heron, owl = app.add("heron.txt", HERON), app.add("owl.txt", OWL)
        rivers = app.add("rivers.txt", long_text(100))
        for _ in range(10):
            assert app.ask("heron")[0][0]["text"] == HERON
        passages, _ = app.ask("mice at night", [heron, owl])
        assert [(passage["file_id"], passage["text"]) for passage in passages] == [(owl, OWL), (heron, HERON)]
        assert app.client.delete(f"/api/files/{owl}").status_code == 204
        assert app.chat("mice", [owl]).status_code == 404

        own_server.kill()
        uploaded = app.upload("owl.txt", OWL).json()["file_id"]
        failed = app.chat("heron")
        assert failed.status_code == 503
        assert "A database cannot be used at the moment" in failed.json()["detail"]
        app.wait(uploaded, "failed")
        own_server.start()
        assert app.ask("heron")[0][0]["text"] == HERON
        assert app.client.post(f"/api/files/{uploaded}/retry").status_code == 202
        app.wait(uploaded)
        assert app.ask("mice at night")[0][0]["text"] == OWL
        assert len(app.ask("rivers", [rivers])[0]) == 5
        assert app.databases() == []
    # Another app with the same server and its own catalogue has no access to these files, nor do they disturb it.
    with serving(tmp_path / "other", **configured) as app:
        assert app.files() == []
        app.add("heron.txt", HERON)
        assert app.ask("heron")[0][0]["text"] == HERON


def test_a_chroma_server_of_the_configuration_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    monkeypatch.setenv("RAG_ENGINE", "server")
    monkeypatch.setenv("RAG_CHROMA_HOST", "chroma")
    monkeypatch.setenv("RAG_CHROMA_PORT", "8000")
    options = Configs(data=data).manager_options()
    assert options == {"base_path": data / "chroma", "engine": "server", "host": "chroma", "port": 8000}
    # The address of a server, which a compose file may give always, is not for the other engines.
    assert Configs(data=data).manager_options("isolated") == {"base_path": data / "chroma", "engine": "isolated"}
