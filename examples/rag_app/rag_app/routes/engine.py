"""``/api/engine``: which engine the databases run on, and the switch. ``/api/health``: whether this worker serves."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from rag_app.dependencies import OpenOf, ServicesOf

router = APIRouter(prefix="/api", tags=["engine"])


class Choice(BaseModel):
    """An engine to change to."""

    engine: Literal["isolated", "embedded"]


@router.get("/engine")
def show_engine(services: ServicesOf) -> dict[str, Any]:
    """The engine, None while it is being changed, and how many workers share the databases."""
    return {"engine": services.engine, "workers": services.catalog.workers()}


@router.put("/engine")
def switch_engine(choice: Choice, services: ServicesOf) -> dict[str, Any]:
    """Closes all databases and opens them with another engine. With several workers it is refused."""
    services.switch(choice.engine)
    return show_engine(services)


@router.get("/health")
async def health(opened: OpenOf) -> dict[str, Any]:
    """For a container's health check, and for those who look: the worker, its engine, and what is open."""
    stats = await asyncio.to_thread(opened.chroma_manager.stats)
    return {"worker": os.getpid(), "engine": opened.engine, "open": len(stats["instances"])}
