"""What one worker process has: the manager of the databases, the handler and the chatbot on it, and the pulse.

A switch of engines shuts the manager down and constructs all three anew, because a manager's options count once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any, NamedTuple

from anyio import CapacityLimiter
from chroma_manager import ChromaDBManager

from rag_app.azure_chatbot import AzureChatbot
from rag_app.bucket import Bucket, open_bucket
from rag_app.catalog import Catalog
from rag_app.configs import Configs
from rag_app.embedding_handler import EmbeddingHandler
from rag_app.errors import EngineError, SwitchingError
from rag_app.pulse import Pulse
from rag_app.shown import Shown
from rag_app.uploads import remove_abandoned

SWITCHABLE = ("isolated", "embedded")

_STORING_THREADS = 16  # for the bucket, and for databases that are removed
_SWITCHING = "The engine is being changed, and the databases are closed for a moment. Try again."

_logger = logging.getLogger(__name__)


class Open(NamedTuple):
    """What works on the databases, while they are open."""

    engine: str
    chroma_manager: ChromaDBManager
    embedding_handler: EmbeddingHandler
    azure_chatbot: AzureChatbot


class Services:
    """Of one worker. Routes get it through ``dependencies``."""

    def __init__(self, configs: Configs) -> None:
        """Opens everything."""
        self.configs = configs
        self.bucket: Bucket = open_bucket(configs)
        # To look at; the handler has one of its own, which says what this worker holds.
        self.catalog = Catalog(configs.data / "catalog.sqlite3", configs.lease_seconds)
        self.incoming = configs.data / "incoming"
        remove_abandoned(self.incoming)
        self.pulse = Pulse()
        self.shown = Shown(self._state)
        self.ending = asyncio.Event()
        # Threads of their own for what may wait long, so that whatever else a thread does finds one at once.
        self.extracting = CapacityLimiter(configs.extractions)
        self.storing = CapacityLimiter(_STORING_THREADS)
        self.answering = CapacityLimiter(configs.answers)
        self.answers = 0  # how many questions are being answered
        self._switching = threading.Lock()
        self._open: Open | None = self._opened(configs.engine)

    @property
    def open(self) -> Open:
        """What works on the databases.

        Raises:
            SwitchingError: The engine is just being changed.
        """
        opened = self._open
        if opened is None:
            raise SwitchingError(_SWITCHING)
        return opened

    def check_is_open(self, opened: Open) -> None:
        """Tells what was closed in the middle of a request from what has failed.

        Raises:
            SwitchingError: The engine has been changed since `opened` was.
        """
        if self._open is not opened:
            raise SwitchingError(_SWITCHING)

    @property
    def engine(self) -> str | None:
        """Name of the engine; None while it is being changed."""
        opened = self._open
        return opened.engine if opened else None

    def switch(self, engine: str) -> None:
        """Closes the databases, and opens them with another engine. What is being embedded goes on afterwards.

        Raises:
            EngineError: There are other workers, or the engine is a server's.
            SwitchingError: It is being changed already.
        """
        if not self._switching.acquire(blocking=False):
            raise SwitchingError("The engine is being changed already. Wait until that is done.")
        try:
            before = self.open
            if engine == before.engine:
                return
            if before.engine not in SWITCHABLE or engine not in SWITCHABLE:
                raise EngineError(f"The engine is {before.engine}, which is changed in the configuration only.")
            workers = self.catalog.workers()
            if workers > 1:
                raise EngineError(
                    f"{workers} workers share these databases, and embedded is for one process. Start the app with one "
                    f"worker to compare the engines."
                )
            self._open = None
            _close(before)
            try:
                self._open = self._opened(engine)
            except Exception:
                self._open = self._opened(before.engine)
                raise
        finally:
            self._switching.release()

    def close(self) -> None:
        """Stores what is in flight, and closes all databases."""
        with self._switching:
            if self._open is not None:
                _close(self._open)

    def _state(self) -> dict[str, Any]:
        return {
            "files": [file._asdict() for file in self.catalog.files()],
            "engine": self.engine,
            "workers": self.catalog.workers(),
            "max_upload_bytes": self.configs.max_upload_bytes,
        }

    def _opened(self, engine: str) -> Open:
        chroma_manager = ChromaDBManager(**self.configs.manager_options(engine))
        embedding_handler = EmbeddingHandler(self.configs, self.bucket, chroma_manager=chroma_manager)
        azure_chatbot = AzureChatbot(self.configs, self.bucket, chroma_manager=chroma_manager)
        return Open(engine, chroma_manager, embedding_handler, azure_chatbot)


def _close(services: Open) -> None:
    services.embedding_handler.stop()
    services.azure_chatbot.stop()
    services.chroma_manager.cleanup_all_instances()
    services.chroma_manager.shutdown()
    _logger.info("all databases are closed")
