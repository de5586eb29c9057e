"""``/api/files``: list, upload, embed again, delete."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request

from rag_app.dependencies import FileOf, OpenOf, ServicesOf
from rag_app.errors import NotFoundError, NotReadyError
from rag_app.extraction import extract
from rag_app.uploads import received

router = APIRouter(prefix="/api/files", tags=["files"])


@router.get("")
def list_files(services: ServicesOf) -> dict[str, Any]:
    """All files, the newest first, with how far each is, and what is let in."""
    return {
        "files": [file._asdict() for file in services.catalog.files()],
        "max_upload_bytes": services.configs.max_upload_bytes,
    }


@router.post("", status_code=201)
async def upload_file(
    name: Annotated[str, Query(max_length=4096)], request: Request, services: ServicesOf, opened: OpenOf
) -> dict[str, Any]:
    """Takes a file: its name in the query, its content as the body. Its text is read before this answers."""
    configs = services.configs
    limits = (configs.max_upload_bytes, configs.silent_seconds)
    async with received(name, request.stream(), *limits, services.incoming) as upload:
        await asyncio.to_thread(services.catalog.check_is_new, upload.name, upload.digest)
        passages = await to_thread.run_sync(
            extract, configs, upload.name, upload.kind, upload.path, limiter=services.extracting
        )
        file = await to_thread.run_sync(opened.embedding_handler.embed, upload, passages, limiter=services.storing)
    return file._asdict()


@router.post("/{file_id}/retry", status_code=202)
def retry_file(file: FileOf, opened: OpenOf) -> None:
    """Has a file embedded again that could not be."""
    if not opened.embedding_handler.retry(file):
        raise NotReadyError(f"{file.name} has not failed.")


@router.delete("/{file_id}", status_code=204)
async def delete_file(file: FileOf, services: ServicesOf, opened: OpenOf) -> None:
    """Removes a file, its database and its objects in the bucket, also while it is being embedded or asked."""
    if not await to_thread.run_sync(opened.embedding_handler.delete, file.file_id, limiter=services.storing):
        raise NotFoundError(f"{file.name} was deleted already.")
