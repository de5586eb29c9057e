"""Files that survive a crash: copied, written, replaced and removed so that what a name stands for is whole.

And the hook that lets a test crash in between. Every engine process loads this, so it imports next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def step(name: str) -> None:
    """A place at which a test has the process killed."""
    if os.environ.get("CHROMA_MANAGER_KILL_AT") == name:
        os.kill(os.getpid(), signal.SIGKILL)


def sorted_entries(directory: Path) -> list[os.DirEntry[str]]:
    """The entries of a directory by name."""
    with os.scandir(directory) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def copy_directory(source: Path, target: Path) -> None:
    """Copies the files of a directory durably."""
    target.mkdir()
    for entry in sorted_entries(source):
        copy_file(Path(entry.path), target / entry.name)
        step("file copied")
    sync_directory(target)


def copy_file(source: Path, target: Path) -> None:
    """Copies a file durably; where the file system can, it shares the content."""
    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        done = 0
        while done < size:
            done += _copy_some(reader.fileno(), writer.fileno(), size - done)
        os.fsync(writer.fileno())


def _copy_some(source: int, target: int, count: int) -> int:
    """Copies at most `count` bytes; where the file system can, it shares them."""
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


def remove_directory(directory: Path) -> None:
    """Removes a directory with all that is in it, where there is one."""
    # As shutil's, whose import every engine process would wait for.
    if not directory.is_dir():
        return
    for entry in sorted_entries(directory):
        if entry.is_dir(follow_symlinks=False):
            remove_directory(Path(entry.path))
        else:
            os.unlink(entry.path)
    directory.rmdir()


def write_durably(file: Path, text: str) -> None:
    """Replaces a file by another one, whole."""
    new = file.with_name(file.name + ".new")
    with new.open("w") as writer:
        writer.write(text)
        writer.flush()
        os.fsync(writer.fileno())
    new.rename(file)
    sync_directory(file.parent)


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
