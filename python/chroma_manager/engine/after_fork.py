"""Loads Chroma's binding again in a forked child.

The binding has threads of its own (a rayon pool, for one) that serve every database of the process. A forked child does
not have them, and its first write of two records would wait for them forever. No call of the binding restarts them. A
second copy of the library starts its own, because the loader takes a file with another inode for another library.
"""

from __future__ import annotations

import os
import sys
from threading import Lock
from types import ModuleType

import chromadb.api.rust
import chromadb_rust_bindings

from chroma_manager.engine.library_copy import load_copy

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
    return load_copy(chromadb_rust_bindings.__name__, original)
