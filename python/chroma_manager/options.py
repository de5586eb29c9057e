"""The options of a manager: what they are, which go together, and when two configurations are the same."""

from __future__ import annotations

import enum
import os
import re
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from chroma_manager import option_checks as checks
from chroma_manager import server_options
from chroma_manager.errors import ManagerConfigurationError
from chroma_manager.server_options import ServerOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from chromadb.config import Settings

    # What to do about a missing database: "create", "error", or a callable that fills the directory that it is given.
    OnMissing = str | Callable[[str, str, Path], object]

# Those that keep databases on this machine's disk. The first is the default.
LOCAL_ENGINES = ("isolated", "embedded") if sys.platform in ("linux", "darwin") else ("embedded",)

SERVER = "server"

ENGINES = (*LOCAL_ENGINES, SERVER)

# What is done about a damaged database when it is opened. The first is the default.
REPAIRS = ("safe", "never")

# The schemes of URLs that name a bucket, what such a URL must be, and how any URL begins.
SCHEMES = ("gs", "s3", "az", "file")
BUCKET_URL = f"it must be a URL that begins with {', '.join(SCHEMES)} and ://, and names a bucket or a directory"
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

# Options whose values are paths.
PATHS = ("base_path", "python")

# Chroma's implementations of its API that an engine runs.
LOCAL_API = "chromadb.api.rust.RustBindingsAPI"
SERVER_API = "chromadb.api.fastapi.FastAPI"

# Options that an engine cannot keep, and why.
_IMPOSSIBLE = {
    "embedded": {
        "call_timeout": "no call can be left before it returns",
        "max_memory": "all databases are in the memory of this process, and nothing tells how much of it each has; "
        "max_engines bounds how many are open",
    },
    SERVER: {
        "lock_timeout": "no process locks a database; retry_timeout says how long a server that is away is waited for",
        "repair": "the server looks after its own files",
        "python": "there are no engine processes",
        "max_memory": "there are no engine processes; max_connections bounds what this process has open",
        "compact_at_close": "the server looks after its own files",
        "restore_from": "there is no directory to restore into; `chroma-manager migrate` copies instances to a server",
        "bucket_options": "no bucket is used",
    },
}


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
class Options(ServerOptions):
    """The options of a manager; ``ChromaDBManager`` documents them."""

    base_path: str = "./chroma_db"
    engine: str = LOCAL_ENGINES[0]
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
        """Those with which an engine of this machine opens a database."""
        return Source(self.settings, self.repair, self.compact_at_close)

    @property
    def native(self) -> dict[str, Any]:
        """Those that the Rust half takes, besides the source."""
        others = (*server_options.NAMES, *Source._fields, *BUCKET)
        native = {name: value for name, value in vars(self).items() if name not in others}
        return {**native, "base_path": self.url} if self.engine == SERVER else native

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Checks the options that were given, and takes the defaults for the others.

        Raises:
            ManagerConfigurationError: One is invalid; the message says which, its value, and what is allowed.
        """
        check(given)
        options = cls(**{name: os.fspath(value) if name in PATHS and value else value for name, value in given.items()})
        options._check_together()
        if options.engine == SERVER and "max_engines" not in given:
            # A database of a server costs this process nothing while it is open.
            return replace(options, max_engines=None)
        return options

    def differences(self, given: Mapping[str, Any]) -> list[str]:
        """The options that were given and differ from these, each as ``name=given (it is present)``."""
        return [
            name if name in checks.SECRETS else f"{name}={value!r} (it is {getattr(self, name)!r})"
            for name, value in given.items()
            if not _same(name, getattr(self, name), value)
        ]

    def _check_together(self) -> None:
        for name, why in _IMPOSSIBLE.get(self.engine, {}).items():
            if getattr(self, name) != getattr(Options, name):
                shown = checks.shown(name, getattr(self, name))
                raise ManagerConfigurationError(f"{shown}: with engine={self.engine!r} {why}")
        if self.engine == SERVER:
            self.check_together()
            if callable(self.on_missing):
                raise ManagerConfigurationError(
                    f"on_missing={self.on_missing!r}: with engine='server' there is no directory for it to fill; "
                    f'use "create" or "error"'
                )
        else:
            for name in server_options.NAMES:
                value = getattr(self, name)
                if value != getattr(ServerOptions, name):
                    shown = checks.shown(name, value)
                    raise ManagerConfigurationError(
                        f"{shown}: it is an option of engine='server', and the engine is {self.engine!r}"
                    )
        allowed = (LOCAL_API, SERVER_API) if self.engine == SERVER else (LOCAL_API,)
        if self.settings is not None and self.settings.chroma_api_impl not in allowed:
            raise ManagerConfigurationError(
                f"settings: chroma_api_impl is {self.settings.chroma_api_impl!r}; this engine runs Chroma's own "
                f"({allowed[-1].rpartition('.')[2]})"
            )


def check(given: Mapping[str, Any]) -> None:
    """Raises ``ManagerConfigurationError`` for the first invalid option."""
    for name, value in given.items():
        problem = _CHECKS[name](value)
        if problem:
            raise ManagerConfigurationError(f"{checks.shown(name, value)}: {problem}")


def _check_engine(value: object) -> str | None:
    return None if value in ENGINES else f"this version has {' and '.join(map(repr, ENGINES))}"


def names_bucket(url: str) -> bool:
    """Whether a URL names a bucket, or a directory in its place."""
    scheme, separator, named = url.partition("://")
    return scheme in SCHEMES and separator != "" and named.strip("/") != ""


def _check_restore_from(value: object) -> str | None:
    return None if value is None or (isinstance(value, str) and names_bucket(value)) else f"{BUCKET_URL}, or None"


_CHECKS: dict[str, checks.Check] = {
    "base_path": checks.directory,
    "engine": _check_engine,
    "settings": checks.settings,
    "idle_timeout": checks.timeout,
    "lock_timeout": checks.seconds,
    "max_engines": checks.count_or_none,
    "call_timeout": checks.timeout,
    "on_missing": checks.on_missing,
    "python": checks.interpreter,
    "repair": checks.one_of(REPAIRS),
    "max_memory": checks.memory,
    "compact_at_close": checks.flag,
    "restore_from": _check_restore_from,
    "bucket_options": checks.texts,
    **server_options.CHECKS,
}


def _same(name: str, present: Any, given: Any) -> bool:
    if name in PATHS and present and given:
        return bool(os.path.abspath(present) == os.path.abspath(given))
    if name == "settings" and (present is None) != (given is None):
        from chromadb.config import Settings  # noqa: PLC0415

        return bool((present or given) == Settings())
    return bool(present == given)


def changed_settings(settings: Settings, fields: dict[str, Any]) -> Settings:
    """A copy of Chroma's settings with other values in some fields."""
    # Up to chromadb 1.5.2 they are pydantic 1's, where the method has another name.
    copy = settings.model_copy if hasattr(settings, "model_copy") else settings.copy
    return copy(update=fields)
