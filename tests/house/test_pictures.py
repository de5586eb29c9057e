"""The pictures and tables of `docs/architecture.md` are what the source says, which is read, and not imported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import pytest
from arrows import ROOT, Arrows, python_arrows, rust_arrows

PAGE = (ROOT / "docs/architecture.md").read_text()

# What a state is called that is a mark of an instance, and not one of its phases.
MARKS = {"ended": "closed by cleanup"}


class Box(NamedTuple):
    """A box of a picture, with the boxes around it, and how far up it is."""

    chain: tuple[str, ...]
    place: int


class House:
    """A flowchart whose boxes are files and folders: the first line of each label names them."""

    def __init__(self, picture: str) -> None:
        self.base = _found(r"^%% in (\S+)/$", picture)
        self.boxes: dict[str, Box] = {}
        self.paths: dict[str, str] = {}
        self.arrows: set[tuple[str, str]] = set()
        around: list[str] = []
        for line in map(str.strip, picture.splitlines()):
            if box := re.fullmatch(r'(subgraph )?(\w+)\["([^"]+)"\]', line):
                self.boxes[box[2]] = Box((*around, box[2]), len(self.boxes))
                if box[1]:
                    around.append(box[2])
                else:
                    self.paths |= dict.fromkeys(box[3].split("<br/>")[0].split(), box[2])
            elif line == "end":
                around.pop()
            elif "-->" in line:
                begin, ends = line.split(" --> ")
                self.arrows |= {(begin, end) for end in ends.split(" & ")}

    def box_of(self, file: str) -> str:
        """The box that names a file, or the innermost folder around it."""
        path = file.removeprefix(f"{self.base}/")
        names = [name for name in self.paths if path == name or (name.endswith("/") and path.startswith(name))]
        assert names, f"no box of the picture has {file}"
        return self.paths[max(names, key=len)]

    def drawn(self, arrows: Arrows) -> Mapping[tuple[str, str], set[str]]:
        """How the picture would draw these arrows between files, with those that are behind each of its arrows.

        Both ends are the outermost boxes that are not around the other end as well.
        """
        behind: dict[tuple[str, str], set[str]] = {}
        for begin, ends in arrows.items():
            for end in ends:
                chains = (self.boxes[self.box_of(file)].chain for file in (begin, end))
                for one, other in zip(*chains, strict=False):
                    if one != other:
                        behind.setdefault((one, other), set()).add(f"{begin} imports {end}")
                        break
        return behind


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no {pattern}"
    return found[1]


def _pictures(kind: str) -> list[str]:
    return [picture for picture in re.findall(r"```mermaid\n(.*?)```", PAGE, re.DOTALL) if kind in picture]


def _section(title: str) -> str:
    return _found(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE)


def _rows(header: str) -> Iterator[list[str]]:
    """The rows of the table with that header, their cells without backticks."""
    table = _found(rf"^{re.escape(header)}\n\|[- |]+\|\n((?:\|[^\n]*\n)+)", PAGE)
    for row in table.splitlines():
        yield [cell.strip().replace("`", "") for cell in row.strip("|").split("|")]


HALVES = [("src", rust_arrows), ("python/chroma_manager", python_arrows)]


@pytest.fixture(params=HALVES, ids=["rust", "python"])
def half(request: pytest.FixtureRequest) -> tuple[House, Arrows]:
    base, arrows = request.param
    houses = {house.base: house for house in map(House, _pictures("flowchart"))}
    return houses[base], arrows()


def test_what_a_picture_names_exists(half: tuple[House, Arrows]) -> None:
    house, _ = half
    for path in house.paths:
        assert (ROOT / house.base / path).exists(), path
        assert path.endswith("/") == (ROOT / house.base / path).is_dir(), path


def test_the_arrows_of_the_picture_are_those_of_the_source(half: tuple[House, Arrows]) -> None:
    house, arrows = half
    drawn = house.drawn(arrows)
    assert {arrow: drawn[arrow] for arrow in drawn.keys() - house.arrows} == {}, "not in the picture"
    assert house.arrows - drawn.keys() == set(), "in the picture alone"


def test_no_arrow_goes_up(half: tuple[House, Arrows]) -> None:
    house, arrows = half
    for (begin, end), behind in house.drawn(arrows).items():
        assert house.boxes[begin].place < house.boxes[end].place, f"{begin} is below {end}: {behind}"


def test_no_files_import_each_other_in_a_circle(half: tuple[House, Arrows]) -> None:
    _, arrows = half
    reached = {file: _reached_from(file, arrows) for file in arrows}
    circles = {frozenset(f for f in reached[file] if file in reached[f]) for file in arrows if file in reached[file]}
    assert [sorted(circle) for circle in circles] == []


def _reached_from(file: str, arrows: Arrows) -> set[str]:
    reached: set[str] = set()
    left = set(arrows[file])
    while left:
        reached |= left
        left = {end for begin in left for end in arrows[begin]} - reached
    return reached


def test_the_python_that_rust_calls_by_name_is_what_the_table_says() -> None:
    house = next(house for house in map(House, _pictures("flowchart")) if house.base == "src")
    called: set[tuple[str, str]] = set()
    for file in rust_arrows():
        outermost = house.boxes[house.box_of(file)].chain[0]
        for name in re.findall(r'"chroma_manager\.(\w+(?:\.\w+)*)"', (ROOT / file).read_text()):
            if name != "_native":
                folder, _, module = name.partition(".")
                assert (ROOT / "python/chroma_manager" / f"{name.replace('.', '/')}.py").is_file(), name
                called.add((outermost, f"{folder}/" if module else f"{folder}.py"))
    names = {"what Python sees": "top", "engine/": "engine", "python/": "python"}
    told = {(names[begin], end) for begin, ends in _rows("| from | to |") for end in ends.split(", ")}
    assert told == called


def test_the_participants_of_a_sequence_exist() -> None:
    (sequence,) = _pictures("sequenceDiagram")
    named = re.findall(r"^ *participant \w+ as (.*)$", sequence, re.MULTILINE)
    paths = [name for name in named if name.endswith((".rs", "/"))]
    assert len(paths) >= 4
    for path in paths:
        assert (ROOT / "src" / path).exists(), path


def test_the_states_of_an_instance_are_those_of_the_source() -> None:
    instance, state = ((ROOT / "src/instance" / name).read_text() for name in ("mod.rs", "state.rs"))
    phases = re.findall(r"^ +(\w+)", _found(r"enum Phase<D> \{\n(.*?)^\}", state), re.MULTILINE)
    marks = re.findall(r"^ +(\w+): AtomicBool", _found(r"struct Instance<D> \{\n(.*?)^\}", instance), re.MULTILINE)
    (picture,) = _pictures("stateDiagram-v2")
    titles = {name: title for title, name in re.findall(r'state "(.*?)" as (\w+)', picture)}
    states = {state for arrow in re.findall(r"(\w+|\[\*\]) --> (\w+|\[\*\])", picture) for state in arrow} - {"[*]"}
    known = {*phases, *(MARKS.get(mark, mark.replace("_", " ")) for mark in marks)}
    assert {titles.get(state, state) for state in states} == known


def test_the_kinds_of_frames_are_those_of_the_source() -> None:
    source = (ROOT / "src/engine/isolated/protocol/frame.rs").read_text()
    kinds = re.findall(r"^ +(\w+) = (\d+),", _found(r"enum Kind \{\n(.*?)^\}", source), re.MULTILINE)
    rows = list(_rows("| number | kind | from | meaning | body |"))
    assert [(name, number) for number, name, *_ in rows] == kinds
    for _, name, sender, *_ in rows:
        comment = _found(rf"///([^\n]*)\n(?:[ \t]*///[^\n]*\n)*[ \t]*{name} = \d+,", source)
        is_of_app = comment.strip().startswith("Request of the app")
        assert sender == ("app" if is_of_app else "engine process"), f"{name}: {comment}"


def test_the_layout_of_a_frame_is_that_of_the_source() -> None:
    source = (ROOT / "src/engine/isolated/protocol/frame.rs").read_text()
    layout = dict(_rows("| bytes | content |"))
    header = int(_found(r"const HEADER: usize = (\d+);", source))
    places = [int(place) for name in layout for place in re.findall(r"\d+", name)]
    assert places[-1] == header
    assert all(one < other for one, other in pairwise(places))
    assert layout["3"] == "version of the protocol: " + _found(r"const VERSION: u8 = (\d+);", source)
    assert layout["0 to 2"] == _found(r'const MAGIC: \[u8; 3\] = \*b"(\w+)";', source)
    largest, part = (1 << int(_found(rf"const {name}: \w+ = 1 << (\d+);", source)) for name in ("MAX_BODY", "PART"))
    assert f"at most {largest >> 30} GiB" in layout["5 to 8"]
    assert f"at most {part >> 20} MiB" in _section("The wire protocol")
