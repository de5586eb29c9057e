"""Who imports whom: the arrows between the files of both halves, read from their source, of which nothing is run.

Left out are Rust's tests (`#[cfg(test)]`, and files named `tests.rs`) and `src/explored`, which is tests. An import
counts wherever it stands, also inside a function and under `TYPE_CHECKING`. What the pictures make of the arrows is in
`test_pictures.py`.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

PACKAGE = "chroma_manager"

# The Rust half, as the Python half imports it.
NATIVE = f"python/{PACKAGE}/_native.pyi"

Arrows = dict[str, set[str]]
Module = tuple[str, ...]


@cache
def rust_arrows() -> Arrows:
    """From each file of the crate to those that define what it names: a re-export is followed to the definition."""
    crate = _Crate()
    arrows: Arrows = {file: set() for file in crate.files.values()}
    for module, path in crate.paths():
        defined_in = crate.resolve(module, path)
        if defined_in is not None and defined_in != crate.files[module]:
            arrows[crate.files[module]].add(defined_in)
    return arrows


@cache
def python_arrows() -> Arrows:
    """From each file of the package to those whose modules, or names in them, it imports."""
    files = {_dotted(file): str(file.relative_to(ROOT)) for file in sorted((ROOT / "python").rglob("*.py"))}
    modules = {**files, f"{PACKAGE}._native": NATIVE}
    arrows: Arrows = {NATIVE: set()}
    for module, file in files.items():
        imported = _imports_of(ast.parse((ROOT / file).read_text()), modules)
        arrows[file] = {modules[name] for name in imported} - {modules[module]}
    return arrows


def between(arrows: Arrows, node_of: Mapping[str, str]) -> set[tuple[str, str]]:
    """The arrows between groups of files."""
    return {(node_of[a], node_of[b]) for a, targets in arrows.items() for b in targets if node_of[a] != node_of[b]}


def _dotted(file: Path) -> str:
    parts = file.relative_to(ROOT / "python").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports_of(tree: ast.Module, modules: Mapping[str, str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None, "imports are absolute"
            for name in node.names:
                full = f"{node.module}.{name.name}"
                yield from [known for known in (full, node.module) if known in modules][:1]
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in modules)


_COMMENT_OR_TEXT = re.compile(
    r"""//[^\n]*|/\*.*?\*/|b?r(?P<hashes>\#*)".*?"(?P=hashes)|b?"(?:[^"\\]|\\.)*"|b?'(?:[^'\\]|\\.[^']*)'""", re.DOTALL
)
_TEST = re.compile(r"#\[cfg\((?:all\()?test\b[^\]]*\]")
_INLINE_MODULE = re.compile(r"\bmod\s+(\w+)\s*\{")
_USE = re.compile(r"\buse\s+([^;]+);")
_PATH = re.compile(r"(?<![\w:])\w+(?:\s*::\s*\w+)+")


class _Crate:
    """The modules of the crate: in which file each is, and what names its `use` declarations give it."""

    def __init__(self) -> None:
        self.files: dict[Module, str] = {}
        self._code: dict[Module, str] = {}
        self._used: dict[Module, list[Module]] = defaultdict(list)
        self._names: dict[Module, dict[str, Module]] = defaultdict(dict)
        for file in sorted((ROOT / "src").rglob("*.rs")):
            inside = file.relative_to(ROOT / "src")
            if inside.parts[0] != "explored" and inside.name != "tests.rs":
                module = inside.parts[:-1] if inside.name in ("mod.rs", "lib.rs") else inside.with_suffix("").parts
                code = _COMMENT_OR_TEXT.sub('""', file.read_text())
                self._add(module, str(file.relative_to(ROOT)), re.sub(r"\bpub\([^)]*\)", "pub", _without_tests(code)))

    def _add(self, module: Module, file: str, code: str) -> None:
        while inline := _INLINE_MODULE.search(code):
            end = _end_of_block(code, inline.end())
            self._add((*module, inline[1]), file, code[inline.end() : end - 1])
            code = code[: inline.start()] + code[end:]
        self.files[module] = file
        for use in _USE.finditer(code):
            for path, name in _leaves(use[1]):
                self._used[module].append(path)
                self._names[module][name] = path
        self._code[module] = _USE.sub("", code)

    def paths(self) -> Iterator[tuple[Module, Module]]:
        """Every path that a module names, in a `use` or in an expression."""
        for module, code in self._code.items():
            yield from ((module, path) for path in self._used[module])
            yield from ((module, tuple(re.split(r"\s*::\s*", path[0]))) for path in _PATH.finditer(code))

    def resolve(self, module: Module, path: Module, depth: int = 0) -> str | None:
        """The file that defines what a path means in a module; `None` for what is another crate's."""
        assert depth < 20, f"{path} leads back to itself"
        at, rest = self._start(module, path)
        if at is None:
            return None
        while rest:
            if (*at, rest[0]) in self.files:
                at, rest = (*at, rest[0]), rest[1:]
            elif (aliased := self._names[at].get(rest[0], rest[:1])) != rest[:1]:
                # What is re-exported from another crate is defined, for us, where that is said.
                return self.resolve(at, aliased + rest[1:], depth + 1) or (self.files[at] if at != module else None)
            else:
                break
        return self.files[at]

    def _start(self, module: Module, path: Module) -> tuple[Module | None, Module]:
        if path[0] == "crate":
            return (), path[1:]
        at, rest = module, path
        while rest and rest[0] in ("self", "super"):
            at, rest = (at[:-1] if rest[0] == "super" else at), rest[1:]
        is_known = len(rest) < len(path) or (*module, path[0]) in self.files or path[0] in self._names[module]
        return (at, rest) if is_known else (None, ())


def _without_tests(code: str) -> str:
    while test := _TEST.search(code):
        block = re.compile(r"[{;]").search(code, test.end())
        assert block is not None
        end = block.end() if block[0] == ";" else _end_of_block(code, block.end())
        code = code[: test.start()] + code[end:]
    return code


def _end_of_block(code: str, start: int) -> int:
    depth = 1
    for brace in re.compile(r"[{}]").finditer(code, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    raise AssertionError("a block has no end")


def _leaves(tree: str) -> Iterator[tuple[Module, str]]:
    """The paths of a `use` declaration, `a::{b, c::d as e}`, and the name that each is given."""
    tree = tree.strip()
    prefix, brace, group = tree.partition("{")
    if not brace:
        path, _, name = tree.partition(" as ")
        parts = tuple(part.strip() for part in path.split("::") if part.strip())
        if len(parts) > 1 and parts[-1] in ("self", "*"):
            parts = parts[:-1]
        yield parts, name.strip() or parts[-1]
        return
    depth, begin = 0, 0
    group = group[: group.rindex("}")] + ","
    for at, character in enumerate(group):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            if group[begin:at].strip():
                yield from _leaves(prefix + group[begin:at].strip())
            begin = at + 1
