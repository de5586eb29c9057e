"""Waiting for transfers: they run in an event loop in a thread of their own, and Ctrl-C ends them.

The caller may be in an event loop itself, and may be any thread. It waits detached from the interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

T = TypeVar("T")

# How many files are sent or fetched at once.
FILES_AT_ONCE = 3


def run(work: Coroutine[Any, Any, T]) -> T:
    """Returns what a coroutine returns, or raises what it raises. If the wait is interrupted, it is cancelled."""
    done: Future[T] = Future()
    task: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = Future()

    async def body() -> None:
        task.set_result((asyncio.get_running_loop(), asyncio.ensure_future(work)))
        try:
            done.set_result(await task.result()[1])
        except BaseException as error:  # for the thread that waits, whatever it is
            done.set_exception(error)

    thread = threading.Thread(target=lambda: asyncio.run(body()), name="chroma-manager-bucket", daemon=True)
    thread.start()
    try:
        return done.result()
    except BaseException:
        if not done.done():
            loop, running = task.result()
            with contextlib.suppress(RuntimeError):  # it has ended just now
                loop.call_soon_threadsafe(running.cancel)
        raise
    finally:
        thread.join()


async def at_once(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What coroutines return, of which a few run at once. The first failure cancels the others, and is raised."""
    gate = asyncio.Semaphore(FILES_AT_ONCE)

    async def admitted(work: Coroutine[Any, Any, T]) -> T:
        try:
            async with gate:
                return await work
        finally:
            work.close()

    tasks = [asyncio.ensure_future(admitted(work)) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
