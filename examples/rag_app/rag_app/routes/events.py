"""``/api/events``: what the page shows without being asked: the files, the engine, and the pulse of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from fastapi.sse import EventSourceResponse, ServerSentEvent

from rag_app.dependencies import ServicesOf

router = APIRouter(prefix="/api/events", tags=["events"])

_EVERY_SECONDS = 0.25


@router.get("", response_class=EventSourceResponse)
async def events(services: ServicesOf) -> AsyncIterator[ServerSentEvent]:
    """Streams ``state`` when it changes, and ``pulse`` four times a second, until the client goes or the app ends."""
    shown: dict[str, Any] | None = None
    number = 0
    while not services.ending.is_set():
        state = await services.shown.state()
        if state is not shown:
            shown = state
            yield ServerSentEvent(event="state", data=state, retry=1000)
        samples = services.pulse.since(number)
        if samples:
            number = samples[-1].number
            yield ServerSentEvent(event="pulse", data=samples)
        await asyncio.sleep(_EVERY_SECONDS)
