"""The arguments of ``chroma-manager migrate``; what it does with them is in ``migrating.py``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from chroma_manager.cli import values
from chroma_manager.server_options import LAYOUTS

DESCRIPTION = (
    "Copy all instances to another place, one after the other, and compare each copy with its source. Name two of "
    "BASE_PATH, --from and --to: what is not named by an option is the base path. Nothing is removed from the source, "
    "and nothing of the destination is overwritten but older records of the same instance. A run that was interrupted "
    "is continued by the same command, and a complete one writes nothing. Works beside a running app; run it again "
    "when nobody writes any more."
)


class Url(str):
    """The URL of a Chroma server."""


def fill(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("base_path", metavar="BASE_PATH", nargs="?", type=values.path, help="the base path of an app")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="URL|DIR",
        type=_url_or_directory,
        help="a Chroma server, or a directory with plain Chroma databases below it: DIR/FILE_ID/EMBEDDING_TYPE, with "
        "'__' for each further separator in FILE_ID",
    )
    parser.add_argument(
        "--to", dest="destination", metavar="URL", type=url, help="a Chroma server: http[s]://HOST:PORT"
    )
    parser.add_argument(
        "--embedding-type", metavar="NAME", help="of databases at DIR/FILE_ID, which have none in their path"
    )
    parser.add_argument("--tenant", metavar="NAME", help="on the server (default: Chroma's)")
    parser.add_argument(
        "--layout", choices=LAYOUTS, default=LAYOUTS[0], help="on the server (default: %(default)s); see docs/server.md"
    )
    parser.add_argument("--database", metavar="NAME", help="on the server, with --layout collection")
    parser.add_argument(
        "--header-env",
        metavar=("NAME", "VARIABLE"),
        nargs=2,
        action="append",
        default=[],
        help="send a header whose value is in an environment variable; may be given several times",
    )
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="the environment variable that has an API key")


def url(text: str) -> Url:
    """The URL of a server.

    Raises:
        argparse.ArgumentTypeError: It is not one.
    """
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL; give http://HOST:PORT or https://HOST:PORT")
    return Url(text)


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    _check(parser, arguments)
    server = _server_options(parser, arguments)
    from chroma_manager.cli import migrating  # noqa: PLC0415 - so that --help is instant

    return migrating.Migration(
        source=_path_of(arguments.source if arguments.source is not None else arguments.base_path),
        destination=_path_of(arguments.destination if arguments.destination is not None else arguments.base_path),
        server=server,
        local={"engine": arguments.engine, "lock_timeout": arguments.wait},
        is_tree=isinstance(arguments.source, Path),
        embedding_type=arguments.embedding_type,
        as_json=arguments.json,
    ).run()


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the command unless the arguments name a source and a destination."""
    named = [arguments.base_path, arguments.source, arguments.destination]
    if sum(place is not None for place in named) != 2:
        parser.error("name two of BASE_PATH, --from and --to: where instances are, and where they are to be")
    if isinstance(arguments.source, Url) and arguments.destination is not None:
        parser.error("--from and --to cannot both be servers: the options of a server are given once")
    if not any(isinstance(place, Url) for place in named) and _given_for_server(arguments):
        parser.error(f"{_given_for_server(arguments)[0]} is about a server, and none is named")
    if arguments.embedding_type is not None and not isinstance(arguments.source, Path):
        parser.error("--embedding-type is about databases in a directory that --from names")


def _server_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the engine ``server`` that the arguments stand for; ends the command if a variable is not set."""

    def secret(variable: str) -> str:
        if variable not in os.environ:
            parser.error(f"the environment variable {variable} is not set")
        return os.environ[variable]

    named = arguments.source if isinstance(arguments.source, Url) else arguments.destination
    options = {
        "host": named and str(named),
        "tenant": arguments.tenant,
        "layout": arguments.layout,
        "database": arguments.database,
        "headers": {name: secret(variable) for name, variable in arguments.header_env} or None,
        "api_key": arguments.api_key_env and secret(arguments.api_key_env),
    }
    return {name: value for name, value in options.items() if value is not None}


def _given_for_server(arguments: argparse.Namespace) -> list[str]:
    given = vars(arguments)
    names = [name for name in ("tenant", "database", "api_key_env", "header_env") if given[name]]
    return [f"--{name.replace('_', '-')}" for name in names]


def _path_of(place: Url | Path) -> Path | None:
    return place if isinstance(place, Path) else None


def _url_or_directory(text: str) -> Url | Path:
    return url(text) if text.startswith(("http://", "https://")) else values.directory(text)
