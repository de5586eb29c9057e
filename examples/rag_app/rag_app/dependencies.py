"""What a route is given: ``Depends`` finds it on the app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, cast

from fastapi import Depends, Request

from rag_app.catalog import File
from rag_app.errors import NotFoundError
from rag_app.services import Open, Services


async def get_services(request: Request) -> Services:
    """Of this worker."""
    return cast("Services", request.app.state.services)


ServicesOf = Annotated[Services, Depends(get_services)]


async def get_open(services: ServicesOf) -> AsyncIterator[Open]:
    """What works on the databases; an answer of 503 while the engine is being changed, and if that fails a request."""
    opened = services.open
    try:
        yield opened
    except Exception:
        services.check_is_open(opened)
        raise


OpenOf = Annotated[Open, Depends(get_open)]


def get_file(file_id: str, services: ServicesOf) -> File:
    """The file that the path of a request names; an answer of 404 if there is none."""
    file = services.catalog.find(file_id)
    if file is None or file.status == "deleting":
        raise NotFoundError("There is no such file. It may have been deleted.")
    return file


FileOf = Annotated[File, Depends(get_file)]
