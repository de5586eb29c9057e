"""The app: ``uvicorn rag_app.main:app``, with as many ``--workers`` as you like."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from chroma_manager import ChromaManagerError
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.requests import ClientDisconnect

from rag_app.configs import Configs
from rag_app.errors import AppError, DuplicateError
from rag_app.guard import Guard
from rag_app.routes import chat, engine, events, files
from rag_app.services import Services

_STATIC = Path(__file__).parent / "static"
_LONGEST_QUESTION = 64 * 1024  # bytes, with the file_ids

_logger = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Opens everything before the first request, and closes it after the last."""
    services = app.state.services = await asyncio.to_thread(Services, Configs())
    pulse = asyncio.create_task(services.pulse.beat())
    _tell_of_the_end(services.ending)
    yield
    pulse.cancel()
    await asyncio.to_thread(services.close)


def _tell_of_the_end(ending: asyncio.Event) -> None:
    """Sets `ending` at a signal: uvicorn waits for the open streams before it ends the lifespan."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)

        def handle(number: int, frame: FrameType | None, before: Any = before) -> None:
            loop.call_soon_threadsafe(ending.set)
            if callable(before):
                before(number, frame)

        signal.signal(number, handle)


app = FastAPI(title="rag_app", lifespan=lifespan, docs_url=None, redoc_url=None)
app.add_middleware(Guard)
app.include_router(files.router)
for router in (chat.router, engine.router, events.router):
    app.include_router(router, max_body_size=_LONGEST_QUESTION)
app.mount("/", StaticFiles(directory=_STATIC, html=True), name="page")


@app.exception_handler(AppError)
async def refuse(_: Request, error: AppError) -> JSONResponse:
    """Says why."""
    said = {"detail": str(error)}
    if isinstance(error, DuplicateError):
        said["file_id"] = error.file_id
    return JSONResponse(said, status_code=error.status, headers={"Retry-After": "1"} if error.status == 503 else None)


@app.exception_handler(RequestValidationError)
async def explain(_: Request, error: RequestValidationError) -> JSONResponse:
    """Says what is wrong, and not what was sent, which may be no text that can be sent back."""
    wrong = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return JSONResponse({"detail": ". ".join(wrong)}, status_code=422)


@app.exception_handler(ClientDisconnect)
async def nobody_listens(_: Request, error: ClientDisconnect) -> Response:  # noqa: ARG001 - as FastAPI calls it
    """A client has gone away in the middle of its upload; this is for the log only."""
    return Response(status_code=499)


@app.exception_handler(ChromaManagerError)
async def unavailable(_: Request, error: ChromaManagerError) -> JSONResponse:
    """A database cannot be used now. The message is for the log: it has paths in it."""
    _logger.error("a database cannot be used", exc_info=error)
    detail = "A database cannot be used at the moment. Try again; if that does not help, the app's log says why."
    return JSONResponse({"detail": detail}, status_code=503, headers={"Retry-After": "1"})
