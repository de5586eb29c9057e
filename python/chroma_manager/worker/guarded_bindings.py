"""Chroma's binding, refusing calls on damaged collections, of which Chroma might die or return half a result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chroma_manager.errors import InstanceCorruptError

if TYPE_CHECKING:
    from collections.abc import Callable

# These read and write what SQLite has of a collection, not its content.
HARMLESS = ("get_collection_by_id", "update_collection")


class GuardedBindings:
    """Takes the place of the binding, and holds the only reference to it."""

    def __init__(self, bindings: Any, directory: str, damaged: dict[str, str]) -> None:
        """Guards a binding.

        Args:
            bindings: Chroma's.
            directory: The database's, absolute.
            damaged: For each damaged collection, by its id: what is wrong with it, and what can be saved.
        """
        self._bindings = bindings
        self._directory = Path(directory)
        self._damaged = damaged

    def __getattr__(self, name: str) -> Any:
        """The method of that name, which checks its arguments first."""
        method = getattr(self._bindings, name)
        return method if name in HARMLESS else self._guarded(method)

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            for argument in (*arguments, *keywords.values()):
                if isinstance(argument, str) and argument in self._damaged:
                    raise self._refusal(self._damaged[argument])
            return method(*arguments, **keywords)

        return call

    def _refusal(self, problem: str) -> InstanceCorruptError:
        key = (self._directory.parent.name, self._directory.name)
        error = InstanceCorruptError(
            f"{'/'.join(key)} ({self._directory}) is damaged: {problem}. Its other collections work. "
            f"ChromaDBManager's verify(..., repair=True) rebuilds it from what can be saved, and its restore() puts a "
            f"snapshot in its place"
        )
        error.file_id, error.embedding_type = key
        error.path = str(self._directory)
        return error
