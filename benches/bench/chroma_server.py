"""A Chroma server of this process's own (`chroma run`), on 127.0.0.1, and its clients."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
STARTING_SECONDS = 60
TENANT = "default_tenant"


class ChromaServer:
    """A server that is running when the constructor returns."""

    def __init__(self, path: Path) -> None:
        with socket.socket() as free:
            free.bind((HOST, 0))
            self.port = free.getsockname()[1]
        program = Path(sys.executable).with_name("chroma")
        command = [program, "run", "--path", path, "--host", HOST, "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self._wait_until_ready()
        except BaseException:
            self.end()
            raise

    def client(self, database: str) -> Any:
        """Returns a new client of a database of the server, which is created if need be."""
        import chromadb
        from chromadb.errors import NotFoundError

        try:
            return chromadb.HttpClient(HOST, self.port, database=database)
        # chromadb 1.5 wraps what the server says.
        except (NotFoundError, ValueError):
            self._create(database)
            return chromadb.HttpClient(HOST, self.port, database=database)

    def end(self) -> None:
        """Ends the server."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _create(self, database: str) -> None:
        import chromadb
        from chromadb.config import Settings
        from chromadb.errors import UniqueConstraintError

        settings = Settings(
            chroma_api_impl="chromadb.api.fastapi.FastAPI", chroma_server_host=HOST, chroma_server_http_port=self.port
        )
        with contextlib.suppress(UniqueConstraintError):  # another thread was first
            chromadb.AdminClient(settings).create_database(database, TENANT)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 1):
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("`chroma run` does not start")
            time.sleep(0.02)
