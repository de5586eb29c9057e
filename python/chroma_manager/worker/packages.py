"""Makes packages importable in a process that was started without them, and runs no ``__init__`` of theirs.

``chromadb/__init__.py`` takes a second and 60 MB, and the ``__init__`` of this package is for an app. A program that
has a process of its own (``engine_process.py``, ``probe.py``) first puts an empty ``chroma_manager`` in place, without
which it could not import this module.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Packages whose own `__init__` is to run.
COMPLETE = ("chromadb_rust_bindings",)


def find_without_running(packages: Mapping[str, str], version: str) -> None:
    """Makes the modules of packages importable.

    Args:
        packages: The directory of each package, by its name.
        version: The version of chromadb, which the binding reads from the package.
    """
    for name, directory in packages.items():
        sys.path.append(os.path.dirname(directory))
        if name not in COMPLETE and name not in sys.modules:
            package = ModuleType(name)
            package.__path__ = [directory]
            sys.modules[name] = package
    sys.modules["chromadb"].__version__ = version  # type: ignore[attr-defined]  # a module may have any attribute
