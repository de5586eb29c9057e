"""Finds packages in a process that runs without them: each module can be imported, and no ``__init__`` runs.

``chromadb/__init__.py`` takes a second and 60 MB, and that of this package is for an app. A program of this package
that has a process of its own (``engine_process.py``, ``probe.py``) makes itself an empty ``chroma_manager``, to find
this module at all; all else it finds with what is here.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Their own modules are to run.
RUN = ("chromadb_rust_bindings",)


def find_without_running(packages: Mapping[str, str], version: str) -> None:
    """Makes the modules of packages importable without running their ``__init__``.

    Args:
        packages: The directory of each package, by its name.
        version: That of chromadb, which the binding asks for.
    """
    for name, directory in packages.items():
        sys.path.append(os.path.dirname(directory))
        if name not in RUN and name not in sys.modules:
            package = ModuleType(name)
            package.__path__ = [directory]
            sys.modules[name] = package
    sys.modules["chromadb"].__version__ = version  # type: ignore[attr-defined]
