"""Local servers that speak the HTTP of Azure OpenAI and of Google Cloud Storage, as far as the app uses it.

`uvicorn clouds:app`. Under `/_` is what the tests want of it: what it has seen, and how it is to misbehave.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import struct
from collections import deque
from collections.abc import AsyncIterator
from email.parser import BytesParser
from typing import Any

import google_crc32c
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

API_KEY = "a-key-for-tests"
DIMENSIONS = 64

app = FastAPI()
seen: dict[str, Any] = {"embedded": 0, "asked": [], "streams_ended": 0, "streams_left": 0, "listed": 0, "resumed": 0}
refused: dict[str, int] = {}  # how many times the deletion of each object was
behaviour = {"refuses_deletions": False, "is_silent": False}  # until the test wishes otherwise
trouble: deque[str] = deque()  # what the next requests meet: "429", "500", "slow", "break off"
objects: dict[str, bytes] = {}
uploads: dict[str, str] = {}


@app.get("/_seen")
def what_was_seen() -> dict[str, Any]:
    return {**seen, "objects": sorted(objects), "refused": refused}


@app.post("/_behave")
def behave(wished: dict[str, bool]) -> None:
    behaviour.update(wished)


@app.post("/_trouble")
def make_trouble(kinds: list[str]) -> None:
    trouble.extend(kinds)


def checked(request: Request) -> str:
    """The trouble of this request, after a look at its key and version."""
    if request.headers.get("api-key") != API_KEY:
        raise HTTPException(
            401, {"error": {"code": "401", "message": "Access denied due to invalid subscription key."}}
        )
    assert request.query_params["api-version"]
    kind = trouble.popleft() if trouble else ""
    if kind.isdigit():
        raise HTTPException(
            int(kind), {"error": {"code": kind, "message": "as the test wishes"}}, {"retry-after-ms": "10"}
        )
    return kind


@app.post("/openai/deployments/{deployment}/embeddings")
async def embeddings(deployment: str, request: Request) -> dict[str, Any]:
    checked(request)
    asked = await request.json()
    seen["embedded"] += len(asked["input"])
    vectors = [vector(deployment, text) for text in asked["input"]]
    data = [
        {"object": "embedding", "index": index, "embedding": encoded(each, asked.get("encoding_format"))}
        for index, each in enumerate(vectors)
    ]
    return {"object": "list", "data": data, "model": deployment, "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def vector(deployment: str, text: str) -> list[float]:
    """Words have a dimension each, another one with each deployment, by their hash; of length 1, as Azure's are."""
    values = [0.001] * (2 * DIMENSIONS if deployment.endswith("large") else DIMENSIONS)
    for word in re.findall(r"\w{4,}", text.lower()):
        values[hashlib.sha256(f"{deployment} {word}".encode()).digest()[0] % len(values)] += 1
    length = sum(value * value for value in values) ** 0.5
    return [value / length for value in values]


def encoded(values: list[float], form: str | None) -> object:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode() if form == "base64" else values


@app.post("/openai/deployments/{deployment}/chat/completions")
async def completions(deployment: str, request: Request) -> StreamingResponse:
    kind = checked(request)
    asked = await request.json()
    assert asked["stream"] is True
    seen["asked"].append([message["content"] for message in asked["messages"]])
    while behaviour["is_silent"]:
        await asyncio.sleep(0.05)
    return StreamingResponse(answer(deployment, kind), media_type="text/event-stream")


async def answer(deployment: str, kind: str) -> AsyncIterator[bytes]:
    def chunk(choices: list[dict[str, Any]]) -> bytes:
        said = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": deployment, "choices": choices}
        return b"data: " + json.dumps(said).encode() + b"\n\n"

    ended = False
    try:
        yield chunk([])  # Azure's word on its filters of content
        yield chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        for number in range(300 if kind == "slow" else 3):
            yield chunk([{"index": 0, "delta": {"content": f"word {number} "}, "finish_reason": None}])
            if kind == "slow":
                await asyncio.sleep(0.1)
            if kind == "break off":
                raise ConnectionError("as the test wishes")
        yield chunk([{"index": 0, "delta": {"content": "[1]"}, "finish_reason": None}])
        yield chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        yield b"data: [DONE]\n\n"
        ended = True
    finally:
        seen["streams_ended" if ended else "streams_left"] += 1


@app.post("/upload/storage/v1/b/{bucket}/o", response_model=None)
async def upload(bucket: str, request: Request) -> Response:
    body = await request.body()
    if request.query_params["uploadType"] == "resumable":
        place = f"upload-{len(uploads)}"
        uploads[place] = json.loads(body)["name"]
        return Response(headers={"Location": str(request.url_for("resume", bucket=bucket, place=place))})
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    described, content = BytesParser().parsebytes(head + body).get_payload()
    name = json.loads(described.get_payload(decode=True))["name"]
    objects[name] = content.get_payload(decode=True)
    return JSONResponse(metadata(bucket, name))


@app.put("/upload/storage/v1/b/{bucket}/o/{place}", response_model=None)
async def resume(bucket: str, place: str, request: Request) -> Response:
    name = uploads[place]
    objects[name] = await request.body()
    seen["resumed"] += 1
    return JSONResponse(metadata(bucket, name))


@app.get("/download/storage/v1/b/{bucket}/o/{name:path}")
def download(bucket: str, name: str) -> Response:
    digest = base64.b64encode(hashlib.md5(found(name)).digest()).decode()
    return Response(objects[name], media_type="application/octet-stream", headers={"X-Goog-Hash": f"md5={digest}"})


@app.get("/storage/v1/b/{bucket}/o")
def listing(bucket: str, prefix: str = "", pageToken: str = "") -> dict[str, Any]:  # noqa: N803 - as Google names it
    """A page has one object, so that there are pages."""
    seen["listed"] += 1
    names = [name for name in sorted(objects) if name.startswith(prefix) and name > pageToken]
    page: dict[str, Any] = {"kind": "storage#objects", "items": [metadata(bucket, name) for name in names[:1]]}
    return {**page, "nextPageToken": names[0]} if len(names) > 1 else page


@app.delete("/storage/v1/b/{bucket}/o/{name:path}", status_code=204)
def delete(bucket: str, name: str) -> None:
    found(name)
    if behaviour["refuses_deletions"]:
        refused[name] = refused.get(name, 0) + 1
        raise HTTPException(403, {"error": {"code": 403, "message": "storage.objects.delete is needed"}})
    del objects[name]


def found(name: str) -> bytes:
    if name not in objects:
        raise HTTPException(404, {"error": {"code": 404, "message": f"No such object: {name}"}})
    return objects[name]


def metadata(bucket: str, name: str) -> dict[str, Any]:
    described = {"kind": "storage#object", "bucket": bucket, "name": name, "generation": "1"}
    checksum = base64.b64encode(google_crc32c.Checksum(objects[name]).digest()).decode()
    return {**described, "size": str(len(objects[name])), "crc32c": checksum}
