"""Takes snapshots, consistent copies of a database with a manifest and checksums, and reads them for a restore.

A snapshot is a directory with Chroma's own files, which any Chroma can open, and ``snapshot.json``, which lists each
with its size and SHA-256. The process that owns the database runs this, while Chroma has the database closed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chroma_manager.errors import SnapshotError
from chroma_manager.storage.files import (
    copy_directory,
    copy_file,
    make_directories,
    step,
    sync_directory,
    write_durably,
)
from chroma_manager.storage.paths import DATABASE_FILE, INDEX_NAME
from chroma_manager.storage.sealed import read_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MANIFEST = "snapshot.json"
FORMAT = 1

# The files that a manifest may list: the SQLite file, and those of an index, whose directory is named by a UUID.
ALLOWED = re.compile(rf"{re.escape(DATABASE_FILE)}|{INDEX_NAME.pattern}/[A-Za-z0-9_.]+")

CHUNK = 1 << 20


def take(directory: Path, indexes: list[str], destination: Path, about: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Copies a closed database.

    Args:
        directory: The database's.
        indexes: Names of the directories of its vector indexes.
        destination: A directory that does not exist, or is empty. It appears when the snapshot is complete.
        about: What else the manifest is to say.

    Returns:
        A function that completes the snapshot, and returns its manifest. The database need not be closed for that.
    """
    _check_destination(destination)
    partial = destination.with_name(f".{destination.name}.{os.urandom(4).hex()}.partial")
    with _removed_on_failure(partial, f"no snapshot can be taken to {destination}"):
        make_directories(destination.parent)
        partial.mkdir()
        copy_file(directory / DATABASE_FILE, partial / DATABASE_FILE)
        for index in indexes:
            copy_directory(directory / index, partial / index)
        step("snapshot copied")
    return lambda: _complete(partial, destination, about)


def _check_destination(destination: Path) -> None:
    for directory in Path(os.path.realpath(destination)).parents:
        # A deletion of that database would take the snapshot with it.
        if (directory / DATABASE_FILE).exists():
            raise SnapshotError(f"{destination} is in the directory of a database, {directory}; name one outside of it")
    if destination.is_symlink() or (destination.exists() and (not destination.is_dir() or any(destination.iterdir()))):
        raise SnapshotError(f"{destination} exists already; name a directory that does not, or that is empty")


def _complete(partial: Path, destination: Path, about: dict[str, Any]) -> dict[str, Any]:
    with _removed_on_failure(partial, f"no snapshot can be taken to {destination}"):
        files = {}
        for file in sorted(path for path in partial.rglob("*") if path.is_file()):
            files[file.relative_to(partial).as_posix()] = {"size": file.stat().st_size, "sha256": _checksum(file)}
        manifest = {"format": FORMAT, "created_at": time.time(), **about, "files": files}
        write_durably(partial / MANIFEST, json.dumps(manifest, indent=1))
        partial.rename(destination)
        sync_directory(destination.parent)
    return manifest


def read_manifest(source: Path) -> dict[str, Any]:
    """The manifest of a snapshot.

    Raises:
        SnapshotError: There is none, it is damaged, or a later version of this package wrote it.
    """
    try:
        text = read_regular(source / MANIFEST)
    except OSError as error:
        raise SnapshotError(f"{source} is not a snapshot: its {MANIFEST} cannot be read ({error})") from error
    return parse_manifest(text, f"{source} cannot be restored: its {MANIFEST}")


def parse_manifest(text: bytes, subject: str) -> dict[str, Any]:
    """A manifest that names only files of a database, each with a size and a checksum.

    Args:
        text: The JSON.
        subject: What an error is about.

    Raises:
        SnapshotError: It is damaged, or a later version of this package wrote it.
    """
    try:
        manifest: dict[str, Any] = json.loads(text)
        files = manifest["files"]
        is_sound = manifest["format"] == FORMAT and DATABASE_FILE in files and all(map(ALLOWED.fullmatch, files))
        is_sound = is_sound and all(isinstance(file["size"], int) and file["sha256"] for file in files.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SnapshotError(f"{subject} is damaged") from error
    if not is_sound:
        raise SnapshotError(f"{subject} is damaged, or of a later version")
    return manifest


def copy_verified(source: Path, target: Path) -> None:
    """Copies the files of a snapshot durably, and compares each with its checksum. A failure leaves nothing behind.

    Args:
        source: The snapshot.
        target: A directory that does not exist, or is empty.

    Raises:
        SnapshotError: It is not a snapshot, is damaged, or cannot be copied.
    """
    files = read_manifest(source)["files"]
    with _removed_on_failure(target, f"{source} cannot be restored"):
        for name, file in files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            if not (source / name).is_file():
                raise SnapshotError(f"{source} cannot be restored: {name} is missing, or not a regular file")
            if _copy_with_checksum(source / name, target / name) != (file["size"], file["sha256"]):
                raise SnapshotError(f"{source} cannot be restored: {name} is damaged (its checksum does not match)")
        for directory in [*(path for path in target.rglob("*") if path.is_dir()), target]:
            sync_directory(directory)


def _copy_with_checksum(source: Path, target: Path) -> tuple[int, str]:
    checksum, size = hashlib.sha256(), 0
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK):
            checksum.update(chunk)
            size += writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return size, checksum.hexdigest()


def _checksum(file: Path) -> str:
    checksum = hashlib.sha256()
    with file.open("rb") as reader:
        while chunk := reader.read(CHUNK):
            checksum.update(chunk)
    return checksum.hexdigest()


@contextlib.contextmanager
def _removed_on_failure(directory: Path, problem: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        shutil.rmtree(directory, ignore_errors=True)
        if isinstance(error, OSError):
            raise SnapshotError(f"{problem}: {error}") from error
        raise
