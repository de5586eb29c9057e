"""What the arguments of the subcommands share: how one is added, and options that several have."""

from __future__ import annotations

import argparse
import textwrap

from chroma_manager.cli import values
from chroma_manager.options import LOCAL_ENGINES

EXIT_CODES = """\
exit codes:
  0    all was done; every database is sound, or was repaired to be so
  1    something failed: a message on stderr says what, and with which database
  2    the arguments are wrong
  3    verify: a database is damaged, and still is at the end
  130  Ctrl-C
with several databases a failure does not stop the others, and the highest code counts
"""


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    """Adds a subcommand."""
    return commands.add_parser(
        name,
        help=summary,
        description="\n".join(textwrap.wrap(description, 78)),
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds an option for output that programs read."""
    parser.add_argument("--json", action="store_true", help="print a JSON object a line, one for each database")


def add_access(parser: argparse.ArgumentParser) -> None:
    """Adds options for how databases are opened."""
    parser.add_argument(
        "--engine",
        choices=LOCAL_ENGINES,
        default=LOCAL_ENGINES[0],
        help="what opens the databases (default: %(default)s, which shares them with an app that uses it, too)",
    )
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=values.seconds,
        default=0.0,
        help="how long to wait for a process that owns a database (default: 0)",
    )


def add_bucket_options(parser: argparse.ArgumentParser) -> None:
    """Adds options for what reaches buckets."""
    parser.add_argument(
        "--bucket-option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        type=values.bucket_option,
        help="an option of obstore, beside what it reads from the environment; may be given several times",
    )


def add_keep(parser: argparse.ArgumentParser) -> None:
    """Adds options for which snapshots of a bucket are kept."""
    parser.add_argument(
        "--keep",
        metavar="N",
        type=values.number,
        help="in a bucket, keep this many snapshots of a database besides those of the last day",
    )
    parser.add_argument(
        "--keep-for", metavar="DAYS", type=values.days, help="in a bucket, keep the snapshots of this many days"
    )
