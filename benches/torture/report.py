"""What is printed: each failure with what replays it, kinds of failures, and the table."""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from choice import Ranked
from plan import Operation
from run import Result

SHORT = 300

# What differs between two failures of the same kind.
DETAILS = re.compile(r"/\S+|[0-9a-f]{8}-[0-9a-f-]{27}|\b\d[\d,]*\b|: [a-z]\d+(, \w+)*")


def print_failure(result: Result, *, in_full: bool = False) -> None:
    """What replays it, what had the fault, what is wrong."""
    print(f'make torture ARGS="{result.state.arguments()}"')
    print(f"  {result.hit or 'no fault'} ({result.fired} faults, {result.seconds:.0f} s)")
    for failure in result.failures:
        # A hang may not come again.
        text = failure.strip() if in_full or failure.startswith("hangs") else _raised(failure)[:SHORT]
        print("    " + text.replace("\n", "\n    "))
    if in_full:
        for act, error in result.errors:
            print(f"  act {act}: {error}")
    sys.stdout.flush()


def _raised(failure: str) -> str:
    """Of a traceback what was raised."""
    text = failure.strip()
    return text.splitlines()[-1] if text.startswith("Traceback") else text


def print_progress(done: int, states: int, failures: int) -> None:
    """To a terminal's other stream."""
    print(f"{done:,} of {states:,} states, {failures} failures", file=sys.stderr)


def print_kinds(results: Iterable[Result]) -> None:
    """What calls raised, and failures that look the same."""
    kinds = defaultdict(list)
    for result in results:
        if result.failures:
            kinds[DETAILS.sub("*", _raised(result.failures[0]))[:SHORT]].append(result)
    raised = defaultdict(list)
    for result in results:
        for _, error in result.errors:
            raised[error.split(": ")[1]].append((error[:SHORT], result.state.arguments()))
    if raised:
        print("\nwhat calls raised, with one that stands for them:")
    for name, errors in sorted(raised.items(), key=lambda entry: -len(entry[1])):
        print(f"  {len(errors)}: {name}: {errors[0][0]}\n     {errors[0][1]}")
    if kinds:
        print("\nfailures that look the same:")
    for kind, alike in sorted(kinds.items(), key=lambda entry: -len(entry[1])):
        first = alike[0]
        print(f"  {len(alike)}: {kind.replace(chr(10), ' ')}\n     {first.hit}\n     {first.state.arguments()}")


def print_table(
    lives: Sequence[str],
    faults: Sequence[str],
    operations: Mapping[str, Sequence[Operation]],
    groups: Iterable[Sequence[Ranked]],
    results: Sequence[Result],
) -> None:
    """Of each life and fault how many states there are, were tried, and failed."""
    every = Counter((state.life, state.fault) for group in groups for _, state in group)
    tried = Counter((result.state.life, result.state.fault) for result in results)
    failed = Counter((result.state.life, result.state.fault) for result in results if result.failures)

    def cell(life: str, fault: str) -> str:
        wrong = failed[life, fault]
        return f"{tried[life, fault]} of {every[life, fault]}" + (f", **{wrong} failed**" if wrong else "")

    rows = [["life", "operations", *faults, "failures"]]
    rows.append(["---"] * len(rows[0]))
    for life in lives:
        wrong = sum(failed[life, fault] for fault in [None, *faults])
        rows.append([life, f"{len(operations[life]):,}", *(cell(life, fault) for fault in faults), str(wrong)])
    print()
    for row in rows:
        print(f"| {' | '.join(row)} |")
    missed = sum(1 for result in results if result.state.fault and not result.fired)
    wrong = sum(bool(result.failures) for result in results)
    print(f"\n{len(results):,} runs, {wrong} failures; in {missed} no fault came")
    print("A cell: states that were tried, of those that there are")
