"""``EmbeddingHandler``: embeds the passages of files in parallel threads, each with its own client of each database.

What a worker has begun and not finished, at its end or its death, another one finishes.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from chroma_manager import ChromaDBManager, ClientClosedError, InstanceNotFoundError

from rag_app.bucket import Bucket
from rag_app.catalog import Catalog, File
from rag_app.configs import Configs
from rag_app.errors import AppError, NotFoundError, UpstreamError
from rag_app.model import embed, open_model
from rag_app.passages import Passage
from rag_app.uploads import Upload

_BATCH = 32  # passages in a call
_LOOK_SECONDS = 1.0

_logger = logging.getLogger(__name__)


def collection_of(file_id: str, embedding_type: str) -> str:
    """The name of the one collection that a file's database has."""
    return f"rag_collection_{file_id}_{embedding_type}"


class EmbeddingHandler:
    """Embeds the files that wait in the catalogue, until it is stopped."""

    def __init__(self, configs: Configs, gcs_handler: Bucket, chroma_manager: ChromaDBManager) -> None:
        """Begins at once with what waits.

        Args:
            configs: See there.
            gcs_handler: The bucket that has the passages of each file.
            chroma_manager: Manager of the databases.
        """
        self._configs = configs
        self._bucket = gcs_handler
        self._manager = chroma_manager
        self._model = open_model(configs)
        self._type = configs.embedding_type
        self.catalog = Catalog(configs.data / "catalog.sqlite3", configs.lease_seconds)
        self.catalog.embed_again(self._type)
        self._stopping = threading.Event()
        self._something_waits = threading.Event()
        # A file has a thread that looks after it, and its batches are embedded and stored in others.
        self._batches = ThreadPoolExecutor(configs.embedding_threads, thread_name_prefix="embed")
        files = [threading.Thread(target=self._work, name=f"file-{n}") for n in range(configs.embedding_threads)]
        self.catalog.say_alive()
        # A bucket that takes its time over deletions, or refuses them, keeps no file from being embedded.
        others = [(self._say_alive, "say-alive"), (self._remove_what_is_left, "remove")]
        self._threads = [*files, *(threading.Thread(target=target, name=name) for target, name in others)]
        for thread in self._threads:
            thread.start()

    def embed(self, upload: Upload, passages: Sequence[Passage]) -> File:
        """Takes a file into the catalogue and the bucket, for a worker to embed.

        Args:
            upload: The file.
            passages: Its text.

        Raises:
            DuplicateError: The same content is here already.
            NotFoundError: It was deleted at once.
            UpstreamError: The bucket does not take it.
        """
        file_id = self.catalog.add(upload.name, upload.kind, upload.bytes, upload.digest, self._type)
        try:
            self._bucket.blob(f"{file_id}/original.{upload.kind}").upload_from_filename(str(upload.path))
            self._bucket.blob(_passages_of(file_id)).upload_from_string(json.dumps(passages).encode())
        except Exception as error:
            _logger.exception("the bucket has not taken %s", file_id)
            self.delete(file_id)
            raise UpstreamError(
                f"{upload.name} could not be stored: the bucket does not take it. Try again."
            ) from error
        is_there = self.catalog.stored(file_id, len(passages))
        file = self.catalog.find(file_id)
        if file is None or not is_there:
            # What the deletion has not found, because it was stored later.
            self._removed(file_id)
            raise NotFoundError(f"{upload.name} was deleted while it was being stored.")
        self._something_waits.set()
        return file

    def retry(self, file: File) -> bool:
        """Embeds a file again that has failed. False if it has not failed, or is gone."""
        is_there = file.status == "failed" and self.catalog.stored(file.file_id, file.total)
        self._something_waits.set()
        return is_there

    def delete(self, file_id: str) -> bool:
        """Removes a file and all that is known of it, whatever is being done with it. False if there is none."""
        if not self.catalog.delete(file_id):
            return False
        self._removed(file_id)
        return True

    def stop(self) -> None:
        """Ends when the batches in flight are stored. What is left waits in the catalogue."""
        self._stopping.set()
        self._something_waits.set()
        for thread in self._threads:
            thread.join()
        self._batches.shutdown()
        self.catalog.say_goodbye()

    def _say_alive(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            self._try(self.catalog.say_alive)

    def _work(self) -> None:
        while not self._stopping.is_set():
            if not self._try(self._take_next):
                # Another worker may leave something, which nobody tells.
                self._something_waits.wait(_LOOK_SECONDS)
                self._something_waits.clear()

    def _remove_what_is_left(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            while self._try(self._remove_next) and not self._stopping.is_set():
                pass

    def _try(self, step: Callable[[], object]) -> bool:
        """What a step returns; False if it fails, which must not end its thread."""
        try:
            return bool(step())
        except Exception:
            _logger.exception("a step of the embedding has failed, and is tried again")
            return False

    def _take_next(self) -> bool:
        file = self.catalog.claim_to_embed()
        if file is not None:
            self._embed_file(file)
        return file is not None

    def _remove_next(self) -> bool:
        file = self.catalog.claim_to_remove()
        if file is not None:
            self._removed(file.file_id)
        return file is not None

    def _embed_file(self, file: File) -> None:
        try:
            stored = self._bucket.blob(_passages_of(file.file_id)).download_as_bytes()
            passages = [Passage(*passage) for passage in json.loads(stored)]
            if self._store(file.file_id, passages):
                self.catalog.ready(file.file_id, self._type)
            elif self._stopping.is_set():
                self.catalog.release(file.file_id)
        except (InstanceNotFoundError, ClientClosedError):
            # It was deleted, or the manager is shut down.
            self.catalog.release(file.file_id)
        except Exception as error:
            _logger.exception("%s cannot be embedded", file.file_id)
            reason = str(error) if isinstance(error, AppError) else "The app's log says why."
            self.catalog.failed(file.file_id, f"It could not be embedded. {reason}")

    def _store(self, file_id: str, passages: Sequence[Passage]) -> bool:
        """False if it was told to stop."""
        # Opens the database once, before the threads share it, and creates it where it is missing.
        client = self._manager.get_client(file_id, self._type)
        name = collection_of(file_id, self._type)
        there = {each.name for each in client.list_collections()}
        # What another worker has stored before it ended.
        known = set(client.get_collection(name).get(include=[])["ids"]) if name in there else set()
        numbered = ((str(number), passage) for number, passage in enumerate(passages))
        left = iter([(number, passage) for number, passage in numbered if number not in known])
        done = len(known)
        while True:
            if not self.catalog.progress(file_id, done):
                if self.catalog.is_gone(file_id):
                    # It was deleted, perhaps before the database was created here.
                    self._manager.delete_file(file_id)
                return False
            if self._stopping.is_set():
                return False
            batches = [batch for _ in range(self._configs.embedding_threads) if (batch := list(islice(left, _BATCH)))]
            if not batches:
                return True
            list(self._batches.map(lambda batch: self._store_batch(file_id, batch), batches))
            done += sum(map(len, batches))

    def _store_batch(self, file_id: str, batch: Sequence[tuple[str, Passage]]) -> None:
        texts = [passage.text for _, passage in batch]
        vectors = embed(self._model, self._configs.azure_embedding_deployment, texts)
        name = collection_of(file_id, self._type)
        # A database that is missing now was deleted.
        collection = self._manager.get_collection(file_id, self._type, name, on_missing="error")
        collection.add(
            ids=[number for number, _ in batch],
            embeddings=vectors,
            documents=texts,
            metadatas=[{"place": passage.place} for _, passage in batch],
        )

    def _removed(self, file_id: str) -> None:
        try:
            self._manager.cleanup_instance(file_id, self._type)
            self._manager.delete_file(file_id)
            for blob in self._bucket.list_blobs(prefix=f"{file_id}/"):
                blob.delete()
        except Exception:
            _logger.exception("%s is not yet removed; a worker tries again later", file_id)
            self.catalog.leave(file_id)
        else:
            self.catalog.forget(file_id)


def _passages_of(file_id: str) -> str:
    return f"{file_id}/passages.json"
