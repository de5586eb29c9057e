"""Every code block of the README works as it stands, and what the README and the pages of `docs/` name exists."""

from __future__ import annotations

import ast
import builtins
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

LONGEST = 142  # lines
WIDEST = 120  # characters

BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

# What the README leaves to the app.
THE_APPS_OWN = """
configs, gcs_handler = {}, None

class EmbeddingHandler:
    def __init__(self, configs, gcs_handler, chroma_manager):
        self.chroma_manager = chroma_manager

class AzureChatbot(EmbeddingHandler):
    pass
"""

# What the block has written is there; and what it gives FastAPI for the end of the app closes the database.
AND_THEN = """
import asyncio
from pathlib import Path
from chroma_manager import ClientClosedError

async def serve():
    async with app.router.lifespan_context(app):
        found = embedding_handler.chroma_manager.get_collection("doc123", "azure", "rag_collection_doc123_azure").get()
        assert found["documents"] == ["..."], found
        assert azure_chatbot.chroma_manager is chroma_manager
        assert Path("chroma_db/doc123/azure/chroma.sqlite3").is_file()
        assert chroma_manager.stats()["instances"]

asyncio.run(serve())
assert not chroma_manager.stats()["instances"]
try:
    collection.count()
except ClientClosedError:
    print("closed")
"""


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= LONGEST


@pytest.mark.parametrize(("language", "code"), BLOCKS, ids=[f"block {i + 1}" for i in range(len(BLOCKS))])
def test_a_block_works_as_it_stands(language: str, code: str, tmp_path: Path) -> None:
    if language == "python":
        _run_python(code, tmp_path)
    else:
        assert language == "sh"
        for line in code.splitlines():
            _check_command(shlex.split(line, comments=True))


def _run_python(code: str, directory: Path) -> None:
    left = {node.name for node in ast.parse(THE_APPS_OWN).body if isinstance(node, ast.ClassDef)}
    assert _free_names(code) == left | {"configs", "gcs_handler"}
    program = directory / "app.py"
    program.write_text("\n".join((THE_APPS_OWN, code, AND_THEN)))
    ran = subprocess.run([sys.executable, program], cwd=directory, capture_output=True, text=True, check=False)
    assert ran.stdout == "closed\n", ran.stderr


def _free_names(code: str) -> set[str]:
    names = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)]
    bound = {node.id for node in names if isinstance(node.ctx, ast.Store)} | set(dir(builtins))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {name.asname or name.name for name in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
    return {node.id for node in names} - bound


def _check_command(command: list[str]) -> None:
    match command:
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
            _run([*command, "--dry-run"])
        case ["pip", "install", *_]:
            # All but the installation itself: that it succeeds is seen in the environment that runs this.
            done = _run([sys.executable, "-m", *command, "--dry-run", "--no-deps"])
            assert "Would install chroma-manager" in done
        case ["pip", *_]:
            # Building takes minutes: that pip knows such options has to do.
            _run([sys.executable, "-m", *command, "--help"])
        case _:
            pytest.fail(f"{command}: what is to be done with that?")


def _run(command: list[str]) -> str:
    # Under `make test` its options are in the environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", _without_code(page.read_text())):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.is_file(), target
            assert not anchor or anchor in _anchors(file.read_text()), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    folders = [ROOT / name for name in ("tests", "src", "python/chroma_manager", "benches", "tools", "examples")]
    for name in re.findall(r"`((?:\w+/)*\w+\.(?:py|rs))`", page.read_text()):
        is_there = any((folder / name).is_file() for folder in (ROOT, *folders))
        assert is_there or ("/" not in name and any(any(folder.rglob(name)) for folder in folders)), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_lines_of_a_page_are_wrapped(page: Path) -> None:
    too_wide = [line for line in page.read_text().splitlines() if len(line) > WIDEST and not line.startswith("|")]
    assert too_wide == []


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def _anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", _without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
