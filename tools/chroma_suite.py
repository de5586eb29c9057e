"""Runs Chroma's own test suite (it is in its wheel) over stock Chroma and over our engine, and compares what passes.

    make chroma-suite

As a pytest plugin (``-p chroma_suite``) this module puts our object in the place of Chroma's binding.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import chromadb

# What runs on the binding, without a server, a cluster or a download for everything.
PARTS = (
    "test_api.py",
    "test_chroma.py",
    "test_client.py",
    "test_multithreaded.py",
    "api",
    "client/test_database_tenant.py",
    "client/test_multiple_clients_concurrency.py",
    "configurations",
    "db",
    "property/test_add.py",
    "property/test_base64_conversion.py",
    "property/test_collections.py",
    "property/test_filtering.py",
)


# Fails over the engine, and is to: it looks whether rows of the log are gone, which are kept until a checkpoint.
INTENDED = "test_log_purge[rust_sqlite_persistent]"


def pytest_configure() -> None:
    """Puts our object in the place of Chroma's."""
    import chromadb_rust_bindings
    from chroma_manager._native import Bindings

    chromadb_rust_bindings.Bindings = Bindings


def outcomes(name: str, *options: str) -> dict[str, str]:
    """What became of each test: ``passed``, ``skipped``, ``failure`` or ``error``."""
    suite = Path(chromadb.__file__).parent / "test"
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        # Not ours, which is found above the environment that the suite is in.
        configuration = Path(directory, "pytest.ini")
        configuration.write_text("[pytest]\n")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "120", *options]
        command += ["-c", str(configuration), "--rootdir", str(suite)]
        command += [f"--junitxml={report}", *(str(suite / part) for part in PARTS)]
        environment = {
            **os.environ,
            "CHROMA_RUST_BINDINGS_TEST_ONLY": "1",
            "PYTHONPATH": str(Path(__file__).parent),
        }
        print(f"--- {name}", flush=True)
        subprocess.run(command, cwd=directory, env=environment, check=False)
        cases = ElementTree.parse(report).iter("testcase")
        found = {}
        for case in cases:
            kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
            found[f"{case.get('classname')}::{case.get('name')}"] = kinds[0] if kinds else "passed"
        return found


def main() -> int:
    """Prints how many tests pass with each, and names those that pass with stock Chroma only; 1 if there are any."""
    stock = outcomes("chromadb")
    ours = outcomes("chroma-manager", "-p", "chroma_suite")
    passed = [name for name, outcome in stock.items() if outcome == "passed"]
    lost = [name for name in passed if ours.get(name) != "passed" and INTENDED not in name]
    print(f"{len(stock)} tests: {len(passed)} pass with chromadb, {len(passed) - len(lost)} of these over the engine")
    print(f"(not counted there as lost: {INTENDED})")
    for name in lost:
        print(f"  {ours.get(name, 'not run')}: {name}")
    return 1 if lost or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
