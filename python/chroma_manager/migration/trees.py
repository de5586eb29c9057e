"""Which keys the databases of a tree of plain Chroma directories get: those of an app that does not use the manager.

The last part of the path of a database below the tree is its ``embedding_type``, and what is before it the ``file_id``,
with ``__`` for each separator. A database that is directly in the tree has a ``file_id`` only.
"""

from __future__ import annotations

import os
from pathlib import Path

from chroma_manager.engine.server.names import Key
from chroma_manager.errors import MigrationError
from chroma_manager.storage.paths import DATABASE_FILE

SEPARATOR = "__"


def find(tree: Path, embedding_type: str | None) -> dict[Key, Path]:
    """The databases of a tree, by key.

    Args:
        tree: A directory. Links are not followed, and hidden directories are left out.
        embedding_type: That of databases directly in the tree, if it is known.

    Raises:
        MigrationError: There is none, the key of one cannot be told, or two would have the same.
    """
    found: dict[Key, Path] = {}
    for directory, subdirectories, files in os.walk(tree, onerror=_raise):
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        if DATABASE_FILE in files:
            path = Path(directory)
            key = _key_of(path.relative_to(tree).parts, path, embedding_type)
            if key in found:
                raise MigrationError(f"{found[key]} and {path} would both be {key}; copy one of them by itself")
            found[key] = path
    if not found:
        raise MigrationError(f"there is no {DATABASE_FILE} in {tree} or below")
    return found


def _key_of(parts: tuple[str, ...], path: Path, embedding_type: str | None) -> Key:
    if not parts:
        raise MigrationError(f"{path} is a database itself; name the directory above it, whose databases have names")
    if len(parts) == 1:
        if embedding_type is None:
            raise MigrationError(f"{path} has a file_id, but no embedding_type: give one with --embedding-type")
        return Key(parts[0], embedding_type)
    return Key(SEPARATOR.join(parts[:-1]), parts[-1])


def _raise(error: OSError) -> None:
    raise error
