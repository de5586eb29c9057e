"""How the commands print: results to stdout, a line for each database; failures and progress to stderr."""

from __future__ import annotations

import itertools
import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

# Exit codes, from good to bad: of several databases the worst one counts.
DONE, FAILED, DAMAGED = 0, 1, 3


@dataclass(frozen=True)
class Result:
    """The result of a command for one database: an exit code, a line, and what ``--json`` adds to its names."""

    code: int
    text: str
    values: dict[str, Any] = field(default_factory=dict)


def print_result(names: Mapping[str, str], result: Result, as_json: bool) -> None:
    """Prints a line: JSON, with what tells which database it is, or text."""
    print(json.dumps({**names, **result.values}) if as_json else printable(result.text), flush=True)


def complain(message: str) -> None:
    """Prints a line to stderr."""
    print(f"chroma-manager: {printable(message)}", file=sys.stderr)


def printable(text: str | Path) -> str:
    """A text on one line, without control characters: the names of directories may contain anything."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in str(text))


def counted(number: int | None, noun: str) -> str:
    """A number with its noun; ``?`` where it is not known."""
    return f"{'?' if number is None else f'{number:,}'} {noun}{'' if number == 1 else 's'}"


def megabytes(size: int) -> str:
    """A number of bytes in MB."""
    return f"{size / 1e6:,.1f} MB"


class Progress(NamedTuple):
    """What tells a user how far a command is.

    Attributes:
        begin: To be called with the key of each database when it begins.
        detail: To be called with how far that database is, as often as one likes. Only a bar shows it.
    """

    begin: Callable[[str], None]
    detail: Callable[[str], None]


@contextmanager
def progress(title: str, total: int) -> Iterator[Progress]:
    """Yields what to call while a command works on `total` databases. Only a terminal shows it."""
    if not sys.stderr.isatty():
        yield Progress(_say_nothing, _say_nothing)
        return
    try:
        from rich import progress as bars  # noqa: PLC0415
        from rich.console import Console  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        numbers = itertools.count(1)
        yield Progress(
            lambda key: print(f"{title} {key} ({next(numbers)} of {total})", file=sys.stderr),
            _say_nothing,
        )
        return
    done = itertools.count()
    # What is printed meanwhile goes through the bar, so that they do not overwrite each other; not into a pipe.
    is_shared = sys.stdout.isatty()
    with bars.Progress(
        bars.SpinnerColumn(),
        bars.TextColumn("{task.description}", markup=False),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("{task.fields[detail]}", markup=False),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=is_shared,
    ) as bar:
        task = bar.add_task(title, total=total, detail="")
        yield Progress(
            lambda key: bar.update(task, description=f"{title} {key}", completed=next(done), detail=""),
            lambda text: bar.update(task, detail=text),
        )


def _say_nothing(_: str) -> None:
    pass
