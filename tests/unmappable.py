"""A file system whose files cannot be mapped into shared memory, as some network file systems are: another directory,
through FUSE and past the page cache.

Run as a program, it is the server.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STARTS_WITHIN = 20.0
ENDS_WITHIN = 20.0


@contextlib.contextmanager
def mounted(content: Path, at: Path) -> Iterator[Path]:
    """The directory `at`, which shows what is in `content`."""
    at.mkdir()
    content.mkdir()
    server = subprocess.Popen([sys.executable, __file__, str(content), str(at)])
    try:
        ends = time.monotonic() + STARTS_WITHIN
        while not os.path.ismount(at):
            assert time.monotonic() < ends, "the FUSE server does not start"
            time.sleep(0.02)
        yield at
    finally:
        # An engine process may have its working directory there yet, for a moment.
        subprocess.run(["umount", "--lazy", str(at)], check=True)
        try:
            server.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
            raise


def serve(content: Path, at: Path) -> None:
    """Serves the file system until it is unmounted."""
    import mfusepy

    def below(call: Callable[..., Any]) -> Callable[..., Any]:
        """A function of `os` for which a path is one in `content`."""
        return lambda _, path, *arguments: call(f"{content}{path}", *arguments)

    class Directory(mfusepy.Operations):  # type: ignore[misc]
        """What `os` does to the other directory."""

        use_ns = True
        chmod, mkdir, rmdir, unlink = map(below, (os.chmod, os.mkdir, os.rmdir, os.unlink))
        readlink = below(os.readlink)

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            found = os.lstat(f"{content}{path}")
            names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino")
            return {name: getattr(found, name) for name in names} | {"st_mtime": found.st_mtime_ns}

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(f"{content}{path}")]

        def create(self, path: str, mode: int, fi: object = None) -> int:
            return os.open(f"{content}{path}", os.O_RDWR | os.O_CREAT | os.O_TRUNC, stat.S_IMODE(mode))

        def open(self, path: str, flags: int) -> int:
            return os.open(f"{content}{path}", flags)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            os.truncate(f"{content}{path}", length)
            return 0

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            os.fsync(fh)
            return 0

        def rename(self, old: str, new: str) -> int:
            os.rename(f"{content}{old}", f"{content}{new}")
            return 0

        def symlink(self, target: str, source: str) -> int:
            os.symlink(source, f"{content}{target}")
            return 0

        def mknod(self, path: str, mode: int, device: int) -> int:
            os.mknod(f"{content}{path}", mode, device)
            return 0

    # A file that was forgotten would have another number when it is looked up again.
    options = {"direct_io": True, "hard_remove": True, "noforget": True}
    mfusepy.FUSE(Directory(), str(at), foreground=True, nothreads=True, fsname="unmappable", **options)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
