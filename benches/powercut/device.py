"""A block device that logs every write and every flush: a FUSE file system with one file, and a loop device on it.

The kernel's loop driver passes on what a file system writes as writes to that file, and its flushes as `fsync`. FUSE is
mounted without a writeback cache, so each write is here before the file system is told that it is done, and the server
has a single thread, so the log has an order. Neither discards nor zeroing are offered: a file system then writes zeros,
which are logged like all else.

Two files make a log: `events`, an entry of fixed size for each write or flush, and `data`, what was written. So the
*position* in the log, the number of events so far, is the size of `events`, which any process can ask for.

Run as a program, it is the server.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Where on the disk, how much, and where in `data` it begins; of a flush the length is 0.
EVENT = struct.Struct("<QQQ")

DISK = "disk.img"
STARTS_WITHIN = 20.0
ENDS_WITHIN = 20.0

SIZES = {"ext4": 192 << 20, "xfs": 320 << 20, "btrfs": 320 << 20}

# The inode table and journal of ext4 are written at once, not by a thread of the kernel after the first mount.
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-K"],
    "btrfs": ["mkfs.btrfs", "-q", "-K"],
}

# Of a disk there are copies with the same UUID.
MOUNT_OPTIONS = {"ext4": "noatime", "xfs": "noatime,nouuid", "btrfs": "noatime"}


class PowercutError(Exception):
    """The bench itself cannot go on."""


def run(*command: str) -> str:
    """What a command prints.

    Raises:
        PowercutError: It failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PowercutError(
            f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout.strip()


def position(log: Path) -> int:
    """How many events the log has."""
    return os.stat(log / "events").st_size // EVENT.size


@contextlib.contextmanager
def logged_disk(log: Path, system: str, scratch: Path) -> Iterator[Path]:
    """A new file system on a logged device, mounted.

    Args:
        log: A directory in which the log is written anew.
        system: Which file system.
        scratch: A directory in memory, for what is on the disk.
    """
    log.mkdir(parents=True, exist_ok=True)
    for name in ("events", "data"):
        (log / name).write_bytes(b"")
    device, mounted = scratch / "device", scratch / "disk"
    for directory in (device, mounted):
        directory.mkdir(parents=True, exist_ok=True)
    with _served(log, SIZES[system], device, scratch / "content"):
        loop = run("losetup", "--find", "--show", str(device / DISK))
        try:
            run(*MAKE[system], loop)
            run("mount", "-t", system, "-o", MOUNT_OPTIONS[system], loop, str(mounted))
            try:
                yield mounted
            finally:
                run("umount", str(mounted))
        finally:
            run("losetup", "--detach", loop)


@contextlib.contextmanager
def _served(log: Path, size: int, device: Path, content: Path) -> Iterator[None]:
    command = [sys.executable, __file__, str(log), str(size), str(device), str(content)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        ends = time.monotonic() + STARTS_WITHIN
        while not (device / DISK).exists():
            if server.poll() is not None or time.monotonic() > ends:
                server.kill()
                raise PowercutError(f"the FUSE server does not start: {server.communicate()[0].strip()}")
            time.sleep(0.02)
        yield
    finally:
        with contextlib.suppress(PowercutError):
            run("umount", str(device))
        try:
            server.communicate(timeout=ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            server.kill()
            server.communicate()
        content.unlink(missing_ok=True)


def serve(log: Path, size: int, device: Path, content: Path) -> None:
    """Serves the file system until it is unmounted."""
    import mfusepy

    class OneFile(mfusepy.Operations):  # type: ignore[misc]
        """A disk that keeps a log."""

        use_ns = True

        def __init__(self) -> None:
            self._disk = os.open(content, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            os.ftruncate(self._disk, size)
            append = os.O_WRONLY | os.O_APPEND
            self._events, self._data = os.open(log / "events", append), os.open(log / "data", append)
            self._written = 0

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
            if path == f"/{DISK}":
                return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size}
            raise mfusepy.FuseOSError(errno.ENOENT)

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", DISK]

        def open(self, path: str, flags: int) -> int:
            return 1

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(self._disk, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            os.pwrite(self._disk, data, offset)
            os.write(self._data, data)
            os.write(self._events, EVENT.pack(offset, len(data), self._written))
            self._written += len(data)
            return len(data)

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            os.write(self._events, EVENT.pack(0, 0, self._written))
            return 0

        def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> int:
            raise mfusepy.FuseOSError(errno.EOPNOTSUPP)

    mfusepy.FUSE(OneFile(), str(device), foreground=True, nothreads=True, fsname="powercut")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
