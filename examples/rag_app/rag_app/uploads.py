"""What is let in: a name that can be shown, so many bytes, and one copy of each content.

A name is never a path here: files are kept under a random ``file_id``. The content is looked at in ``kinds``, and read
in ``extraction``.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import tempfile
import time
import unicodedata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from anyio import fail_after, move_on_after

from rag_app.errors import BadNameError, SilentError, TooLargeError
from rag_app.kinds import check_content, kind_of_name

_LONGEST_NAME = 120  # characters
_WRITE_BYTES = 2**20
# A client that is sent an answer before it has sent all may never read the answer.
_LINGER_SECONDS = 5.0
# No upload takes so long, unless its worker was killed.
_ABANDONED_SECONDS = 3600


class Upload(NamedTuple):
    """A file as it came, before it is read.

    Attributes:
        name: To show.
        kind: One of ``kinds.KINDS``.
        path: Where it is for now.
        bytes: Its size.
        digest: SHA-256 of its content.
    """

    name: str
    kind: str
    path: Path
    bytes: int
    digest: str


def clean_name(name: str) -> str:
    """Returns what is shown of a name: without folders, and without characters that hide what it is.

    Raises:
        BadNameError: Nothing is left, or there are control characters in it.
    """
    name = unicodedata.normalize("NFC", name)
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise BadNameError("The name of the file has control characters in it. Rename it.")
    # Marks that change the direction of writing make "fdp.exe" look like "exe.pdf".
    name = "".join(character for character in name if unicodedata.category(character) not in ("Cf", "Cs"))
    name = re.split(r"[/\\]", name)[-1].strip()
    if not name.strip("."):
        raise BadNameError("The file has no name.")
    if len(name) > _LONGEST_NAME:
        stem, dot, suffix = name.rpartition(".")
        name = f"{stem[: _LONGEST_NAME - len(suffix) - 2]}…{dot}{suffix}" if len(suffix) < 10 else name[:_LONGEST_NAME]
    return name


def remove_abandoned(directory: Path) -> None:
    """Removes the temporary files of workers that were killed.

    Args:
        directory: Of temporary files.
    """
    for path in directory.glob("*"):
        # Another worker may do the same.
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()


@asynccontextmanager
async def received(
    name: str, body: AsyncIterator[bytes], most: int, silent_seconds: float, directory: Path
) -> AsyncIterator[Upload]:
    """Receives a file into a temporary one, which is removed at the end, also if the client goes away.

    Args:
        name: As the client says it.
        body: Its content.
        most: How many bytes are let in.
        silent_seconds: For how long the client may send nothing.
        directory: Of temporary files.

    Raises:
        BadNameError: See ``clean_name``.
        SilentError: The client has sent nothing for so long.
        TooLargeError: It is larger than that.
        UnknownKindError: It is of a kind that is not read, or not of the kind that its name says.
    """
    name = clean_name(name)
    kind = kind_of_name(name)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        path = Path(file.name)
        digest, size, held = hashlib.sha256(), 0, bytearray()

        def write(part: bytes) -> None:
            digest.update(part)
            file.write(part)
            file.flush()

        async for chunk in _until_silent(name, body, silent_seconds):
            size += len(chunk)
            if size > most:
                await _linger(body)
                raise TooLargeError(f"{name} is larger than {most / 2**20:g} MB, which is the most that is taken.")
            held += chunk
            if len(held) >= _WRITE_BYTES:
                await asyncio.to_thread(write, bytes(held))
                held.clear()
        await asyncio.to_thread(write, bytes(held))
        await asyncio.to_thread(check_content, name, kind, path)
        yield Upload(name, kind, path, size, digest.hexdigest())


async def _until_silent(name: str, body: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    while True:
        try:
            with fail_after(seconds):
                chunk = await anext(body)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise SilentError(f"No more of {name} has come for {seconds:g} s. Send it again.") from None
        yield chunk


async def _linger(body: AsyncIterator[bytes]) -> None:
    """Reads on for a while, and keeps nothing."""
    with move_on_after(_LINGER_SECONDS):
        async for _ in body:
            pass
