"""The values of arguments: what a text on the command line stands for, or why it stands for nothing."""

from __future__ import annotations

import argparse
import os
import stat
from datetime import timedelta
from pathlib import Path

from chroma_manager.bucket.addresses import address_of, is_url
from chroma_manager.errors import SnapshotError
from chroma_manager.option_checks import LONGEST_SECONDS


def path(text: str) -> Path:
    """A path that need not exist."""
    # Path("") is the working directory: an empty variable in a shell would name everything in it.
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name a file or a directory")
    return Path(text)


def directory(text: str) -> Path:
    """A directory that exists."""
    named = path(text)
    try:
        is_directory = stat.S_ISDIR(os.stat(named).st_mode)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error.strerror}") from error
    if not is_directory:
        raise argparse.ArgumentTypeError(f"{text!r} is not a directory")
    return named


def url(text: str) -> str:
    """The URL of a bucket."""
    try:
        address_of(text)
    except SnapshotError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def path_or_url(text: str) -> Path | str:
    """A path that need not exist, or the URL of a bucket."""
    return url(text) if is_url(text) else path(text)


def directory_or_url(text: str) -> Path | str:
    """A directory that exists, or the URL of a bucket."""
    return url(text) if is_url(text) else directory(text)


def bucket_option(text: str) -> tuple[str, str]:
    """An option of obstore, NAME=VALUE."""
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def number(text: str) -> int:
    """A number of snapshots, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of snapshots; give 0 or more")
    return int(text)


def days(text: str) -> timedelta:
    """A number of days, 0 or more."""
    try:
        given = timedelta(days=float(text))
    except (ValueError, OverflowError):
        given = timedelta(-1)
    if given < timedelta():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days; give 0 or more")
    return given


def seconds(text: str) -> float:
    """A number of seconds, 0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    # A NaN compares as false.
    if not 0 <= number <= LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {LONGEST_SECONDS:,}")
    return number


def threads(text: str) -> int:
    """A number of threads, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads; give 1 or more")
    return int(text)
