"""``AzureChatbot``: finds the passages of several files that answer a question, and streams the answer."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import NamedTuple

from chroma_manager import (
    ChromaDBManager,
    ChromaManagerError,
    ClientClosedError,
    InstanceNotFoundError,
    ServerAccessError,
    ServerUnavailableError,
)
from chromadb.errors import ChromaError

from rag_app.bucket import Bucket
from rag_app.catalog import File
from rag_app.configs import Configs
from rag_app.embedding_handler import collection_of
from rag_app.model import Vectors, embed, open_model

_PASSAGES = 5
_INSTRUCTIONS = (
    "Answer the question at the end from the numbered passages before it, and from nothing else. After each statement "
    "name the passage that says so, as [1]. If they do not answer it, say so."
)

_logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """A passage that is close to a question.

    Attributes:
        file_id: Of its file.
        name: Of its file.
        place: Where it stands in the file.
        score: Its cosine similarity with the question: 1 for the same, about 0 for nothing in common.
        text: What it says.
    """

    file_id: str
    name: str
    place: str
    score: float
    text: str


class NotAsked(Enum):
    """Why a file has no part in an answer."""

    GONE = "it was deleted meanwhile"
    FAILED = "its database cannot be used"


class Search(NamedTuple):
    """What the databases say to a question.

    Attributes:
        found: The best passages, the best first.
        gone: The files that were deleted meanwhile.
        failed: The files whose databases cannot be used: one is damaged, say. The log says why.
    """

    found: list[Found]
    gone: list[File]
    failed: list[File]


class AzureChatbot:
    """Answers questions. Any thread may ask."""

    def __init__(self, configs: Configs, gcs_handler: Bucket, chroma_manager: ChromaDBManager) -> None:
        """Takes what an ``EmbeddingHandler`` takes.

        Args:
            configs: See there.
            gcs_handler: The bucket. An answer is made of the databases alone.
            chroma_manager: Manager of the databases.
        """
        self._configs = configs
        self._bucket = gcs_handler
        self._manager = chroma_manager
        self._model = open_model(configs)
        self._databases = ThreadPoolExecutor(configs.chat_threads, thread_name_prefix="chat")

    def find(self, question: str, files: Sequence[File]) -> Search:
        """Asks the databases of all files at once.

        Args:
            question: In the words of the user.
            files: Those to ask.

        Raises:
            UpstreamError: The model has not embedded the question.
            ChromaManagerError: The Chroma server does not answer.
        """
        vector = embed(self._model, self._configs.azure_embedding_deployment, [question])
        answers = list(self._databases.map(lambda file: self._answer_of(vector, file), files))
        found = [passage for answer in answers if not isinstance(answer, NotAsked) for passage in answer]
        found.sort(key=lambda passage: -passage.score)
        gone, failed = (
            [file for file, answer in zip(files, answers, strict=True) if answer is why] for why in NotAsked
        )
        return Search(found[:_PASSAGES], gone, failed)

    def answer(self, question: str, passages: Sequence[Found]) -> Generator[str, None, None]:
        """Streams the answer, a few words at a time. Close it to have the model stop."""
        numbered = (
            f"[{number}] {passage.name}, {passage.place}\n{passage.text}" for number, passage in enumerate(passages, 1)
        )
        messages = [{"role": "system", "content": _INSTRUCTIONS}]
        messages += [{"role": "user", "content": text} for text in (*numbered, question)]
        stream = self._model.chat.completions.create(
            model=self._configs.azure_chat_deployment, messages=messages, stream=True
        )
        try:
            for chunk in stream:
                # The first chunk of Azure's has no choice: it is about its filters of content.
                text = chunk.choices[0].delta.content if chunk.choices else None
                if text:
                    yield text
        finally:
            stream.close()

    def stop(self) -> None:
        """Ends when the questions in flight are answered by the databases."""
        self._databases.shutdown()

    def _answer_of(self, vector: Vectors, file: File) -> list[Found] | NotAsked:
        try:
            return self._ask(vector, file)
        except (InstanceNotFoundError, ClientClosedError):
            return NotAsked.GONE
        except (ServerUnavailableError, ServerAccessError):
            # All of them are there, so nothing is gained by asking the others.
            raise
        except (ChromaManagerError, ChromaError):
            _logger.exception("%s, which is %s, cannot be asked", file.name, file.file_id)
            return NotAsked.FAILED

    def _ask(self, vector: Vectors, file: File) -> list[Found]:
        file_type = self._configs.embedding_type
        name = collection_of(file.file_id, file_type)
        collection = self._manager.get_collection(file.file_id, file_type, name, on_missing="error")
        answer = collection.query(query_embeddings=vector, n_results=_PASSAGES)
        rows = zip(
            (answer["metadatas"] or [[]])[0],
            (answer["distances"] or [[]])[0],
            (answer["documents"] or [[]])[0],
            strict=True,
        )
        # The distance of unit vectors is the square of a length: 2 for those that have nothing in common.
        return [
            Found(file.file_id, file.name, str(metadata["place"]), round(1 - distance / 2, 4), text)
            for metadata, distance, text in rows
        ]
