"""What worker processes run, which import it by its name: those of `multiprocessing`, uvicorn and uWSGI."""

from __future__ import annotations

import os
import signal
from multiprocessing.connection import Connection
from typing import Any

from chroma_manager import ChromaDBManager


def add(base: str, record: str = "1") -> list[str]:
    """Adds a record to the database `doc`; returns the ids of all there are."""
    collection = ChromaDBManager(base_path=base).get_collection("doc", "azure", "rag_collection")
    collection.upsert(ids=[record], embeddings=[[1.0, 2.0]])
    return sorted(collection.get()["ids"])


def add_and_end(base: str, parent: Connection) -> None:
    """Ends by a signal, when it is told to."""
    parent.send(add(base))
    parent.recv()
    os.kill(os.getpid(), signal.SIGKILL)


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An app that adds a record at each request."""
    if scope["type"] == "http":
        body = " ".join(add(os.environ["BASE"])).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def application(environment: dict[str, Any], start_response: Any) -> list[bytes]:
    """The same for uWSGI."""
    body = " ".join(add(os.environ["BASE"])).encode()
    start_response("200 OK", [])
    return [body]
