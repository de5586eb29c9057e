"""Which values an option may have, and which no message shows. A check returns why a value cannot be, or ``None``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence

Check = Callable[[object], "str | None"]

# Options whose values no message may show.
SECRETS = ("headers", "api_key", "bucket_options")

# Options that name a host.
HOSTS = ("host", "cloud_host")

# The name and the value of an HTTP header, as RFC 9110 has them, but for what is not ASCII.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"([!-~]([ \t!-~]*[!-~])?)?")

# The longest time that an option may be: ten years, in seconds.
LONGEST_SECONDS = 10 * 365 * 24 * 3600


def shown(name: str, value: object) -> str:
    """An option as messages have it: of one that is or has a secret only its name."""
    is_secret = name in SECRETS or (name in HOSTS and "@" in str(value))
    return name if is_secret and value is not None else f"{name}={value!r}"


def directory(value: object) -> str | None:
    """A path that can name a directory."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        return "it must be a str or a path"
    path = os.fspath(value)
    return "it must name a directory" if not path or "\0" in path else None


def one_of(values: Sequence[str]) -> Check:
    """One of some names."""
    return lambda value: None if value in values else f"it must be {' or '.join(map(repr, values))}"


def settings(value: object) -> str | None:
    """Chroma's settings, or ``None``."""
    if value is None:
        return None
    # An app that has an object of this class has imported chromadb already.
    from chromadb.config import Settings  # noqa: PLC0415

    return None if isinstance(value, Settings) else "it must be a chromadb.config.Settings"


def seconds(value: object) -> str | None:
    """A time, which may be 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "it must be a number of seconds"
    return None if 0 <= value <= LONGEST_SECONDS else f"it must be from 0 to {LONGEST_SECONDS} seconds"


def positive_seconds(value: object) -> str | None:
    """A time that is not 0."""
    return "it must be more than 0" if value == 0 else seconds(value)


def timeout(value: object) -> str | None:
    """A time that is not 0, or ``None`` for never."""
    if value is None:
        return None
    return "it must be more than 0, or None for never" if value == 0 else seconds(value)


def count(value: object) -> str | None:
    """A number from 1."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31
    return None if is_count else f"it must be an int from 1 to {(1 << 31) - 1:,}"


def count_or_none(value: object) -> str | None:
    """A number from 1, or ``None`` for no bound."""
    return None if value is None or count(value) is None else f"{count(0)}, or None for no bound"


def memory(value: object) -> str | None:
    """A number of bytes, or ``None`` for no limit."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 63:
        return "it must be an int, a number of bytes from 1, or None for no limit"
    return None if sys.platform == "linux" else "the memory of a process can be measured on Linux only"


def flag(value: object) -> str | None:
    """``True`` or ``False``."""
    return None if isinstance(value, bool) else "it must be True or False"


def on_missing(value: object) -> str | None:
    """What to do about a missing database."""
    return None if callable(value) or value in ("create", "error") else 'it must be "create", "error" or a callable'


def interpreter(value: object) -> str | None:
    """The path of a Python interpreter, or ``None``."""
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        return "it must be the path of a Python interpreter, or None to look for the app's own"
    can_run = os.access(os.fspath(value), os.X_OK) and os.path.isfile(value)
    return None if can_run else "it is not a file that can be executed"


def text(value: object) -> str | None:
    """A text that is not empty."""
    return None if isinstance(value, str) and value else "it must be a str that is not empty"


def text_or_none(value: object) -> str | None:
    """The same, or ``None``."""
    return None if value is None else text(value)


def port(value: object) -> str | None:
    """The number of a port."""
    is_port = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 16
    return None if is_port else "it must be an int from 1 to 65535"


def texts(value: object) -> str | None:
    """Texts by name, or ``None``."""
    if value is None:
        return None
    is_mapping = isinstance(value, Mapping) and all(isinstance(part, str) for item in value.items() for part in item)
    return None if is_mapping else "it must be a mapping of str to str, or None"


def headers(value: object) -> str | None:
    """HTTP headers, or ``None``."""
    problem = texts(value)
    if problem or not isinstance(value, Mapping):
        return problem
    return next((problem for item in value.items() if (problem := header(*item))), None)


def header(name: str, value: str) -> str | None:
    """One HTTP header. An HTTP client would show the value in its error."""
    if not _HEADER_NAME.fullmatch(name):
        return "a name has other characters than letters, digits and hyphens"
    if not _HEADER_VALUE.fullmatch(value):
        return (
            f"the value of {name!r} must be printable ASCII, without a space or a newline at an end (a file with a "
            f"secret often ends with one)"
        )
    return None


def key_or_none(value: object) -> str | None:
    """A key that is sent in a header, or ``None``."""
    if value is None or not isinstance(value, str) or re.fullmatch("[!-~]*", value):
        return text_or_none(value)
    return "it must be ASCII letters, digits and punctuation (a file with a key often ends with a newline)"


def host(value: object) -> str | None:
    """The name of a host, an address or a URL, without a password: messages show where a server is."""
    if isinstance(value, str) and "@" in value:
        return 'it must have no user name and no password; give headers={"Authorization": "Basic ..."}'
    return text(value)


def host_or_none(value: object) -> str | None:
    """The same, or ``None``."""
    return None if value is None else host(value)
