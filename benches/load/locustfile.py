"""The traffic: users who ask, users who upload, and one who listens to the event loop's pulse."""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from pathlib import Path

import gevent
from locust import FastHttpUser, constant_pacing, events, task

WARM = float(os.environ["LOAD_WARM"])
QUESTIONS = (
    "What happens to an acknowledged write when the power is cut?",
    "How are the sockets kept private?",
    "What does a checkpoint cost?",
    "Who owns a database, and how is that known?",
)
PARAGRAPHS = 120
WORDS = (
    "rivers",
    "carry",
    "what",
    "they",
    "are",
    "given",
    "and",
    "lakes",
    "keep",
    "until",
    "snow",
    "on",
    "hills",
    "melts",
)

began = time.monotonic()
measured: dict[str, list[tuple[float, float]]] = {"chat": [], "upload": [], "pulse": []}
failed: list[str] = []
numbers = itertools.count()


def note(kind: str, milliseconds: float) -> None:
    second = time.monotonic() - began - WARM
    if second >= 0:
        measured[kind].append((round(second, 2), round(milliseconds, 1)))


@events.request.add_listener
def on_request(name: str, response_time: float, exception: BaseException | None, **_: object) -> None:
    if exception is not None:
        failed.append(f"{name}: {exception!r}")
    elif name in measured:
        note(name, response_time)


@events.quitting.add_listener
def write(**_: object) -> None:
    result = {**measured, "failed": len(failed), "failures": failed[:5]}
    Path(os.environ["LOAD_RESULT"]).write_text(json.dumps(result))


class Chats(FastHttpUser):
    """Asks all files that were there at the beginning, twice a second, and reads the whole answer."""

    fixed_count = 4
    wait_time = constant_pacing(0.5)

    def on_start(self) -> None:
        files = self.client.get("/api/files", name="files").json()["files"]
        self.asked = [file["file_id"] for file in files if file["name"].endswith(".md")]

    @task
    def ask(self) -> None:
        body = {"question": random.choice(QUESTIONS), "file_ids": self.asked}
        with self.client.post("/api/chat", json=body, name="chat", catch_response=True) as answer:
            if answer.status_code != 200 or "event: done" not in answer.text:
                answer.failure(f"{answer.status_code}: {answer.text[-200:]}")


class Uploads(FastHttpUser):
    """Uploads a file of its own, waits until it is embedded, deletes it, and goes on with the next."""

    fixed_count = 2

    @task
    def add(self) -> None:
        number = next(numbers)
        text = "\n\n".join(f"{number}.{part}. " + " ".join(random.choices(WORDS, k=100)) for part in range(PARAGRAPHS))
        with self.client.post(
            f"/api/files?name=load-{number}.txt", data=text.encode(), name="upload", catch_response=True
        ) as answer:
            if answer.status_code != 201:
                answer.failure(f"{answer.status_code}: {answer.text[-200:]}")
                return
            file_id = answer.json()["file_id"]
        until = time.monotonic() + 60
        while self.status(file_id) != "ready":
            if time.monotonic() > until:
                failed.append(f"load-{number}.txt is not embedded in 60 s")
                break
            gevent.sleep(0.25)
        self.client.delete(f"/api/files/{file_id}", name="delete")

    def status(self, file_id: str) -> str:
        files = self.client.get("/api/files", name="files").json()["files"]
        return next((file["status"] for file in files if file["file_id"] == file_id), "gone")


class Pulse(FastHttpUser):
    """Listens, once."""

    fixed_count = 1

    @task
    def listen(self) -> None:
        newest = 0
        with self.client.get("/api/events", stream=True, name="events", catch_response=True) as stream:
            stream.success()
            event = ""
            for line in self.lines(stream):
                if line.startswith("event: "):
                    event = line[7:]
                elif line.startswith("data: ") and event == "pulse":
                    for number, late, _ in json.loads(line[6:]):
                        # Those of before are told at once at the beginning.
                        if newest:
                            note("pulse", late)
                        newest = number

    @staticmethod
    def lines(stream: object):
        rest = ""
        for piece in stream.stream:  # type: ignore[attr-defined]
            *whole, rest = (rest + piece.decode()).split("\n")
            yield from whole
