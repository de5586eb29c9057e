"""The text of a file, read in a process of its own: what users send may exhaust, hang or crash a parser.

The process (``extraction_child``) has a limit of memory, and is killed after some seconds. It imports neither FastAPI
nor Chroma.
"""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

from rag_app import errors
from rag_app.configs import Configs
from rag_app.passages import Passage

_KEPT_BYTES = 2000  # of what a process that has crashed says

_logger = logging.getLogger(__name__)


def extract(configs: Configs, name: str, kind: str, path: Path) -> list[Passage]:
    """Reads the passages of a file. Takes a fraction of a second, and up to ``extraction_seconds``.

    Args:
        configs: Which has the limits.
        name: Of the file, for messages.
        kind: One of ``kinds.KINDS``.
        path: Where the file is.

    Raises:
        UnreadableError: It is broken, encrypted, has no text, or takes too much time, memory or space.
        UnknownKindError: It is not of that kind.
        TooLargeError: It has more text than is read.
    """
    seconds = math.ceil(configs.extraction_seconds) + 1
    limits = (seconds, configs.extraction_memory_bytes, configs.max_unpacked_bytes, configs.max_characters)
    command = [sys.executable, "-m", "rag_app.extraction_child", kind, str(path), *map(str, limits)]
    try:
        ran = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=configs.extraction_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise errors.UnreadableError(
            f"{name} takes longer than {configs.extraction_seconds:g} s to read. Save it anew, or as text."
        ) from None
    if ran.returncode:
        said = ran.stderr[-_KEPT_BYTES:].decode(errors="replace")
        _logger.warning("the process that reads %s has ended with %d: %s", name, ran.returncode, said)
        raise errors.UnreadableError(f"{name} cannot be read: it is damaged, or needs too much memory.")
    read = json.loads(ran.stdout)
    if "error" in read:
        raise getattr(errors, read["error"])(f"{name} {read['message']}")
    return [Passage(*passage) for passage in read["passages"]]
