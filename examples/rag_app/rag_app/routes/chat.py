"""``/api/chat``: a question about files. The answer streams as events: ``passages``, ``text`` many times, ``done``."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

from rag_app.azure_chatbot import Search
from rag_app.catalog import File
from rag_app.dependencies import OpenOf, ServicesOf
from rag_app.errors import BusyError, NotFoundError, NotReadyError, TooManyError, UnusableError

router = APIRouter(prefix="/api/chat", tags=["chat"])

_MOST_FILES = 1000

_logger = logging.getLogger(__name__)


class Question(BaseModel):
    """A question.

    Attributes:
        question: In the words of the user.
        file_ids: Of the files to ask. Default: all that are ready.
    """

    question: str = Field(min_length=1, max_length=2000, pattern=r"\S")
    file_ids: list[Annotated[str, Field(max_length=64)]] | None = None


async def turn(services: ServicesOf) -> AsyncIterator[None]:
    """Counts the question among those that are being answered, until its answer has ended.

    Raises:
        BusyError: There are as many as can be.
    """
    most = services.configs.answers
    if services.answers >= most:
        raise BusyError(f"{most} questions are being answered, which is the most at once. Ask again in a moment.")
    services.answers += 1
    try:
        yield
    finally:
        services.answers -= 1


def files_to_ask(asked: Question, services: ServicesOf) -> list[File]:
    """The files of a question.

    Raises:
        NotFoundError: One is not there, or there is none.
        NotReadyError: One is not embedded yet.
        TooManyError: Their databases are more than are opened for one question.
    """
    files = {file.file_id: file for file in services.catalog.files()}
    if asked.file_ids is None:
        chosen = [file for file in files.values() if file.status == "ready"]
    else:
        if missing := [file_id for file_id in asked.file_ids if file_id not in files]:
            raise NotFoundError(f"There is no such file: {', '.join(missing)}. It may have been deleted.")
        chosen = [files[file_id] for file_id in dict.fromkeys(asked.file_ids)]
    if unready := [file.name for file in chosen if file.status != "ready"]:
        raise NotReadyError(f"Not ready to be asked: {', '.join(unready)}.")
    if not chosen:
        raise NotFoundError("There is no file to ask yet. Add one first.")
    if len(chosen) > _MOST_FILES:
        raise TooManyError(
            f"{len(chosen):,} files are more than the {_MOST_FILES:,} that are asked at once. Choose fewer."
        )
    return chosen


async def search(
    asked: Question, files: Annotated[list[File], Depends(files_to_ask)], services: ServicesOf, opened: OpenOf
) -> Search:
    """Finds the passages before the answer begins, so that a failure has a status of its own.

    Raises:
        NotFoundError: All files were deleted meanwhile.
        UnusableError: No file is left whose database can be used.
    """
    find = opened.azure_chatbot.find
    searched = await to_thread.run_sync(find, asked.question, files, limiter=services.answering)
    if searched.gone or searched.failed:
        # A database that was closed by a switch of engines looks like one that was deleted.
        services.check_is_open(opened)
    if len(searched.gone) == len(files):
        raise NotFoundError("The files were deleted meanwhile.")
    if len(searched.gone) + len(searched.failed) == len(files):
        names = ", ".join(_names(searched.failed))
        raise UnusableError(f"Cannot be asked: {names}. Try again; if that does not help, the app's log says why.")
    return searched


def answer(asked: Question, search: Annotated[Search, Depends(search)], opened: OpenOf) -> Iterator[Iterator[str]]:
    """The words of the answer. However the request ends, the model is told to stop, which FastAPI does not do."""
    with closing(opened.azure_chatbot.answer(asked.question, search.found)) as words:
        yield words


@router.post("", response_class=EventSourceResponse, dependencies=[Depends(turn)])
async def chat(
    search: Annotated[Search, Depends(search)],
    words: Annotated[Iterator[str], Depends(answer)],
    services: ServicesOf,
) -> AsyncIterator[ServerSentEvent]:
    """Streams the passages and the answer. ``error`` takes the place of ``done`` if the model fails in between."""
    passages = [passage._asdict() for passage in search.found]
    not_asked = {"gone": _names(search.gone), "failed": _names(search.failed)}
    yield ServerSentEvent(event="passages", data={"passages": passages, **not_asked})
    try:
        while text := await to_thread.run_sync(next, words, "", limiter=services.answering):
            yield ServerSentEvent(event="text", data=text)
    except Exception:
        _logger.exception("an answer has broken off")
        yield ServerSentEvent(event="error", data="The model has failed in the middle of its answer. Ask again.")
    else:
        yield ServerSentEvent(event="done", data={})


def _names(files: list[File]) -> list[str]:
    return [file.name for file in files]
