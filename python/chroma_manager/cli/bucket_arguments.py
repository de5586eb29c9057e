"""The arguments of ``chroma-manager snapshots`` and ``prune``; what they do is in ``buckets.py``."""

from __future__ import annotations

import argparse

from chroma_manager.cli import values
from chroma_manager.cli.subcommand import add_bucket_options, add_command, add_json, add_keep


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommands that look after buckets."""
    snapshots = add_command(
        commands,
        "snapshots",
        "list the snapshots in a bucket",
        "List the snapshots in a bucket, from the oldest to the newest: key, time, records, size, and the URL that "
        "restore takes.",
    )
    _add_url(snapshots)
    add_json(snapshots)
    snapshots.set_defaults(run=_run_snapshots)
    prune = add_command(
        commands,
        "prune",
        "remove old snapshots from a bucket",
        "Remove old snapshots of each database from a bucket, and the files that no other snapshot has. The snapshots "
        "of the last day stay, and --keep counts those before. May run while snapshots are taken.",
    )
    _add_url(prune)
    add_keep(prune)
    add_json(prune)
    prune.set_defaults(run=_run_prune, parser=prune)


def _add_url(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", type=values.url, help="of the bucket: gs://, s3://, az:// or file://")
    parser.add_argument(
        "--only",
        nargs=2,
        metavar=("FILE_ID", "EMBEDDING_TYPE"),
        help="this database alone; with prune --keep 0, everything of it, whatever its age",
    )
    add_bucket_options(parser)


def _run_snapshots(arguments: argparse.Namespace) -> int:
    from chroma_manager.cli import buckets  # noqa: PLC0415 - so that --help is instant

    place = buckets.Place(arguments.url, dict(arguments.bucket_option), arguments.only)
    return buckets.list_snapshots(place, as_json=arguments.json)


def _run_prune(arguments: argparse.Namespace) -> int:
    from chroma_manager.cli import buckets  # noqa: PLC0415 - so that --help is instant

    if arguments.keep is None and arguments.keep_for is None:
        arguments.parser.error("give --keep or --keep-for")
    if arguments.keep == 0 and arguments.only is None:
        arguments.parser.error("--keep 0 removes everything of a database: name it with --only")
    place = buckets.Place(arguments.url, dict(arguments.bucket_option), arguments.only)
    return buckets.prune(place, arguments.keep, arguments.keep_for, as_json=arguments.json)
