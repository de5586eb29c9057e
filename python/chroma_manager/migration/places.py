"""Where instances are: in a base path, in a tree of plain Chroma directories, or on a Chroma server.

Local databases are opened as an app opens them, by the manager's engine: one that an app has open is shared with it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from chroma_manager._native import Manager
from chroma_manager.engine.server.names import Key
from chroma_manager.engine.server.server import ChromaServer
from chroma_manager.migration.outside import OtherDatabase, others_in
from chroma_manager.options import SERVER, Options
from chroma_manager.storage.paths import DATABASE_FILE, TEMPORARY_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from chroma_manager.client import ManagedClient


class Place(ABC):
    """Where instances are read from or written to."""

    @abstractmethod
    def keys(self, failures: list[OSError]) -> list[Key]:
        """The keys of all instances, sorted.

        Args:
            failures: Gets an error for each directory that cannot be read, where more may be.
        """

    @abstractmethod
    def opened(self, key: Key, *, may_create: bool) -> AbstractContextManager[ManagedClient]:
        """A client of an instance, which is closed afterwards: hundreds of them would be hundreds of engine processes.

        Raises:
            InvalidKeyError: No instance can have that key here.
            InstanceOpenError: It cannot be opened.
            InstanceNotFoundError: It does not exist, and is not to be created.
        """

    @abstractmethod
    def outside(self, key: Key) -> list[OtherDatabase]:
        """What is beside an instance, in other databases of its directory. It must be closed in this process.

        Raises:
            MigrationError: That cannot be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes all instances."""


class _Managed(Place):
    """Instances of a manager of its own, beside that of the process."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    @contextmanager
    def opened(self, key: Key, *, may_create: bool) -> Iterator[ManagedClient]:
        client = self._manager.get_client(*key, on_missing="create" if may_create else "error")
        try:
            yield cast("ManagedClient", client)
        finally:
            self._manager.cleanup_instance(*key)

    def close(self) -> None:
        self._manager._shut_down()


class BasePath(_Managed):
    """The instances of a base path."""

    def __init__(self, path: Path, local: Mapping[str, Any]) -> None:
        """Opens nothing yet.

        Args:
            path: The base path.
            local: The options with which databases are opened: ``engine`` and ``lock_timeout``.
        """
        super().__init__(_manager_of(path, local))
        self._path = path

    def keys(self, failures: list[OSError]) -> list[Key]:
        """Those of the directories that have a database."""
        keys = []
        for parent in _subdirectories(self._path, failures):
            for directory in _subdirectories(parent, failures):
                try:
                    is_database = (directory / DATABASE_FILE).is_file()
                except OSError as error:
                    failures.append(error)
                else:
                    keys += [Key(parent.name, directory.name)] if is_database else []
        return sorted(key for key in keys if not any(part.startswith(TEMPORARY_PREFIX) for part in key))

    def outside(self, key: Key) -> list[OtherDatabase]:
        """What is beside an instance in its directory; see ``Place``."""
        return others_in(self._path.joinpath(*key))


class Tree(Place):
    """Plain Chroma directories, by the keys that they get."""

    def __init__(self, databases: Mapping[Key, Path], local: Mapping[str, Any]) -> None:
        """Opens nothing yet; see ``trees.find``, and ``BasePath`` for the other argument."""
        self._databases = databases
        self._local = local

    def keys(self, failures: list[OSError]) -> list[Key]:  # noqa: ARG002
        """Those of the databases that were found; ``trees.find`` has raised what could not be read."""
        return sorted(self._databases)

    @contextmanager
    def opened(self, key: Key, *, may_create: bool) -> Iterator[ManagedClient]:
        """A client; see ``Place``."""
        # In a path relative to the directory, what is above has no name.
        path = Path(os.path.abspath(self._databases[key]))
        with (
            closing(BasePath(path.parent.parent, self._local)) as place,
            place.opened(Key(path.parent.name, path.name), may_create=may_create) as client,
        ):
            yield client

    def outside(self, key: Key) -> list[OtherDatabase]:
        """What is beside an instance in its directory; see ``Place``."""
        return others_in(self._databases[key])

    def close(self) -> None:
        """Nothing is open by now; see ``Place``."""


class OnServer(_Managed):
    """The instances of a tenant on a Chroma server."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Connects to nothing yet.

        Args:
            options: Those of the engine ``server``, as ``ChromaDBManager`` takes them.

        Raises:
            ManagerConfigurationError: One is invalid.
        """
        checked = Options.of({**options, "engine": SERVER})
        self._server = ChromaServer(checked)
        super().__init__(Manager(**checked.native, source=self._server, restore=None))

    def keys(self, failures: list[OSError]) -> list[Key]:  # noqa: ARG002
        """Those that the server has."""
        return sorted(self._server.instances())

    def outside(self, key: Key) -> list[OtherDatabase]:  # noqa: ARG002
        """Nothing: each instance is all of a database, or all collections with a prefix."""
        return []

    def close(self) -> None:
        """Closes all instances, and the connections."""
        super().close()
        self._server.close()


def _manager_of(path: Path, local: Mapping[str, Any]) -> Manager:
    options = Options.of({**local, "base_path": os.path.abspath(path), "repair": "never"})
    return Manager(**options.native, source=options.source, restore=None)


def _subdirectories(directory: Path, failures: list[OSError]) -> list[Path]:
    # `glob` would pass over what cannot be read.
    try:
        return [entry for entry in directory.iterdir() if entry.is_dir()]
    except FileNotFoundError:  # a running app may have deleted it
        return []
    except OSError as error:
        failures.append(error)
        return []
