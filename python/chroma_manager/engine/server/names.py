"""The names of instances on a Chroma server, where a database or a collection has one name, of few characters.

Chroma takes 3 to 512 letters, digits, dots, hyphens and underscores, the first and the last a letter or a digit, and no
two dots in a row. So the name of an instance is ``cm.FILE_ID.EMBEDDING_TYPE``. In both parts, ASCII letters, digits and
hyphens stand for themselves, and ``_XX`` for any other byte of UTF-8, in hexadecimal; a hyphen at the end is ``_2D``.
Each key has one name, and each such name one key.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from chroma_manager.errors import InvalidKeyError

# What tells the names of instances from others' names.
PREFIX = "cm"

LONGEST = 512

# The shortest name of a collection, with the dot before it, must fit behind the name of its instance.
SHORTEST_COLLECTION = 3

_PLAIN = re.compile(rb"[A-Za-z0-9-]")
_ESCAPED = re.compile(r"_([0-9A-F]{2})")


class Key(NamedTuple):
    """The key of an instance."""

    file_id: str
    embedding_type: str

    def __str__(self) -> str:
        """As messages have it."""
        return f"{self.file_id}/{self.embedding_type}"


def name_of(key: Key) -> str:
    """The name of an instance.

    Raises:
        InvalidKeyError: It would be longer than Chroma takes.
    """
    name = f"{PREFIX}.{_escape(key.file_id)}.{_escape(key.embedding_type)}"
    longest = LONGEST - SHORTEST_COLLECTION - 1
    if len(name) > longest:
        raise InvalidKeyError(
            f"{key} cannot name a database of a Chroma server: its name there, {name}, has {len(name)} characters, and "
            f"the limit is {longest}. Use a shorter file_id, or one with fewer characters other than letters, digits "
            f"and hyphens, which take three each"
        )
    return name


def key_of(name: str) -> Key | None:
    """The key of which this is the name; ``None`` where it is not an instance's."""
    parts = name.split(".")
    if len(parts) != 3 or parts[0] != PREFIX:
        return None
    try:
        key = Key(_unescape(parts[1]), _unescape(parts[2]))
        # Another spelling of the same key is not its name.
        return key if all(key) and name_of(key) == name else None
    except ValueError:
        return None


def instance_of(name: str) -> str:
    """What the name of a collection begins with: the name of its instance, if it has one."""
    return ".".join(name.split(".")[:3])


def _escape(part: str) -> str:
    escaped = "".join(
        chr(byte) if _PLAIN.match(bytes([byte])) else f"_{byte:02X}" for byte in part.encode("utf-8", "strict")
    )
    return f"{escaped[:-1]}_2D" if escaped.endswith("-") else escaped


def _unescape(text: str) -> str:
    escaped = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)
    return escaped.encode("latin-1").decode("utf-8", "strict")
