"""The values of arguments: what a text on the command line stands for, or why it stands for nothing."""

from __future__ import annotations

import argparse
import os
import stat
from pathlib import Path

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


def seconds(text: str) -> float:
    """A number of seconds, 0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    # A NaN compares as false.
    if not 0 <= number <= LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds; give 0 or more")
    return number


def threads(text: str) -> int:
    """A number of threads, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads; give 1 or more")
    return int(text)
