"""What ``chroma-manager migrate`` does: it copies each instance, and goes on with the others where one fails."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chroma_manager.cli.output import (
    DONE,
    FAILED,
    Progress,
    Result,
    complain,
    counted,
    print_result,
    printable,
    progress,
)
from chroma_manager.errors import ChromaManagerError, MigrationError
from chroma_manager.migration import copying, trees
from chroma_manager.migration.places import BasePath, OnServer, Place, Tree

if TYPE_CHECKING:
    from chroma_manager.engine.server.names import Key


@dataclass(frozen=True)
class Migration:
    """Where instances are copied from and to: each a base path, a directory tree, or ``None`` for the server."""

    source: Path | None
    destination: Path | None
    server: dict[str, Any]
    local: dict[str, Any]
    is_tree: bool = False
    embedding_type: str | None = None
    as_json: bool = False

    def run(self) -> int:
        """Copies; returns the exit code.

        Raises:
            MigrationError: There is nothing to copy, or the keys of databases cannot be told.
            ChromaManagerError: The server cannot be reached.
        """
        with (
            closing(self._place(self.source, is_tree=self.is_tree)) as source,
            closing(self._place(self.destination)) as destination,
        ):
            failures: list[OSError] = []
            keys = source.keys(failures)
            for failure in failures:
                complain(f"{failure}: what is there is not copied")
            if not keys and not failures:
                raise MigrationError(f"there is no instance to copy in {self.source or self.server['host']}")
            with progress("copying", len(keys)) as shown:
                codes = [self._copy(key, source, destination, shown) for key in keys]
            return max([*codes, FAILED if failures else DONE])

    def _place(self, path: Path | None, *, is_tree: bool = False) -> Place:
        if path is None:
            return OnServer(self.server)
        if is_tree:
            return Tree(trees.find(path, self.embedding_type), self.local)
        return BasePath(path, self.local)

    def _copy(self, key: Key, source: Place, destination: Place, shown: Progress) -> int:
        shown.begin(printable(str(key)))
        try:
            copied = copying.copy(key, source, destination, lambda text: shown.detail(printable(text)))
        except Exception as error:  # of Chroma, too: the next instance has its turn
            message = str(error) if isinstance(error, ChromaManagerError) else f"{type(error).__name__}: {error}"
            result = Result(FAILED, message if str(key) in message else f"{key}: {message}", {"error": message})
            complain(result.text)
        else:
            what = f"{counted(copied.collections, 'collection')}, {counted(copied.records, 'record')}"
            news = f"{copied.written:,} of them written" if copied.written else "all were there already"
            result = Result(DONE, f"{key}: {what}, {news}", copied._asdict())
        if result.code == DONE or self.as_json:
            print_result({"file_id": key.file_id, "embedding_type": key.embedding_type}, result, self.as_json)
        return result.code
