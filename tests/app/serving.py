"""The example app in a real uvicorn process, and files to send to it. Its tests are beside this file."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docx
import httpx
import psutil
from conftest import eventually

START_SECONDS = 110

# The text of a small file.
HERON = "The grey heron stands in shallow water and waits for fish."


class App:
    """uvicorn with the app, at a port of its own choice. Its data are in `data`, whatever process serves them."""

    def __init__(self, data: Path, workers: int = 1, port: int = 0, **environment: object) -> None:
        self.data = data
        self._said = data.with_name(f"{data.name}.log")
        configured = {f"RAG_{name.upper()}": str(value) for name, value in environment.items() if name.islower()}
        others = {name: str(value) for name, value in environment.items() if not name.islower()}
        with self._said.open("w") as log:
            command = [sys.executable, "-m", "uvicorn", "rag_app.main:app", "--no-access-log"]
            self.process = subprocess.Popen(
                [*command, "--port", str(port), "--workers", str(workers)],
                stdout=log,
                stderr=log,
                cwd=data.parent,
                env={**os.environ, "RAG_DATA": str(data), **configured, **others},
            )

    def wait_for_start(self) -> None:
        assert eventually(lambda: bool(self._address()) or self.process.poll() is not None, START_SECONDS), self.said()
        self.client = httpx.Client(base_url=self._address(), timeout=60)
        assert eventually(self._is_there, START_SECONDS), self.said()

    def said(self) -> str:
        """What uvicorn and the app have logged."""
        return self._said.read_text()

    def upload(self, name: str, content: bytes | str | Iterator[bytes]) -> httpx.Response:
        return self.client.post("/api/files", params={"name": name}, content=content)

    def add(self, name: str, content: bytes | str) -> str:
        """Uploads a file, and waits until it can be asked; its file_id."""
        answer = self.upload(name, content)
        assert answer.status_code == 201, answer.text
        file_id = str(answer.json()["file_id"])
        self.wait(file_id)
        return file_id

    def wait(self, file_id: str, status: str = "ready") -> dict[str, Any]:
        assert eventually(lambda: self.file(file_id)["status"] == status, 60), (self.file(file_id), self.said())
        return self.file(file_id)

    def files(self) -> list[dict[str, Any]]:
        return list(self.client.get("/api/files").json()["files"])

    def file(self, file_id: str) -> dict[str, Any]:
        return next(file for file in self.files() if file["file_id"] == file_id)

    def chat(self, question: str, file_ids: Sequence[str] | None = None) -> httpx.Response:
        return self.client.post("/api/chat", json={"question": question, "file_ids": file_ids})

    def ask(self, question: str, file_ids: Sequence[str] | None = None) -> tuple[list[dict[str, Any]], str]:
        """The passages, and the answer."""
        answer = self.chat(question, file_ids)
        assert answer.status_code == 200, answer.text
        told = list(events(answer.text.splitlines()))
        assert told[-1][0] == "done", told
        return told[0][1]["passages"], "".join(data for name, data in told if name == "text")

    def databases(self) -> list[str]:
        """The file_ids that have a directory."""
        root = self.data / "chroma"
        return sorted(path.name for path in root.iterdir()) if root.is_dir() else []

    def end(self) -> None:
        """As a supervisor does it."""
        self.process.terminate()
        # uvicorn ends by the signal, after everything is closed.
        assert self.process.wait(60) == -signal.SIGTERM, self.said()

    def kill(self) -> None:
        """With all that it has started."""
        if self.process.poll() is None:
            family = [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
            for process in family:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(family, 20)
        self.process.wait(20)

    def _address(self) -> str:
        found = re.search(r"running on (http://\S+)", self.said())
        return found[1] if found else ""

    def _is_there(self) -> bool:
        try:
            return self.client.get("/api/health").status_code == 200
        except httpx.TransportError:
            return False


class Clouds:
    """The servers of `clouds.py`, in a process of their own."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "clouds.log"
        with self._log.open("w") as log:
            command = [sys.executable, "-m", "uvicorn", "clouds:app", "--app-dir", str(Path(__file__).parent)]
            self.process = subprocess.Popen([*command, "--port", "0"], stdout=log, stderr=log)
        assert eventually(lambda: "running on" in self._log.read_text(), 60), self._log.read_text()
        found = re.search(r"running on (http://\S+)", self._log.read_text())
        assert found
        self.address = found[1]

    def seen(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.address}/_seen", timeout=60).json())

    @contextmanager
    def behaving(self, wish: str) -> Iterator[None]:
        """Where `clouds.behaviour` has this of it."""
        self._behave({wish: True})
        try:
            yield
        finally:
            self._behave({wish: False})

    def _behave(self, wished: dict[str, bool]) -> None:
        httpx.post(f"{self.address}/_behave", json=wished, timeout=60).raise_for_status()

    def trouble(self, *kinds: str) -> None:
        httpx.post(f"{self.address}/_trouble", json=kinds, timeout=60).raise_for_status()


@contextmanager
def serving(data: Path, workers: int = 1, port: int = 0, **environment: object) -> Iterator[App]:
    app = App(data, workers, port, **environment)
    try:
        app.wait_for_start()
        yield app
    finally:
        app.kill()


def events(lines: Iterator[str] | Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The names and the data of server-sent events."""
    name = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def long_text(paragraphs: int, about: str = "rivers") -> str:
    """Each paragraph is a passage of its own."""
    sentence = f"It is said of {about} in the part with the number {{}} that what they carry is what they are. "
    return "\n\n".join(sentence.format(number) * 6 for number in range(paragraphs))


def pdf(*pages: str, letter_a: str = "0041") -> bytes:
    """With a line of text on each page, whose font says what its A stands for: UTF-16, in hexadecimal."""
    font = f"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode {2 * len(pages) + 4} 0 R >>"
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", font]
    kids = []
    for text in pages:
        objects.append(_stream(f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"))
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects)} 0 R "
            f"/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        kids.append(f"{len(objects)} 0 R")
    characters = f"1 beginbfchar\n<41> <{letter_a}>\nendbfchar"
    objects.append(_stream(f"begincmap\n1 begincodespacerange\n<00> <FF>\nendcodespacerange\n{characters}\nendcmap"))
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    written, places = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(written))
        written += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    count = len(objects) + 1
    end = f"xref\n0 {count}\n0000000000 65535 f \n{table}trailer\n<< /Size {count} /Root 1 0 R >>\n"
    return written + f"{end}startxref\n{len(written)}\n%%EOF\n".encode()


def _stream(content: str) -> str:
    return f"<< /Length {len(content)} >>\nstream\n{content}\nendstream"


def docx_of(*paragraphs: str) -> bytes:
    document = docx.Document()
    for text in paragraphs:
        document.add_paragraph(text)
    written = io.BytesIO()
    document.save(written)
    return written.getvalue()
