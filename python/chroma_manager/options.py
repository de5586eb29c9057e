"""The options of a manager: what they are, which values they take, and when two configurations are the same."""

from __future__ import annotations

import enum
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from chroma_manager.errors import ManagerConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chromadb.config import Settings

    # What to do about a missing database: "create", "error", or a callable that fills the directory that it is given.
    OnMissing = str | Callable[[str, str, Path], object]

# The first is the default.
ENGINES = ("isolated", "embedded") if sys.platform in ("linux", "darwin") else ("embedded",)

# What is done about a damaged database when it is opened. The first is the default.
REPAIRS = ("safe", "never")

# The schemes of URLs that name a bucket; and how any URL begins.
SCHEMES = ("gs", "s3", "az", "file")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

# The longest time that an option may be: ten years, in seconds.
LONGEST_SECONDS = 10 * 365 * 24 * 3600

# Options whose values are paths.
PATHS = ("base_path", "python")


# Options of which only the Python half knows.
BUCKET = ("restore_from", "bucket_options")


class Default(enum.Enum):
    """Distinguishes an option that was not given from one that is ``None``."""

    DEFAULT = enum.auto()

    def __repr__(self) -> str:
        """The default, in a signature."""
        return "<default>"


DEFAULT = Default.DEFAULT


class Source(NamedTuple):
    """The options with which the engines open a database."""

    settings: Settings | None
    repair: str
    compact_at_close: bool = False


@dataclass(frozen=True)
class Options:
    """The options of a manager; ``ChromaDBManager`` documents them."""

    base_path: str = "./chroma_db"
    engine: str = ENGINES[0]
    settings: Settings | None = None
    idle_timeout: float | None = 300.0
    lock_timeout: float = 0.0
    max_engines: int | None = 128
    call_timeout: float | None = None
    on_missing: OnMissing = "create"
    python: str | None = None
    repair: str = REPAIRS[0]
    max_memory: int | None = None
    compact_at_close: bool = False
    restore_from: str | None = None
    bucket_options: Mapping[str, str] | None = None

    @property
    def source(self) -> Source:
        """Those with which an engine opens a database."""
        return Source(self.settings, self.repair, self.compact_at_close)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Checks the options that were given, and takes the defaults for the others.

        Raises:
            ManagerConfigurationError: One is invalid; the message says which, its value, and what is allowed.
        """
        check(given)
        options = cls(**{name: os.fspath(value) if name in PATHS and value else value for name, value in given.items()})
        if options.call_timeout is not None and options.engine == "embedded":
            raise ManagerConfigurationError(
                f"call_timeout={options.call_timeout!r}: with engine='embedded' no call can be left before it returns"
            )
        if options.max_memory is not None and options.engine == "embedded":
            raise ManagerConfigurationError(
                f"max_memory={options.max_memory!r}: with engine='embedded' all databases are in the memory of this "
                f"process, and nothing tells how much of it each has; max_engines bounds how many are open"
            )
        return options

    def differences(self, given: Mapping[str, Any]) -> list[str]:
        """The options that were given and differ from these, each as ``name=given (it is present)``."""
        return [
            f"{name}={_shown(name, value)} (it is {_shown(name, getattr(self, name))})"
            for name, value in given.items()
            if not _same(name, getattr(self, name), value)
        ]


def check(given: Mapping[str, Any]) -> None:
    """Raises ``ManagerConfigurationError`` for the first invalid option."""
    for name, value in given.items():
        problem = _CHECKS[name](value)
        if problem:
            raise ManagerConfigurationError(f"{name}={_shown(name, value)}: {problem}")


def _shown(name: str, value: object) -> str:
    """A value as messages have it, without what may be a password."""
    if name == "bucket_options" and isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: ...' for key in value)}}}"
    return repr(value)


def _check_base_path(value: object) -> str | None:
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        return "it must be a str or a path"
    path = os.fspath(value)
    return "it must name a directory" if not path or "\0" in path else None


def _check_engine(value: object) -> str | None:
    return None if value in ENGINES else f"this version has {' and '.join(map(repr, ENGINES))}"


def _check_repair(value: object) -> str | None:
    return None if value in REPAIRS else f"it must be {' or '.join(map(repr, REPAIRS))}"


def _check_settings(value: object) -> str | None:
    if value is None:
        return None
    # An app that has an object of this class has imported chromadb already.
    from chromadb.config import Settings  # noqa: PLC0415

    if not isinstance(value, Settings):
        return "it must be a chromadb.config.Settings"
    if value.chroma_api_impl != "chromadb.api.rust.RustBindingsAPI":
        return f"chroma_api_impl is {value.chroma_api_impl!r}; this engine runs Chroma's own (RustBindingsAPI)"
    return None


def _check_seconds(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "it must be a number of seconds"
    return None if 0 <= value <= LONGEST_SECONDS else f"it must be from 0 to {LONGEST_SECONDS} seconds"


def _check_timeout(value: object) -> str | None:
    if value is None:
        return None
    return "it must be more than 0, or None for never" if value == 0 else _check_seconds(value)


def _check_max_engines(value: object) -> str | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return None
    return "it must be an int, 1 or more, or None for no bound"


def _check_max_memory(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 63:
        return "it must be an int, a number of bytes from 1, or None for no limit"
    return None if sys.platform == "linux" else "the memory of a process can be measured on Linux only"


def _check_compact_at_close(value: object) -> str | None:
    return None if isinstance(value, bool) else "it must be True or False"


def _check_on_missing(value: object) -> str | None:
    return None if callable(value) or value in ("create", "error") else 'it must be "create", "error" or a callable'


def _check_restore_from(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value.partition("://")[0] in SCHEMES and "://" in value):
        return None
    return f"it must be a URL that begins with {', '.join(SCHEMES)} and ://, or None"


def _check_bucket_options(value: object) -> str | None:
    if value is None or (
        isinstance(value, Mapping) and all(isinstance(one, str) for pair in value.items() for one in pair)
    ):
        return None
    return "it must be a mapping of str to str, or None"


def _check_python(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        return "it must be the path of a Python interpreter, or None to look for the app's own"
    can_run = os.access(os.fspath(value), os.X_OK) and os.path.isfile(value)
    return None if can_run else "it is not a file that can be executed"


_CHECKS = {
    "base_path": _check_base_path,
    "engine": _check_engine,
    "settings": _check_settings,
    "idle_timeout": _check_timeout,
    "lock_timeout": _check_seconds,
    "max_engines": _check_max_engines,
    "call_timeout": _check_timeout,
    "on_missing": _check_on_missing,
    "python": _check_python,
    "repair": _check_repair,
    "max_memory": _check_max_memory,
    "compact_at_close": _check_compact_at_close,
    "restore_from": _check_restore_from,
    "bucket_options": _check_bucket_options,
}


def _same(name: str, present: Any, given: Any) -> bool:
    if name in PATHS and present and given:
        return bool(os.path.abspath(present) == os.path.abspath(given))
    if name == "settings" and (present is None) != (given is None):
        from chromadb.config import Settings  # noqa: PLC0415

        return bool((present or given) == Settings())
    return bool(present == given)
