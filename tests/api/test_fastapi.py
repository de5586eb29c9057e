"""The guide's app in the real FastAPI, in the newest one and in one from before, served by uvicorn."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

APPS = Path(__file__).parents[1] / "apps"
README = Path(__file__).parents[2] / "README.md"

# Where the Makefile installs the older one.
WITH_EVENT_HANDLERS = Path(sys.prefix) / "fastapi-with-event-handlers"


class Server:
    """uvicorn with an app of `apps/`, at a port of its own choice."""

    def __init__(self, app: str, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", app, "--app-dir", str(APPS), "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert self.process.stderr is not None
        said = ""
        for line in self.process.stderr:
            said += line
            found = re.search(r"running on (http://\S+)", line)
            if found:
                self.url = found[1]
                return
        raise AssertionError(said)

    def request(self, method: str, path: str) -> object:
        with urllib.request.urlopen(urllib.request.Request(self.url + path, method=method), timeout=60) as answer:
            return json.load(answer)

    def end(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=60)[1]


@pytest.fixture(params=["lifespan", "event handler"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    environment = {"BASE": str(tmp_path / "db"), "SHUTDOWN": request.param}
    if request.param == "event handler":
        assert WITH_EVENT_HANDLERS.is_dir(), "make .venv/test-*/ready installs it"
        environment["PYTHONPATH"] = str(WITH_EVENT_HANDLERS)
    started = Server("rag:app", environment)
    yield started
    started.process.kill()
    started.process.communicate()


def test_the_app_of_the_guide_serves_and_closes_its_databases_at_the_end(server: Server, tmp_path: Path) -> None:
    files = [f"doc{i}" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda file: server.request("POST", f"/files/{file}"), files)) == [None] * 8
        assert list(pool.map(lambda file: server.request("GET", f"/files/{file}"), files)) == [[file] for file in files]
    engines = psutil.Process(server.process.pid).children()
    said = server.end()
    assert "Application shutdown complete" in said
    assert "Traceback" not in said
    assert not any(engine.is_running() for engine in engines)
    assert list((tmp_path / "db").glob("*/*/.chroma_manager/open")) == []


def test_what_the_readme_shows_is_what_the_app_does() -> None:
    app = (APPS / "rag.py").read_text()
    shown = README.read_text()
    for line in (
        "async def lifespan(app: FastAPI):\n    yield\n    chroma_manager.cleanup_all_instances()\n",
        "app = FastAPI(lifespan=lifespan)",
        'app.add_event_handler("shutdown", chroma_manager.cleanup_all_instances)',
    ):
        assert line in app
        assert line in shown
