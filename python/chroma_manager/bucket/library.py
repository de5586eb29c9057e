"""obstore, as this process can use it: an extra of the package, and another copy of it in a forked child."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from typing import Any

from chroma_manager.engine.library_copy import load_copy
from chroma_manager.errors import SnapshotError

_lock = threading.Lock()
_loaded: tuple[int, Any] | None = None


def loaded() -> Any:
    """The module ``obstore``, whose threads run in this process.

    obstore has threads of its own, which a forked child does not have: a call would wait for them for ever. A copy of
    the library starts its own.

    Raises:
        SnapshotError: It is not installed.
    """
    global _loaded  # noqa: PLW0603
    with _lock:
        if _loaded is None or _loaded[0] != os.getpid():
            _loaded = os.getpid(), _imported() if _loaded is None else _copied()
        return _loaded[1]


def _imported() -> Any:
    try:
        return importlib.import_module("obstore")
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        raise SnapshotError(
            "a URL names a bucket, and that needs obstore, which is not installed: pip install 'chroma-manager[bucket]'"
        ) from error


def _copied() -> Any:
    """Imports obstore once more, from a copy of its library, beside the app's own import of it."""
    present = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "obstore"}
    try:
        for name in present:
            del sys.modules[name]
        sys.modules["obstore._obstore"] = load_copy("obstore._obstore", present["obstore._obstore"].__file__ or "")
        return importlib.import_module("obstore")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
            del sys.modules[name]
        sys.modules.update(present)


def _renew_lock() -> None:
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    # The thread that held it at the fork does not exist in the child.
    os.register_at_fork(after_in_child=_renew_lock)
