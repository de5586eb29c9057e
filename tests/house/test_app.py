"""What the pages say of the example app holds: its mission, its configuration, its layers, its image and services."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "examples/rag_app"
PACKAGE = PROJECT / "rag_app"
PAGE = (ROOT / "docs/app.md").read_text()
README = (ROOT / "README.md").read_text()
DEPLOYMENT = (ROOT / "docs/deployment.md").read_text()
FILES = sorted(PACKAGE.rglob("*.py"))

MISSION = re.findall(
    r"^\| `([^`]+)` \| `([^`]+)` \| `([^`]+)` \|$",
    README.partition("<!-- mission: begin -->")[2].partition("<!-- mission: end -->")[0],
    re.MULTILINE,
)
CALLS = {
    "ChromaDBManager",
    "EmbeddingHandler",
    "AzureChatbot",
    "get_client",
    "get_collection",
    "cleanup_instance",
    "cleanup_all_instances",
    "shutdown",
}


def test_the_mission_has_every_call_of_the_guide() -> None:
    assert {call.partition("(")[0] for call, _, _ in MISSION} == CALLS


@pytest.mark.parametrize(("call", "file", "test"), MISSION, ids=[call.partition("(")[0] for call, _, _ in MISSION])
def test_the_app_makes_the_call_and_a_test_shows_it(call: str, file: str, test: str) -> None:
    name = call.partition("(")[0]
    calls = [node.func for node in ast.walk(ast.parse((PACKAGE / file).read_text())) if isinstance(node, ast.Call)]
    assert name in {getattr(called, "attr", getattr(called, "id", None)) for called in calls}
    tests = [path.read_text() for path in (ROOT / "tests/app").glob("test_*.py")]
    assert sum(f"\ndef {test}(" in text for text in tests) == 1


def test_the_handlers_are_constructed_as_in_the_guide() -> None:
    text = (PACKAGE / "services.py").read_text()
    for name in ("EmbeddingHandler", "AzureChatbot"):
        assert f"{name}(self.configs, self.bucket, chroma_manager=chroma_manager)" in text
        definition = next(path.read_text() for path in FILES if f"class {name}:" in path.read_text())
        assert "(self, configs: Configs, gcs_handler: Bucket, chroma_manager: ChromaDBManager)" in definition


def layers() -> dict[str, int]:
    """How far down each module of the app is, as the first lines of the package say."""
    docstring = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text())) or ""
    written = [
        re.split(r"\s{3,}", line.strip())[0].split() for line in docstring.splitlines() if line.startswith("    ")
    ]
    return {name: place for place, names in enumerate(written) for name in names}


def module_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_of_the_app_imports_only_from_below(file: Path) -> None:
    if file == PACKAGE / "__init__.py":
        assert layers().keys() == {module_of(each) for each in FILES} - {"__init__"}
        return
    own = layers()[module_of(file)]
    for name in re.findall(r"^\s*from rag_app\.(\w+)", file.read_text(), re.MULTILINE):
        assert layers()[name] > own, f"{file.name} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_of_the_app_is_read_in_one_sitting(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 250


def variables() -> set[str]:
    configs = ast.parse((PACKAGE / "configs.py").read_text())
    (found,) = (node for node in configs.body if isinstance(node, ast.ClassDef))
    names = {node.target.id for node in found.body if isinstance(node, ast.AnnAssign)}  # type: ignore[union-attr]
    return {f"RAG_{name.upper()}" for name in names}


def test_every_variable_is_documented_and_no_other() -> None:
    table = PAGE.partition("## Configuration")[2]
    assert set(re.findall(r"`(RAG_\w+)`", table)) == variables()
    services = (PROJECT / "compose.yaml").read_text()
    assert set(re.findall(r"RAG_\w+", PAGE + DEPLOYMENT + services)) <= variables()


def test_the_image_is_made_of_what_is_there() -> None:
    lines = (PROJECT / "Dockerfile").read_text().splitlines()
    let_in = {
        line[1:] for line in (PROJECT / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    for source in (name for names in copied for name in names):
        assert (ROOT / source).exists(), source
        assert source in let_in, source
    (command,) = (line.removeprefix("CMD ") for line in lines if line.startswith("CMD "))
    assert ast.literal_eval(command)[:2] == ["uvicorn", "rag_app.main:app"]
    assert ast.literal_eval(command)[-2:] == ["--timeout-graceful-shutdown", "30"]


def test_the_services_are_those_of_the_pages() -> None:
    compose = yaml.safe_load((PROJECT / "compose.yaml").read_text())
    app = compose["services"]["app"]
    context = (PROJECT / app["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / app["build"]["dockerfile"]).is_file()
    assert f"`stop_grace_period: {app['stop_grace_period']}`" in DEPLOYMENT
    assert all(port.startswith("127.0.0.1:") for port in app["ports"])
    for service in compose["services"].values():
        for volume in service["volumes"]:
            assert volume.partition(":")[0] in compose["volumes"]
    for command in re.findall(r"^docker .*$", DEPLOYMENT, re.MULTILINE):
        words = shlex.split(command)
        assert (ROOT / words[words.index("--file") + 1]).is_file()


def test_the_table_of_the_load_is_what_its_file_makes_of_it() -> None:
    module = runpy.run_path(str(ROOT / "benches/load/table.py"))
    run = json.loads(module["RESULTS"].read_text())
    assert module["with_table"](PAGE, run) == PAGE
    for theme in ("light", "dark"):
        assert (ROOT / f"docs/figures/load-{theme}.svg").is_file()
