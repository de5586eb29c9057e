"""The file of a run: what was said, and of what machine, versions and sizes the figures are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scenario import Figures, Sizes

ROOT = Path(__file__).parents[2]
LATEST = ROOT / "benches/results/latest.json"
GROWTH = ROOT / "benches/results/growth.json"
PACKAGES = ("chroma-manager", "chromadb", "lancedb", "numpy")

INNERMOST = re.compile(r"[\[{][^\[\]{}]*[\]}]")

# Of each contender the figures of its rounds, or a few words on why there are none.
Said = dict[str, list[Figures] | str]
# Of each scenario.
Results = dict[str, Said]


def circumstances(sizes: Sizes) -> dict[str, Any]:
    """What the figures of a run are of that begins now."""
    return {
        "made": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "revision": revision(),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "memory GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "system": platform.system() + " " + platform.release(),
            "load before": round(os.getloadavg()[0], 1),
        },
        "versions": {"Python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
        "sizes": dataclasses.asdict(sizes),
    }


def revision() -> str:
    """The commit, with a plus if the files differ from it."""
    commit = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "python", "benches/bench")
    return commit + ("+" if changed else "")


def git(*arguments: str) -> str:
    """What git says; nothing where there is none."""
    try:
        said = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return said.stdout.strip()


def processor() -> str:
    """As Linux names it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def save(path: Path, run: dict[str, Any]) -> None:
    """Writes a run so that a diff of two is readable: the figures of a round are a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(run), indent=1)
    path.write_text(INNERMOST.sub(lambda found: " ".join(found[0].split()), text) + "\n")


def rounded(value: Any) -> Any:
    """Five digits are more than any figure has."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value


def digest(path: Path) -> str:
    """What tells one file from another: figures name the one that they were drawn from."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def load(path: Path) -> dict[str, Any]:
    """Reads one."""
    return json.loads(path.read_text())


def sizes_of(run: dict[str, Any]) -> Sizes:
    """The sizes of a run."""
    sizes = dict(run["sizes"])
    return Sizes(**{**sizes, "batches": tuple((batch, count) for batch, count in sizes["batches"])})
