"""What is to happen to which file operation: the file that the driver shares with the library in ``faults/``.

The layout is that of ``faults/src/plan.rs``.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LIBRARY = Path(__file__).with_name("faults")

MAGIC = b"TORTURE1"
ENTRIES, ENTRY_SIZE, ENTRY_HEAD = 16_384, 128, struct.Struct("<6I")
RULE, RULES, FIRST_RULE = struct.Struct("<QQII"), 4, 32
COUNTED, FIRED, IS_ACTIVE, ACT, ROOT, TRACE = 8, 16, 24, 28, 128, 392

# What an operation is, in bits.
OPENS, CHANGES, GROWS, SYNCS, WRITES = 1, 2, 4, 8, 16
EVERYTHING = OPENS | CHANGES | GROWS | SYNCS | WRITES

KILL, TEAR = 1 << 16, 2 << 16

SYSTEM_CALLS = {
    **{1: "write", 2: "open", 18: "pwrite64", 20: "writev", 40: "sendfile", 74: "fsync", 75: "fdatasync"},
    **{76: "truncate", 77: "ftruncate", 82: "rename", 83: "mkdir", 84: "rmdir", 85: "creat", 86: "link", 87: "unlink"},
    **{88: "symlink", 257: "openat", 258: "mkdirat", 263: "unlinkat", 264: "renameat", 265: "linkat", 266: "symlinkat"},
    **{277: "sync_file_range", 285: "fallocate", 296: "pwritev", 316: "renameat2", 326: "copy_file_range"},
    **{328: "pwritev2", 16: "ioctl"},
}

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
RANDOM = re.compile(r"@\d+-[0-9a-f]{8}|#\d+|\.[0-9a-f]{8}\.partial")


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: As on the command line.
        action: ``KILL``, ``TEAR`` or the number of an error.
        applies_to: Operations that are none of these kinds are not tried, and are spared while the fault lasts.
        lasts: How many operations of these kinds have it.
    """

    name: str
    action: int
    applies_to: int
    lasts: int = 1


FOR_EVER = 1 << 40

FAULTS = {
    fault.name: fault
    for fault in (
        # What does not change the disk leaves nothing else for a recovery than the operation before it.
        Fault("kill", KILL, CHANGES),
        Fault("kill-again", KILL, CHANGES),
        Fault("tear", TEAR, WRITES),
        Fault("EIO", errno.EIO, EVERYTHING),
        Fault("ENOSPC", errno.ENOSPC, GROWS),
        Fault("EMFILE", errno.EMFILE, OPENS),
        Fault("ENOSPC-for-5", errno.ENOSPC, GROWS, 5),
        Fault("ENOSPC-for-50", errno.ENOSPC, GROWS, 50),
        Fault("ENOSPC-for-ever", errno.ENOSPC, GROWS, FOR_EVER),
        Fault("EIO-for-5", errno.EIO, CHANGES | SYNCS, 5),
    )
}


@dataclass(frozen=True)
class Operation:
    """One that was counted."""

    number: int
    process: int
    act: int
    call: str
    kinds: int
    action: int
    name: str

    @property
    def place(self) -> tuple[int, str, str]:
        """What it has in common with others of the same kind."""
        return self.act, self.call, self.name

    def __str__(self) -> str:
        """As in a report."""
        return f"{self.call} {self.name}"


class Plan:
    """The shared file of one run."""

    def __init__(self, path: Path, root: Path) -> None:
        """Creates it; nothing is counted yet."""
        self.path = path
        with path.open("wb+") as file:
            file.truncate(TRACE + ENTRIES * ENTRY_SIZE)
            self._shared = mmap.mmap(file.fileno(), 0)
        self._shared[: len(MAGIC)] = MAGIC
        encoded = os.fsencode(root)
        struct.pack_into("<Q", self._shared, ROOT, len(encoded))
        self._shared[ROOT + 8 : ROOT + 8 + len(encoded)] = encoded

    def set_rules(self, rules: Iterable[tuple[int, int, int, int]]) -> None:
        """Each: from which operation on, for how many of the kinds, the action, the kinds."""
        for i, rule in enumerate(rules):
            RULE.pack_into(self._shared, FIRST_RULE + i * RULE.size, *rule)

    def _get(self, offset: int, form: str) -> int:
        value: int = struct.unpack_from(form, self._shared, offset)[0]
        return value

    @property
    def counted(self) -> int:
        """Operations so far."""
        return self._get(COUNTED, "<Q")

    @property
    def fired(self) -> int:
        """How many had the fault."""
        return self._get(FIRED, "<Q")

    def activate(self, is_active: bool) -> None:
        """Whether operations are counted, and have faults."""
        struct.pack_into("<I", self._shared, IS_ACTIVE, is_active)

    def begin_act(self, act: int) -> None:
        """What the trace says of the next operations."""
        struct.pack_into("<I", self._shared, ACT, act)

    def trace(self) -> list[Operation]:
        """All that were counted, as far as they fit."""
        return [self._entry(i) for i in range(min(self.counted, ENTRIES))]

    def _entry(self, i: int) -> Operation:
        start = TRACE + i * ENTRY_SIZE
        process, act, number, kinds, action, length = ENTRY_HEAD.unpack_from(self._shared, start)
        name = bytes(self._shared[start + ENTRY_HEAD.size : start + ENTRY_HEAD.size + length])
        plain = RANDOM.sub("*", UUID.sub("<index>", name.decode(errors="replace")))
        return Operation(i + 1, process, act, SYSTEM_CALLS.get(number, str(number)), kinds, action, plain)

    def environment(self, library: Path) -> dict[str, str]:
        """With which an app is to start its engine processes."""
        return {"LD_PRELOAD": str(library), "TORTURE_PLAN": str(self.path)}


def build_library() -> Path:
    """Builds the library that is preloaded."""
    command = ["cargo", "build", "--quiet", "--locked", "--manifest-path", str(LIBRARY / "Cargo.toml")]
    subprocess.run(command, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", LIBRARY / "target"))
    return target / "debug" / "libtorture_faults.so"
