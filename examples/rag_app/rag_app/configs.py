"""The configuration, which is read from the environment: ``RAG_ENGINE=embedded``, say. All of it has a default."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from chroma_manager.options import ENGINES
from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

# What may be a part of the name of a collection, and of a directory. The names of Azure's deployments are of this form.
_PLAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


class Configs(BaseSettings):
    """What the app is configured with; each attribute is ``RAG_`` and its name in capitals in the environment.

    Attributes:
        data: Directory of the databases, the catalogue and the local bucket. All workers share it. Default
            ``./rag_data``.
        engine: Engine of the manager: ``isolated``, ``embedded`` or ``server``. Default: the manager's own.
        hosts: Names by which browsers reach the app, separated by commas, or ``*``. Addresses, and names that only the
            local network knows (see ``guard``), need not be among them.
        chroma_host: Host of the Chroma server, with ``engine="server"``.
        chroma_port: Port of the Chroma server, with ``engine="server"``.
        bucket: Name of a bucket of Google Cloud Storage. Default: files in a directory below ``data``.
        azure_endpoint: Address of an Azure OpenAI resource. Default: the local model, which downloads nothing.
        azure_api_key: Key of the resource.
        azure_api_version: Version of its API.
        azure_embedding_deployment: Name of the deployment that embeds.
        azure_chat_deployment: Name of the deployment that answers.
        max_upload_bytes: Size of the largest file. Default 20 MiB.
        silent_seconds: For how long who uploads a file may send nothing. Default 30.
        max_unpacked_bytes: What a docx, which is a zip, may have unpacked. Default 100 MiB.
        max_characters: Length of the longest text that is read from a file. Default 5 million.
        extraction_seconds: How long a file may take to be read. Default 30.
        extraction_memory_bytes: How much memory the process that reads a file may have. Default 1 GiB.
        extractions: How many files are read at once in a worker. Default 2.
        embedding_threads: Threads in which a worker embeds. Default 4.
        chat_threads: Threads in which a worker asks the databases. Default 8.
        answers: How many questions a worker answers at once. More are refused for the moment. Default 32.
        lease_seconds: After how long without a sign of life a worker's files are given to others. Default 30.
    """

    model_config = SettingsConfigDict(env_prefix="RAG_")

    data: Path = Path("rag_data")
    engine: str = ENGINES[0]
    hosts: str = ""
    chroma_host: str | None = None
    chroma_port: int | None = None
    bucket: str | None = None
    azure_endpoint: str | None = None
    azure_api_key: SecretStr = SecretStr("")
    azure_api_version: str = "2024-10-21"
    azure_embedding_deployment: str = "text-embedding-3-small"
    azure_chat_deployment: str = "gpt-4o-mini"
    max_upload_bytes: int = 20 * 2**20
    silent_seconds: float = 30.0
    max_unpacked_bytes: int = 100 * 2**20
    max_characters: int = 5_000_000
    extraction_seconds: float = 30.0
    extraction_memory_bytes: int = 2**30
    extractions: int = 2
    embedding_threads: int = 4
    chat_threads: int = 8
    answers: int = 32
    lease_seconds: float = 30.0

    @property
    def embedding_type(self) -> str:
        """Second half of the key of every database: vectors of two models are not comparable."""
        if self.azure_endpoint is None:
            return "local"
        deployment = self.azure_embedding_deployment
        if not _PLAIN.fullmatch(deployment):
            deployment = hashlib.sha256(deployment.encode()).hexdigest()[:32]
        return f"azure-{deployment}"

    @property
    def host_names(self) -> frozenset[str]:
        """The names of ``hosts``, in lower case."""
        return frozenset(name for part in self.hosts.split(",") if (name := part.strip().lower()))

    def manager_options(self, engine: str | None = None) -> dict[str, Any]:
        """The arguments of ``ChromaDBManager``.

        Args:
            engine: Instead of the configured one.
        """
        options: dict[str, Any] = {"base_path": self.data / "chroma", "engine": engine or self.engine}
        if options["engine"] == "server":
            options |= {"host": self.chroma_host, "port": self.chroma_port}
        return {name: value for name, value in options.items() if value is not None}
