"""Which interpreter engine processes run on: the app's own, or the one that the option ``python`` names.

``sys.executable`` is not always an interpreter: in a frozen app it is the app, under uWSGI it is uWSGI, in a program
that embeds Python it can be empty. So nothing is started that is not named like an interpreter. One that may not be the
app's own is asked whether it has the same version, and finds the packages that an engine process needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import chromadb
import chromadb_rust_bindings

from chroma_manager._native import __version__
from chroma_manager.errors import ManagerConfigurationError
from chroma_manager.worker.engine_process import CHECK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# How the file of an interpreter is named, unlike that of an app.
NAME = re.compile(r"python(\d+(\.\d+)?)?[a-z]*")

# The program that this process runs, on systems that say so.
THIS_PROGRAM = "/proc/self/exe"

# Python's own modules are frozen into the interpreter, and need not be searched for.
OPTIONS = ("-S", "-X", "frozen_modules=on")

# How many seconds an interpreter may take to answer.
ANSWERS_WITHIN = 20

# Asks an interpreter for the directories and versions of the packages of an app.
LOCATE = """
import importlib.metadata, importlib.util, json, sys
found = {}
for name, distribution in json.loads(sys.argv[1]).items():
    spec = importlib.util.find_spec(name)
    if spec is not None:
        found[name] = [spec.submodule_search_locations[0], importlib.metadata.version(distribution)]
print(json.dumps(found))
"""

# The directory of this package.
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Interpreter(NamedTuple):
    """How a program of this package is run in a process of its own.

    Attributes:
        command: The interpreter's path and options; the program and its arguments follow.
        environment: How its environment differs from the app's; ``None`` for a variable that it does not have.
        packages: The directories of the packages that an engine process imports, by their names.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str | None]
    packages: Mapping[str, str]

    @property
    def script(self) -> str:
        """The program that an engine process runs."""
        return _program_in(self.packages, "engine_process.py")

    @property
    def probe(self) -> str:
        """The program that reads indexes in a process of its own, because Chroma may die of them."""
        return _program_in(self.packages, "probe.py")


class _UnusableError(Exception):
    """A file cannot be the interpreter of engine processes; the message says why."""


def find(named: str | os.PathLike[str] | None = None) -> Interpreter:
    """The interpreter for engine processes.

    Args:
        named: Its path; ``None`` to look where the app's own can be.

    Raises:
        ManagerConfigurationError: None can be used; the message lists the places tried, and what was wrong with each.
    """
    return _find(None if named is None else os.fspath(named), sys.executable)


@cache
def _find(named: str | None, executable: str | None) -> Interpreter:
    packages = {
        "chromadb": os.path.dirname(os.path.abspath(str(chromadb.__file__))),
        "chroma_manager": PACKAGE,
        "chromadb_rust_bindings": os.path.dirname(os.path.abspath(str(chromadb_rust_bindings.__file__))),
    }
    if named is None and executable and _is_this_interpreter(executable):
        own = Interpreter((executable, "-I", *OPTIONS), {}, packages)
        if os.path.isfile(own.script):
            return own
    problems = dict[str, list[str]]()
    for path in dict.fromkeys([named] if named is not None else _places(executable)):
        try:
            return _try(path, packages, is_named=named is not None)
        except _UnusableError as error:
            problems.setdefault(str(error), []).append(path)
    tried = "; ".join(f"{', '.join(paths)} ({problem})" for problem, paths in problems.items())
    raise ManagerConfigurationError(
        f"no Python interpreter for engine processes: {_why(named, executable)}. Give ChromaDBManager the path of one "
        f"as python=...: of Python {sys.version_info[0]}.{sys.version_info[1]}, with chromadb {chromadb.__version__} "
        f"and chroma-manager {__version__} installed; or use engine='embedded', which needs none. "
        f"Tried: {tried}"
    )


def _program_in(packages: Mapping[str, str], name: str) -> str:
    return os.path.join(packages["chroma_manager"], "worker", name)


def _is_frozen() -> bool:
    return bool(getattr(sys, "frozen", False))


def _why(named: str | None, executable: str | None) -> str:
    if named is not None:
        return f"python={named!r} cannot be used"
    if _is_frozen():
        return f"this app is frozen (sys.frozen), and none is beside {executable}"
    return f"none is where sys.executable, {executable!r}, and sys.prefix, {sys.prefix!r}, lead"


def _has_home() -> bool:
    """Whether the app finds Python's standard library where its environment says."""
    return "PYTHONHOME" in os.environ and not sys.flags.ignore_environment


def _is_named_like_interpreter(path: str) -> bool:
    return NAME.fullmatch(os.path.basename(path)) is not None


def _is_this_program(path: str) -> bool:
    """Whether this process runs that file, as far as the system says."""
    with contextlib.suppress(OSError):
        return os.path.samefile(path, THIS_PROGRAM)
    return False


def _is_this_interpreter(path: str) -> bool:
    """Whether a file is certainly the app's own interpreter, and need not be asked."""
    if _is_frozen() or _has_home() or not _is_named_like_interpreter(path) or not os.access(path, os.X_OK):
        return False
    return _is_this_program(path) or not os.path.exists(THIS_PROGRAM)


def _places(executable: str | None) -> Iterator[str]:
    """Where the app's own interpreter can be."""
    if not _is_frozen():
        spawn: Any = sys.modules.get("multiprocessing.spawn")
        spawning = spawn and spawn.get_executable()
        base: str | None = getattr(sys, "_base_executable", None)
        yield from (os.fsdecode(path) for path in (executable, spawning, base) if path)
    # The standard library is in lib/pythonX.Y.
    library = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(os.__file__))))
    for prefix in dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, library)):
        for name in (f"python{sys.version_info[0]}.{sys.version_info[1]}", "python3", "python"):
            yield os.path.join(prefix, "bin", name)


def _try(path: str, packages: Mapping[str, str], *, is_named: bool) -> Interpreter:
    """An interpreter that can be used.

    Raises:
        _UnusableError: It cannot be.
    """
    is_app = _is_this_program(path) and (_is_frozen() or not _is_named_like_interpreter(path))
    if is_app or not (is_named or _is_named_like_interpreter(path)):
        raise _UnusableError("it is not named as an interpreter is, so it was not started")
    if not os.path.isfile(path):
        raise _UnusableError("there is no such file")
    if not os.access(path, os.X_OK):
        raise _UnusableError("it may not be executed")
    problems = dict[str, None]()
    for option, environment in _ways():
        command = (path, option, *OPTIONS)
        for are_apps in (True, False):
            try:
                found = packages if are_apps else _locate((path, option), environment)
                interpreter = Interpreter(command, environment, found)
                _ask_for_version(interpreter)
            except _UnusableError as error:
                problems[str(error)] = None
            else:
                return interpreter
    raise _UnusableError("; ".join(problems))


def _ways() -> Iterator[tuple[str, dict[str, str | None]]]:
    """How to keep from an interpreter what concerns only the app: an option, and changes to the environment."""
    environment: dict[str, str | None] = {}
    if _is_frozen():
        # PyInstaller's loader has put the libraries of the app before the system's.
        for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"):
            if name in os.environ:
                environment[name] = os.environ.get(f"{name}_ORIG")
    yield "-I", environment
    if _has_home():
        others: dict[str, str | None] = {name: None for name in os.environ if name.startswith("PYTHON")}
        yield "-s", {**environment, **others, "PYTHONHOME": os.environ["PYTHONHOME"], "PYTHONSAFEPATH": "1"}


def _locate(command: tuple[str, ...], environment: Mapping[str, str | None]) -> dict[str, str]:
    """The packages that are installed for an interpreter, with the versions of the app's."""
    ours = {
        "chromadb": ("chromadb", chromadb.__version__),
        "chroma_manager": ("chroma-manager", __version__),
        "chromadb_rust_bindings": ("chromadb", chromadb.__version__),
    }
    distributions = {name: distribution for name, (distribution, _) in ours.items()}
    found = _ask((*command, "-c", LOCATE), environment, distributions)
    for name, (distribution, version) in ours.items():
        if name not in found:
            raise _UnusableError(f"it does not find {distribution}")
        if found[name][1] != version:
            raise _UnusableError(f"it has {distribution} {found[name][1]}, and the app has {version}")
    return {name: directory for name, (directory, _) in found.items()}


def _ask_for_version(interpreter: Interpreter) -> None:
    if not os.path.isfile(interpreter.script):
        raise _UnusableError(f"{interpreter.script}, which it is to run, is not a file")
    packages = {"packages": interpreter.packages, "version": chromadb.__version__}
    ours = [sys.implementation.name, *sys.version_info[:2]]
    found = _ask((*interpreter.command, interpreter.script, CHECK), interpreter.environment, packages)
    if found != ours:
        raise _UnusableError("it is {} {}.{}, and the app runs on {} {}.{}".format(*found, *ours))


def _ask(command: tuple[str, ...], environment: Mapping[str, str | None], question: Any) -> Any:
    """What a program prints when it gets a value as its last argument; both are JSON."""
    try:
        ended = subprocess.run(
            [*command, json.dumps(question)],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWERS_WITHIN,
            env={name: value for name, value in {**os.environ, **environment}.items() if value is not None},
        )
        return json.loads(ended.stdout)
    except subprocess.TimeoutExpired:
        raise _UnusableError(f"it has not answered in {ANSWERS_WITHIN} seconds") from None
    except OSError as error:
        raise _UnusableError(f"it cannot be started: {error}") from error
    except ValueError:
        said = ended.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
        raise _UnusableError(f"exit status {ended.returncode}: {said[0]}") from None
