"""Loads another copy of an extension module's library, whose threads a forked child does not have.

The loader takes a file with another inode for another library, which begins with no threads and no state.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


def load_copy(name: str, original: str) -> ModuleType:
    """Loads a copy of the library of an extension module, which takes the file for another library.

    Args:
        name: Of the module.
        original: The file of the library.

    Raises:
        ImportError: A copy could be loaded from none of the places tried.
    """
    errors = []
    for place in (_temporary_file, _memory_file):
        try:
            with place(original) as copy:
                return _load(name, copy)
        except (ImportError, OSError) as error:
            errors.append(f"{place.__name__.strip('_')}: {error}")
    raise ImportError(
        f"a forked child needs a copy of {original}, and none could be loaded ({'; '.join(errors)}). Start the process "
        f"with the 'spawn' method instead, or set TMPDIR to a directory from which programs may run"
    )


def _load(name: str, path: str) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(name, path)
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
    with os.fdopen(os.memfd_create(Path(original).name), "wb") as copy:
        with open(original, "rb") as source:
            shutil.copyfileobj(source, copy)
        copy.flush()
        yield f"/proc/self/fd/{copy.fileno()}"
