"""The command ``chroma-manager``: its arguments, its exit codes, and what it says when something fails.

What a subcommand does is in a module that is imported when it is called, so that ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import os
import sys
from functools import partial

from chroma_manager.cli import bucket_arguments, migrate_arguments, values
from chroma_manager.cli.subcommand import EXIT_CODES, add_access, add_bucket_options, add_command, add_json, add_keep
from chroma_manager.errors import ChromaManagerError
from chroma_manager.options import LOCAL_ENGINES

INTERRUPTED = 130

_DEMO_PACKAGES = {"rich": "rich", "sklearn": "scikit-learn"}


class MissingExtraError(ChromaManagerError):
    """A subcommand needs a package that is not installed; the message says how to install it."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command with these arguments, by default those of the process, and returns its exit code.

    Returns:
        0 when it did what was asked, 1 when it failed (the reason is on stderr), 3 when it found damage that remains,
        130 after Ctrl-C.

    Raises:
        SystemExit: ``--help`` or ``--version`` was asked for (0), or the arguments are wrong (2).
    """
    _never_fail_to_print()
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("chroma-manager: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has ended, as head does: nobody would read a message.
        return 1
    except (ChromaManagerError, OSError) as error:
        # An OSError can be a full disk that stdout is written to.
        print(f"chroma-manager: {error}", file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chroma-manager",
        description="Chroma databases for the threads of an app.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_list(commands)
    _add_verify(commands)
    _add_snapshot(commands)
    _add_restore(commands)
    _add_compact(commands)
    bucket_arguments.add_commands(commands)
    _add_migrate(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="ingest text files in parallel, ask them questions, show what it took",
        description="Ingest text files in parallel, each into its own database; ask all of them at once; clean up.",
    )
    demo.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        type=values.path,
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
        "--base-path", metavar="DIR", type=values.path, help="keep the databases here (default: a temporary directory)"
    )
    demo.add_argument(
        "--threads",
        metavar="N",
        type=values.threads,
        default=8,
        help="files to ingest at a time (default: %(default)s)",
    )
    demo.add_argument(
        "--engine",
        choices=LOCAL_ENGINES,
        help=f"what executes the calls (default: {LOCAL_ENGINES[0]}, and the others to compare it with)",
    )
    demo.set_defaults(run=_run_demo)


def _add_list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "list",
        "show the databases of an app: records, size, and who has them open",
        "Show the databases under a base path: key, records ('?' where they cannot be read now), size of the files, "
        "what compact would give back, and the process that has it open. Changes nothing, and works beside a running "
        "app.",
    )
    parser.add_argument(
        "path", metavar="PATH", type=values.directory, help="the base path, or the directory of one database"
    )
    add_json(parser)
    parser.set_defaults(run=_run_list)


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "verify",
        "check whether databases are sound, and repair them",
        "Check whether databases are sound, one after the other: SQLite's file, every record's vector, and whether "
        "Chroma can read them all. Works beside a running app, whose calls wait meanwhile.",
    )
    parser.add_argument(
        "path", metavar="PATH", type=values.directory, help="the directory of one database, or a base path"
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="rebuild what is damaged; records without a vector anywhere are moved to a file",
    )
    add_json(parser)
    add_access(parser)
    parser.set_defaults(run=_run_verify)


def _add_snapshot(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "snapshot",
        "copy databases while an app uses them",
        "Take a consistent copy of a database, or of all under a base path, with checksums, to a directory or a "
        "bucket. Works beside a running app, whose calls wait while the files are copied.",
    )
    parser.add_argument(
        "path", metavar="PATH", type=values.directory, help="the directory of one database, or a base path"
    )
    parser.add_argument(
        "destination",
        metavar="DESTINATION",
        type=values.path_or_url,
        help="a directory that does not exist or is empty; of a base path, each goes to FILE_ID/EMBEDDING_TYPE in it. "
        "Or the URL of a bucket: gs://, s3://, az:// or file://",
    )
    add_keep(parser)
    add_bucket_options(parser)
    add_access(parser)
    parser.set_defaults(run=_run_snapshot)


def _add_restore(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "restore",
        "replace databases by snapshots",
        "Replace a database, sound, damaged or missing, by a snapshot; all of it or nothing. Works beside a "
        "running app, which goes on with the restored database.",
    )
    parser.add_argument(
        "snapshot",
        metavar="SNAPSHOT",
        type=values.directory_or_url,
        help="made by the command snapshot, of one database or of a base path; or the URL of a bucket, for the newest "
        "snapshot there of the database that PATH names, or of a manifest there",
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        type=values.path,
        help="the directory of the database, BASE/FILE_ID/EMBEDDING_TYPE; for a base path's snapshots, a base path",
    )
    parser.add_argument("--all", action="store_true", help="restore all databases of a bucket, to the base path PATH")
    add_bucket_options(parser)
    add_access(parser)
    parser.set_defaults(run=_run_restore)


def _add_compact(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "compact",
        "make the files of databases smaller after deletions",
        "Rebuild the indexes of databases without what was deleted, and their SQLite files without free pages, one "
        "database after the other. Works beside a running app, whose calls wait meanwhile.",
    )
    parser.add_argument(
        "path", metavar="PATH", type=values.directory, help="the directory of one database, or a base path"
    )
    add_json(parser)
    add_access(parser)
    parser.set_defaults(run=_run_compact)


def _add_migrate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "copy instances to a Chroma server, back, or from plain Chroma directories"
    parser = add_command(commands, "migrate", summary, migrate_arguments.DESCRIPTION)
    migrate_arguments.fill(parser)
    add_json(parser)
    add_access(parser)
    parser.set_defaults(run=partial(migrate_arguments.run, parser))


def _run_list(arguments: argparse.Namespace) -> int:
    from chroma_manager.cli import listing  # noqa: PLC0415 - so that --help is instant

    return listing.list_databases(arguments.path, as_json=arguments.json)


def _run_verify(arguments: argparse.Namespace) -> int:
    from chroma_manager.cli import commands  # noqa: PLC0415 - so that --help is instant

    access = commands.Access(arguments.engine, arguments.wait)
    return commands.verify(arguments.path, access, repair=arguments.repair, as_json=arguments.json)


def _run_snapshot(arguments: argparse.Namespace) -> int:
    from chroma_manager.cli import commands  # noqa: PLC0415 - so that --help is instant

    access = commands.Access(arguments.engine, arguments.wait, dict(arguments.bucket_option))
    return commands.snapshot(
        arguments.path, arguments.destination, access, keep=arguments.keep, keep_for=arguments.keep_for
    )


def _run_restore(arguments: argparse.Namespace) -> int:
    from chroma_manager.cli import commands  # noqa: PLC0415 - so that --help is instant

    access = commands.Access(arguments.engine, arguments.wait, dict(arguments.bucket_option))
    return commands.restore(arguments.snapshot, arguments.path, access, every=arguments.all)


def _run_compact(arguments: argparse.Namespace) -> int:
    from chroma_manager.cli import commands  # noqa: PLC0415 - so that --help is instant

    access = commands.Access(arguments.engine, arguments.wait)
    return commands.compact(arguments.path, access, as_json=arguments.json)


def _run_demo(arguments: argparse.Namespace) -> int:
    try:
        from chroma_manager.demo import run  # noqa: PLC0415 - takes seconds, and needs an extra
    except ModuleNotFoundError as error:
        package = _DEMO_PACKAGES.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        raise MissingExtraError(
            f"the demo needs {package}, which is not installed: pip install 'chroma-manager[demo]'"
        ) from error
    run.run(
        run.DemoOptions(
            tuple(arguments.paths), tuple(arguments.ask), arguments.base_path, arguments.threads, arguments.engine
        )
    )
    return 0


def _version() -> str:
    try:
        return importlib.metadata.version("chroma-manager")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _never_fail_to_print() -> None:
    if sys.stdout is None:
        # It was closed by whoever started this process: nobody reads.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open to the end
    # The encoding of a redirected stdout may lack characters of the user's files, as on Windows.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
