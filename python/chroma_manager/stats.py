"""The shape of what ``ChromaDBManager.stats`` returns."""

from __future__ import annotations

from typing import TypedDict


class InstanceStats(TypedDict):
    """One open instance, as in ``Stats``."""

    file_id: str
    embedding_type: str
    path: str
    engine: str
    threads: int
    """Threads that hold a client of it."""
    clients: int
    """Clients that they hold: one a thread, and one for each user's session."""
    opened_at: float
    """Seconds since 1970."""
    last_used_at: float
    """Seconds since 1970: the last ``get_client``, or the last call through a client."""


class Stats(TypedDict):
    """What ``ChromaDBManager.stats`` returns. Counters begin with the manager."""

    instances: dict[str, InstanceStats]
    """Open instances by key, ``file_id/embedding_type``."""
    openings: int
    """Databases opened, again after an idle close included."""
    hits: int
    """Calls of ``get_client`` that found the thread's client."""
    cleanups: int
    """Calls of ``cleanup_instance`` and ``cleanup_all_instances``."""
    evictions: int
    """Databases closed because ``max_engines`` others were to be open."""
    errors: int
    """Databases that could not be opened."""
