"""The example app under load (`make load`): chats at rest, and chats while files are uploaded and embedded.

Each engine has an app of its own on this machine. What is measured goes to `benches/results/load.json`, and as a table
and a figure to `docs/app.md`. The traffic is in `locustfile.py`, the table in `table.py`, the figure in
`figure.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

# The figures of all benches look alike.
sys.path.append(str(Path(__file__).parents[1]))

from figure import drawn
from table import ENGINES, PAGE, PHASES, RESULTS, ROOT, report, with_table

USERS = {"rest": ("Chats", "Pulse"), "ingest": ("Chats", "Pulse", "Uploads")}
WARM_SECONDS = 3  # at the beginning of each phase, which do not count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=75, help="of each phase; there are four (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="write table and figure of the last run anew")
    options = parser.parse_args()
    if not options.report:
        run = {"made": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "seconds": options.seconds, **machine()}
        measured = {engine: measure(engine, options.seconds) for engine in ENGINES}
        RESULTS.write_text(json.dumps({**run, "results": measured}, separators=(",", ":")) + "\n")
    run = json.loads(RESULTS.read_text())
    for theme in ("light", "dark"):
        drawn(run, theme)
    print(report(run))
    PAGE.write_text(with_table(PAGE.read_text(), run))
    failed = sum(phase["failed"] for phases in run["results"].values() for phase in phases.values())
    sys.exit(f"{failed} requests have failed" if failed else None)


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "load before": round(os.getloadavg()[0], 1),
    }


def measure(engine: str, seconds: int) -> dict[str, Any]:
    """Of each phase: the chats, the uploads and the pulse, each as (second, milliseconds), and how much has failed."""
    with tempfile.TemporaryDirectory(prefix="load-") as name:
        directory = Path(name)
        environment = {**os.environ, "RAG_DATA": str(directory / "data"), "RAG_ENGINE": engine}
        with (directory / "log").open("w") as log:
            command = [sys.executable, "-m", "uvicorn", "rag_app.main:app", "--port", "0", "--no-access-log"]
            app = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            address = address_of(app, directory / "log")
            fill(address)
            return {phase: traffic(address, USERS[phase], seconds, directory / phase) for phase in PHASES}
        finally:
            app.terminate()
            app.wait(60)


def address_of(app: subprocess.Popen[bytes], log: Path) -> str:
    while app.poll() is None:
        found = re.search(r"running on (http://\S+)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.1)
    raise SystemExit(log.read_text())


def fill(address: str) -> None:
    """The files that are asked: the project's own pages."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        request = urllib.request.Request(f"{address}/api/files?name={page.name}", page.read_bytes(), method="POST")
        urllib.request.urlopen(request, timeout=60).close()
    while True:
        with urllib.request.urlopen(f"{address}/api/files", timeout=60) as answer:
            if all(file["status"] == "ready" for file in json.load(answer)["files"]):
                return
        time.sleep(0.2)


def traffic(address: str, users: tuple[str, ...], seconds: int, result: Path) -> dict[str, Any]:
    print(f"{result.name}: {', '.join(users)} for {seconds} s ...", file=sys.stderr)
    locustfile = Path(__file__).with_name("locustfile.py")
    command = [sys.executable, "-m", "locust", "-f", locustfile, *users, "--headless", "--host", address]
    bounds = [
        "--users",
        "16",
        "--spawn-rate",
        "16",
        "--run-time",
        f"{seconds}s",
        "--only-summary",
        "--stop-timeout",
        "20",
    ]
    environment = {**os.environ, "LOAD_RESULT": str(result), "LOAD_WARM": str(WARM_SECONDS)}
    subprocess.run([*command, *bounds], env=environment, check=False, capture_output=True, timeout=seconds + 120)
    return dict(json.loads(result.read_text()))


main()
