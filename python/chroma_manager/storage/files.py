"""Durable changes of files: copied, written, replaced and removed so that a name always stands for a whole file.

Here is also the hook with which a test kills the process in between. Every engine process loads this file, so it
imports next to nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from pathlib import Path


def step(name: str) -> None:
    """A point at which a test can kill the process."""
    if os.environ.get("CHROMA_MANAGER_KILL_AT") == name:
        os.kill(os.getpid(), signal.SIGKILL)


def sorted_entries(directory: Path) -> list[os.DirEntry[str]]:
    """The entries of a directory by name."""
    with os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def sorted_files(directory: Path) -> list[os.DirEntry[str]]:
    """The entries of a directory by name, without the directories in it: in that of an index they are somebody else's.

    A NAS has one for its thumbnails (``@eaDir``), and a mount point ``lost+found``.
    """
    return [entry for entry in sorted_entries(directory) if not entry.is_dir()]


def copy_directory(source: Path, target: Path, *, durably: bool = True) -> None:
    """Copies the files of a directory."""
    target.mkdir()
    for entry in sorted_files(source):
        copy_file(Path(entry.path), target / entry.name, durably=durably)
        step("file copied")
    if durably:
        sync_directory(target)


def copy_file(source: Path, target: Path, *, durably: bool = True) -> None:
    """Copies a file; the copy shares its content where the file system can do that."""
    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        done = 0
        while done < size:
            done += _copy_some(reader.fileno(), writer.fileno(), size - done)
        if durably:
            os.fsync(writer.fileno())


def _copy_some(source: int, target: int, count: int) -> int:
    """Copies at most `count` bytes, or shares them where the file system can do that."""
    if hasattr(os, "copy_file_range"):
        with contextlib.suppress(OSError):
            copied = os.copy_file_range(source, target, count)
            if copied:
                return copied
    data = os.read(source, min(count, 1 << 20))
    if not data:
        raise OSError(f"a file became shorter while it was copied ({count} bytes are missing)")
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
    return len(data)


def remove_tree(path: Path) -> None:
    """Removes a file, or a directory and everything in it, if there is one. A link is not followed."""
    # Like `shutil.rmtree`, whose import every engine process would wait for.
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    for entry in sorted_entries(path):
        remove_tree(Path(entry.path))
    path.rmdir()


def empty_directory(directory: Path) -> None:
    """Removes the files in a directory, and leaves the directory (or the link to it) in place."""
    for entry in sorted_files(directory):
        remove_tree(Path(entry.path))


def is_elsewhere(directory: Path) -> bool:
    """Whether a directory is a link or a mount point: its user has put it on another disk."""
    return directory.is_dir() and (directory.is_symlink() or os.path.ismount(directory))


def make_directory(directory: Path) -> None:
    """Creates a directory durably, if there is none."""
    try:
        directory.mkdir()
    except FileExistsError:
        if not directory.is_dir():
            raise
    else:
        sync_directory(directory.parent)


def make_directories(directory: Path) -> None:
    """Creates a directory and its missing parents, all durably."""
    if not directory.is_dir():
        make_directories(directory.parent)
        make_directory(directory)


def move(source: Path, target: Path) -> None:
    """Moves a file or directory to a free name, or a file over another. The caller syncs both directories."""
    try:
        source.rename(target)
    except OSError as error:
        # The user has moved a directory of ours to another disk.
        if error.errno != errno.EXDEV:
            raise
        new = target.with_name(f"{target.name}.{os.urandom(4).hex()}.new")
        copy_directory(source, new) if source.is_dir() else copy_file(source, new)
        new.rename(target)
        remove_tree(source)


def write_durably(file: Path, text: str) -> None:
    """Replaces a file as a whole by one with this text."""
    new = file.with_name(file.name + ".new")
    with new.open("w") as writer:
        writer.write(text)
        writer.flush()
        os.fsync(writer.fileno())
    new.rename(file)
    sync_directory(file.parent)


def write_whole(file: Path, text: str) -> None:
    """Replaces a file as a whole by one with this text. A power cut may leave an empty file, or none."""
    new = file.with_name(file.name + ".new")
    try:
        new.write_text(text)
        new.rename(file)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def sync_tree(directory: Path) -> None:
    """Makes files durable that another program wrote into a directory, and their names."""
    for entry in sorted_files(directory):
        descriptor = os.open(entry.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
