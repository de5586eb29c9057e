"""A piece of work in a forked process with a bound: what it returns, or the stacks of all that hangs."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import os
import pickle
import select
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

STACKS_WITHIN = 1.0
PR_SET_PDEATHSIG = 1


class HangError(Exception):
    """It did not end in time; says where it was."""


class DiedError(Exception):
    """It ended without a result."""


def in_child(work: Callable[[], Any], seconds: float, scratch: Path) -> Any:
    """What `work` returns in a process of its own.

    Raises:
        HangError: It took longer.
        DiedError: It ended otherwise.
    """
    stacks = scratch / "stacks"
    child, reader = _start(work, stacks)
    try:
        said = _read(reader, time.monotonic() + seconds)
        if said is None:
            raise HangError(_stacks(child, stacks, scratch))
        return _result(said)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def in_children(work: Callable[[T], R], items: Iterable[T], jobs: int, deadline: float) -> Iterator[R]:
    """What `work` returns of each item, as it comes: in processes of their own, some at once.

    None is begun after the deadline. They end when the caller wants no more.
    """
    running: dict[int, tuple[int, bytearray]] = {}
    waiting = iter(items)
    try:
        while True:
            while len(running) < jobs and time.monotonic() < deadline:
                item = next(waiting, None)
                if item is None:
                    break
                pid, reader = _start(functools.partial(work, item), None)
                running[reader] = (pid, bytearray())
            if not running:
                return
            for reader in select.select(list(running), [], [])[0]:
                part = os.read(reader, 1 << 20)
                pid, said = running[reader]
                said += part
                if not part:
                    del running[reader]
                    os.close(reader)
                    os.waitpid(pid, 0)
                    yield _result(bytes(said))
    finally:
        for reader, (pid, _) in running.items():
            os.close(reader)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _start(work: Callable[[], Any], stacks: Path | None) -> tuple[int, int]:
    """A child and the descriptor from which its result is read."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_child(work, writer, stacks)
    os.close(writer)
    return child, reader


def _result(said: bytes) -> Any:
    if not said:
        raise DiedError("the app's process died")
    is_result, value = pickle.loads(said)
    if not is_result:
        raise DiedError(value)
    return value


def _be_child(work: Callable[[], Any], writer: int, stacks: Path | None) -> None:
    try:
        # It ends with its parent: nobody else would end one that hangs.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if stacks is not None:
            file = stacks.open("w")
            faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        try:
            said = (True, work())
        except BaseException:
            said = (False, traceback.format_exc())
        left = memoryview(pickle.dumps(said))
        while left:
            left = left[os.write(writer, left) :]
    finally:
        os._exit(0)


def _read(reader: int, deadline: float) -> bytes | None:
    """All until the end; ``None`` where that does not come in time."""
    said = b""
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        part = os.read(reader, 1 << 20)
        if not part:
            return said
        said += part


def _stacks(child: int, file: Path, scratch: Path) -> str:
    """Where the app and its engine processes are."""
    os.kill(child, signal.SIGUSR1)
    time.sleep(STACKS_WITHIN)
    engines = [f"process {pid} ({_command(pid)}):\n{_native_stacks(pid)}" for pid in processes_in(scratch)]
    return "\n".join([f"app {child}:\n{file.read_text()}", *engines])


def _native_stacks(pid: int) -> str:
    if shutil.which("gdb") is None:
        tasks = Path(f"/proc/{pid}/task").glob("*")
        return "\n".join(f"{task.name}: {_text(task / 'wchan')} {_text(task / 'syscall')}" for task in tasks)
    command = ["gdb", "-p", str(pid), "-batch", "-nx", "-ex", "thread apply all bt 12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "gdb took too long"
    return "\n".join(line for line in done.stdout.splitlines() if line.startswith(("Thread", "#")))


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").replace("\0", " ").strip()
    except OSError as error:
        return str(error.strerror)


def _command(pid: int) -> str:
    return " ".join(word.rsplit("/", 1)[-1][:40] for word in _text(Path(f"/proc/{pid}/cmdline")).split()[:6])


def processes_in(directory: Path) -> Iterator[int]:
    """Those that work below a directory: engine processes."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink().is_relative_to(directory):
                    yield int(entry.name)


def end_processes_in(directory: Path, seconds: float) -> list[int]:
    """Waits until none is left; kills those that are, and returns them."""
    deadline = time.monotonic() + seconds
    while left := list(processes_in(directory)):
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return left
        time.sleep(0.01)
    return []
