"""How fast both engines are, and what they cost, beside those that an app could use instead.

    make bench                             every row, in one run; then the tables and figures of the pages
    make bench ARGS="--long"               with 500 open databases, 2,000 passing through, a recovery of 100,000
    make bench ARGS="--small --only chat"  to see whether it works: nothing is kept, the table is printed
    make bench-growth                      how cost grows; then the figures of the pages
    make bench-report                      the tables and figures of the pages again, from the files of the last runs
    make bench-compare                     a new run of our engines, against the file of the last one
    make bench-compare OLD=a.json NEW=b.json

A run takes each scenario in rounds, in each of which the contenders take turns, each in a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# The figures of all benches look alike.
sys.path.append(str(Path(__file__).parents[1]))

from catalogue import BENCH, BY_NAME, GROWTH, SPEEDS
from compare import comparison
from contenders import NAMES, named
from report import pages, speed_table, stale
from results import GROWTH as GROWTH_FILE
from results import LATEST, ROOT, circumstances, load, save, sizes_of
from rows import rows
from run import measure
from scenario import LONG, SMALL, Scenario, Sizes

# What `compare` measures: ours, and the one whose figures the others are multiples of.
COMPARED = ("chromadb", "embedded", "isolated")
COMPARED_ROUNDS = 2


def main() -> int:
    arguments = parsed()
    return int(arguments.run(arguments) or 0)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("run", run_bench), ("growth", run_growth), ("compare", run_comparison)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument(
            "--only",
            type=some_of([scenario.name for scenario in (*BENCH, *GROWTH)]),
            help="scenarios, with commas between them",
        )
        command.add_argument("--contenders", type=some_of(NAMES), default=list(NAMES))
        command.add_argument("--rounds", type=int, help="instead of each scenario's own number")
        command.add_argument("--small", action="store_true", help="sizes that measure nothing, to try it out")
        command.add_argument("--long", action="store_true", help="sizes for a night")
        command.add_argument("--out", type=Path, help="the file of the run, if it is not to be the last one's")
        if name == "compare":
            command.add_argument("--old", type=Path, default=LATEST)
            command.add_argument("--new", type=Path, help="a file, instead of a new run")
        for size in dataclasses.fields(Sizes):
            if size.type == "int":
                command.add_argument(f"--{size.name.replace('_', '-')}", type=int, help=argparse.SUPPRESS)
    report = commands.add_parser("report")
    report.set_defaults(run=write_pages)
    report.add_argument("--check", action="store_true", help="only say whether the pages are up to date")
    alone = commands.add_parser("alone")
    alone.set_defaults(run=run_alone)
    for name in ("scenario", "contender", "base", "sizes", "part"):
        alone.add_argument(name)
    return parser.parse_args()


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """A list of these names, with commas between them."""

    def names(text: str) -> list[str]:
        unknown = set(text.split(",")) - set(known)
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(known)}")
        return text.split(",")

    return names


def run_bench(arguments: argparse.Namespace) -> None:
    keep(measured(arguments, BENCH, Sizes()), arguments, LATEST)


def run_growth(arguments: argparse.Namespace) -> None:
    keep(measured(arguments, GROWTH, Sizes()), arguments, GROWTH_FILE)


def measured(arguments: argparse.Namespace, scenarios: tuple[Scenario, ...], usual: Sizes) -> dict[str, Any]:
    """A run, of the usual sizes if no others are asked for."""
    chosen = [scenario for scenario in scenarios if not arguments.only or scenario.name in arguments.only]
    sizes, began = chosen_sizes(arguments, usual), time.monotonic()
    run = circumstances(sizes)
    results = measure(chosen, arguments.contenders, sizes, arguments.rounds)
    return {**run, "seconds": round(time.monotonic() - began), "results": results}


def chosen_sizes(arguments: argparse.Namespace, usual: Sizes) -> Sizes:
    sizes = SMALL if arguments.small else LONG if arguments.long else usual
    named_sizes = {size.name: getattr(arguments, size.name, None) for size in dataclasses.fields(Sizes)}
    return dataclasses.replace(sizes, **{name: value for name, value in named_sizes.items() if value is not None})


def keep(run: dict[str, Any], arguments: argparse.Namespace, file: Path) -> None:
    """Writes the file and the pages of a whole run; of any other, only what it is told to."""
    is_whole = not (arguments.only or arguments.small) and arguments.contenders == list(NAMES)
    if arguments.out or is_whole:
        save(arguments.out or file, run)
    if is_whole and not arguments.out:
        write_pages(argparse.Namespace(check=False))
    shown = [row for row in rows(sizes_of(run)) if row.scenario in run["results"]]
    for line in speed_table(shown, run, spread=True) if shown else ():
        print(line)


def write_pages(arguments: argparse.Namespace) -> int:
    """Or says which of them are not what the files of the runs make of them."""
    run, growth = load(LATEST), load(GROWTH_FILE)
    if arguments.check:
        wrong = list(stale(run, growth))
        for file in wrong:
            print(f"{file.relative_to(ROOT)} is not what `make bench-report` writes")
        return int(bool(wrong))
    from figures import draw

    for page, text in pages(run, growth).items():
        page.write_text(text)
    for file in draw(run, growth):
        print(f"drew {file.relative_to(ROOT)}", file=sys.stderr)
    return 0


def run_comparison(arguments: argparse.Namespace) -> int:
    """1 if anything is slower."""
    old = load(arguments.old)
    if arguments.new:
        new = load(arguments.new)
    else:
        arguments.contenders, arguments.rounds = list(COMPARED), arguments.rounds or COMPARED_ROUNDS
        new = measured(arguments, SPEEDS, sizes_of(old))
        if arguments.out:
            save(arguments.out, new)
    if sizes_of(old) != sizes_of(new):
        sys.exit("the two runs are of different sizes")
    lines, is_worse = comparison(old, new)
    print("\n".join(lines))
    return int(is_worse)


def run_alone(arguments: argparse.Namespace) -> None:
    """What the processes of a run do."""
    allow_open_files()
    scenario = BY_NAME[arguments.scenario]
    sizes = sizes_of({"sizes": json.loads(arguments.sizes)})
    contender = named(arguments.contender)(Path(arguments.base))
    try:
        said = (scenario.prepare if arguments.part == "prepare" else scenario.run)(contender, sizes)
        print(json.dumps(said), flush=True)
    finally:
        contender.close()
    os._exit(0)  # after a hang it does not always end by itself


def allow_open_files() -> None:
    """As many as the system lets a process have: an open database of Chroma has a dozen."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
