"""A piece of work in a forked process with a bound: what it returns, or the stacks of all that hangs."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import select
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STACKS_WITHIN = 1.0


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
    reader, writer = os.pipe()
    stacks = scratch / "stacks"
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_child(work, writer, stacks)
    os.close(writer)
    try:
        said = _read(reader, time.monotonic() + seconds)
        if said is None:
            raise HangError(_stacks(child, stacks, scratch))
        if not said:
            raise DiedError("the app's process died")
        is_result, value = pickle.loads(said)
        if not is_result:
            raise DiedError(value)
        return value
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _be_child(work: Callable[[], Any], writer: int, stacks: Path) -> None:
    try:
        with stacks.open("w") as file:
            faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
            try:
                said = (True, work())
            except BaseException:
                said = (False, traceback.format_exc())
            os.set_blocking(writer, True)
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
