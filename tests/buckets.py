"""A bucket: a server that speaks S3, in a process of its own, behind a proxy that counts, slows down and cuts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Script

# It ends with the process whose id it is given. Of that it is no child: tests look at the children of theirs.
SERVER = """
import os, select, sys, threading
from werkzeug.serving import make_server
from moto.server import DomainDispatcherApplication, create_backend_app
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
user = os.pidfd_open(int(sys.argv[1]))
threading.Thread(target=lambda: (select.select([user], [], []), os._exit(0)), daemon=True).start()
print(server.server_port, os.getpid(), flush=True)
server.serve_forever()
"""


class Server:
    """A process that speaks S3, and forgets everything when it ends."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", SERVER, str(os.getpid())]
        with subprocess.Popen(
            ["sh", "-c", '"$@" &', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as shell:
            assert shell.stdout is not None
            self.port, self.pid = map(int, shell.stdout.readline().split())

    def ask(self, method: str, path: str, data: bytes | None = None) -> bytes:
        headers = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class Proxy:
    """What is between an app and a server: it counts the bytes of both ways, and may be slow, or cut."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.sent = self.received = 0
        self.requests: list[str] = []
        self.bytes_per_second: float | None = None
        self.cut_at: int | None = None
        self.when_cut: Callable[[], object] = lambda: None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.upstream))
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            for one, other, is_sent in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(one, other, is_sent), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, is_sent: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    if is_sent:
                        self.sent += len(data)
                        first = data.split(b"\r\n", 1)[0]
                        if first.endswith(b"HTTP/1.1"):
                            self.requests.append(first.decode())
                    else:
                        self.received += len(data)
                    is_over = self.cut_at is not None and self.sent + self.received > self.cut_at
                if is_over:
                    self.cut_at = None
                    self.when_cut()
                if self.bytes_per_second is not None:
                    time.sleep(len(data) / self.bytes_per_second)
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Counts from nothing."""
        self.sent = self.received = 0
        self.requests = []

    def cut(self) -> None:
        """Ends all connections, and takes no more, as a server that was killed does."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def mend(self) -> None:
        """Takes connections again, at the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    started = Server()
    yield started
    started.kill()


@pytest.fixture
def own_s3() -> Iterator[Server]:
    """One that the test may kill."""
    started = Server()
    yield started
    started.kill()


def reach(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Has this process and its children find S3 there, as an app is told where its bucket is."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


def new_bucket(server: Server) -> str:
    name = f"bucket-{os.urandom(6).hex()}"
    server.ask("PUT", f"/{name}")
    return name


@pytest.fixture
def proxy(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The only way to the server."""
    made = Proxy(s3_server.port)
    reach(monkeypatch, made.port)
    yield made
    made.cut()


@pytest.fixture
def s3(s3_server: Server, proxy: Proxy) -> str:
    """The URL of a part of an empty bucket, behind the proxy."""
    return f"s3://{new_bucket(s3_server)}/all of/ours"


@pytest.fixture
def folder_url(tmp_path: Path) -> str:
    """A URL of a directory, which does not exist yet."""
    return (tmp_path / "a bucket" / "ours").as_uri()


@pytest.fixture(params=["s3", "folder_url"])
def url(request: pytest.FixtureRequest) -> str:
    """A URL of each kind."""
    return request.getfixturevalue(request.param)


class Folder:
    """What is in the directory of a `file://` URL, where the age of an object is that of its file."""

    def __init__(self, url: str) -> None:
        self.path = Path(urllib.request.url2pathname(url.removeprefix("file://")))

    def objects(self, kind: str) -> dict[str, Path]:
        return {path.name: path for path in sorted(self.path.glob(f"doc/azure/{kind}/*"))}

    def age(self, days: float, paths: list[Path] | None = None) -> None:
        """Has all objects that there are, or those, become that much older."""
        for path in paths if paths is not None else [path for path in self.path.rglob("*") if path.is_file()]:
            status = path.stat()
            os.utime(path, (status.st_atime, status.st_mtime - days * 24 * 3600))


@pytest.fixture
def objects(folder_url: str) -> Folder:
    return Folder(folder_url)


def assert_interrupted_at_once(app: Script, proxy: Proxy) -> None:
    """Ctrl-C ends what the app does through a slow proxy, which is fast from then on."""
    began = time.monotonic()
    app.process.send_signal(signal.SIGINT)
    assert app.read_line() == "interrupted"
    assert time.monotonic() - began < 3
    proxy.bytes_per_second = None


def left_over(base: Path) -> list[Path]:
    """Temporary directories and lock files of transfers."""
    found = [path for path in base.rglob(".chroma_manager.*") if path.name != ".chroma_manager.lock"]
    return [path for path in found if not path.name.endswith(".sock")]
