"""Loads Chroma's binding again in a forked child.

The binding has threads of its own (a rayon pool, for one) that serve every database of the process. A forked child does
not have them, and its first write of two records would wait for them forever. No call of the binding restarts them. A
second copy of the library starts its own, because the loader takes a file with another inode for another library.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from types import ModuleType

import chromadb.api.rust
import chromadb_rust_bindings

_lock = Lock()
_loaded_in = os.getpid()


def renew_binding() -> None:
    """Replaces the binding, for all of chromadb, in a forked child of the process that loaded it; else does nothing.

    Raises:
        ImportError: A copy could be loaded from none of the places tried.
    """
    global _loaded_in  # noqa: PLW0603
    with _lock:
        if _loaded_in != os.getpid():
            setattr(chromadb.api.rust, chromadb_rust_bindings.__name__, _load_copy())
            _loaded_in = os.getpid()


def _load_copy() -> ModuleType:
    original = sys.modules["chromadb_rust_bindings.chromadb_rust_bindings"].__file__
    assert original is not None
    errors = []
    for place in (_temporary_file, _memory_file):
        try:
            with place(original) as copy:
                return _load(copy)
        except (ImportError, OSError) as error:
            errors.append(f"{place.__name__.strip('_')}: {error}")
    raise ImportError(
        f"a forked child needs a copy of {original}, and none could be loaded ({'; '.join(errors)}). Start the process "
        f"with the 'spawn' method instead, or set TMPDIR to a directory from which programs may run"
    )


def _load(path: str) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(chromadb_rust_bindings.__name__, path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@contextlib.contextmanager
def _temporary_file(original: str) -> Iterator[str]:
    # Once it is loaded, the file no longer needs a name.
    with tempfile.TemporaryDirectory(prefix="chroma-manager-") as directory:
        yield shutil.copyfile(original, Path(directory) / Path(original).name).__fspath__()


@contextlib.contextmanager
def _memory_file(original: str) -> Iterator[str]:
    """A file in memory, for machines on whose temporary directory programs may not run."""
    if not hasattr(os, "memfd_create"):
        raise OSError("this system has no files in memory")
    with os.fdopen(os.memfd_create("chromadb_rust_bindings"), "wb") as copy:
        with open(original, "rb") as source:
            shutil.copyfileobj(source, copy)
        copy.flush()
        yield f"/proc/self/fd/{copy.fileno()}"
