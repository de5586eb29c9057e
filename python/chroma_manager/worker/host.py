"""The program of a host: it loads what an engine process needs, and forks engine processes when the app asks for one.

The Rust half starts it and talks to it (``src/engine/isolated/client/host.rs``), over a socket that keeps messages
apart, its standard input. It has a single thread and opens no database, so a fork of it is as good as a new process. It
ends when the app closes the socket, or ends.

The engine process that is forked ahead shares that socket with it. It ends when the host does: otherwise the app would
not see the end of the socket.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING, NamedTuple

from chroma_manager.worker import template

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[[list[str], Callable[[], None]], None]

NAME = "chroma-host"

CHANNEL, NOWHERE = 0, 1
READY = b"r"
PERMIT = b"g"

# How many bytes the number of an engine process has.
NUMBER = 8

# A request has five descriptors: lock, listening socket, log, working directory, and the end of a pair of sockets over
# which the engine process asks the app for its permission.
DESCRIPTORS = 5
LONGEST_REQUEST = 1 << 20

STANDARD = range(3)
BYTE_ORDER = sys.byteorder


class Request(NamedTuple):
    """What an engine process is to be.

    Attributes:
        number: The app's number for it.
        arguments: Those of the program ``engine_process.py``.
        environment: Its environment variables, as `NAME=value`.
        descriptors: As above.
    """

    number: int
    arguments: list[str]
    environment: list[bytes]
    descriptors: list[int]


def serve(run: Run) -> None:
    """Forks engine processes until the app needs no more.

    One is always forked ahead, and waits: it receives the next request itself, so that nobody waits for the fork.

    Args:
        run: What an engine process does with its arguments, and with a function that waits until it may.
    """
    load()
    channel = socket.socket(fileno=CHANNEL)
    wakes, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    app = os.pidfd_open(os.getppid())
    # Each engine process writes its number, once it has received its request.
    taken, takes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    # What is there now is the same in all engine processes, and stays shared with them.
    gc.collect()
    gc.freeze()
    channel.send(READY)
    made = begin_template()
    numbers = dict[int, int]()
    ahead: int | None = None
    poll = select.poll()
    for descriptor in (wakes, app, made, taken):
        poll.register(descriptor, select.POLLIN)
    while True:
        poll.register(CHANNEL, select.POLLIN if ahead is None else 0)
        ready = dict(poll.poll())
        if app in ready or ready.get(CHANNEL, 0) & (select.POLLHUP | select.POLLERR):
            return
        is_wanted = ahead is None and CHANNEL in ready
        if made in ready:
            poll.unregister(made)
            keep_template(made)
            is_wanted = ahead is None
        number = read_number(taken)
        if ahead is not None and number is not None:
            numbers[ahead], ahead, is_wanted = number, None, True
        if wakes in ready and ahead in report_ended(channel, wakes, numbers):
            ahead = None
        if is_wanted:
            ahead = os.fork()
            if ahead == 0:
                os.close(taken)
                become_engine(channel, takes, run)


def read_number(taken: int) -> int | None:
    """The number of the engine process that has received its request; ``None`` where none has."""
    with contextlib.suppress(BlockingIOError):
        return int.from_bytes(os.read(taken, NUMBER), BYTE_ORDER)
    return None


def begin_template() -> int:
    """Has a process make the template of new databases; a descriptor from which it can be read."""
    readable, made = os.pipe2(os.O_CLOEXEC)
    if os.fork() == 0:
        try:
            # Where the host ends meanwhile, the app is not to wait for the end of the channel, nor this process for a
            # reader.
            os.dup2(NOWHERE, CHANNEL)
            os.close(readable)
            content = template.make()
            with open(made, "wb") as pipe:
                pipe.write(len(content).to_bytes(8, BYTE_ORDER) + content)
        finally:
            os._exit(0)
    os.close(made)
    return readable


def keep_template(readable: int) -> None:
    """Keeps the template that a process has made, if it is whole."""
    with open(readable, "rb") as pipe:
        size, content = pipe.read(8), pipe.read()
    if content and len(content) == int.from_bytes(size, BYTE_ORDER):
        template.keep(content)


def load() -> None:
    """Imports what every engine process imports, and what most of them do."""
    import uuid  # noqa: F401, PLC0415 - the binding imports it in a call

    import chromadb.errors  # noqa: F401, PLC0415 - found only now
    import chromadb_rust_bindings  # noqa: F401, PLC0415 - found only now

    from chroma_manager._native import serve  # noqa: F401, PLC0415 - found only now
    from chroma_manager.worker import database, stand_ins  # noqa: F401, PLC0415 - found only now


def receive(channel: socket.socket) -> Request | None:
    """The next request; ``None`` where the app has closed the channel."""
    message, descriptors, _, _ = socket.recv_fds(channel, LONGEST_REQUEST, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    if not message:
        return None
    number, *parts = message.split(b"\0")
    arguments, environment = parts[:3], parts[3:]
    return Request(
        int(number),
        [os.fsdecode(argument) for argument in arguments],
        environment,
        descriptors,
    )


def adopt_environment(variables: list[bytes]) -> None:
    """Changes the environment of this process to these variables."""
    wanted = dict(variable.split(b"=", 1) for variable in variables)
    for name in os.environb.keys() - wanted.keys():
        del os.environb[name]
    for name, value in wanted.items():
        if os.getenvb(name) != value:
            os.environb[name] = value


def report_ended(channel: socket.socket, wakes: int, numbers: dict[int, int]) -> set[int]:
    """Tells the app of the engine processes that have ended; the pids of all processes that have."""
    with contextlib.suppress(BlockingIOError):
        os.read(wakes, 1 << 12)
    ended = set[int]()
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.add(pid)
        number = numbers.pop(pid, None)
        if number is not None:
            with contextlib.suppress(OSError):
                channel.send(number.to_bytes(NUMBER, BYTE_ORDER) + status.to_bytes(4, BYTE_ORDER, signed=True))


def become_engine(channel: socket.socket, takes: int, run: Run) -> None:
    """Makes this process the engine process of the next request. Does not return."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)
        request = wait_for_request(channel, takes)
        if request is None:
            os._exit(0)
        *standard, directory, app = request.descriptors
        answer = socket.socket(fileno=app)
        answer.send(os.getpid().to_bytes(4, BYTE_ORDER))
        os.fchdir(directory)
        for descriptor, inherited in zip(STANDARD, standard, strict=True):
            os.dup2(inherited, descriptor)
        adopt_environment(request.environment)
        run(request.arguments, lambda: wait_for_permission(answer))
        status = 0
    except SystemExit as end:
        os.write(2, f"{end}\n".encode())
    except BaseException:
        import traceback  # noqa: PLC0415 - takes milliseconds

        traceback.print_exc()
    finally:
        os._exit(status)


def wait_for_permission(answer: socket.socket) -> None:
    """Waits for the app's permission to touch the database, and ends this process if it does not come."""
    from chroma_manager._native import close_inherited  # noqa: PLC0415 - found only now

    # An app that has given up has started another one, which has the database.
    if answer.recv(1) != PERMIT:
        os._exit(0)
    answer.close()
    # All that it shares with the host.
    close_inherited()


def wait_for_request(channel: socket.socket, takes: int) -> Request | None:
    """The next request, of which the host is told; ``None`` where the host or the app has ended."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    # It has no other reader than the host.
    poll.register(takes, 0)
    if takes in dict(poll.poll()):
        return None
    request = receive(channel)
    if request is not None:
        os.write(takes, request.number.to_bytes(NUMBER, BYTE_ORDER))
    return request
