"""A Chroma server of a test's own (`chroma run`), which can be killed and started again; and proxies before it."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import httpx
import psutil
import pytest
from chroma_manager import ChromaDBManager

HOST = "127.0.0.1"
STARTING_SECONDS = 60


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as free:
        free.bind(("::1", 0))
        return True
    return False


def wait_for(port: int, is_running: Callable[[], bool]) -> bool:
    """Whether somebody listens at a port before its process ends."""
    deadline = time.monotonic() + STARTING_SECONDS
    while time.monotonic() < deadline and is_running():
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
            return True
        time.sleep(0.02)
    return False


class ChromaServer:
    """A server that keeps its port and its data over its deaths."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port = free_port()
        self.start()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def begin_to_start(self) -> None:
        program = Path(sys.executable).with_name("chroma")
        command = [program, "run", "--path", self.path, "--host", HOST, "--port", str(self.port)]
        # Through a shell that ends: others take the children of this process for engine processes.
        detached = ["sh", "-c", '"$@" >/dev/null 2>&1 & echo $!', "sh", *command]
        started = subprocess.run(detached, check=True, stdout=subprocess.PIPE, text=True)
        self.process = psutil.Process(int(started.stdout))

    def start(self) -> None:
        self.begin_to_start()
        assert wait_for(self.port, self.is_running), "`chroma run` does not start"

    def is_running(self) -> bool:
        # It is a zombie for as long as nobody has reaped it.
        with contextlib.suppress(psutil.NoSuchProcess):
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        return False

    def begin_to_kill(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.process.kill()

    def kill(self) -> None:
        self.begin_to_kill()
        while self.is_running():
            time.sleep(0.01)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It answers nothing meanwhile, although connections are made."""
        self.process.suspend()
        try:
            yield
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.process.resume()

    def connections(self) -> int:
        """How many clients are connected to it."""
        return sum(1 for found in self.process.net_connections("tcp") if found.status == "ESTABLISHED")

    def client(self, tenant: str, database: str) -> chromadb.api.ClientAPI:
        """Stock Chroma's."""
        return chromadb.HttpClient(HOST, self.port, tenant=tenant, database=database)

    def manager(self, **options: object) -> ChromaDBManager:
        """A manager in a tenant of its own."""
        tenant = f"tenant-{uuid.uuid4().hex}"
        return ChromaDBManager(**{"engine": "server", "host": HOST, "port": self.port, "tenant": tenant, **options})


NGINX = """
daemon off; {user} pid {directory}/nginx.pid; error_log {directory}/error.log; worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log off; client_max_body_size {largest};
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    server {{
        listen {host}:{port};
        location / {{
            if ($http_authorization != "Bearer {token}") {{ return 401; }}
            proxy_pass http://{host}:{upstream};
        }}
    }}
}}
"""


@contextlib.contextmanager
def behind_nginx(server: ChromaServer, directory: Path, token: str, largest: str = "1g") -> Iterator[int]:
    """The port of a proxy that lets nobody pass without a token, and nothing that is larger."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if program is None:
        pytest.skip("needs nginx, which .ci/run installs")
    port = free_port()
    config = directory / "nginx.conf"
    # Otherwise its workers, as nobody, cannot write in the directory.
    user = "user root;" if os.geteuid() == 0 else ""
    values = {"host": HOST, "port": port, "token": token, "largest": largest, "upstream": server.port, "user": user}
    config.write_text(NGINX.format(directory=directory, **values))
    process = subprocess.Popen([program, "-p", directory, "-e", directory / "error.log", "-c", config])
    try:
        assert wait_for(port, lambda: process.poll() is None), (directory / "error.log").read_text()
        yield port
    finally:
        process.terminate()
        process.wait()


class Proxy(http.server.BaseHTTPRequestHandler):
    """Answers the first requests with a status, headers and a text, and has a Chroma server answer the others."""

    protocol_version = "HTTP/1.1"
    statuses: list[tuple[Any, ...]]
    upstream: str
    asked: list[tuple[float, str]]
    # What happens before the next such request goes on to the server: the requests, in their order.
    meanwhile: list[tuple[str, Callable[[], object]]]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        what = f"{self.command} {self.path.partition('?')[0].rpartition('/')[2]}"
        self.asked.append((time.monotonic(), what))
        if self.meanwhile and self.meanwhile[0][0] == what:
            self.meanwhile.pop(0)[1]()
        if self.statuses:
            status, headers, *text = self.statuses.pop(0)
            content = "".join(text or ["<html>busy</html>"]).encode()
        else:
            response = httpx.request(self.command, self.upstream + self.path, content=body, timeout=60)
            status, headers, content = response.status_code, {"content-type": "application/json"}, response.content
        self.send_response(status)
        for item in {**headers, "content-length": str(len(content))}.items():
            self.send_header(*item)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - their names are given

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def grudging(server: ChromaServer, host: str = HOST) -> Iterator[tuple[int, type[Proxy]]]:
    """The port of a proxy, and what it does."""
    does = type("Grudging", (Proxy,), {"statuses": [], "upstream": server.url, "asked": [], "meanwhile": []})
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = type("Listening", (http.server.ThreadingHTTPServer,), {"address_family": family})
    proxy = listening((host, 0), does)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield proxy.server_port, does
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
