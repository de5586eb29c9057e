"""Small files of ours in a database's directory, sealed with a checksum.

They are read as untrusted input: a program may have truncated, replaced or edited them. A file that is not exactly as
it was written is damaged; it is never taken for an empty one. Links are not followed.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import zlib
from pathlib import Path
from typing import Any

from chroma_manager.storage.files import write_durably, write_whole
from chroma_manager.storage.paths import DAMAGED

FORMAT = 1

# More than a manifest of ten thousand indexes takes.
LARGEST = 64 << 20


# How opening a link fails, or anything else that is not a regular file.
NO_REGULAR_FILE = (errno.ELOOP, errno.ENXIO, errno.EINVAL, errno.EFBIG)


class DamagedFileError(Exception):
    """A small file of ours is not as it was written."""

    def __init__(self, file: Path, reason: str) -> None:
        """Takes the file, which the message names with its directory, and the reason."""
        super().__init__(f"{file.parent.name}/{file.name} is damaged ({reason})")
        self.file = file


def write_sealed(file: Path, content: dict[str, Any], *, is_durable: bool = True) -> None:
    """Replaces a file as a whole, and durably unless that is not needed. A directory with its name is renamed."""
    if file.is_dir() and not file.is_symlink():
        file.rename(file.with_name(f"{DAMAGED}{os.urandom(4).hex()}-{file.name}"))
    write = write_durably if is_durable else write_whole
    write(file, json.dumps({"format": FORMAT, "crc32": _checksum(content), "content": content}))


def read_sealed(file: Path) -> dict[str, Any] | None:
    """The content of a file; ``None`` where there is none.

    Raises:
        DamagedFileError: It is not as ``write_sealed`` wrote it.
        OSError: It cannot be read now (no descriptor is left, say), which says nothing about its content.
    """
    try:
        data = read_regular(file, getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in NO_REGULAR_FILE:
            raise
        raise DamagedFileError(file, "it is a link" if error.errno == errno.ELOOP else str(error.strerror)) from error
    try:
        sealed = json.loads(data)
        content, version, checksum = sealed["content"], sealed["format"], sealed["crc32"]
        is_intact = isinstance(content, dict) and checksum == _checksum(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFileError(file, "it cannot be parsed") from error
    if not is_intact:
        raise DamagedFileError(file, "its checksum does not match")
    if version != FORMAT:
        raise DamagedFileError(file, f"it has format {version}, and {FORMAT} is expected")
    return dict(content)


def read_regular(file: Path, flags: int = 0) -> bytes:
    """The bytes of a regular file of no more than `LARGEST`.

    Raises:
        OSError: It is not a regular file of that size, or cannot be read.
    """
    # Without O_NONBLOCK, opening a FIFO would wait for a writer.
    flags |= os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(file, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    with os.fdopen(descriptor, "rb") as opened:
        data = opened.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise OSError(errno.EFBIG, f"it has more than {LARGEST} bytes")
    return data


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
