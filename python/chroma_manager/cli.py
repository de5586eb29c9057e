"""The command ``chroma-manager``: its arguments, its exit codes, and what it says when something fails.

What a subcommand does is in a module of its own, imported when it is called, so that ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import sys
from pathlib import Path

from chroma_manager import ChromaManagerError
from chroma_manager.options import ENGINES

INTERRUPTED = 130

_DEMO_PACKAGES = {"rich": "rich", "sklearn": "scikit-learn"}


class MissingExtraError(ChromaManagerError):
    """A subcommand needs a package that is not installed; the message says how to get it."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command with these arguments, by default those of the process, and returns its exit code.

    Returns:
        0 when it did what was asked, 1 when it failed (the reason is on stderr), 130 after Ctrl-C.

    Raises:
        SystemExit: ``--help`` or ``--version`` was asked for (0), or the arguments are wrong (2).
    """
    _never_fail_to_print()
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("chroma-manager: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Who read our output has gone, as head does: there is nobody to tell.
        return 1
    except ChromaManagerError as error:
        print(f"chroma-manager: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chroma-manager", description="Chroma databases for the threads of an app.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="ingest text files in parallel, ask them questions, show what it cost",
        description="Ingest text files in parallel, each into its own database; ask all of them at once; clean up.",
    )
    demo.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        type=_path,
        help="a text file in UTF-8, or a directory of them (default: the language reference that ships with Python)",
    )
    demo.add_argument(
        "--ask",
        metavar="QUESTION",
        action="append",
        default=[],
        help="may be given several times (default: three that suit)",
    )
    demo.add_argument(
        "--base-path", metavar="DIR", type=_path, help="keep the databases here (default: a temporary directory)"
    )
    demo.add_argument(
        "--threads", metavar="N", type=_threads, default=8, help="files to ingest at a time (default: %(default)s)"
    )
    demo.add_argument(
        "--engine",
        choices=ENGINES,
        help=f"what executes the calls (default: {ENGINES[0]}, and the others to compare it with)",
    )
    demo.set_defaults(run=_run_demo)


def _run_demo(arguments: argparse.Namespace) -> None:
    try:
        from chroma_manager import demo  # noqa: PLC0415 - takes seconds, and its packages are an extra
    except ModuleNotFoundError as error:
        package = _DEMO_PACKAGES.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        raise MissingExtraError(
            f"the demo needs {package}, which is not installed: pip install 'chroma-manager[demo]'"
        ) from error
    demo.run(
        demo.Options(
            tuple(arguments.paths), tuple(arguments.ask), arguments.base_path, arguments.threads, arguments.engine
        )
    )


def _path(text: str) -> Path:
    # Path("") is the working directory: an empty variable in a shell would name all that is in it.
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name a file or a directory")
    return Path(text)


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads; give 1 or more")
    return int(text)


def _version() -> str:
    try:
        return importlib.metadata.version("chroma-manager")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _never_fail_to_print() -> None:
    # The text of the user's files may not fit the encoding of a redirected stdout, as on Windows.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
